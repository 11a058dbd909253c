//! `dead discard`: removes letters for good, after writing a copy.

use super::export::{is_new, is_stdout, to};
use super::filter::LetterFilter;
use super::{CommandContext, LockedLetters, file, letters, talk};
use crate::cli::DiscardArgs;
use crate::config;
use crate::observe::audit::AuditedAction;
use crate::ops::{Failure, agreed, print, usage};
use jiff::Timestamp;
use serde_json::json;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Removes letters, after asking for confirmation unless told not to.
///
/// # Errors
/// Problems of configuration or usage (exit code 2); the operator did not agree, or the broker refuses or is
/// gone (1).
pub async fn discard(args: &DiscardArgs, context: &CommandContext<'_>) -> Result<(), Failure> {
    let now = Timestamp::now();
    let filter = LetterFilter::new(&args.selection, now).map_err(usage)?;
    args.to.as_deref().map_or(Ok(()), is_new)?;
    let mut session = LockedLetters::open(&args.integration, args.pile.pile(), context).await?;
    let counted = session.count(&filter).await?;
    let copy =
        (!args.no_export).then(|| args.to.clone().unwrap_or_else(|| default_file(context, &args.integration, now)));
    if counted.matching > 0 {
        let kept = copy.as_deref().map_or_else(|| "without a copy".to_owned(), copied_to);
        let which = if filter.is_all() { "all " } else { "" };
        let question = format!("remove {which}{} of {} for good, {kept}?", letters(counted.matching), counted.all);
        if !args.yes && !agreed(&question, "this removes letters for good")? {
            return Err(Failure::Failed("nothing was removed".to_owned()));
        }
    }
    let removed = if counted.matching == 0 {
        0
    } else {
        session.audit(AuditedAction::DeadDiscard, args.pile.pile(), &filter, Some(counted.matching.into())).await;
        remove(&mut session, &filter, copy.as_deref(), now).await?
    };
    session.letters.close().await;
    let copy = copy.filter(|_| removed > 0);
    if copy.as_deref().is_some_and(is_stdout) {
        talk(&format!("removed {} of {}", letters(removed), counted.all));
        return Ok(());
    }
    if context.as_json {
        let file = copy.map(|path| path.display().to_string());
        let left = counted.all.saturating_sub(removed);
        return print(&format!("{}\n", json!({ "removed": removed, "left": left, "file": file })));
    }
    let copied = copy.map(|path| format!(", {}", copied_to(&path))).unwrap_or_default();
    print(&format!("removed {} of {}{copied}\n", letters(removed), counted.all))?;
    filter.found(counted.matching).map_err(Failure::Failed)
}

/// The copy's file: beside the records if systemd or the image names that directory, since all others may be
/// read-only there.
fn default_file(context: &CommandContext<'_>, integration: &str, now: Timestamp) -> PathBuf {
    let name = format!("dead-{integration}-{}.jsonl", now.strftime("%Y%m%dT%H%M%S%.3fZ"));
    config::state_directory(context.environment).unwrap_or_default().join(name)
}

fn copied_to(path: &Path) -> String {
    if is_stdout(path) {
        "with a copy on standard output".to_owned()
    } else {
        format!("with a copy in {}", path.display())
    }
}

/// With a copy, exactly the letters in it are removed, once it is safely on disk.
async fn remove(
    session: &mut LockedLetters,
    filter: &LetterFilter,
    copy: Option<&Path>,
    now: Timestamp,
) -> Result<u32, Failure> {
    let Some(path) = copy else {
        let mut taking = filter.taking();
        return session.remove(|letter| taking.takes(letter)).await;
    };
    let mut copied: HashMap<[u8; 16], u32> = HashMap::new();
    let digest = |letter: &super::Letter<'_>| file::digest(letter.body, &super::export::own(letter.properties));
    to(session, filter, path, now, |letter| *copied.entry(digest(letter)).or_default() += 1).await?;
    session
        .remove(|letter| {
            let left = copied.get_mut(&digest(letter)).filter(|left| **left > 0);
            left.map(|left| *left -= 1).is_some()
        })
        .await
}
