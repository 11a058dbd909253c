//! `store`: which records are these, and does the broker know them?

use super::finding::Finding;
use super::{Failure, agreed, counted, print, talk};
use crate::broker::claim::ClaimGuard;
use crate::broker::topology::{self, Declared, Queues};
use crate::broker::{self, link};
use crate::cli::StoreAdoptArgs;
use crate::config::{self, Config, Environment};
use crate::integration::{Integration, Name};
use crate::record::control_socket::Access;
use crate::record::{Backend, Claim, Failed};
use crate::text::remedy;
use nix::unistd::{AccessFlags, access};
use serde_json::json;
use std::path::Path;

/// What is said of records that the broker once knew.
const FORGOTTEN: &str = "the broker has forgotten these records, so nobody can know whether they are the newest: a \
                         policy removed the message from .store (rabbitmqctl list_policies), or the queue or broker is new; \
                         once no policy does, the worker's next event or restart tells the broker again";

/// Shows the records, and what the broker remembers of them for each integration whose document can be read.
///
/// # Errors
/// Problems of configuration, even if the rest was shown (exit code 2); the broker knows other records, or
/// records or broker cannot be reached (1).
pub async fn show(file: Option<&Path>, environment: &Environment, as_json: bool) -> Result<(), Failure> {
    let (Config { settings, integrations, .. }, problems) = config::load_readable(file, environment)?;
    let place = &settings.records.place;
    let (own, access) = opened(&settings).await?;
    let count = count(access.as_ref()).await?;
    let is_free = access.as_ref().is_some_and(|access| is_free(access, place));
    let mut text = if as_json {
        let records = json!({ "records": place.to_string(), "store": own.store, "epoch": own.epoch, "persons": count });
        format!("{records}\n")
    } else {
        format!("records  {place}\nstore    {}\nepoch    {}\npersons  {count}\n", own.store, own.epoch)
    };
    let mut wrong = 0;
    for integration in &integrations {
        let BrokerKnowledge { known, is_consumed } = known(&settings, integration).await?;
        let judged = judged(access.as_ref(), known.as_ref(), &integration.name, place).await;
        let judged = in_place(judged, is_free, is_consumed, integration, place);
        wrong += u32::from(judged.is_err());
        text.push_str(&shown(integration, known.as_ref(), judged.map_err(|failed| failed.to_string()), as_json));
    }
    print(&text)?;
    if !problems.is_empty() {
        Err(problems.into())
    } else if wrong == 0 {
        Ok(())
    } else {
        Err(Failure::Failed(format!("the broker knows other or newer records of {}", counted(wrong, "integration"))))
    }
}

/// A line for an integration: whether these are its records, and the broker has only forgotten that.
fn shown(
    integration: &Integration,
    known: Option<&Claim>,
    is_forgotten: Result<bool, String>,
    as_json: bool,
) -> String {
    let name = &integration.name;
    if as_json {
        let (is_forgotten, refused) = (is_forgotten == Ok(true), is_forgotten.err());
        let (store, epoch) = (known.map(|known| &known.store), known.map(|known| known.epoch));
        return format!(
            "{}\n",
            json!({ "integration": name.as_str(), "store": store, "epoch": epoch, "ok": refused.is_none(), "refused": refused, "forgotten": is_forgotten })
        );
    }
    let known = known.map_or_else(
        || "the broker knows of no records yet".to_owned(),
        |known| format!("the broker knows store {}, epoch {}", known.store, known.epoch),
    );
    match is_forgotten {
        Err(why) => format!("{name}: {known}: refused: {why}\n"),
        Ok(true) => format!("{name}: {FORGOTTEN}\n"),
        Ok(false) => format!("{name}: {known}: right\n"),
    }
}

