//! Reads and writes of records that come close together, as one statement.

use super::session::{OWN, Param, Session, column, system_time};
use super::statements::READ;
use crate::record::Failed;
use crate::record::kept::StoredState;
use crate::record::keys::{Key, Prefix, prefix_of};
use crate::record::writer::SWEPT;
use jiff::Timestamp;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::SystemTime;
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

/// The most records of one statement.
const ROUND: usize = 256;

pub(super) struct ReadRequest {
    pub(super) key: Key,
    pub(super) answer: oneshot::Sender<Result<StoredState, Failed>>,
}

pub(super) struct WriteRequest {
    pub(super) key: Key,
    /// The revision after the write.
    pub(super) revision: i64,
    pub(super) merged: Timestamp,
    pub(super) record: String,
    /// Whether it was written; false if another worker was faster.
    pub(super) answer: oneshot::Sender<Result<bool, Failed>>,
}

/// Serves reads, in batches of one statement.
pub(super) async fn serve_reads(session: Session, mut asked: mpsc::UnboundedReceiver<ReadRequest>) {
    let mut round = Vec::with_capacity(ROUND);
    while asked.recv_many(&mut round, ROUND).await > 0 {
        let keys: HashSet<&[u8]> = round.iter().map(|asked| &asked.key[..]).collect();
        let keys: Vec<&[u8]> = keys.into_iter().collect();
        let marks: HashSet<Prefix> = keys.iter().map(|key| prefix_of(key)).collect();
        let marks: Vec<String> = marks.iter().map(|prefix| format!("{SWEPT}{}", hex::encode(prefix))).collect();
        let rows = session.ask(READ, &[(&keys, Type::BYTEA_ARRAY), (&marks, Type::TEXT_ARRAY)]).await;
        let found = rows.and_then(|rows| found(&rows));
        session.has_failed.fetch_or(found.is_err(), Ordering::Relaxed);
        for ReadRequest { key, answer } in round.drain(..) {
            let seen = found.as_ref().map(|(records, swept)| {
                let unknown = || StoredState { swept: swept.get(&prefix_of(&key)).copied(), ..StoredState::default() };
                records.get(&key).cloned().unwrap_or_else(unknown)
            });
            // The caller may have gone away meanwhile.
            let _ = answer.send(seen.map_err(Clone::clone));
        }
    }
}

type RowsRead = (HashMap<Key, StoredState>, HashMap<Prefix, Timestamp>);

fn found(rows: &[Row]) -> Result<RowsRead, Failed> {
    let (records, marks): (Vec<&Row>, Vec<&Row>) =
        rows.iter().partition(|row| matches!(row.try_get::<_, Option<i64>>(OWN + 1), Ok(Some(_))));
    Ok((
        records.into_iter().map(seen).collect::<Result<_, _>>()?,
        marks.into_iter().map(mark).collect::<Result<_, _>>()?,
    ))
}

pub(super) fn seen(row: &Row) -> Result<(Key, StoredState), Failed> {
    let record: &str = column(row, OWN + 2)?;
    // The record is personal: only the position of the error may be logged.
    let record = serde_json::from_str(record)
        .map_err(|error| Failed::new(format!("a record is damaged at column {}", error.column())))?;
    Ok((key_of(row)?, StoredState { revision: column(row, OWN + 1)?, record, swept: None }))
}

/// The time up to which persons of an integration's records were forgotten.
fn mark(row: &Row) -> Result<(Prefix, Timestamp), Failed> {
    let (prefix, until): (&[u8], &str) = (column(row, OWN)?, column(row, OWN + 2)?);
    let until = until.parse().map_err(|_| Failed::new("consent_gate_notes: up to when was swept is damaged"))?;
    Ok((prefix_of(prefix), until))
}

fn key_of(row: &Row) -> Result<Key, Failed> {
    let key: &[u8] = column(row, OWN)?;
    key.try_into().map_err(|_| Failed::new("a record's key is damaged"))
}

/// Serves writes, in batches of one statement.
pub(super) async fn serve_writes(
    session: Session,
    write: &'static str,
    mut written: mpsc::UnboundedReceiver<WriteRequest>,
) {
    let mut round = Vec::with_capacity(ROUND);
    while written.recv_many(&mut round, ROUND).await > 0 {
        // A statement can write a row only once; a second write of it counts as overtaken.
        let mut taken = HashSet::new();
        let (mut batch, overtaken): (Vec<WriteRequest>, Vec<WriteRequest>) =
            round.drain(..).partition(|written| taken.insert(written.key));
        for WriteRequest { answer, .. } in overtaken {
            let _ = answer.send(Ok(false));
        }
        batch.sort_unstable_by_key(|written| written.key);
        let keys: Vec<&[u8]> = batch.iter().map(|written| &written.key[..]).collect();
        let revisions: Vec<i64> = batch.iter().map(|written| written.revision).collect();
        let merged: Vec<SystemTime> = batch.iter().map(|written| system_time(written.merged)).collect();
        let records: Vec<&str> = batch.iter().map(|written| written.record.as_str()).collect();
        let columns: [Param<'_>; 4] = [
            (&keys, Type::BYTEA_ARRAY),
            (&revisions, Type::INT8_ARRAY),
            (&merged, Type::TIMESTAMPTZ_ARRAY),
            (&records, Type::TEXT_ARRAY),
        ];
        let rows = session.ask(write, &columns).await;
        let done = rows.and_then(|rows| rows.iter().map(key_of).collect::<Result<HashSet<Key>, Failed>>());
        session.has_failed.fetch_or(done.is_err(), Ordering::Relaxed);
        for WriteRequest { key, answer, .. } in batch {
            let was_written = done.as_ref().map(|done| done.contains(&key));
            // The caller may have gone away meanwhile.
            let _ = answer.send(was_written.map_err(Clone::clone));
        }
    }
}
