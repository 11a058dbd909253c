//! `store copy`: copies the records to another place, and updates what the broker remembers of them.

use super::store::look;
use super::{Failure, Progress, counted, print, talk};
use crate::broker;
use crate::broker::claim::ClaimGuard;
use crate::cli::StoreCopyArgs;
use crate::config::{self, Config, Environment, Settings};
use crate::integration::Integration;
use crate::record::copy::Copying;
use crate::record::{Backend, Claim};
use crate::text::remedy;
use serde_json::json;
use std::path::Path;

/// Copies the records from a former place to the one that the settings name. No worker may run meanwhile.
///
/// # Errors
/// Problems of configuration or usage (exit code 2); a worker runs, the former records are not those that
/// the broker knows, the new place holds others, or something failed on the way (1).
pub async fn copy(
    args: &StoreCopyArgs,
    file: Option<&Path>,
    environment: &Environment,
    as_json: bool,
) -> Result<(), Failure> {
    let Config { settings, integrations, .. } = config::load(file, environment)?;
    let to = whole(settings.records.place.clone());
    let from = whole(former(args)?);
    is_there(&from).await?;
    if matches!(to, Backend::Off) || matches!(from, Backend::Off) {
        return Err(Failure::Usage("there is nothing to copy where no records are kept (\"off\")".to_owned()));
    }
    if from.is_same(&to) {
        let what = format!("--from and [records] store both name {to}; let the settings name the new place");
        return Err(Failure::Usage(what));
    }
    // While these locks are held, no worker begins to use any records of these integrations.
    let looks = hold(&settings, &integrations).await?;
    let copied = copy_held(args, &integrations, &looks, (from.clone(), to.clone())).await;
    let Ok(Some((copying, persons))) = copied else {
        for look in looks {
            look.leave().await;
        }
        copied?;
        return if as_json { Ok(()) } else { print(&format!("the records in {from} are in {to} already\n")) };
    };
    let claim = copying.set_claim().await?;
    for look in looks {
        look.replace(&claim).await?;
    }
    copying.finish().await?;
    let line = json!({ "copied": persons, "from": from.to_string(), "to": to.to_string(), "store": claim.store, "epoch": claim.epoch });
    let text = format!(
        "copied   {} from {from} to {to}, and read them again\n\
         the former records are not used any more; the workers can start with these settings\n",
        counted(persons, "person")
    );
    print(&if as_json { format!("{line}\n") } else { text })
}

/// Where the records were until now.
fn former(args: &StoreCopyArgs) -> Result<Backend, Failure> {
    let text = match (&args.from, &args.from_file) {
        (Some(text), _) => text.clone(),
        (None, Some(file)) => config::read_bounded(file).map_err(|error| {
            Failure::Usage(format!("--from-file {}: {error}; check the path and its permissions", file.display()))
        })?,
        (None, None) => String::new(),
    };
    let text = text.trim();
    if text.is_empty() {
        return Err(Failure::Usage("--from names no place; write a directory or postgres://…".to_owned()));
    }
    let mut warnings = Vec::new();
    let place = config::place(&text.into(), Path::new(""), &mut warnings);
    for warning in &warnings {
        let warning = warning.strip_prefix("records.store: ").unwrap_or(warning);
        talk(&format!("warning  --from: {warning}"));
    }
    place.map_err(|why| Failure::Usage(format!("--from: {why}")))
}

/// Makes sure that there are records in the former place.
async fn is_there(from: &Backend) -> Result<(), Failure> {
    let no_store = |why: &str| {
        let look = "check what [records] store was when the workers last ran";
        Err(Failure::Usage(format!("--from: there is no store in {from}: {why}; {look}")))
    };
    match (from, from.exists().await) {
        (Backend::Directory(directory), _) if directory.is_file() => no_store("it is a file"),
        (Backend::Directory(directory), Ok(false)) if !directory.exists() => no_store("there is no such directory"),
        (Backend::Directory(_), Ok(false) | Err(_)) => no_store("the directory holds no records"),
        (_, Ok(false)) => no_store("its tables are not there"),
        (_, Ok(true)) => Ok(()),
        (_, Err(failed)) => Err(Failure::Failed(remedy::told_of(&failed.to_string(), "--from"))),
    }
}

/// The place by its absolute path, which means the same in every working directory.
fn whole(place: Backend) -> Backend {
    match place {
        Backend::Directory(directory) => {
            let known = directory.canonicalize().or_else(|_| std::path::absolute(&directory));
            Backend::Directory(known.unwrap_or(directory))
        }
        other => other,
    }
}

/// Copies while no worker can begin. Returns how many persons were copied; `None` if all of them were copied
/// before.
async fn copy_held(
    args: &StoreCopyArgs,
    integrations: &[Integration],
    looks: &[ClaimGuard],
    (from, to): (Backend, Backend),
) -> Result<Option<(Copying, u64)>, Failure> {
    nobody_consumes(integrations, looks).await?;
    let copying = Copying::open(from.clone(), to).await?;
    let (own, next) = (copying.source().await?, copying.claim().await?);
    others(&copying.integrations().await?, integrations, &args.removed)?;
    if copying.is_done().await? {
        return Ok(None);
    }
    for (look, Integration { name, .. }) in looks.iter().zip(integrations) {
        // An earlier attempt may have got as far as replacing the claim by the next one.
        let is_wrong = |known: &Claim| *known != next && own.follows(known, &from).is_err();
        if let Some(Claim { store, epoch }) = look.known().filter(is_wrong) {
            let those = format!(
                "{name} has used store {store}, epoch {epoch}, and this is store {}, epoch {}",
                own.store, own.epoch
            );
            return Err(Failure::Failed(format!(
                "the records in {from} are not the ones to copy: {those}; name those with --from"
            )));
        }
    }
    let count = copying.count().await?;
    let mut progress = Progress::new("copied", "persons", count);
    let persons = copying.carry(|done| progress.at(done)).await?;
    progress.end();
    let mut progress = Progress::new("read again", "persons", count);
    let copying = copying.verify(|done| progress.at(done)).await?;
    progress.end();
    nobody_consumes(integrations, looks).await?;
    Ok(Some((copying, persons)))
}

async fn hold(settings: &Settings, integrations: &[Integration]) -> Result<Vec<ClaimGuard>, broker::Error> {
    let mut looks = Vec::with_capacity(integrations.len());
    for integration in integrations {
        looks.push(look(settings, integration).await?);
    }
    Ok(looks)
}

/// Makes sure that no worker consumes: what it merged meanwhile would be in the former records only.
async fn nobody_consumes(integrations: &[Integration], looks: &[ClaimGuard]) -> Result<(), Failure> {
    let mut busy = Vec::new();
    for (Integration { name, .. }, look) in integrations.iter().zip(looks) {
        if look.consumers().await? > 0 {
            busy.push(name.as_str());
        }
    }
    if busy.is_empty() {
        return Ok(());
    }
    Err(Failure::Failed(format!("workers consume events of {}: stop every worker first", busy.join(", "))))
}

/// Refuses to leave behind integrations whose workers would go on with the former records.
fn others(known: &[String], integrations: &[Integration], removed: &[String]) -> Result<(), Failure> {
    let is_named = |name: &String| integrations.iter().any(|ours| ours.name.as_str() == name) || removed.contains(name);
    let others: Vec<&str> = known.iter().filter(|name| !is_named(name)).map(String::as_str).collect();
    if others.is_empty() {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "the records are also those of {}, which these settings do not name; add their documents, or write --removed \
         NAME for each that no worker serves any more",
        others.join(", ")
    )))
}
