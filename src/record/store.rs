//! Where records are kept, and one event's turn with the record of its person.

use super::embedded::{Embedded, Ending};
use super::place::{Claim, Failed, Place, Settings};
use super::postgres::Postgres;
use super::{Known, Mapped, Note, Offer, Record, Sent, Values, rounds};
use crate::integration::{Integration, Name};
use crate::mapping::Source;
use crate::task;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use hmac::{Hmac, KeyInit, Mac};
use jiff::{SignedDuration, Timestamp};
use sha2::Sha256;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// What a request may be late beyond the longest delay and its timeout: clocks and queues.
const MARGIN: SignedDuration = SignedDuration::from_secs(5);
/// A request that waits for longer between its note and its sending is noted again.
const LONGEST_WAIT: SignedDuration = SignedDuration::from_secs(1);
/// Bytes of the key under which identifiers are hashed, and of a store's identity.
pub(super) const SECRET_BYTES: usize = 32;
pub(super) const IDENTITY_BYTES: usize = 16;

/// A person's key: a keyed hash.
pub type Key = [u8; 16];

/// What a change of a record asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Write {
    Nothing,
    /// Seen at once; nobody waits until it is durable.
    Later,
    /// The change counts only once it is durable.
    Durable,
}

/// What a store showed of a record, so that the next change need not ask again.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Of the shared store: how often the record was written.
    pub revision: i64,
    pub record: Option<Record>,
}

/// An open store.
#[derive(Debug)]
enum Store {
    Embedded(Embedded),
    Postgres(Postgres),
}

impl Store {
    async fn open(place: Place, retention: SignedDuration, own: &str) -> Result<Store, Failed> {
        match place {
            Place::Directory(directory) => {
                let opened = tokio::task::spawn_blocking(move || Embedded::open(&directory, retention)).await;
                Ok(Store::Embedded(opened.map_err(|_| Failed::closed())??))
            }
            Place::Postgres(address) => Ok(Store::Postgres(Postgres::open(&address, retention, own).await?)),
            Place::Off => Err(Failed::new("no records are kept: [records] store is \"off\"")),
        }
    }

    fn is_open(&self) -> bool {
        match self {
            Store::Embedded(store) => store.is_open(),
            Store::Postgres(store) => store.is_open(),
        }
    }

    /// What has to end before it can be opened anew.
    fn ending(&self) -> Option<Ending> {
        match self {
            Store::Embedded(store) => Some(store.ending()),
            Store::Postgres(_) => None,
        }
    }

    fn secret(&self) -> &[u8] {
        match self {
            Store::Embedded(store) => store.secret(),
            Store::Postgres(store) => store.secret(),
        }
    }

    /// Reads a record, changes it and writes it, as one step. The change must be repeatable: it is
    /// made again when another worker was faster. Where it asks for nothing, it must have left the
    /// record as it was.
    async fn update<T>(
        &self,
        key: Key,
        seen: Option<Seen>,
        change: impl FnMut(&mut Option<Record>) -> (T, Write),
    ) -> Result<(T, Seen), Failed> {
        match self {
            Store::Embedded(store) => Ok((store.update(key, change).await?, Seen::default())),
            Store::Postgres(store) => store.update(key, seen, change).await,
        }
    }

    async fn note(&self, name: &str) -> Result<Option<String>, Failed> {
        match self {
            Store::Embedded(store) => store.note(name),
            Store::Postgres(store) => store.note(name).await,
        }
    }

    async fn set_note(&self, name: &str, text: &str) -> Result<(), Failed> {
        match self {
            Store::Embedded(store) => store.set_note(name, text).await,
            Store::Postgres(store) => store.set_note(name, text).await,
        }
    }

    async fn suspect(&self, key: Key, own: &str) -> Result<Known, Failed> {
        match self {
            Store::Embedded(store) => store.suspect(key, own),
            Store::Postgres(store) => store.suspect(key, own).await,
        }
    }

