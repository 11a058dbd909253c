//! Where records are kept, how they are identified, and why they cannot be used.

use super::address::Address;
use crate::integration::Name;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// The settings of `[records]`.
#[derive(Clone, Debug)]
pub struct RecordsSettings {
    pub place: Backend,
    /// How long a person is remembered after their last event.
    pub retention: Duration,
}

/// Where records are kept.
#[derive(Clone, Debug)]
pub enum Backend {
    /// In this directory, for one worker at a time.
    Directory(PathBuf),
    /// In a database, for any number of workers.
    Postgres(Box<Address>),
    /// Nowhere: a late retry can win.
    Off,
}

impl Default for RecordsSettings {
    fn default() -> RecordsSettings {
        RecordsSettings { place: Backend::Directory("records".into()), retention: Duration::from_secs(365 * 86_400) }
    }
}

impl Backend {
    /// Whether there are records; true for [`Backend::Off`], where none are expected.
    ///
    /// # Errors
    /// The place cannot be read.
    pub async fn exists(&self) -> Result<bool, Failed> {
        match self {
            Backend::Directory(directory) => {
                let looking = directory.clone();
                // A file system may hang.
                let looked = tokio::task::spawn_blocking(move || super::embedded::looked_at(&looking)).await;
                let looked = looked.map_err(|_| Failed::closed())?;
                looked
                    .map_err(|why| Failed::new(format!("cannot create the records in {}: {why}", directory.display())))
            }
            Backend::Postgres(address) => super::postgres::is_at(address).await,
            Backend::Off => Ok(true),
        }
    }

    /// Whether it is the same place, reached in the same way; roles and passwords may differ.
    #[must_use]
    pub fn is_same(&self, other: &Backend) -> bool {
        match (self, other) {
            (Backend::Directory(one), Backend::Directory(other)) => one == other,
            (Backend::Postgres(one), Backend::Postgres(other)) => one.leads_to(other),
            (Backend::Off, Backend::Off) => true,
            _ => false,
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Backend::Directory(directory) => write!(f, "{}", directory.display()),
            Backend::Postgres(address) => write!(f, "PostgreSQL at {}", address.shown()),
            Backend::Off => f.write_str("off"),
        }
    }
}

/// The store failed: nothing that depends on it may be acked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}{}", remedy.as_ref().map(|remedy| format!("; {remedy}")).unwrap_or_default())]
pub struct Failed {
    why: String,
    /// What to do, where that depends on whether another worker consumes.
    remedy: Option<String>,
    is_held: bool,
}

impl Failed {
    pub(super) fn new(why: impl Into<String>) -> Failed {
        Failed { why: why.into(), remedy: None, is_held: false }
    }

    fn with_remedy(self, remedy: String) -> Failed {
        Failed { remedy: Some(remedy), ..self }
    }

    /// Another process holds the store.
    pub(super) fn held(why: String) -> Failed {
        Failed { why, remedy: None, is_held: true }
    }

    /// Another process holds the lock on what the broker remembers of an integration's records.
    pub(crate) fn looked_at(integration: &Name) -> Failed {
        let who = "a worker that is starting elsewhere, or a running copy";
        Failed::held(format!(
            "standing by: another process holds what the broker knows about the records of {integration}: {who}"
        ))
    }

    /// A worker consumes an integration's events, but nobody holds these records, which are for a single
    /// worker.
    pub(crate) fn elsewhere(integration: &Name, place: &Backend) -> Failed {
        let what = "a folder is for one worker, so these are a copy, unless that one is just ending";
        let remedy = "use its records (check whether [records] store names them); several workers need PostgreSQL";
        Failed::held(format!(
            "another worker consumes events of {integration} with records in a place other than {place}: {what}; \
             {remedy} (docs/postgresql.md)"
        ))
    }

