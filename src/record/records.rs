//! All records of a process: opened, compared with what the broker remembers, and verified for each
//! integration.

use super::embedded::ClosingStore;
use super::keys::{Key, key, prefix, suspect_key};
use super::notes::{claimed, mappings, remember_mappings, remember_names};
use super::place::{Backend, Claim, Failed, RecordsSettings};
use super::rules::{self, Erasure, Write};
use super::store::Store;
use super::suspect::Suspect;
use super::turn::{Verified, erase};
use super::{Record, Recorded, group_commit};
use crate::integration::{Integration, Name};
use crate::task;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// The state of the store.
#[derive(Debug)]
enum StoreState {
    Closed,
    /// It failed, and its files may not be closed yet.
    Ending(ClosingStore),
    Opening(Opening),
    Open(Arc<Store>),
}

/// An opening in progress, for which all callers wait.
type Opening = Shared<BoxFuture<'static, Result<Arc<Store>, Failed>>>;

/// All records of the process.
#[derive(Debug)]
pub struct Records {
    settings: RecordsSettings,
    retention: SignedDuration,
    state: Arc<Mutex<StoreState>>,
    /// How often the store was opened.
    opened: watch::Sender<u64>,
    ids: RandomState,
    /// Identifies this process in the notes of suspects.
    own: Arc<str>,
}

impl Records {
    /// Records that are not open yet; see [`Records::open`].
    #[must_use]
    pub fn new(settings: RecordsSettings) -> Records {
        let retention = SignedDuration::try_from(settings.retention).unwrap_or(SignedDuration::MAX);
        let ids = RandomState::new();
        let own = format!("{:016x}", ids.hash_one(std::process::id())).into();
        let state = Arc::new(Mutex::new(StoreState::Closed));
        Records { settings, retention, state, opened: watch::Sender::new(0), ids, own }
    }

    /// Whether notes of suspects are kept.
    #[must_use]
    pub fn has_notes(&self) -> bool {
        !matches!(self.settings.place, Backend::Off)
    }

    /// What is known about a message that may kill the process; `None` if no notes are kept.
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

    /// Takes over the role and the password from settings for the same place, for the next connection.
    pub fn renew(&self, settings: &RecordsSettings) {
        if let (Backend::Postgres(known), Backend::Postgres(address)) = (&self.settings.place, &settings.place)
            && known.leads_to(address)
        {
            known.renew(address);
        }
    }

    /// Returns once the store was opened more than `before` times, with the number of times.
    pub async fn opened(&self, before: u64) -> u64 {
        let mut opened = self.opened.subscribe();
        // `self` owns the sender, so there is always a next time.
        opened.wait_for(|opened| *opened > before).await.map_or(before, |opened| *opened)
    }

    fn state(&self) -> MutexGuard<'_, StoreState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store that was opened last, even if it has failed since.
    fn known(&self) -> Option<Arc<Store>> {
        match &*self.state() {
            StoreState::Open(store) => Some(Arc::clone(store)),
            StoreState::Closed | StoreState::Ending(_) | StoreState::Opening(_) => None,
        }
    }

    /// Opens the store if it is not open. An opening that the disk holds up continues, and the next caller
    /// waits for it again.
    async fn store(&self) -> Result<Arc<Store>, Failed> {
        let opening = {
            let mut state = self.state();
            if let StoreState::Open(store) = &*state {
                if store.is_open() {
                    return Ok(Arc::clone(store));
                }
                *state = store.ending().map_or(StoreState::Closed, StoreState::Ending);
            }
            match &*state {
                StoreState::Ending(ending) if !ending.is_over() => return Err(Failed::ending()),
                StoreState::Opening(opening) => opening.clone(),
                StoreState::Closed | StoreState::Ending(_) | StoreState::Open(_) => {
                    let opening = self.begin_opening();
                    *state = StoreState::Opening(opening.clone());
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
            let fault = || Err(Failed::new("opening them ended because of a bug in this program"));
            let store = opening.unwrap_or_else(fault).map(Arc::new);
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            *state = store.as_ref().map_or(StoreState::Closed, |store| StoreState::Open(Arc::clone(store)));
            opened.send_if_modified(|opened| {
                *opened += u64::from(store.is_ok());
                store.is_ok()
            });
            store
        });
        opening.map(|opened| opened.unwrap_or_else(|_| Err(Failed::closed()))).boxed().shared()
    }

    /// Opens the store if it is not open.
    ///
    /// # Errors
    /// Another process holds it, or it cannot be read or written.
    pub async fn open(&self) -> Result<(), Failed> {
        match self.settings.place {
            Backend::Off => Ok(()),
            _ => self.store().await.map(|_| ()),
        }
    }

    /// The store's identity and epoch. Opens it if it is not open.
    ///
    /// # Errors
    /// Another process holds it, or it cannot be read.
    pub async fn claim(&self) -> Result<Claim, Failed> {
        match self.settings.place {
            Backend::Off => Ok(Claim::off()),
            _ => self.store().await?.claim().await,
        }
    }

    /// Checks that these are the records that the broker remembers, and not an older state of them. Begins
    /// another epoch, and returns what the broker must remember from now on, if anything. Events may be
    /// merged into the records once it does.
    ///
    /// # Errors
    /// They are not, or the store failed.
    pub async fn verify(
        &self,
        integration: &Integration,
        known: Option<&Claim>,
    ) -> Result<(Option<Arc<Verified>>, Option<Claim>), Failed> {
        if let Backend::Off = self.settings.place {
            // If no records were ever kept, the broker need not remember that.
            known.map_or(Ok(()), |known| Claim::off().follows(known, &self.settings.place))?;
            return Ok((None, None));
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

    /// Checks that these are the records that the broker remembers, and not an older state of them.
    ///
    /// # Errors
    /// They are not, or the store failed.
    pub async fn compare(&self, integration: &Name, known: Option<&Claim>) -> Result<(), Failed> {
        self.compared(integration, known).await.map(drop)
    }

    /// Records that were refused once stay refused while the broker remembers none, because then it has lost
    /// what it knew.
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

    /// How far the clock of the machine that has the records is ahead of this one's.
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

    /// Remembers that the broker knows these records as those of an integration; durable on return.
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

    /// The number of commits since the store was opened.
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

    /// Erases a person: everything up to now, with a mark of the erasure. Returns whether anything was known.
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

    /// What is known about a person.
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

    /// Opens the store and computes the person's key; `None` if no records are kept.
    async fn look_up(&self, records: &Name, identifier: &str) -> Result<Option<(Arc<Store>, Key)>, Failed> {
        if matches!(self.settings.place, Backend::Off) {
            return Ok(None);
        }
        // A worker opens its store before it consumes, and reopens one that was closed since; that is not
        // done here.
        let store = match self.known() {
            Some(store) => store,
            None => self.store().await?,
        };
        let key = key(store.secret(), prefix(store.secret(), records), identifier);
        Ok(Some((store, key)))
    }
}