    async fn note_suspect(&self, key: Key, note: &Note) -> Result<(), Failed> {
        match self {
            Store::Embedded(store) => store.note_suspect(key, note).await,
            Store::Postgres(store) => store.note_suspect(key, note).await,
        }
    }

    async fn forget_suspect(&self, key: Key) -> Result<(), Failed> {
        match self {
            Store::Embedded(store) => {
                store.forget_suspect(key);
                Ok(())
            }
            Store::Postgres(store) => store.forget_suspect(key).await,
        }
    }

    fn count_suspects(&self, change: isize) {
        if let Store::Postgres(store) = self {
            store.suspects().fetch_add(change.cast_unsigned(), Ordering::Relaxed);
        }
    }

    async fn claim(&self) -> Result<Claim, Failed> {
        match self {
            Store::Embedded(store) => store.claim(),
            Store::Postgres(store) => store.claim().await,
        }
    }

    async fn advance(&self) -> Result<Claim, Failed> {
        match self {
            Store::Embedded(store) => store.advance().await,
            Store::Postgres(store) => store.advance().await,
        }
    }

    fn commits(&self) -> u64 {
        match self {
            Store::Embedded(store) => store.commits(),
            Store::Postgres(store) => store.commits(),
        }
    }

    async fn count(&self) -> Result<u64, Failed> {
        match self {
            Store::Embedded(store) => store.count(),
            Store::Postgres(store) => store.count().await,
        }
    }
}

/// How the store stands.
#[derive(Debug)]
enum State {
    Closed,
    /// It failed, and its files may not be closed yet.
    Ending(Ending),
    Opening(Opening),
    Open(Arc<Store>),
}

/// One opening, for which everybody waits.
type Opening = Shared<BoxFuture<'static, Result<Arc<Store>, Failed>>>;

/// All records of the process.
#[derive(Debug)]
pub struct Records {
    settings: Settings,
    retention: SignedDuration,
    state: Arc<Mutex<State>>,
    /// How often the store was opened.
    opened: watch::Sender<u64>,
    ids: RandomState,
    /// Names this process where suspects are noted.
    own: Arc<str>,
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
    store: Arc<Store>,
    key: Key,
    seen: Option<Seen>,
    id: u64,
    offer: Arc<Offer>,
    begun: Timestamp,
    lateness: SignedDuration,
    is_repair: bool,
    ids: RandomState,
    /// What to send, by property.
    pub newest: Values,
    /// How many of the event's choices are outdated.
    pub outdated: usize,
}

/// What an answer led to.
#[derive(Debug, Default)]
pub struct Answered {
    /// An older request may still be executed, and would spoil what was accepted.
    pub is_repair_due: bool,
    /// Somebody else's choice became the newest meanwhile: it is to be sent, too.
    pub moved_on: Option<Box<Taken>>,
}

impl Records {
    /// Records that are opened by [`Records::ready`].
    #[must_use]
    pub fn new(settings: Settings) -> Records {
        let retention = SignedDuration::try_from(settings.retention).unwrap_or(SignedDuration::MAX);
        let ids = RandomState::new();
        let own = format!("{:016x}", ids.hash_one(std::process::id())).into();
        let state = Arc::new(Mutex::new(State::Closed));
        Records { settings, retention, state, opened: watch::Sender::new(0), ids, own }
    }

    /// Whether they keep notes of suspects.
    #[must_use]
    pub fn has_notes(&self) -> bool {
        !matches!(self.settings.place, Place::Off)
    }

    /// What is known of a message that may kill the process; `None` where nothing can be noted.
    ///
    /// # Errors
    /// The store failed.
    pub async fn suspect(&self, integration: &Name, body: &[u8]) -> Result<Option<Suspect>, Failed> {
        if !self.has_notes() {
            return Ok(None);
        }
        let store = self.store().await?;
        let key = suspect_key(store.secret(), integration, body);
        let own = Arc::clone(&self.own);
        let known = store.suspect(key, &own).await?;
        Ok(Some(Suspect { store, key, own, known }))
    }

