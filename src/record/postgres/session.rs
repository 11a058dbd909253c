//! One connection, and how a statement is run on it.

use super::process::named_process;
use super::statements::whole;
use crate::record::Failed;
use crate::record::address::{Address, CALL_TIMEOUT, describe};
use jiff::Timestamp;
use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::task::JoinHandle;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, Statement};

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
    /// The statements that the server has parsed for this connection; none are kept behind a pooler.
    prepared: Option<Mutex<HashMap<&'static str, Statement>>>,
}

impl Session {
    /// Connects, and checks that it reaches the same server. The sessions need to run statements in parallel,
    /// which a pooler in session mode may not allow.
    pub(super) async fn open(address: &Address, home: &Home, has_failed: &Arc<AtomicBool>) -> Result<Session, Failed> {
        let (client, connection) = address.connect().await?;
        let named = named_process(&client).await;
        let (home, has_failed) = (home.clone(), Arc::clone(has_failed));
        let mut session = Session { client, connection, home, has_failed, prepared: None };
        let rows = session.ask("SELECT pg_backend_pid()", &[]).await.map_err(|failed| {
            let pooler = "a pooler in session mode needs room for four connections of each worker, or transaction mode";
            Failed::new(format!("{failed} ({pooler})"))
        })?;
        let serving: Option<i32> = rows.first().map(|row| column(row, OWN)).transpose()?;
        if named.is_some() && named == serving {
            // A plan that is kept may be older than the table's growth: it must not read all of it.
            call(session.client.batch_execute("SET enable_seqscan = off")).await?;
            session.prepared = Some(Mutex::default());
        }
        Ok(session)
    }

    /// Runs a statement and returns its rows, whose own columns begin at [`OWN`]. Behind a pooler no statement is
    /// prepared by name, so that each may use another of its connections.
    pub(super) async fn ask(&self, body: &'static str, params: &[Param<'_>]) -> Result<Vec<Row>, Failed> {
        let started: Param<'_> = (&self.home.started, Type::TIMESTAMPTZ);
        let params: Vec<Param<'_>> = std::iter::once(started).chain(params.iter().cloned()).collect();
        let mut rows = call(Box::pin(self.run(body, &params))).await?;
        let is_same = rows.first().map(|row| column::<bool>(row, 0)).transpose()?.unwrap_or(false);
        if !is_same {
            self.has_failed.store(true, Ordering::Relaxed);
            return Err(Failed::new("PostgreSQL: a different server answers than the one that was opened"));
        }
        rows.retain(|row| matches!(row.try_get::<_, Option<bool>>(1), Ok(Some(true))));
        Ok(rows)
    }

    async fn run(&self, body: &'static str, params: &[Param<'_>]) -> Result<Vec<Row>, tokio_postgres::Error> {
        let text = || whole(body).replace("consent_gate_", &format!("{}.consent_gate_", self.home.schema));
        let Some(prepared) = &self.prepared else { return self.client.query_typed(&text(), params).await };
        let known = prepared.lock().unwrap_or_else(PoisonError::into_inner).get(body).cloned();
        let statement = match known {
            Some(statement) => statement,
            None => {
                let types: Vec<Type> = params.iter().map(|(_, of)| of.clone()).collect();
                let statement = self.client.prepare_typed(&text(), &types).await?;
                prepared.lock().unwrap_or_else(PoisonError::into_inner).insert(body, statement.clone());
                statement
            }
        };
        let values: Vec<&(dyn ToSql + Sync)> = params.iter().map(|(value, _)| *value).collect();
        self.client.query(&statement, &values).await
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
