//! Where records are kept, and one event's turn with the record of its person.

use super::embedded::{Embedded, Ending};
use super::place::{Backend, Claim, Failed, Settings};
use super::postgres::Postgres;
use super::rules::{self, Around, Ask, Begun, Ended, Erasure, Request, Sent, ToSend, Write};
use super::{Known, Mapped, Note, Offer, Record, Recorded, Values, group_commit};
use crate::bytes::{hex, number};
use crate::integration::{Integration, Name};
use crate::mapping::Slot;
use crate::task;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use hmac::{Hmac, KeyInit, Mac};
use jiff::{SignedDuration, Timestamp};
use sha2::Sha256;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::watch;

/// What waits for longer between its turn and its sending is looked at again.
const LONGEST_WAIT: SignedDuration = SignedDuration::from_secs(1);
/// Between two looks whether a store is closed.
const CLOSING: Duration = Duration::from_millis(10);
/// Bytes of the key under which identifiers are hashed, and of a store's identity.
pub(super) const SECRET_BYTES: usize = 32;
pub(super) const IDENTITY_BYTES: usize = 16;

/// A person's key: a keyed hash of the integration's records, and one of the person among them.
pub type Key = [u8; 16];
/// What all keys of an integration's records begin with.
pub(super) type Prefix = [u8; 4];

/// The prefix of a key.
pub(super) fn prefix_of(key: &[u8]) -> Prefix {
    let mut prefix = Prefix::default();
    prefix.iter_mut().zip(key).for_each(|(byte, of_key)| *byte = *of_key);
    prefix
}

/// What a store showed of a record, so that the next change need not ask again.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Of the shared store: how often the record was written.
    pub revision: i64,
    pub record: Option<Record>,
    /// Up to when persons may have been forgotten who are not on record.
    pub swept: Option<Timestamp>,
}

/// What the notes begin with of integrations whose records these are.
const CLAIMED: &str = "claimed ";
/// The note of a copy that is not whole yet.
const UNFINISHED: &str = "copy of";
/// The note of where a store was copied to.
const MOVED: &str = "copied to";
/// The note of how far the store got.
pub(super) const EPOCH: &str = "epoch";
/// Notes that are each store's own.
pub(super) const OWN_NOTES: [&str; 6] = [EPOCH, "identity", "secret", "version", UNFINISHED, MOVED];

/// What makes a copy the same store.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub secret: [u8; SECRET_BYTES],
    pub identity: [u8; IDENTITY_BYTES],
}

impl Origin {
    /// What is noted of a copy from its beginning.
    pub fn mark(&self) -> (&'static str, String) {
        (UNFINISHED, hex(&self.identity))
    }
}

/// An open store.
#[derive(Debug)]
pub(super) enum Store {
    Embedded(Embedded),
    Postgres(Postgres),
}

impl Store {
    /// Opens a store for use: a whole one, and not one that was copied to another place.
    async fn open(place: Backend, retention: SignedDuration, own: &str) -> Result<Store, Failed> {
        let shown = place.to_string();
        let store = Store::open_whole(place, retention, own, None).await?;
        if store.is_unfinished().await? {
            let why = "the copy is not whole; type the same consent-gate store copy again, and it goes on";
            return Err(Failed::new(format!("cannot use the records in {shown}: {why}")));
        }
        match store.moved().await? {
            Some(to) => {
                Err(Failed::new(format!("cannot use the records in {shown}: they were copied to {to}; use those")))
            }
            None => Ok(store),
        }
    }

    /// Opens a store in whatever state; with an origin, one that is or becomes its copy.
    pub(super) async fn open_whole(
        place: Backend,
        retention: SignedDuration,
        own: &str,
        origin: Option<Origin>,
    ) -> Result<Store, Failed> {
        match place {
            Backend::Directory(directory) => {
                let open = move || Embedded::open(&directory, retention, origin.as_ref());
                let opened = tokio::task::spawn_blocking(open).await;
                Ok(Store::Embedded(opened.map_err(|_| Failed::closed())??))
            }
            Backend::Postgres(address) => {
                Ok(Store::Postgres(Postgres::open(&address, retention, own, origin.as_ref()).await?))
            }
            Backend::Off => Err(Failed::new("no records are kept: [records] store is \"off\"")),
        }
    }