    /// Where they are kept.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.settings.place
    }

    /// Takes over the role and the password of settings for the same place, for the next connection.
    pub fn renew(&self, settings: &Settings) {
        if let (Place::Postgres(known), Place::Postgres(address)) = (&self.settings.place, &settings.place)
            && known.leads_to(address)
        {
            known.renew(address);
        }
    }

    /// Returns once the store was opened more often than `before`, and how often that is.
    pub async fn opened(&self, before: u64) -> u64 {
        let mut opened = self.opened.subscribe();
        // The sender is ours, so there is always a next time.
        opened.wait_for(|opened| *opened > before).await.map_or(before, |opened| *opened)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store that was opened last, whether it failed since or not.
    fn known(&self) -> Option<Arc<Store>> {
        match &*self.state() {
            State::Open(store) => Some(Arc::clone(store)),
            State::Closed | State::Ending(_) | State::Opening(_) => None,
        }
    }

    /// Opens the store where it is not open. One that a disk holds up goes on opening, and is waited
    /// for again by whoever asks next.
    async fn store(&self) -> Result<Arc<Store>, Failed> {
        let opening = {
            let mut state = self.state();
            if let State::Open(store) = &*state {
                if store.is_open() {
                    return Ok(Arc::clone(store));
                }
                *state = store.ending().map_or(State::Closed, State::Ending);
            }
            match &*state {
                State::Ending(ending) if !ending.is_over() => return Err(Failed::ending()),
                State::Opening(opening) => opening.clone(),
                State::Closed | State::Ending(_) | State::Open(_) => {
                    let opening = self.begin_opening();
                    *state = State::Opening(opening.clone());
                    opening
                }
            }
        };
        tokio::time::timeout(rounds::LONGEST_WRITE, opening).await.unwrap_or_else(|_| Err(Failed::silent()))
    }

    fn begin_opening(&self) -> Opening {
        let (place, retention) = (self.settings.place.clone(), self.retention);
        let (state, opened, own) = (Arc::clone(&self.state), self.opened.clone(), Arc::clone(&self.own));
        let opening = tokio::spawn(async move {
            let opening = task::watched("records", None, Store::open(place, retention, &own)).await;
            let fault = || Err(Failed::new("opening them ended by a fault of this program"));
            let store = opening.unwrap_or_else(fault).map(Arc::new);
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            *state = store.as_ref().map_or(State::Closed, |store| State::Open(Arc::clone(store)));
            opened.send_if_modified(|opened| {
                *opened += u64::from(store.is_ok());
                store.is_ok()
            });
            store
        });
        opening.map(|opened| opened.unwrap_or_else(|_| Err(Failed::closed()))).boxed().shared()
    }

    /// Opens the store where it is not open, and learns since when an integration maps what.
    ///
    /// # Errors
    /// Another process holds it, or it cannot be read or written.
    pub async fn ready(&self, integration: &Integration, now: Timestamp) -> Result<Mapped, Failed> {
        match self.settings.place {
            Place::Off => Ok(Mapped::default()),
            _ => mapped(&*self.store().await?, integration, now).await,
        }
    }

    /// Which store it is. Opens it where it is not open.
    ///
    /// # Errors
    /// Another process holds it, or it cannot be read.
    pub async fn claim(&self) -> Result<Claim, Failed> {
        match self.settings.place {
            Place::Off => Ok(Claim::off()),
            _ => self.store().await?.claim().await,
        }
    }

    /// Whether these are the records of which the broker knows, and no older state of them. Begins
    /// another epoch, and gives what the broker is to remember from now on, if anything.
    ///
    /// # Errors
    /// They are not, or the store failed.
    pub async fn vouch(&self, known: Option<&Claim>) -> Result<Option<Claim>, Failed> {
        if let Place::Off = self.settings.place {
            // Who never kept records is not reminded of them.
            return Ok(known.filter(|known| **known != Claim::off()).map(|_| Claim::off()));
        }
        self.compared(known).await?.advance().await.map(Some)
    }

    /// Makes sure that these are the records of which the broker knows, and no older state of them;
    /// a shared store answers for persons from then on.
    ///
    /// # Errors
    /// They are not, or the store failed.
    pub async fn compare(&self, known: Option<&Claim>) -> Result<(), Failed> {
        self.compared(known).await.map(drop)
    }

    async fn compared(&self, known: Option<&Claim>) -> Result<Arc<Store>, Failed> {
        let store = self.store().await?;
        if let Some(known) = known {
            store.claim().await?.follows(known, &self.settings.place)?;
        }
        if let Store::Postgres(store) = &*store {
            store.set_compared();
        }
        Ok(store)
    }

    /// Whether the broker once knew these records as those of an integration.
    ///
    /// # Errors
    /// The store failed.
    pub async fn was_claimed(&self, integration: &Name) -> Result<bool, Failed> {
        match self.settings.place {
            Place::Off => Ok(false),
            _ => Ok(self.store().await?.note(&claimed(integration)).await?.is_some()),
        }
    }

    /// Remembers that the broker knows these records as those of an integration; durable when this
    /// returns.
    ///
    /// # Errors
    /// The store failed.
    pub async fn set_claimed(&self, integration: &Name) -> Result<(), Failed> {
        if let Place::Off = self.settings.place {
            return Ok(());
        }
        let (store, note) = (self.store().await?, claimed(integration));
        if store.note(&note).await?.is_none() { store.set_note(&note, "yes").await } else { Ok(()) }
    }

    /// How often something was committed since the store was opened.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.known().map_or(0, |store| store.commits())
    }

    /// How many persons are on record.
    ///
    /// # Errors
    /// The store failed.
    pub async fn count(&self) -> Result<u64, Failed> {
        self.store().await?.count().await
    }

    /// Begins the turn of an event: merges it, and notes that its request may be executed from now
    /// on. Both are durable when this returns.
    ///
    /// # Errors
    /// The store failed.
    pub async fn begin(
        &self,
        integration: &Integration,
        mapped: &Mapped,
        identifier: &str,
        offer: &Arc<Offer>,
        is_repair: bool,
        now: Timestamp,
    ) -> Result<Turn, Failed> {
        let Some((store, key)) = self.look_up(&integration.records, identifier).await? else {
            return Ok(Turn::Untold);
        };
        let lateness = lateness(integration);
        let id = self.ids.hash_one((key, now));
        let merge = |known: &mut Option<Record>| {
            let remembered = known.as_ref().filter(|record| !record.is_older_than(self.retention, now));
            match remembered {
                Some(record) if record.has_erased(offer.at) => return (Err(Turn::Erased), Write::Nothing),
                None if offer.at.is_some_and(|at| now.duration_since(at) > self.retention) => {
                    return (Err(Turn::TooOld), Write::Nothing);
                }
                Some(_) => {}
                None => *known = None,
            }
            let record = known.get_or_insert_default();
            let outdated = record.merge(offer, now, mapped);
            let newest = if is_repair { record.repair(offer, now, lateness) } else { Some(record.newest(offer)) };
            let Some(newest) = newest else { return (Err(Turn::Needless), Write::Later) };
            record.about_to_send(id, newest.clone(), now, lateness);
            (Ok((newest, outdated)), Write::Durable)
        };
        let (begun, seen) = store.update(key, None, merge).await?;
        Ok(match begun {
            Err(turn) => turn,
            Ok((newest, outdated)) => Turn::Taken(Box::new(Taken {
                store,
                key,
                seen: Some(seen),
                id,
                offer: Arc::clone(offer),
                begun: now,
                lateness,
                is_repair,
                ids: self.ids.clone(),
                newest,
                outdated,
            })),
        })
    }

    /// Erases a person: everything up to an instant, with a mark that it was. Says whether anything
    /// was known.
    ///
    /// # Errors
    /// The store failed.
    pub async fn erase(&self, records: &Name, identifier: &str, at: Timestamp, now: Timestamp) -> Result<bool, Failed> {
        let Some((store, key)) = self.look_up(records, identifier).await? else { return Ok(false) };
        let erase = |known: &mut Option<Record>| {
            let was_known = known.as_ref().is_some_and(|record| !record.is_empty());
            known.get_or_insert_default().erase(at, now);
            (was_known, Write::Durable)
        };
        Ok(store.update(key, None, erase).await?.0)
    }

    /// What is recorded of a person.
    ///
    /// # Errors
    /// The store failed.
    pub async fn person(&self, records: &Name, identifier: &str, now: Timestamp) -> Result<Option<Record>, Failed> {
        let Some((store, key)) = self.look_up(records, identifier).await? else { return Ok(None) };
        let look = |known: &mut Option<Record>| (known.clone(), Write::Nothing);
        let (record, _) = store.update(key, None, look).await?;
        // What is about to be swept is forgotten already.
        Ok(record.filter(|record| !record.is_older_than(self.retention, now)))
    }

    /// `None` where no records are kept.
    async fn look_up(&self, records: &Name, identifier: &str) -> Result<Option<(Arc<Store>, Key)>, Failed> {
        if matches!(self.settings.place, Place::Off) {
            return Ok(None);
        }
        // A worker opens its store before it consumes; one that was closed since is opened there.
        let store = match self.known() {
            Some(store) => store,
            None => self.store().await?,
        };
        let key = key(store.secret(), records, identifier);
        Ok(Some((store, key)))
    }
}

