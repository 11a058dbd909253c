//! Notes of messages that may kill the process, and whether their holders are alive.

use super::Postgres;
use super::session::{OWN, Param, Session, column};
use super::statements::{FORGET_SUSPECT, NOTE_SUSPECT, SAY_ALIVE, SUSPECT};
use crate::record::keys::Key;
use crate::record::{Failed, Note, SuspectState};
use jiff::Timestamp;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};
use tokio_postgres::types::Type;

/// How often a worker reports that it is alive while it handles suspects, and after how many seconds without
/// a report it counts as dead.
const ALIVE_EVERY: Duration = Duration::from_secs(2);
const DEAD_AFTER_SECONDS: f64 = 10.0;

impl Postgres {
    /// What is known about a suspect.
    ///
    /// # Errors
    /// The database failed.
    pub(in crate::record) async fn suspect(&self, key: Key, own: &str) -> Result<SuspectState, Failed> {
        let of: [Param<'_>; 2] = [(&&key[..], Type::BYTEA), (&DEAD_AFTER_SECONDS, Type::FLOAT8)];
        let rows = self.notes.ask(SUSPECT, &of).await?;
        let Some(row) = rows.first() else { return Ok(SuspectState::Deaths(0)) };
        let at = Timestamp::try_from(column::<SystemTime>(row, OWN + 2)?).unwrap_or(Timestamp::UNIX_EPOCH);
        let deaths = u32::try_from(column::<i64>(row, OWN)?).unwrap_or(u32::MAX);
        let note = Note { deaths, holder: column(row, OWN + 1)?, at };
        let is_alive: bool = column(row, OWN + 3)?;
        Ok(Note::known(Some(&note), own, |_| is_alive))
    }

    /// Notes a suspect; durable on return.
    ///
    /// # Errors
    /// The database failed.
    pub(in crate::record) async fn note_suspect(&self, key: Key, note: &Note) -> Result<(), Failed> {
        let deaths = i64::from(note.deaths);
        let of: [Param<'_>; 3] = [(&&key[..], Type::BYTEA), (&deaths, Type::INT8), (&note.holder, Type::TEXT)];
        self.notes.ask(NOTE_SUSPECT, &of).await.map(drop)
    }

    /// Forgets a suspect.
    ///
    /// # Errors
    /// The database failed.
    pub(in crate::record) async fn forget_suspect(&self, key: Key) -> Result<(), Failed> {
        self.notes.ask(FORGET_SUSPECT, &[(&&key[..], Type::BYTEA)]).await.map(drop)
    }

    /// How many suspects this process is handling.
    pub(in crate::record) fn suspects(&self) -> &AtomicUsize {
        &self.suspects
    }
}

/// Reports that this process is alive while it handles suspects: another worker that gets one of them must
/// not conclude that the message killed this process.
pub(super) async fn say_alive(session: Arc<Session>, suspects: Arc<AtomicUsize>, own: String) {
    loop {
        tokio::time::sleep(ALIVE_EVERY).await;
        if suspects.load(Ordering::Relaxed) > 0 {
            // An error here also occurs where somebody waits for an answer.
            let _ = session.ask(SAY_ALIVE, &[(&own, Type::TEXT)]).await;
        }
    }
}
