//! Copies a whole store to another place, such as from one worker's disk to a database for many workers.
//!
//! The copy is the same store: it takes over the secret with which persons are hashed, and the identity that
//! the broker knows. A copy that is not complete is marked, and cannot be opened for use; once it is
//! complete, the former store is marked, and cannot be opened any more. At any moment one of the two can be
//! used, whatever fails in between.

use super::kept::StoreOrigin;
use super::keys::Key;
use super::notes::claimed_by;
use super::rules::{Write, lapse};
use super::store::Store;
use super::{Backend, Claim, Failed, Record};
use futures_util::future::try_join_all;
use jiff::{SignedDuration, Timestamp};

/// How many records are copied at once.
const PAGE: usize = 1_000;
/// Identifies this process in notes of suspects; a copy handles none.
const OWN: &str = "copy";

/// Two stores, one of which becomes the copy of the other.
#[derive(Debug)]
pub struct Copying {
    source: Store,
    target: Store,
    from: Backend,
    to: Backend,
}

impl Copying {
    /// Opens both, and creates the target if it is absent. From now on nobody else can open the target,
    /// unless it was already copied completely.
    ///
    /// # Errors
    /// The source is absent, is in use, or was copied to somewhere else; the target holds other records; or
    /// one of them cannot be opened.
    pub async fn open(from: Backend, to: Backend) -> Result<Copying, Failed> {
        if !from.exists().await? {
            return Err(Failed::new(format!("there are no records in {from}")));
        }
        let source = open(&from, None).await?;
        let moved = source.moved().await?;
        if let Some(moved) = moved.filter(|moved| *moved != to.to_string()) {
            return Err(Failed::new(format!("the records in {from} were copied to {moved} before: copy those")));
        }
        let target = open(&to, Some(source.origin())).await?;
        Ok(Copying { source, target, from, to })
    }

    /// The identity and epoch of the former store.
    ///
    /// # Errors
    /// The former store failed.
    pub async fn source(&self) -> Result<Claim, Failed> {
        self.source.claim().await
    }

    /// The claim for the broker once the copy is complete: the former store then counts as an older state.
    ///
    /// # Errors
    /// The former store failed.
    pub async fn claim(&self) -> Result<Claim, Failed> {
        let claim = self.source().await?;
        Ok(Claim { epoch: claim.epoch + 1, ..claim })
    }

    /// The integrations whose events went into the former store.
    ///
    /// # Errors
    /// The former store failed.
    pub async fn integrations(&self) -> Result<Vec<String>, Failed> {
        let notes = self.source.notes().await?;
        Ok(notes.iter().filter_map(|(name, _)| claimed_by(name)).map(str::to_owned).collect())
    }

    /// How many persons are on record in the former store.
    ///
    /// # Errors
    /// The former store failed.
    pub async fn count(&self) -> Result<u64, Failed> {
        self.source.count().await
    }

    /// Whether the copy was already completed.
    ///
    /// # Errors
    /// One of the stores failed, or the target is an older state of the source.
    pub async fn is_done(&self) -> Result<bool, Failed> {
        if self.target.is_unfinished().await? {
            return Ok(false);
        }
        if self.target.claim().await?.epoch > self.source().await?.epoch {
            return Ok(true);
        }
        let Copying { from, to, .. } = self;
        Err(Failed::new(format!(
            "{to} holds an older state of the records in {from}; name an empty place for the copy"
        )))
    }

    /// Copies everything from the source to the target. What an earlier try copied is not written again.
    /// Returns how many records were compared; `at` is called with the progress.
    ///
    /// # Errors
    /// One of the stores failed; another try continues.
    pub async fn carry(&self, mut at: impl FnMut(u64)) -> Result<u64, Failed> {
        for (name, text) in self.source.notes().await? {
            self.target.set_note(&name, &text).await?;
        }
        self.each_page(
            async |page| {
                let written = page.iter().map(|(key, record)| {
                    self.target.update(*key, None, |known, _| {
                        let write = if known.as_ref() == Some(record) { Write::Nothing } else { Write::Durable };
                        *known = Some(record.clone());
                        ((), write)
                    })
                });
                try_join_all(written).await.map(drop)
            },
            &mut at,
        )
        .await
    }

    /// Reads everything again and compares it, including the target's from disk.
    ///
    /// # Errors
    /// Something differs, or one of the stores failed.
    pub async fn verify(self, mut at: impl FnMut(u64)) -> Result<Copying, Failed> {
        let Copying { source, target, from, to } = self;
        let origin = source.origin();
        target.close().await;
        let target = open(&to, Some(origin)).await?;
        let copying = Copying { source, target, from, to };
        copying.compare(&mut at).await?;
        Ok(copying)
    }

    async fn compare(&self, at: &mut impl FnMut(u64)) -> Result<(), Failed> {
        let differs = || Failed::new(format!("the copy in {} is not what is in {}", self.to, self.from));
        for (name, text) in self.source.notes().await? {
            if self.target.note(&name).await?.as_ref() != Some(&text) {
                return Err(differs());
            }
        }
        // Values that are only kept until no late request can restore them expire in both, each at its time.
        let now = Timestamp::now();
        let lapsed = |record: &Record| lapse(record, now).unwrap_or_else(|| record.clone());
        self.each_page(
            async |page| {
                let looks = page.iter().map(|(key, record)| {
                    self.target.update(*key, None, |known, _| {
                        let is_same = known.as_ref().is_some_and(|known| lapsed(known) == lapsed(record));
                        (is_same, Write::Nothing)
                    })
                });
                let looks = try_join_all(looks).await?;
                if looks.into_iter().all(|(is_same, _)| is_same) { Ok(()) } else { Err(differs()) }
            },
            at,
        )
        .await
        .map(drop)
    }

    /// Closes both; afterwards they can be opened again.
    pub async fn close(self) {
        self.source.close().await;
        self.target.close().await;
    }

    /// Makes the copy the store in use, and marks the source as copied. To be called once the broker knows
    /// the copy's claim.
    ///
    /// # Errors
    /// One of the stores failed; another try continues.
    pub async fn finish(&self) -> Result<(), Failed> {
        self.source.set_moved(&self.to.to_string()).await?;
        self.target.set_finished().await
    }

    /// Writes the copy's epoch, before the broker is told.
    ///
    /// # Errors
    /// One of the stores failed; another try continues.
    pub async fn set_claim(&self) -> Result<Claim, Failed> {
        let claim = self.claim().await?;
        self.target.set_epoch(claim.epoch).await?;
        Ok(claim)
    }

    async fn each_page(
        &self,
        handle: impl AsyncFn(&[(Key, Record)]) -> Result<(), Failed>,
        at: &mut impl FnMut(u64),
    ) -> Result<u64, Failed> {
        let (mut after, mut count) = (None, 0);
        loop {
            let page = self.source.page(after, PAGE).await?;
            let Some((last, _)) = page.last() else { return Ok(count) };
            after = Some(*last);
            handle(&page).await?;
            count += page.len() as u64;
            at(count);
        }
    }
}

async fn open(place: &Backend, origin: Option<StoreOrigin>) -> Result<Store, Failed> {
    // An infinite retention: nothing is forgotten while copying.
    let opened = Store::open_whole(place.clone(), SignedDuration::MAX, OWN, origin).await;
    opened.map_err(|failed| {
        if failed.is_held() {
            Failed::new(format!("a worker holds the records in {place}: stop it first"))
        } else {
            failed
        }
    })
}
