//! All records of a process: opened, compared with what the broker knows, verified for each integration.

use super::embedded::Ending;
use super::keys::{Key, key, prefix, suspect_key};
use super::place::{Backend, Claim, Failed, Settings};
use super::rules::{self, Erasure, Write};
use super::store::{CLAIMED, Store};
use super::suspects::Suspect;
use super::turn::{Verified, erase};
use super::{Mapped, Record, Recorded, group_commit};
use crate::integration::{Integration, Name};
use crate::mapping::Slot;
use crate::task;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

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

/// The note that the broker knew these records.
fn claimed(integration: &Name) -> String {
    format!("{CLAIMED}{integration}")
}

/// Which integration a note is about whose records the broker knows to be these.
pub(super) fn claimed_by(note: &str) -> Option<&str> {
    note.strip_prefix(CLAIMED)
}

/// The note that tells a set of mappings.
fn mappings_note(records: &Name, set: u64) -> String {
    format!("mappings {records} {set:016x}")
}

/// The mappings of a set; none where nobody knows it any more.
pub(super) async fn mappings(store: &Store, records: &Name, set: u64) -> Result<Vec<Slot>, Failed> {
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
