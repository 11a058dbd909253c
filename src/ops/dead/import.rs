//! `dead import`: puts the letters of an export back.
//!
//! The file is read to its end before anything is published. A letter that is in the queue already, equal in
//! everything, is left out. So an import that was interrupted is resumed by the same command, and a discard that
//! was interrupted can be undone.

use super::file::{self, Refused};
use super::{CommandContext, LockedLetters, Progress, letters, talk};
use crate::broker::headers::for_return;
use crate::broker::letters::Pile;
use crate::broker::link;
use crate::broker::settler::Publishers;
use crate::broker::topology::Queues;
use crate::cli::ImportArgs;
use crate::ops::{Failure, print};
use serde_json::json;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use tokio::task::JoinSet;

/// How many channels publish, and how many letters wait for one.
const PUBLISHERS: usize = 32;

/// Imports letters.
///
/// # Errors
/// Problems of configuration, or the file is not an export (exit code 2); it is not complete, or the broker
/// refuses or is gone (1).
pub async fn import(args: &ImportArgs, context: &CommandContext<'_>) -> Result<(), Failure> {
    let (count, of) = verify(&args.file)?;
    let session = LockedLetters::open(&args.integration, Pile::Dead, context).await?;
    if of != args.integration {
        talk(&format!("these are letters of {of}; they go to {}", args.integration));
    }
    let mut present: HashMap<[u8; 16], u32> = HashMap::new();
    session
        .browse(async |letter| {
            *present.entry(file::digest(letter.body, &for_return(letter.properties))).or_default() += 1;
            Ok(false)
        })
        .await?;
    let imported = publish(&session, &args.file, count, present).await?;
    session.letters.close().await;
    if context.as_json {
        return print(&format!("{}\n", json!({ "imported": imported, "already_there": count - imported })));
    }
    print(&format!("imported {}; {} there already\n", letters(imported), count - imported))
}

/// Reads the file to its end, and returns how many letters it holds, and of which integration.
fn verify(path: &Path) -> Result<(u32, String), Failure> {
    let mut reader = file::open(path).map_err(|refused| not_whole(path, refused))?;
    let mut count = 0;
    while reader.letter().map_err(|refused| not_whole(path, refused))?.is_some() {
        count += 1;
    }
    Ok((count, reader.integration))
}

fn not_whole(path: &Path, Refused { line, why }: Refused) -> Failure {
    if line == 0 {
        return Failure::Usage(format!("{} cannot be read: {why}", path.display()));
    }
    // The first line says what a file is: this is another kind of file.
    if line == 1 {
        return Failure::Usage(format!("{}, line 1: {why}; {}; nothing was imported", path.display(), file::REMEDY));
    }
    Failure::Failed(format!("{}, line {line}: {why}; nothing was imported", path.display()))
}

async fn publish(
    session: &LockedLetters,
    path: &Path,
    count: u32,
    mut present: HashMap<[u8; 16], u32>,
) -> Result<u32, Failure> {
    let connection = link::dial(&session.settings.broker, "importing").await?;
    let publishers = Arc::new(Publishers::new(Arc::new(connection), PUBLISHERS));
    let queue = Queues::of(&session.integration.name).dead;
    let mut reader = file::open(path).map_err(|refused| not_whole(path, refused))?;
    let mut progress = Progress::new("imported", "letters", count);
    let (mut under_way, mut imported) = (JoinSet::new(), 0);
    // The file was verified; if it changed meanwhile, the rest of it is refused here.
    while let Some(letter) = reader.letter().map_err(|refused| changed(path, &refused, imported))? {
        let properties = for_return(&letter.properties);
        if let Some(left) = present.get_mut(&file::digest(&letter.body, &properties)).filter(|left| **left > 0) {
            *left -= 1;
            continue;
        }
        if under_way.len() >= 2 * PUBLISHERS {
            finish_one(&mut under_way, &mut imported).await?;
            progress.at(imported);
        }
        let (publishers, queue) = (Arc::clone(&publishers), queue.clone());
        under_way.spawn(async move { publishers.put(&queue, &letter.body, properties).await });
    }
    while !under_way.is_empty() {
        finish_one(&mut under_way, &mut imported).await?;
    }
    progress.end();
    publishers.close().await;
    Ok(imported)
}

async fn finish_one(
    under_way: &mut JoinSet<Result<(), crate::broker::Error>>,
    imported: &mut u32,
) -> Result<(), Failure> {
    // These tasks are never aborted and do not panic.
    if let Some(Ok(published)) = under_way.join_next().await {
        let again = "the same command continues where this one ended";
        published
            .map_err(|error| Failure::Failed(format!("{error}; {} were imported; {again}", letters(*imported))))?;
        *imported += 1;
    }
    Ok(())
}

fn changed(path: &Path, Refused { line, why }: &Refused, imported: u32) -> Failure {
    let imported = letters(imported);
    Failure::Failed(format!("{} changed meanwhile, line {line}: {why}; {imported} were imported", path.display()))
}
