//! Where records are kept, and one event's turn with the record of its person.

use super::embedded::{Embedded, Key};
use super::{Mapped, Newest, Offer, Record, Sent};
use crate::integration::{Integration, Name};
use crate::mapping::Source;
use hmac::{Hmac, KeyInit, Mac};
use jiff::{SignedDuration, Timestamp};
use sha2::Sha256;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::Mutex;

/// What a request may be late beyond the longest delay and its timeout: clocks and queues.
const MARGIN: SignedDuration = SignedDuration::from_secs(5);

/// A request that waits for longer between its note and its sending is noted again.
const LONGEST_WAIT: SignedDuration = SignedDuration::from_secs(1);

/// The settings of `[records]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The directory of the embedded store; `None` keeps no records.
    pub directory: Option<PathBuf>,
    /// How long a person is remembered of whom nothing is heard.
    pub retention: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { directory: Some("records".into()), retention: Duration::from_secs(365 * 86_400) }
    }
}

/// The store failed: nothing may be acked that needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed(String);

impl Failed {
    pub(super) fn new(why: String) -> Failed {
        Failed(why)
    }

    pub(super) fn closed() -> Failed {
        Failed("the store is closed after a failure".to_owned())
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failed {}

/// All records of the process.
#[derive(Debug)]
pub struct Records {
    settings: Settings,
    retention: SignedDuration,
    open: Mutex<Option<Embedded>>,
    ids: RandomState,
}

/// How an event's turn begins.
#[derive(Debug)]
pub enum Turn {
    /// No records are kept: an event sends what it says.
    Untold,
    /// The person was erased after this event.
    Erased,
    /// Nobody can know whether this is the newest: it is older than what is remembered.
    TooOld,
    /// A repair that nobody needs any more.
    Needless,
    Taken(Box<Taken>),
}

/// An event's turn: its choices are merged, and what is to be sent is settled.
#[derive(Debug)]
pub struct Taken {
    store: Embedded,
    key: Key,
    id: u64,
    record: Record,
    offer: Offer,
    begun: Timestamp,
    lateness: SignedDuration,
    is_repair: bool,
    /// What to send, by property.
    pub newest: BTreeMap<String, Newest>,
    /// How many of the event's choices are outdated.
    pub outdated: usize,
}

impl Records {
    /// Records that are opened by [`Records::ready`].
    #[must_use]
    pub fn new(settings: Settings) -> Records {
        let retention = SignedDuration::try_from(settings.retention).unwrap_or(SignedDuration::MAX);
        Records { settings, retention, open: Mutex::new(None), ids: RandomState::new() }
    }

    /// Opens the store where it is not open, and learns since when an integration maps what.
    ///
    /// # Errors
    /// Another process holds it, or it cannot be read or written.
    pub async fn ready(&self, integration: &Integration, now: Timestamp) -> Result<Mapped, Failed> {
        let Some(directory) = self.settings.directory.clone() else { return Ok(Mapped::default()) };
        let mut open = self.open.lock().await;
        let store = match open.as_ref().filter(|store| store.is_open()) {
            Some(store) => store.clone(),
            None => {
                let retention = self.retention;
                // Dropping the old one lets go of its lock.
                *open = None;
                let opened = tokio::task::spawn_blocking(move || Embedded::open(&directory, retention)).await;
                open.insert(opened.map_err(|_| Failed::closed())??).clone()
            }
        };
        drop(open);
        mapped(&store, integration, now).await
    }

    /// Begins the turn of an event: merges it. Nothing of that is durable before
    /// [`Taken::about_to_send`] says so.
    ///
    /// # Errors
    /// The store failed.
    pub async fn begin(
        &self,
        integration: &Integration,
        mapped: &Mapped,
        identifier: &str,
        offer: &Offer,
        is_repair: bool,
        now: Timestamp,
    ) -> Result<Turn, Failed> {
        let Some((store, key, mut record)) = self.look_up(&integration.name, identifier, now).await? else {
            return Ok(Turn::Untold);
        };
        let is_known = record.is_some();
        let mut record = record.take().unwrap_or_default();
        if record.has_erased(offer.at) {
            return Ok(Turn::Erased);
        }
        if !is_known && offer.at.is_some_and(|at| now.duration_since(at) > self.retention) {
            return Ok(Turn::TooOld);
        }
        let outdated = record.merge(offer, now, mapped);
        let lateness = lateness(integration);
        let newest = if is_repair { record.repair(offer, now, lateness) } else { Some(record.newest(offer)) };
        let Some(newest) = newest else { return Ok(Turn::Needless) };
        let id = self.ids.hash_one((key, now));
        let offer = offer.clone();
        let taken = Taken { store, key, id, record, offer, begun: now, lateness, is_repair, newest, outdated };
        Ok(Turn::Taken(Box::new(taken)))
    }

    /// Erases a person: everything up to an instant, with a mark that it was.
    ///
    /// # Errors
    /// The store failed.
    pub async fn erase(
        &self,
        integration: &Name,
        identifier: &str,
        at: Timestamp,
        now: Timestamp,
    ) -> Result<(), Failed> {
        let Some((store, key, record)) = self.look_up(integration, identifier, now).await? else { return Ok(()) };
        let mut record = record.unwrap_or_default();
        record.erase(at, now);
        store.write(key, record).await
    }

    /// `None` where no records are kept.
    async fn look_up(
        &self,
        integration: &Name,
        identifier: &str,
        now: Timestamp,
    ) -> Result<Option<(Embedded, Key, Option<Record>)>, Failed> {
        if self.settings.directory.is_none() {
            return Ok(None);
        }
        let store = self.open.lock().await.clone().ok_or_else(Failed::closed)?;
        let key = key(store.secret(), integration, identifier);
        let record = store.read(key)?;
        // What is about to be swept is forgotten already.
        let record = record.filter(|record| !record.is_older_than(self.retention, now));
        Ok(Some((store, key, record)))
    }
}

impl Taken {
    /// Notes that the request is about to be sent, and returns once that and the merge are durable.
    ///
    /// # Errors
    /// The store failed: the event may not be acked.
    pub fn about_to_send(&mut self, now: Timestamp) -> impl Future<Output = Result<(), Failed>> + use<> {
        self.begun = now;
        self.record.about_to_send(self.id, self.newest.clone(), now, self.lateness);
        self.store.write(self.key, self.record.clone())
    }

    /// Whether it has waited so long since that its note tells another time than it is sent.
    #[must_use]
    pub fn has_waited(&self, now: Timestamp) -> bool {
        now.duration_since(self.begun) > LONGEST_WAIT
    }

    /// Whether the request carries another event's newer values.
    #[must_use]
    pub fn is_lent(&self) -> bool {
        self.newest.values().any(|newest| newest.at != self.offer.at || newest.event != self.offer.event)
    }

    /// Takes note of what became of the request. Says whether a repair is due.
    ///
    /// # Errors
    /// The store failed, and the repair that is due would not be remembered.
    pub async fn answered(mut self, sent: Sent, now: Timestamp) -> Result<bool, Failed> {
        let before = self.record.refusals();
        let is_due = self.record.answered(self.id, &self.offer, sent, now, self.lateness) && !self.is_repair;
        if self.is_repair && sent == Sent::Accepted {
            self.record.repaired(self.begun, self.lateness);
        }
        if is_due || self.is_repair || self.record.refusals() != before {
            self.store.write(self.key, self.record).await?;
        } else if sent != Sent::Unknown {
            // Lost in a crash, it costs at most a spare request: nobody waits for it.
            self.store.write_later(self.key, self.record)?;
        }
        Ok(is_due)
    }
}

/// For how long a request may still be executed after it was sent: until the longest delay after
/// its timeout, and no longer (the README says so). A repair follows so long after.
#[must_use]
pub fn lateness(integration: &Integration) -> SignedDuration {
    let longest = integration.schedule.longest().saturating_add(integration.limits.timeout);
    SignedDuration::try_from(longest).unwrap_or(SignedDuration::MAX).saturating_add(MARGIN)
}

/// A keyed hash: without the store's secret nobody can tell whether somebody is in it.
fn key(secret: &[u8], integration: &Name, identifier: &str) -> Key {
    // HMAC takes a key of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) else { return Key::default() };
    mac.update(integration.as_str().as_bytes());
    mac.update(b"\0");
    mac.update(crate::order::person(identifier).as_bytes());
    let mut key = Key::default();
    key.copy_from_slice(&mac.finalize().into_bytes()[..16]);
    key
}

/// Compares the mappings with those of the last time, and remembers when a new one appeared.
async fn mapped(store: &Embedded, integration: &Integration, now: Timestamp) -> Result<Mapped, Failed> {
    let name = format!("mapped {}", integration.name);
    let known: Option<BTreeMap<String, Option<Timestamp>>> =
        store.note(&name)?.and_then(|text| serde_json::from_str(&text).ok());
    let is_first = known.is_none();
    let mut known = known.unwrap_or_default();
    let before = known.clone();
    let mut since = BTreeMap::new();
    for mapping in integration.mappings.iter() {
        let Source::Path(path) = &mapping.source else { continue };
        let appeared =
            known.entry(format!("{}={}", mapping.id, path.written())).or_insert_with(|| (!is_first).then_some(now));
        since.extend(appeared.map(|appeared| (mapping.id.clone(), appeared)));
    }
    if is_first || known != before {
        let text = serde_json::to_string(&known).map_err(|error| Failed::new(error.to_string()))?;
        store.set_note(&name, &text).await?;
    }
    Ok(Mapped::new(since))
}