impl Taken {
    /// Notes once more that the request is about to be sent, if it waited so long since that the
    /// note tells another time than it is sent at.
    ///
    /// # Errors
    /// The store failed: the event may not be acked.
    pub async fn refresh(&mut self, now: Timestamp) -> Result<(), Failed> {
        if now.duration_since(self.begun) <= LONGEST_WAIT {
            return Ok(());
        }
        self.begun = now;
        let note = |known: &mut Option<Record>| {
            let record = known.get_or_insert_default();
            record.about_to_send(self.id, self.newest.clone(), now, self.lateness);
            ((), Write::Durable)
        };
        let ((), seen) = self.store.update(self.key, self.seen.take(), note).await?;
        self.seen = Some(seen);
        Ok(())
    }

    /// Whether the request carries another event's newer values.
    #[must_use]
    pub fn is_lent(&self) -> bool {
        self.newest.values().any(|newest| !newest.is_of(&self.offer))
    }

    /// Takes note of what became of the request, and looks whether the record moved on meanwhile.
    /// Where it `was_resent`, what is known of the second copy says nothing of the first.
    ///
    /// # Errors
    /// The store failed, and what is due would not be remembered.
    pub async fn answered(
        mut self: Box<Self>,
        sent: Sent,
        was_resent: bool,
        now: Timestamp,
    ) -> Result<Answered, Failed> {
        let next = self.ids.hash_one((self.id, now));
        let first = self.ids.hash_one((next, self.id));
        let Taken { id, begun, lateness, is_repair, .. } = *self;
        let answer = |known: &mut Option<Record>| {
            let Some(record) = known.as_mut() else { return ((false, None), Write::Nothing) };
            if was_resent && sent != Sent::Unknown {
                record.sent_twice(id, first);
            }
            let before = record.refusals();
            let is_due = record.answered(id, &self.offer, sent, now, lateness) && !is_repair;
            if is_repair && sent == Sent::Accepted {
                record.repaired(begun, &self.newest, lateness);
            }
            let moved_on = if sent == Sent::Accepted { record.moved_on(&self.newest) } else { None };
            if let Some(newest) = &moved_on {
                record.about_to_send(next, newest.clone(), now, lateness);
            }
            let must_last = is_due || is_repair || moved_on.is_some() || record.refusals() != before;
            let write = match sent {
                _ if must_last => Write::Durable,
                Sent::Unknown => Write::Nothing,
                // Lost in a crash, it costs at most a spare request: nobody waits for it.
                _ => Write::Later,
            };
            ((is_due, moved_on), write)
        };
        let ((is_repair_due, moved_on), seen) = self.store.update(self.key, self.seen.clone(), answer).await?;
        self.seen = Some(seen);
        self.id = next;
        self.begun = now;
        let moved_on = moved_on.map(|newest| {
            self.newest = newest;
            self
        });
        Ok(Answered { is_repair_due, moved_on })
    }
}

