//! The tables: where they are, and how they are created and migrated.

use super::session::{Home, call, column};
use crate::record::Failed;
use crate::record::address::Address;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

/// The key of the advisory lock (any number): workers that start together create the tables one after the
/// other.
const MIGRATING: i64 = 0x636f_6e73_656e_7467;

/// The migrations, one for each version of the schema, from the first. Released ones never change.
const MIGRATIONS: [&str; 2] = [
    "
    CREATE TABLE consent_gate_notes (
        name text PRIMARY KEY,
        value text NOT NULL
    );
    CREATE TABLE consent_gate_records (
        key bytea PRIMARY KEY,
        revision bigint NOT NULL,
        merged timestamptz NOT NULL,
        record text NOT NULL
    ) WITH (fillfactor = 70);
",
    "
    CREATE TABLE consent_gate_suspects (
        key bytea PRIMARY KEY,
        deaths bigint NOT NULL,
        holder text,
        at timestamptz NOT NULL
    );
",
];

/// Whether there are tables of records.
pub(in crate::record) async fn is_at(address: &Address) -> Result<bool, Failed> {
    let (client, connection) = address.connect().await?;
    let found = async { version(&client, &find(&client, address).await?.schema).await }.await;
    connection.abort();
    Ok(found? > 0)
}

/// Creates the tables if they are missing, and returns where they are.
pub(super) async fn home(address: &Address) -> Result<Home, Failed> {
    let (mut client, connection) = address.connect().await?;
    let found = async {
        let home = find(&client, address).await?;
        migrate(&mut client, &home.schema).await?;
        Ok(home)
    }
    .await;
    connection.abort();
    found
}

/// Finds which server it is, and in which schema the tables are or will be created.
async fn find(client: &Client, address: &Address) -> Result<Home, Failed> {
    let find = "SELECT pg_postmaster_start_time(), quote_ident(coalesce($1,
        (SELECT nspname::text FROM pg_class JOIN pg_namespace AS schema ON schema.oid = relnamespace
            WHERE pg_class.oid = to_regclass('consent_gate_notes')), current_schema()::text))";
    let row = call(client.query_typed_one(find, &[(&address.schema(), Type::TEXT)])).await?;
    let schema: Option<String> = column(&row, 1)?;
    let remedy = "create one, or name one with options=-csearch_path%3Dmine (docs/postgresql.md)";
    let none = || Failed::new(format!("PostgreSQL: this role finds no schema: {remedy}"));
    Ok(Home { started: column(&row, 0)?, schema: schema.ok_or_else(none)? })
}

/// Migrates the tables to this version. If they are up to date, a role without the right to create tables
/// suffices.
async fn migrate(client: &mut Client, schema: &str) -> Result<(), Failed> {
    let versions = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if version(client, schema).await? == versions {
        return Ok(());
    }
    let transaction = call(client.transaction()).await?;
    call(transaction.execute_typed("SELECT pg_advisory_xact_lock($1)", &[(&MIGRATING, Type::INT8)])).await?;
    call(transaction.batch_execute(&format!("SET LOCAL search_path TO {schema}"))).await?;
    let known = version(transaction.client(), schema).await?;
    if known > versions {
        let why = "the records belong to a newer version of consent-gate; use that one";
        return Err(Failed::new(format!("PostgreSQL: {why}")));
    }
    for migration in MIGRATIONS.iter().skip(usize::try_from(known).unwrap_or(0)) {
        call(transaction.batch_execute(migration)).await.map_err(|failed| {
            let remedy = "let this role create tables in its schema once (docs/postgresql.md)";
            Failed::new(format!("cannot create the tables of the records: {failed}; {remedy}"))
        })?;
    }
    let upsert = "INSERT INTO consent_gate_notes VALUES ('version', $1)
        ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    call(transaction.execute_typed(upsert, &[(&versions.to_string(), Type::TEXT)])).await?;
    call(transaction.commit()).await
}

async fn version(client: &Client, schema: &str) -> Result<i64, Failed> {
    let notes = format!("{schema}.consent_gate_notes");
    let found = call(client.query_typed_one("SELECT to_regclass($1) IS NOT NULL", &[(&notes, Type::TEXT)])).await?;
    if !column::<bool>(&found, 0)? {
        return Ok(0);
    }
    let query = format!("SELECT value FROM {notes} WHERE name = 'version'");
    let row = call(client.query_typed_opt(&query, &[])).await?;
    let version: Option<String> = row.map(|row| column(&row, 0)).transpose()?;
    Ok(version.and_then(|version| version.parse().ok()).unwrap_or(0))
}