/// Makes the broker remember these records as the right ones, after asking for confirmation unless `yes`.
///
/// # Errors
/// Problems of configuration or usage, or empty records in place of known ones (exit code 2); records or
/// broker cannot be reached (1).
pub async fn adopt(
    args: &StoreAdoptArgs,
    file: Option<&Path>,
    environment: &Environment,
    as_json: bool,
) -> Result<(), Failure> {
    let Config { settings, integrations, .. } = config::load(file, environment)?;
    let place = &settings.records.place;
    let adopting: Vec<&Integration> = match &args.integration {
        None => integrations.iter().collect(),
        Some(name) => vec![super::named(&integrations, name)?],
    };
    let (own, access) = opened(&settings).await?;
    let mut refused = Vec::new();
    let mut lost = Vec::new();
    for integration in adopting {
        let BrokerKnowledge { known, is_consumed } = known(&settings, integration).await?;
        // Where none are kept, there is nothing to give up unless the broker knows some.
        let is_right = known.as_ref().map_or(access.is_none(), |known| own.follows(known, place).is_ok());
        if is_right {
            continue;
        }
        if is_consumed {
            return Err(Failure::Failed(in_use(integration, place)));
        }
        refused.push(integration);
        if let Some(known) = known.filter(|known| *known != Claim::off()) {
            lost.push(format!("{} (store {}, epoch {})", integration.name, known.store, known.epoch));
        }
    }
    if refused.is_empty() {
        return if as_json { Ok(()) } else { print("nothing to adopt: these are the records that the broker knows\n") };
    }
    if !lost.is_empty() && !args.lose_records && count(access.as_ref()).await? == 0 {
        return Err(Failure::Usage(would_lose(place, &lost)));
    }
    let names: Vec<&str> = refused.iter().map(|integration| integration.name.as_str()).collect();
    let names = names.join(", ");
    let what = match place {
        Backend::Off => format!("keep no records of {names} from now on"),
        _ => format!("take {place} as the records of {names}"),
    };
    let question = format!("{what}? What the former ones knew is lost: an old retry or letter can win");
    if !args.yes && !agreed(&question, "this changes which consents are known as the newest")? {
        return Err(Failure::Failed("nothing was adopted".to_owned()));
    }
    for integration in refused {
        let look = look(&settings, integration).await?;
        look.replace(&own).await?;
        let name = integration.name.as_str();
        let line = json!({ "adopted": name, "store": own.store, "epoch": own.epoch });
        print(&if as_json { format!("{line}\n") } else { format!("adopted  {name}\n") })?;
    }
    Ok(())
}

/// Why nothing is adopted while a worker uses other records.
fn in_use(integration: &Integration, place: &Backend) -> String {
    let others = match place {
        Backend::Off => "with records".to_owned(),
        _ => format!("with records other than those in {place}"),
    };
    format!(
        "a worker consumes events of {} {others}, and the broker knows that worker's: those are the right ones. Use them, or stop that worker first; several workers need PostgreSQL (docs/postgresql.md)",
        integration.name
    )
}

/// What is lost if empty records take the place of others.
fn would_lose(place: &Backend, lost: &[String]) -> String {
    let these = match place {
        Backend::Off => "no records would be kept".to_owned(),
        _ => format!("the records in {place} are empty"),
    };
    format!(
        "{these}, and the broker knows others: {}. Then it is no longer known which \
         consents are the newest, which requests are in doubt and who was erased: an old retry, a late event or a \
         replayed letter can bring back what was withdrawn or deleted since. Bring the others back (first \
         check whether [records] store names the right place), or add --lose-records",
        lost.join(", ")
    )
}

/// Opens records that exist, and compares them with what the broker knows of them.
///
/// # Errors
/// They are not those that the broker knows, or records or broker cannot be reached (exit code 1).
pub(super) async fn compared(settings: &config::Settings, integration: &Integration) -> Result<Access, Failure> {
    let access = Access::open(&settings.records).await?;
    let BrokerKnowledge { known, is_consumed } = known(settings, integration).await?;
    let place = &settings.records.place;
    let compared = access.compare(&integration.name, known.as_ref(), place).await;
    if in_place(compared, is_free(&access, place), is_consumed, integration, place)? {
        talk(&format!("{}: {FORGOTTEN}", integration.name));
    }
    Ok(access)
}

/// Checks, where no records are kept, that the broker knows none either.
///
/// # Errors
/// It knows some, or it cannot be reached (exit code 1).
pub(super) async fn none_known(settings: &config::Settings, integration: &Integration) -> Result<(), Failure> {
    let BrokerKnowledge { known, is_consumed } = known(settings, integration).await?;
    let place = &settings.records.place;
    let judged = judged(None, known.as_ref(), &integration.name, place).await;
    in_place(judged, false, is_consumed, integration, place)?;
    Ok(())
}

/// Opens records that exist; none are kept if the settings say so.
async fn opened(settings: &config::Settings) -> Result<(Claim, Option<Access>), Failed> {
    if let Backend::Off = settings.records.place {
        return Ok((Claim::off(), None));
    }
    let access = Access::open(&settings.records).await?;
    Ok((access.claim().await?, Some(access)))
}

/// How many persons these records are about.
async fn count(access: Option<&Access>) -> Result<u64, Failed> {
    match access {
        Some(access) => access.count().await,
        None => Ok(0),
    }
}

/// What the broker knows of an integration's records, and whether a worker consumes its events.
struct BrokerKnowledge {
    known: Option<Claim>,
    is_consumed: bool,
}

async fn told(look: ClaimGuard) -> Result<BrokerKnowledge, broker::Error> {
    let (known, consumers) = (look.known(), look.consumers().await);
    look.leave().await;
    let is_consumed = match consumers {
        Ok(consumers) => consumers > 0,
        Err(error) if error.code() == Some(404) => false,
        Err(error) => return Err(error),
    };
    Ok(BrokerKnowledge { known, is_consumed })
}

/// Whether these records are for one worker only, and none holds them.
fn is_free(access: &Access, place: &Backend) -> bool {
    matches!((access, place), (Access::Direct(_), Backend::Directory(_)))
}