/// A message that may kill the process, and what is known of it.
#[derive(Debug)]
pub struct Suspect {
    store: Arc<Store>,
    key: Key,
    own: Arc<str>,
    pub known: Known,
}

/// A suspect that is being handled: noted durably, so that the death of this process is noticed.
#[derive(Debug)]
pub struct Noted {
    store: Arc<Store>,
    key: Key,
    deaths: u32,
}

impl Suspect {
    /// At how many deaths it was being handled, as far as is known.
    #[must_use]
    pub fn deaths(&self) -> u32 {
        match self.known {
            Known::Deaths(deaths) => deaths,
            Known::HeldElsewhere => 0,
        }
    }

    /// Notes that this process handles it from now on.
    ///
    /// # Errors
    /// The store failed: it must not be handled.
    pub async fn note(self, now: Timestamp) -> Result<Noted, Failed> {
        let deaths = self.deaths();
        let Suspect { store, key, own, .. } = self;
        store.note_suspect(key, &Note { deaths, holder: Some(own.as_ref().to_owned()), at: now }).await?;
        store.count_suspects(1);
        Ok(Noted { store, key, deaths })
    }
}

impl Noted {
    /// It was handled and this process lives. What is settled is forgotten; what is not settled comes
    /// back, and the deaths at which it was are remembered.
    ///
    /// # Errors
    /// The store failed: it still counts as being handled.
    pub async fn passed(self, is_settled: bool, now: Timestamp) -> Result<(), Failed> {
        let Noted { store, key, deaths } = &self;
        if is_settled || *deaths == 0 {
            return store.forget_suspect(*key).await;
        }
        store.note_suspect(*key, &Note { deaths: *deaths, holder: None, at: now }).await
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.store.count_suspects(-1);
    }
}

