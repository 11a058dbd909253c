//! How far the database's clock is ahead of this machine's.

use super::session::{OWN, Session, column};
use crate::record::Failed;
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

/// How often the database's clock is compared with this machine's, and the difference from which a warning is
/// logged.
const MEASURE_EVERY: Duration = Duration::from_secs(10);
const FAR_APART: SignedDuration = SignedDuration::from_secs(5);

/// How far the database's clock is ahead of this machine's, in microseconds.
#[derive(Debug, Default)]
pub(super) struct Clock(AtomicI64);

impl Clock {
    pub(super) fn offset(&self) -> SignedDuration {
        SignedDuration::from_micros(self.0.load(Ordering::Relaxed))
    }

    /// Asks for the time; the answer is half a round trip old.
    pub(super) async fn measure(&self, session: &Session) -> Result<(), Failed> {
        let before = Timestamp::now();
        let rows = session.ask("SELECT clock_timestamp()", &[]).await?;
        let took = Timestamp::now().duration_since(before);
        let Some(row) = rows.first() else { return Ok(()) };
        let theirs = Timestamp::try_from(column::<SystemTime>(row, OWN)?).unwrap_or(before);
        let offset = theirs.duration_since(before) - took / 2;
        let known = self.0.swap(i64::try_from(offset.as_micros()).unwrap_or(i64::MAX), Ordering::Relaxed);
        let is_far = |offset: SignedDuration| offset.abs() > FAR_APART;
        if is_far(offset) && !is_far(SignedDuration::from_micros(known)) {
            let ahead = offset.as_secs_f64();
            tracing::warn!(ahead, "the database's clock and this machine's are seconds apart: synchronize both");
        }
        Ok(())
    }
}

pub(super) async fn keep_time(session: Arc<Session>, clock: Arc<Clock>) {
    loop {
        tokio::time::sleep(MEASURE_EVERY).await;
        // An error here also occurs where somebody waits for an answer.
        let _ = clock.measure(&session).await;
    }
}
