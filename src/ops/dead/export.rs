//! `dead export`: copies letters to a file and removes none.

use super::file::{self, ExportWriter};
use super::filter::LetterFilter;
use super::letter::Letter;
use super::{CommandContext, LockedLetters, letters, talk};
use crate::broker::headers;
use crate::cli::ExportArgs;
use crate::observe::audit::AuditedAction;
use crate::ops::{Failure, print, usage};
use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::FieldTable;
use serde_json::json;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// What to do about a file that cannot be created.
const NAME_ANOTHER: &str =
    "name a file with --to that does not exist yet, in a folder that you can write to, or --to - for standard output";

/// Exports letters.
///
/// # Errors
/// Problems of configuration or usage, including a file that exists already (exit code 2); the broker refuses or
/// is gone, or the file cannot be written (1).
pub async fn export(args: &ExportArgs, context: &CommandContext<'_>) -> Result<(), Failure> {
    let now = Timestamp::now();
    let filter = LetterFilter::new(&args.selection, now).map_err(usage)?;
    is_new(&args.to)?;
    let session = LockedLetters::open(&args.integration, args.pile.pile(), context).await?;
    // At the beginning, too: somebody who interrupts the command has what it wrote until then.
    session.audit(AuditedAction::DeadExport, args.pile.pile(), &filter, None).await;
    let is_stdout = is_stdout(&args.to);
    let copied = to(&session, &filter, &args.to, now, |_| {}).await?;
    session.audit(AuditedAction::DeadExport, args.pile.pile(), &filter, Some(copied.into())).await;
    session.letters.close().await;
    let to = args.to.display();
    match (is_stdout, context.as_json) {
        (true, _) => talk(&format!("exported {}", letters(copied))),
        (false, true) => print(&format!("{}\n", json!({ "exported": copied, "file": to.to_string() })))?,
        (false, false) => print(&format!("exported {} to {to}\n", letters(copied)))?,
    }
    Ok(())
}

/// Whether a path stands for standard output.
pub fn is_stdout(path: &Path) -> bool {
    path == Path::new("-")
}

/// Checks, before anything is done or asked, that a file does not exist yet.
///
/// # Errors
/// It exists (exit code 2).
pub fn is_new(path: &Path) -> Result<(), Failure> {
    if is_stdout(path) || !path.exists() {
        return Ok(());
    }
    Err(Failure::Usage(format!("{} exists; {NAME_ANOTHER}", path.display())))
}

/// Copies letters to a new file, which is durable together with its directory entry, or to standard output. A
/// file that cannot be finished is removed.
///
/// # Errors
/// The file exists (exit code 2) or cannot be written, or the broker is gone (1).
pub async fn to(
    session: &LockedLetters,
    filter: &LetterFilter,
    path: &Path,
    now: Timestamp,
    seen: impl FnMut(&Letter<'_>),
) -> Result<u32, Failure> {
    let name = session.integration.name.as_str();
    if is_stdout(path) {
        let writer = ExportWriter::begin(BufWriter::new(io::stdout()), name, now);
        return Ok(copy(session, filter, writer, seen).await?.0);
    }
    let file = file::create(path)
        .map_err(|error| Failure::Usage(format!("{} cannot be created: {error}; {NAME_ANOTHER}", path.display())))?;
    let copied = copy(session, filter, ExportWriter::begin(BufWriter::new(file), name, now), seen).await;
    let durable = copied.and_then(|(count, out)| {
        let written = out.into_inner().map_err(io::IntoInnerError::into_error);
        written.and_then(|file| file::sync(&file, path)).map_err(unwritten)?;
        Ok(count)
    });
    durable.inspect_err(|_| {
        // Import would refuse it anyway.
        let _ = std::fs::remove_file(path);
    })
}

async fn copy<W: Write>(
    session: &LockedLetters,
    filter: &LetterFilter,
    writer: io::Result<ExportWriter<W>>,
    mut seen: impl FnMut(&Letter<'_>),
) -> Result<(u32, W), Failure> {
    let mut writer = writer.map_err(unwritten)?;
    let mut taking = filter.taking();
    session
        .browse(async |letter| {
            let is_meant = taking.takes(&letter);
            if is_meant {
                writer.letter(letter.body, &own(letter.properties)).map_err(unwritten)?;
                seen(&letter);
            }
            Ok(is_meant)
        })
        .await?;
    let count = writer.letters;
    Ok((count, writer.end().map_err(unwritten)?))
}

fn unwritten(error: io::Error) -> Failure {
    Failure::Failed(format!("the export cannot be written: {error}"))
}

/// A letter's own properties, without the headers that count how often it was looked at.
pub fn own(properties: &BasicProperties) -> BasicProperties {
    let Some(received) = properties.headers() else { return properties.clone() };
    let mut headers = FieldTable::default();
    for (key, value) in received.inner().iter().filter(|(key, _)| !headers::is_count(key.as_str())) {
        headers.insert(key.clone(), value.clone());
    }
    properties.clone().with_headers(headers)
}