/// The note that the broker knew these records.
fn claimed(integration: &Name) -> String {
    format!("claimed {integration}")
}

/// Names a message where suspects are noted; nobody can tell from it what is in the message.
fn suspect_key(secret: &[u8], integration: &Name, body: &[u8]) -> Key {
    keyed(secret, [b"suspect", integration.as_str().as_bytes(), body])
}

/// For how long a request may still be executed after it was sent: until the longest delay after
/// its timeout, and no longer (the README says so). A repair follows so long after.
#[must_use]
pub fn lateness(integration: &Integration) -> SignedDuration {
    let longest = integration.schedule.longest().saturating_add(integration.limits.timeout);
    SignedDuration::try_from(longest).unwrap_or(SignedDuration::MAX).saturating_add(MARGIN)
}

/// A keyed hash: without the store's secret nobody can tell whether somebody is in it.
fn key(secret: &[u8], records: &Name, identifier: &str) -> Key {
    let person = crate::order::person(identifier);
    keyed(secret, [records.as_str().as_bytes(), person.as_bytes()])
}

fn keyed<const N: usize>(secret: &[u8], parts: [&[u8]; N]) -> Key {
    // HMAC takes a key of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) else { return Key::default() };
    for (index, part) in parts.into_iter().enumerate() {
        if index > 0 {
            mac.update(b"\0");
        }
        mac.update(part);
    }
    let mut key = Key::default();
    key.copy_from_slice(&mac.finalize().into_bytes()[..16]);
    key
}

/// Compares the mappings with those of the last time, and remembers when a new one appeared.
async fn mapped(store: &Store, integration: &Integration, now: Timestamp) -> Result<Mapped, Failed> {
    let name = format!("mapped {}", integration.records);
    let known: Option<BTreeMap<String, Option<Timestamp>>> =
        store.note(&name).await?.and_then(|text| serde_json::from_str(&text).ok());
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