    /// Closes it, and returns once it may be opened again.
    pub(super) async fn close(self) {
        let ending = self.ending();
        drop(self);
        while ending.as_ref().is_some_and(|ending| !ending.is_over()) {
            tokio::time::sleep(CLOSING).await;
        }
    }

    /// What makes a copy of it the same store.
    pub(super) fn origin(&self) -> Origin {
        match self {
            Store::Embedded(store) => store.origin(),
            Store::Postgres(store) => store.origin(),
        }
    }

    /// Whether it is a copy that is not whole yet.
    pub(super) async fn is_unfinished(&self) -> Result<bool, Failed> {
        Ok(self.note(UNFINISHED).await?.is_some_and(|of| !of.is_empty()))
    }

    /// Makes a copy whole.
    pub(super) async fn set_finished(&self) -> Result<(), Failed> {
        self.set_note(UNFINISHED, "").await
    }

    /// Where it was copied to.
    pub(super) async fn moved(&self) -> Result<Option<String>, Failed> {
        self.note(MOVED).await
    }

    pub(super) async fn set_moved(&self, to: &str) -> Result<(), Failed> {
        self.set_note(MOVED, to).await
    }

    pub(super) async fn set_epoch(&self, epoch: u64) -> Result<(), Failed> {
        self.set_note(EPOCH, &epoch.to_string()).await
    }

    /// So many records at most, in the order of their keys, after this one.
    pub(super) async fn page(&self, after: Option<Key>, most: usize) -> Result<Vec<(Key, Record)>, Failed> {
        match self {
            Store::Embedded(store) => store.page(after, most),
            Store::Postgres(store) => store.page(after, most).await,
        }
    }

