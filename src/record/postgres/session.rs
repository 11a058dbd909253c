//! One connection, and how a statement is run on it.

use super::statements::whole;
use crate::record::Failed;
use crate::record::address::{Address, CALL_TIMEOUT, describe};
use jiff::Timestamp;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};
use tokio::task::JoinHandle;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

/// The server that was opened, and the schema of its tables.
#[derive(Clone, Debug)]
pub(super) struct Home {
    pub(super) started: SystemTime,
    /// Quoted as an identifier.
    pub(super) schema: String,
}

/// One connection; every wait for an answer is bounded. Dropping it ends the connection.
pub(super) struct Session {
    pub(super) client: Client,
    connection: JoinHandle<()>,
    home: Home,
    pub(super) has_failed: Arc<AtomicBool>,
}

impl Session {
    /// Connects, and checks that it reaches the same server. The sessions need to run statements in parallel,
    /// which a pooler in session mode may not allow.
    pub(super) async fn open(address: &Address, home: &Home, has_failed: &Arc<AtomicBool>) -> Result<Session, Failed> {
        let (client, connection) = address.connect().await?;
        let (home, has_failed) = (home.clone(), Arc::clone(has_failed));
        let session = Session { client, connection, home, has_failed };
        session.ask("SELECT true", &[]).await.map_err(|failed| {
            let pooler = "a pooler in session mode needs room for four connections of each worker, or transaction mode";
            Failed::new(format!("{failed} ({pooler})"))
        })?;
        Ok(session)
    }

    /// Runs a statement and returns its rows, whose own columns begin at [`OWN`]. It uses no named prepared
    /// statement, so that each statement may use another server connection of a pooler.
    pub(super) async fn ask(&self, body: &str, params: &[Param<'_>]) -> Result<Vec<Row>, Failed> {
        let tables = format!("{}.consent_gate_", self.home.schema);
        let statement = whole(body).replace("consent_gate_", &tables);
        let started: Param<'_> = (&self.home.started, Type::TIMESTAMPTZ);
        let params: Vec<Param<'_>> = std::iter::once(started).chain(params.iter().cloned()).collect();
        let mut rows = call(self.client.query_typed(&statement, &params)).await?;
        let is_same = rows.first().map(|row| column::<bool>(row, 0)).transpose()?.unwrap_or(false);
        if !is_same {
            self.has_failed.store(true, Ordering::Relaxed);
            return Err(Failed::new("PostgreSQL: a different server answers than the one that was opened"));
        }
        rows.retain(|row| matches!(row.try_get::<_, Option<bool>>(1), Ok(Some(true))));
        Ok(rows)
    }
}

/// A parameter of a statement with its type, so that the server need not be asked for it.
pub(super) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// The index at which a row's own columns begin.
pub(super) const OWN: usize = 2;

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Awaits one answer of the database, bounded in time.
pub(super) async fn call<T>(asked: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, Failed> {
    match tokio::time::timeout(CALL_TIMEOUT, asked).await {
        Ok(answer) => answer.map_err(|error| Failed::new(format!("PostgreSQL: {}", describe(&error)))),
        Err(_) => Err(Failed::new(format!("PostgreSQL: no answer within {CALL_TIMEOUT:?}"))),
    }
}

pub(super) fn column<'r, T: tokio_postgres::types::FromSql<'r>>(row: &'r Row, index: usize) -> Result<T, Failed> {
    row.try_get(index).map_err(|error| Failed::new(format!("PostgreSQL: {}", describe(&error))))
}

/// Converts a time for the client; nothing was merged before 1970.
pub(super) fn system_time(at: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + at.duration_since(Timestamp::UNIX_EPOCH).try_into().unwrap_or(Duration::ZERO)
}
