//! How much disk space people take in the records.

use anyhow::Context;
use consent_gate::config::{self, Environment};
use consent_gate::mapping::{Choice, Slot};
use consent_gate::record::{Effect, Offer, Records, RecordsSettings, Turn};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use jiff::Timestamp;
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// Turns under way at once, as with a worker.
const AT_ONCE: usize = 256;

/// Records this many people, each with one event of three choices that was accepted.
pub fn fill(home: &Path, settings: RecordsSettings, people: u64) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let told = |problems: Vec<config::Problem>| anyhow::anyhow!("{problems:?}");
    let all = config::load_settings(None, &Environment::new()).map_err(told)?;
    let document = fs::read_dir(home.join("integrations"))?.next().context("no document")??.path();
    let integration = config::load_document(&document, &all, &Environment::new()).map_err(told)?;
    let records = Records::new(settings);
    runtime.block_on(async {
        let (verified, _) = records.verify(&integration, None).await?;
        let Some(verified) = verified else { return Ok(()) };
        let slots: Vec<Slot> = integration.mappings.slots().cloned().collect();
        let one = |n: u64| {
            let (verified, slots) = (&verified, &slots);
            async move {
                let now = Timestamp::now();
                let choices = slots.iter().cloned().zip([true, false, true].map(Choice::Switch));
                let offer = Arc::new(Offer {
                    at: Some(now),
                    withdrawn_at: Some(now),
                    event: Some(format!("00000000-0000-4000-8000-{n:012}").into()),
                    choices: choices.collect(),
                });
                let person = format!("person-{n}@example.com");
                match verified.begin(&person, &offer, false, now).await? {
                    Turn::Taken(taken) => taken.answered(Effect::Accepted, false, now).await.map(|_| ()),
                    _ => Ok(()),
                }
            }
        };
        stream::iter(0..people).map(one).buffer_unordered(AT_ONCE).try_collect::<()>().await
    })?;
    Ok(())
}

/// Bytes that all files below a folder take on disk.
pub fn on_disk(folder: &Path) -> anyhow::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let about = entry.metadata()?;
        bytes += if about.is_dir() { on_disk(&entry.path())? } else { about.blocks() * 512 };
    }
    Ok(bytes)
}