    /// The same failure while another worker consumes the integration's events: then its records are the right
    /// ones, and must not be given up for these.
    #[must_use]
    pub(crate) fn while_consumed(self, integration: &Name) -> Failed {
        if self.remedy.is_none() {
            return self;
        }
        self.with_remedy(format!(
            "another worker consumes events of {integration} now, so its records are the right ones: use those, or \
             stop that worker first; several workers need PostgreSQL (docs/postgresql.md)"
        ))
    }

    /// There are no records here, and the broker knows some.
    pub(crate) fn no_records(known: &Claim) -> Failed {
        let Claim { store, epoch } = known;
        Failed::new(format!("the broker knows store {store}, epoch {epoch}, and new records would be refused"))
            .with_remedy(
                "check whether [records] store names the right place, and bring those back, or if they were to move \
                 here, copy them: consent-gate store copy"
                    .to_owned(),
            )
    }

    /// Events went to the gate, or may have gone, while no records were kept.
    pub(crate) fn after_none(place: &Backend) -> Failed {
        let why = "records were given up ([records] store was \"off\")";
        Failed::new(format!("{why}, so those in {place} do not contain the latest events"))
            .with_remedy("to accept that: consent-gate store adopt".to_owned())
    }

    /// No records are to be kept, and the broker knows some.
    fn not_given_up(known: &Claim) -> Failed {
        let Claim { store, epoch } = known;
        let why = "[records] store is \"off\", and without them a late retry of an older consent can win";
        Failed::new(format!("the broker knows records, store {store}, epoch {epoch}, but {why}")).with_remedy(
            "check whether [records] store is meant to be that, or give them up: consent-gate store adopt".to_owned(),
        )
    }

    /// The disk neither works nor reports an error.
    pub(super) fn silent() -> Failed {
        let longest = super::group_commit::LONGEST_WRITE;
        Failed::new(format!("the disk of the records does not answer within {longest:?}; waiting until it does"))
    }

    pub(super) fn ending() -> Failed {
        let holds_up = "a disk that does not answer delays this";
        Failed::new(format!("the records failed and are being closed before they are reopened; {holds_up}"))
    }

    pub(super) fn closed() -> Failed {
        Failed::new("the store is closed after a failure")
    }

    /// Whether another process holds the store, and nothing is wrong with it.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.is_held
    }
}

/// The identity of a store and how far it got; the broker remembers this, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The store's identity; `off` if no records are kept.
    pub store: String,
    /// Grows at every start and while the store commits.
    pub epoch: u64,
}

impl Claim {
    /// The claim of a worker that keeps no records.
    #[must_use]
    pub fn off() -> Claim {
        Claim { store: "off".to_owned(), epoch: 0 }
    }

    /// Whether records with this claim may be used if the broker remembers `known`.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub fn follows(&self, known: &Claim, place: &Backend) -> Result<(), Failed> {
        let Claim { store, epoch } = known;
        match (*self == Claim::off(), *known == Claim::off()) {
            (true, true) => return Ok(()),
            (true, false) => return Err(Failed::not_given_up(known)),
            (false, true) => return Err(Failed::after_none(place)),
            (false, false) => {}
        }
        let look = "first check whether [records] store names the right place";
        let adopt = "or accept that what those knew is lost: consent-gate store adopt";
        let moved = "if they were to move here, consent-gate store copy --from their former place";
        if store != &self.store {
            let why = format!("the records in {place} are not those of this integration's earlier events");
            let which = format!("those are store {store}, epoch {epoch}; these are store {}", self.store);
            return Err(Failed::new(format!("{why} ({which})"))
                .with_remedy(format!("{look}; bring those back, {moved}, {adopt}")));
        }
        if *epoch > self.epoch {
            let why = format!("the records in {place} are older than those of this integration's earlier events");
            let which = format!("epoch {}, but it reached {epoch}", self.epoch);
            return Err(Failed::new(format!("{why} ({which})"))
                .with_remedy(format!("{look}; bring the newer one back, {adopt}")));
        }
        Ok(())
    }
}