    /// What it noted of itself, but for what is each store's own and what passes with its process.
    pub(super) async fn notes(&self) -> Result<Vec<(String, String)>, Failed> {
        match self {
            Store::Embedded(store) => store.notes(),
            Store::Postgres(store) => store.notes().await,
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

    /// The time by the clock that dates what is in it.
    fn now(&self, now: Timestamp) -> Timestamp {
        match self {
            Store::Embedded(_) => now,
            Store::Postgres(store) => store.now(),
        }
    }

    fn secret(&self) -> &[u8] {
        match self {
            Store::Embedded(store) => store.secret(),
            Store::Postgres(store) => store.secret(),
        }
    }

    /// Reads a record, changes it and writes it, as one step. The change is told up to when persons
    /// were forgotten. It must be repeatable: it is made again when another worker was faster. Where
    /// it asks for nothing, it must have left the record as it was.
    pub(super) async fn update<T>(
        &self,
        key: Key,
        seen: Option<Seen>,
        change: impl FnMut(&mut Option<Record>, Option<Timestamp>) -> (T, Write),
    ) -> Result<(T, Seen), Failed> {
        match self {
            Store::Embedded(store) => Ok((store.update(key, change).await?, Seen::default())),
            Store::Postgres(store) => store.update(key, seen, change).await,
        }
    }

    pub(super) async fn note(&self, name: &str) -> Result<Option<String>, Failed> {
        match self {
            Store::Embedded(store) => store.note(name),
            Store::Postgres(store) => store.note(name).await,
        }
    }

    pub(super) async fn set_note(&self, name: &str, text: &str) -> Result<(), Failed> {
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

    pub(super) async fn claim(&self) -> Result<Claim, Failed> {
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

    pub(super) async fn count(&self) -> Result<u64, Failed> {
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

/// The records that an integration compared with what the broker remembers of them: only into these
/// it merges. Once they are opened anew, they are others.
#[derive(Debug)]
pub struct Verified {
    /// Not held open: what failed must be let go before it is opened anew.
    store: Weak<Store>,
    prefix: Prefix,
    mapped: Mutex<Arc<Mapped>>,
    execution_horizon: SignedDuration,
    retention: SignedDuration,
    ids: RandomState,
    records: Name,
}

/// How an event's turn begins.
#[derive(Debug)]
pub enum Turn {
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
    by: Arc<Verified>,
    store: Arc<Store>,
    key: Key,
    seen: Option<Seen>,
    id: u64,
    offer: Arc<Offer>,
    begun: Timestamp,
    is_repair: bool,
    /// What to send, by property.
    pub newest: Values,
    /// How many of the event's choices are outdated.
    pub outdated: usize,
    /// What is left out, since nobody can know its newest value.
    pub unknown: Vec<Slot>,
}

/// What an answer led to.
#[derive(Debug, Default)]
pub struct Answered {
    /// An older request may still be executed, and would spoil what was accepted.
    pub is_repair_due: bool,
    /// Somebody else's choice became the newest meanwhile: it is to be sent, too.
    pub superseded: Option<Box<Taken>>,
}

impl Records {
    /// Records that are opened by [`Records::open`].
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
        !matches!(self.settings.place, Backend::Off)
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
    pub fn place(&self) -> &Backend {
        &self.settings.place
    }

    /// Takes over the role and the password of settings for the same place, for the next connection.
    pub fn renew(&self, settings: &Settings) {
        if let (Backend::Postgres(known), Backend::Postgres(address)) = (&self.settings.place, &settings.place)
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
        tokio::time::timeout(group_commit::LONGEST_WRITE, opening).await.unwrap_or_else(|_| Err(Failed::silent()))
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

    /// Opens the store where it is not open.
    ///
    /// # Errors
    /// Another process holds it, or it cannot be read or written.
    pub async fn open(&self) -> Result<(), Failed> {
        match self.settings.place {
            Backend::Off => Ok(()),
            _ => self.store().await.map(|_| ()),
        }
    }

    /// Which store it is. Opens it where it is not open.
    ///
    /// # Errors
    /// Another process holds it, or it cannot be read.
    pub async fn claim(&self) -> Result<Claim, Failed> {
        match self.settings.place {
            Backend::Off => Ok(Claim::off()),
            _ => self.store().await?.claim().await,
        }
    }

    /// Whether these are the records of which the broker knows, and no older state of them. Begins
    /// another epoch, and gives what the broker is to remember from now on, if anything. The records
    /// may be merged into once it does.
    ///
    /// # Errors
    /// They are not, or the store failed.
    pub async fn verify(
        &self,
        integration: &Integration,
        known: Option<&Claim>,
    ) -> Result<(Option<Arc<Verified>>, Option<Claim>), Failed> {
        if let Backend::Off = self.settings.place {
            // Who never kept records is not reminded of them.
            return Ok((None, known.filter(|known| **known != Claim::off()).map(|_| Claim::off())));
        }
        let store = self.compared(&integration.name, known).await?;
        let claim = store.advance().await?;
        remember_names(&store, integration).await?;
        let mapped = remember_mappings(&store, integration).await?;
        let verified = Verified {
            prefix: prefix(store.secret(), &integration.records),
            store: Arc::downgrade(&store),
            mapped: Mutex::new(Arc::new(mapped)),
            execution_horizon: rules::execution_horizon(integration),
            retention: self.retention,
            ids: self.ids.clone(),
            records: integration.records.clone(),
        };
        Ok((Some(Arc::new(verified)), Some(claim)))
    }

    /// Makes sure that these are the records of which the broker knows, and no older state of them.
    ///
    /// # Errors
    /// They are not, or the store failed.
    pub async fn compare(&self, integration: &Name, known: Option<&Claim>) -> Result<(), Failed> {
        self.compared(integration, known).await.map(drop)
    }

    /// Records that were refused once stay so while the broker knows of none: it forgot what it knew.
    async fn compared(&self, integration: &Name, known: Option<&Claim>) -> Result<Arc<Store>, Failed> {
        let store = self.store().await?;
        let note = format!("refused for {integration}");
        let noted = store.note(&note).await?.filter(|noted| !noted.is_empty());
        let before = noted.as_ref().and_then(|noted| serde_json::from_str(noted).ok());
        let Some(known) = known.or(before.as_ref()) else { return Ok(store) };
        let judged = store.claim().await?.follows(known, &self.settings.place);
        let note_now = judged.is_err().then(|| serde_json::json!(known).to_string());
        if note_now != noted {
            store.set_note(&note, &note_now.unwrap_or_default()).await?;
        }
        judged.map(|()| store)
    }

    /// How far the clock of the machine that holds the records is ahead of this one's.
    #[must_use]
    pub fn clock_offset(&self) -> SignedDuration {
        match self.known().as_deref() {
            Some(Store::Postgres(store)) => store.clock_offset(),
            Some(Store::Embedded(_)) | None => SignedDuration::ZERO,
        }
    }

    /// Whether the broker once knew these records as those of an integration.
    ///
    /// # Errors
    /// The store failed.
    pub async fn was_claimed(&self, integration: &Name) -> Result<bool, Failed> {
        match self.settings.place {
            Backend::Off => Ok(false),
            _ => Ok(self.store().await?.note(&claimed(integration)).await?.is_some()),
        }
    }

    /// Remembers that the broker knows these records as those of an integration; durable when this
    /// returns.
    ///
    /// # Errors
    /// The store failed.
    pub async fn set_claimed(&self, integration: &Name) -> Result<(), Failed> {
        if let Backend::Off = self.settings.place {
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

    /// Erases a person: everything up to now, with a mark that it was. Says whether anything was
    /// known.
    ///
    /// # Errors
    /// The store failed.
    pub async fn forget(
        &self,
        records: &Name,
        identifier: &str,
        execution_horizon: SignedDuration,
        now: Timestamp,
    ) -> Result<bool, Failed> {
        let Some((store, key)) = self.look_up(records, identifier).await? else { return Ok(false) };
        let erasure = Erasure { at: Some(now), published: now, message: 0 };
        erase(&store, key, erasure, execution_horizon, now).await
    }

    /// What is known of a person.
    ///
    /// # Errors
    /// The store failed.
    pub async fn person(&self, records: &Name, identifier: &str) -> Result<Recorded, Failed> {
        let Some((store, key)) = self.look_up(records, identifier).await? else { return Ok(Recorded::default()) };
        let look = |known: &mut Option<Record>, swept| ((known.clone(), swept), Write::Nothing);
        let (record, swept) = store.update(key, None, look).await?.0;
        let mut mapped = BTreeMap::new();
        for set in record.iter().flat_map(Record::sets) {
            mapped.insert(set, mappings(&store, records, set).await?);
        }
        Ok(Recorded { record, swept, mapped })
    }

    /// `None` where no records are kept.
    async fn look_up(&self, records: &Name, identifier: &str) -> Result<Option<(Arc<Store>, Key)>, Failed> {
        if matches!(self.settings.place, Backend::Off) {
            return Ok(None);
        }
        // A worker opens its store before it consumes; one that was closed since is opened there.
        let store = match self.known() {
            Some(store) => store,
            None => self.store().await?,
        };
        let key = key(store.secret(), prefix(store.secret(), records), identifier);
        Ok(Some((store, key)))
    }
}

async fn erase(
    store: &Store,
    key: Key,
    erasure: Erasure,
    execution_horizon: SignedDuration,
    now: Timestamp,
) -> Result<bool, Failed> {
    let now = store.now(now);
    let erase = |known: &mut Option<Record>, _| rules::erase(known, erasure, now, execution_horizon);
    Ok(store.update(key, None, erase).await?.0)
}

impl Verified {
    /// Begins the turn of an event: merges it, and notes that its request may be executed from now
    /// on. Both are durable when this returns.
    ///
    /// # Errors
    /// The store failed.
    pub async fn begin(
        self: &Arc<Self>,
        identifier: &str,
        offer: &Arc<Offer>,
        is_repair: bool,
        now: Timestamp,
    ) -> Result<Turn, Failed> {
        let store = self.store()?;
        let key = key(store.secret(), self.prefix, identifier);
        self.turn(store, (key, self.ids.hash_one((key, now))), offer, is_repair, now).await
    }

    /// Erases a person: everything up to an instant, with a mark that it was. Where the erasure names
    /// no instant, its message (timestamp, id and body) counts from when it was published, as far as is known at its first
    /// receipt. Says whether anything was known.
    ///
    /// # Errors
    /// The store failed.
    pub async fn erase(
        &self,
        identifier: &str,
        at: Option<Timestamp>,
        (message, published): ([&[u8]; 3], Timestamp),
        now: Timestamp,
    ) -> Result<bool, Failed> {
        let store = self.store()?;
        let message = message_number(store.secret(), message);
        let key = key(store.secret(), self.prefix, identifier);
        erase(&store, key, Erasure { at, published, message }, self.execution_horizon, now).await
    }

    /// What failed once is compared anew before it is merged into.
    fn store(&self) -> Result<Arc<Store>, Failed> {
        self.store.upgrade().filter(|store| store.is_open()).ok_or_else(Failed::closed)
    }

    fn mapped(&self) -> Arc<Mapped> {
        Arc::clone(&self.mapped.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn turn(
        self: &Arc<Self>,
        store: Arc<Store>,
        (key, id): (Key, u64),
        offer: &Arc<Offer>,
        is_repair: bool,
        now: Timestamp,
    ) -> Result<Turn, Failed> {
        let (now, execution_horizon, retention) = (store.now(now), self.execution_horizon, self.retention);
        loop {
            let mapped = self.mapped();
            let change = |known: &mut Option<Record>, swept| {
                if let Some(set) = known.as_ref().and_then(|record| mapped.unknown(record)) {
                    return (Err(set), Write::Nothing);
                }
                let around = Around { now, execution_horizon, retention, swept, mapped: &mapped };
                let (begun, write) = rules::begin(known, Ask { id, offer, is_repair }, &around);
                (Ok(begun), write)
            };
            let (begun, seen) = store.update(key, None, change).await?;
            let ToSend { newest, outdated, unknown, .. } = match begun {
                Ok(Begun::Send(to_send)) => to_send,
                Ok(Begun::Erased) => return Ok(Turn::Erased),
                Ok(Begun::TooOld) => return Ok(Turn::TooOld),
                Ok(Begun::Needless) => return Ok(Turn::Needless),
                Err(set) => {
                    self.learn(&store, set).await?;
                    continue;
                }
            };
            let (by, offer) = (Arc::clone(self), Arc::clone(offer));
            let seen = Some(seen);
            let taken = Taken { by, store, key, seen, id, offer, begun: now, is_repair, newest, outdated, unknown };
            return Ok(Turn::Taken(Box::new(taken)));
        }
    }

    /// Learns of another document's mappings, under which an event was merged.
    async fn learn(&self, store: &Store, set: u64) -> Result<(), Failed> {
        let slots = mappings(store, &self.records, set).await?;
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut mapped).learn(set, slots);
        Ok(())
    }
}

impl Taken {
    /// Merges and looks again, if it waited so long that others may have come meanwhile.
    ///
    /// # Errors
    /// The store failed: the event may not be acked.
    pub async fn looked_again(self: Box<Self>, now: Timestamp) -> Result<Turn, Failed> {
        if self.store.now(now).duration_since(self.begun) <= LONGEST_WAIT {
            return Ok(Turn::Taken(self));
        }
        let Taken { by, key, id, offer, is_repair, .. } = *self;
        by.turn(by.store()?, (key, id), &offer, is_repair, now).await
    }

    /// Whether the request carries another event's newer values.
    #[must_use]
    pub fn carries_others(&self) -> bool {
        self.newest.values().any(|said| !said.is_of(&self.offer))
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
        let (store, Verified { execution_horizon, retention, ids, .. }) = (&self.store, &*self.by);
        let next = ids.hash_one((self.id, now));
        let first = ids.hash_one((next, self.id));
        let (now, mapped) = (store.now(now), self.by.mapped());
        let ask = Ask { id: self.id, offer: &self.offer, is_repair: self.is_repair };
        let request = Request { carried: &self.newest, begun: self.begun, sent, was_resent, first, next };
        let end = |known: &mut Option<Record>, swept| {
            let around =
                Around { now, execution_horizon: *execution_horizon, retention: *retention, swept, mapped: &mapped };
            rules::end(known, ask, &request, &around)
        };
        let (ended, seen) = store.update(self.key, self.seen.clone(), end).await?;
        let Ended { is_repair_due, superseded } = ended;
        self.seen = Some(seen);
        self.id = next;
        self.begun = now;
        let superseded = superseded.map(|newest| {
            self.newest = newest;
            self
        });
        Ok(Answered { is_repair_due, superseded })
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
    format!("{CLAIMED}{integration}")
}

/// Which integration a note is about whose records the broker knows to be these.
pub(super) fn claimed_by(note: &str) -> Option<&str> {
    note.strip_prefix(CLAIMED)
}

/// Names a message where suspects are noted; nobody can tell from it what is in the message.
fn suspect_key(secret: &[u8], integration: &Name, body: &[u8]) -> Key {
    keyed(secret, [b"suspect", integration.as_str().as_bytes(), body])
}

/// The note that tells a set of mappings.
fn mappings_note(records: &Name, set: u64) -> String {
    format!("mappings {records} {set:016x}")
}

/// The mappings of a set; none where nobody knows it any more.
async fn mappings(store: &Store, records: &Name, set: u64) -> Result<Vec<Slot>, Failed> {
    let known = store.note(&mappings_note(records, set)).await?;
    Ok(known.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
}

/// Remembers what an integration maps now, for those who later ask what an event was merged under.
async fn remember_mappings(store: &Store, integration: &Integration) -> Result<Mapped, Failed> {
    let mapped = Mapped::new(integration.mappings.slots().cloned());
    let name = mappings_note(&integration.records, mapped.own());
    if store.note(&name).await?.is_none() {
        let slots: Vec<&Slot> = mapped.slots().collect();
        store.set_note(&name, &serde_json::json!(slots).to_string()).await?;
    }
    Ok(mapped)
}

/// Remembers how persons are named, and says what another way means.
async fn remember_names(store: &Store, integration: &Integration) -> Result<(), Failed> {
    let name = &integration.name;
    let identifier = integration.mappings.identifier_path();
    let notes = [
        ("identifier", format!("identifier {}", integration.records), identifier),
        ("records", format!("records of {name}"), integration.records.as_str()),
    ];
    for (key, note, now) in notes {
        match store.note(&note).await? {
            Some(before) if before == now => continue,
            Some(before) => tracing::warn!(
                integration = name.as_str(),
                before,
                now,
                "\"{key}\" changed: what is recorded under the former one is not found any more, so an event of \
                 before that is retried or replayed can win once over a newer one; change it back to avoid that"
            ),
            None => {}
        }
        store.set_note(&note, now).await?;
    }
    Ok(())
}

/// What all keys of an integration's records begin with.
fn prefix(secret: &[u8], records: &Name) -> Prefix {
    prefix_of(&keyed(secret, [b"records".as_slice(), records.as_str().as_bytes()]))
}

/// A keyed hash: without the store's secret nobody can tell whether somebody is in it.
fn key(secret: &[u8], prefix: Prefix, identifier: &str) -> Key {
    let person = crate::order::person(identifier);
    let mut key = keyed(secret, [b"person".as_slice(), &prefix, person.as_bytes()]);
    key.iter_mut().zip(prefix).for_each(|(byte, of_prefix)| *byte = of_prefix);
    key
}

/// Names a message among those of one person; nobody can tell from it what is in the message.
fn message_number(secret: &[u8], [published, id, body]: [&[u8]; 3]) -> u64 {
    number(&keyed(secret, [b"message", published, id, body]))
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
