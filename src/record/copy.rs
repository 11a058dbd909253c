//! A whole store taken to another place, such as from one worker's disk to a database for many.
//!
//! The copy is the same store: it takes over the secret under which persons are hashed, and the
//! identity that the broker knows. Until it is whole it is marked, and nobody opens it; once it is,
//! the former store is marked, and nobody opens that one any more. Of both, one can be used at any
//! moment, whatever ends in between.

use super::keys::Key;
use super::records::claimed_by;
use super::rules::{Write, lapse};
use super::store::{Origin, Store};
use super::{Backend, Claim, Failed, Record};
use futures_util::future::try_join_all;
use jiff::{SignedDuration, Timestamp};

/// How many records are written together.
const PAGE: usize = 1_000;
/// Names nobody who handles suspects: a copy handles none.
const OWN: &str = "copy";

/// Two stores, of which one becomes the copy of the other.
#[derive(Debug)]
pub struct Copying {
    source: Store,
    target: Store,
    from: Backend,
    to: Backend,
}

impl Copying {
    /// Opens both, and makes the target where there is none. From now on nobody else opens it, unless it
    /// was copied to the end before.
    ///
    /// # Errors
    /// The source is not there, is in use, or was copied to somewhere else; the target holds other
    /// records; or one of them cannot be opened.
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

    /// Which the former store is, and how far it got.
    ///
    /// # Errors
    /// It failed.
    pub async fn source(&self) -> Result<Claim, Failed> {
        self.source.claim().await
    }

    /// What the broker is to know once the copy is whole: the former store is an older state then.
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
    /// It failed.
    pub async fn integrations(&self) -> Result<Vec<String>, Failed> {
        let notes = self.source.notes().await?;
        Ok(notes.iter().filter_map(|(name, _)| claimed_by(name)).map(str::to_owned).collect())
    }

    /// How many persons the former store knows.
    ///
    /// # Errors
    /// It failed.
    pub async fn count(&self) -> Result<u64, Failed> {
        self.source.count().await
    }

    /// Whether everything was done before.
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

    /// Brings the target to what the source holds. What an earlier try brought is not written again.
    /// Gives how many persons were looked at; `at` is told on the way.
    ///
    /// # Errors
    /// One of the stores failed; another try goes on.
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

    /// Reads everything again, from the target's disk, too.
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
        // What is only kept until no late request can put it back lapses in both, at its time.
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

    /// Closes both; they can be opened again then.
    pub async fn close(self) {
        self.source.close().await;
        self.target.close().await;
    }

    /// Makes the copy the store, and the source none: after the broker knows the copy's claim.
    ///
    /// # Errors
    /// One of the stores failed; another try goes on.
    pub async fn finish(&self) -> Result<(), Failed> {
        self.source.set_moved(&self.to.to_string()).await?;
        self.target.set_finished().await
    }

    /// Writes how far the copy got, before the broker is told.
    ///
    /// # Errors
    /// One of the stores failed; another try goes on.
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

async fn open(place: &Backend, origin: Option<Origin>) -> Result<Store, Failed> {
    // Nothing is forgotten on the way.
    let opened = Store::open_whole(place.clone(), SignedDuration::MAX, OWN, origin).await;
    opened.map_err(|failed| {
        if failed.is_held() {
            Failed::new(format!("a worker holds the records in {place}: stop it first"))
        } else {
            failed
        }
    })
}