/// Whether these records are the right ones: as `judged` against what the broker knows, and not used by a worker
/// that has others.
fn in_place(
    judged: Result<bool, Failed>,
    is_free: bool,
    is_consumed: bool,
    integration: &Integration,
    place: &Backend,
) -> Result<bool, Failed> {
    match judged {
        Err(failed) if is_consumed => Err(failed.while_consumed(&integration.name)),
        Ok(_) if is_consumed && is_free => Err(Failed::elsewhere(&integration.name, place)),
        judged => judged,
    }
}

/// What the broker knows of an integration's records, locked against everybody else.
pub(super) async fn look(settings: &config::Settings, integration: &Integration) -> Result<ClaimGuard, broker::Error> {
    let Declared { connection, .. } = topology::declare(&settings.broker, &settings.source, integration).await?;
    ClaimGuard::take(&settings.broker, connection, &integration.name).await
}

/// Whether the records can be used, and whether `run` would accept them as those that the broker knows; for
/// `check --connect`. Creates nothing.
pub(super) async fn reach(config: &Config, is_broker_reached: bool) -> Finding {
    let place = &config.settings.records.place;
    let what = format!("records {place}");
    let (told, access) = match held(&config.settings).await {
        Ok(found) => found,
        Err(failed) => return Finding::new(what, Err(remedy::told(&failed.to_string()))),
    };
    let is_free = access.as_ref().is_some_and(|access| is_free(access, place));
    let (mut refused, mut doubts) = (Vec::new(), Vec::new());
    doubts.extend(access.is_none().then(|| unmakeable(place)).flatten());
    for integration in config.integrations.iter().filter(|_| is_broker_reached) {
        let name = &integration.name;
        match known(&config.settings, integration).await {
            Ok(BrokerKnowledge { known, is_consumed }) => {
                let judged = judged(access.as_ref(), known.as_ref(), name, place).await;
                match in_place(judged, is_free, is_consumed, integration, place) {
                    Ok(true) => doubts.push(format!("{name}: {FORGOTTEN}")),
                    Ok(false) => {}
                    Err(why) => refused.push(format!("{name}: {why}")),
                }
            }
            Err(error) => doubts.push(format!("{name}: not compared with what the broker knows: {error}")),
        }
    }
    let parts = std::iter::once(told).chain(refused.iter().cloned()).chain(doubts.iter().cloned());
    let told = parts.collect::<Vec<_>>().join("; ");
    let result = if refused.is_empty() { Ok(told) } else { Err(told) };
    Finding { is_doubtful: !doubts.is_empty(), ..Finding::new(what, result) }
}

/// Why this user could not create records here, as far as that can be seen without trying. The worker may run as
/// another user.
fn unmakeable(place: &Backend) -> Option<String> {
    let Backend::Directory(directory) = place else { return None };
    let directory = std::path::absolute(directory).ok()?;
    let there = directory.ancestors().find(|above| above.exists())?;
    let why = access(there, AccessFlags::W_OK | AccessFlags::X_OK).err()?;
    let remedy = "give it to the worker's user, or set records.store to another directory";
    Some(format!("this user cannot write to {} ({}); {remedy}", there.display(), why.desc()))
}

/// What records there are, for people, and how to reach them.
async fn held(settings: &config::Settings) -> Result<(String, Option<Access>), Failed> {
    let place = &settings.records.place;
    if matches!(place, Backend::Off) {
        return Ok(("none are kept".to_owned(), None));
    }
    if !place.exists().await? {
        return Ok(("none yet: the worker's first start creates them".to_owned(), None));
    }
    let access = Access::open(&settings.records).await?;
    let held = if matches!(access, Access::Socket(_)) { "held by a running worker, " } else { "" };
    let claim = access.claim().await?;
    Ok((format!("{held}store {}, epoch {}", claim.store, claim.epoch), Some(access)))
}

/// What the broker knows of an integration's records, without declaring a queue for it.
async fn known(settings: &config::Settings, integration: &Integration) -> Result<BrokerKnowledge, broker::Error> {
    let queue = Queues::of(&integration.name).store;
    let connection = link::dial_to_declare(&settings.broker).await?;
    if topology::depth_if_there(&connection, &queue).await?.is_none() {
        topology::close(&connection).await;
        return Ok(BrokerKnowledge { known: None, is_consumed: false });
    }
    told(ClaimGuard::take(&settings.broker, connection, &integration.name).await?).await
}

/// What `run` would say of these records, or of new ones if there are none; and whether the broker has forgotten them.
async fn judged(
    access: Option<&Access>,
    known: Option<&Claim>,
    integration: &Name,
    place: &Backend,
) -> Result<bool, Failed> {
    match (access, known) {
        (Some(access), known) => access.compare(integration, known, place).await,
        (None, None) => Ok(false),
        (None, Some(known)) if matches!(place, Backend::Off) => Claim::off().follows(known, place).map(|()| false),
        (None, Some(known)) if *known == Claim::off() => Err(Failed::after_none(place)),
        (None, Some(known)) => Err(Failed::no_records(known)),
    }
}
