//! The daily sweep, which forgets persons after the retention.

use super::session::{Home, Param, Session, system_time};
use super::statements::{MARK_SWEPT, SWEEP, SWEEP_SUSPECTS};
use crate::record::address::Address;
use crate::record::rules::forgotten_until;
use crate::record::suspects::FORGOTTEN_AFTER;
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio_postgres::types::Type;

/// How often records older than the retention are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(24 * 3_600);
const SWEEP_AGAIN: Duration = Duration::from_secs(60);
/// The most records that one statement of a sweep deletes, so that it blocks nobody for long.
const SWEEP_ROUND: i64 = 10_000;

/// Once a day, forgets persons without an event for longer than the retention. If that fails, another worker
/// does it, or the next day's sweep.
pub(super) async fn sweep(address: &Address, home: &Home, retention: SignedDuration) {
    loop {
        // Failures of the sweep do not affect the store.
        let own = Arc::new(AtomicBool::new(false));
        let session = Session::open(address, home, &own).await;
        if let (Ok(session), Ok(before)) = (session, Timestamp::now().checked_sub(retention)) {
            let oldest: [Param<'_>; 2] = [(&system_time(before), Type::TIMESTAMPTZ), (&SWEEP_ROUND, Type::INT8)];
            // In a format in which a later time is a greater text.
            let until = forgotten_until(retention, Timestamp::now()).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let marked: [Param<'_>; 2] = [(&system_time(before), Type::TIMESTAMPTZ), (&until, Type::TEXT)];
            // Each of these reads the whole table: where nobody is to be forgotten, once is enough.
            match session.ask(MARK_SWEPT, &marked).await {
                Ok(marks) if marks.is_empty() => {}
                Ok(_) => while session.ask(SWEEP, &oldest).await.is_ok_and(|deleted| !deleted.is_empty()) {},
                Err(_) => {
                    tokio::time::sleep(SWEEP_AGAIN).await;
                    continue;
                }
            }
            if let Ok(before) = Timestamp::now().checked_sub(FORGOTTEN_AFTER) {
                let _ = session.ask(SWEEP_SUSPECTS, &[(&system_time(before), Type::TIMESTAMPTZ)]).await;
            }
        }
        tokio::time::sleep(SWEEP_EVERY).await;
    }
}
