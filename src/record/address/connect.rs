//! How to connect to the server.

use super::{Address, Verify};
use crate::record::Failed;
use secrecy::{ExposeSecret, SecretString};
use std::fmt;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

/// The longest wait for one answer of the database.
pub(in crate::record) const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// The longest wait for a connection, for each host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// After how long without traffic a connection is probed, unless the URL says otherwise.
const KEEPALIVES_IDLE: Duration = Duration::from_secs(30);

impl Address {
    /// Connects. The task drives the connection; aborting it ends the connection.
    ///
    /// # Errors
    /// The server cannot be reached or verified, or it refuses.
    pub(in crate::record) async fn connect(&self) -> Result<(Client, JoinHandle<()>), Failed> {
        let at = |why: &dyn fmt::Display| Failed::new(format!("cannot connect to PostgreSQL at {}: {why}", self.shown));
        let url = self.url();
        let mut config: tokio_postgres::Config = url.expose_secret().parse().map_err(|_| at(&"unreadable URL"))?;
        if config.get_application_name().is_none() {
            config.application_name("consent-gate");
        }
        if !url.expose_secret().contains("keepalives_idle=") {
            config.keepalives_idle(KEEPALIVES_IDLE);
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        let connected = async {
            Ok(match self.verify {
                Verify::Plain => {
                    let (client, connection) = config.ssl_mode(SslMode::Disable).connect(NoTls).await?;
                    (client, tokio::spawn(async move { drop(connection.await) }))
                }
                verify => {
                    let mode = if let Verify::Anybody(mode) = verify { mode } else { SslMode::Require };
                    let address = self.clone();
                    // This reads files, and their disk may hang.
                    let tls = tokio::task::spawn_blocking(move || address.tls()).await;
                    let tls = tls.unwrap_or_else(|error| Err(error.to_string())).map_err(|why| at(&why))?;
                    let (client, connection) = config.ssl_mode(mode).connect(MakeRustlsConnect::new(tls)).await?;
                    (client, tokio::spawn(async move { drop(connection.await) }))
                }
            })
        };
        let many = u32::try_from(config_hosts(&url)).unwrap_or(u32::MAX);
        match tokio::time::timeout(CALL_TIMEOUT.saturating_mul(many.max(1)), connected).await {
            Ok(Ok(connected)) => Ok(connected),
            Ok(Err(ConnectError::Told(failed))) => Err(failed),
            Ok(Err(ConnectError::Client(error))) => Err(at(&describe(&error))),
            Err(_) => Err(at(&"no answer")),
        }
    }
}

enum ConnectError {
    Told(Failed),
    Client(tokio_postgres::Error),
}

impl From<Failed> for ConnectError {
    fn from(failed: Failed) -> ConnectError {
        ConnectError::Told(failed)
    }
}

impl From<tokio_postgres::Error> for ConnectError {
    fn from(error: tokio_postgres::Error) -> ConnectError {
        ConnectError::Client(error)
    }
}

/// An error with its cause. Of a server's error only its message and code are used: its details can quote
/// rows.
pub(in crate::record) fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(said) = error.as_db_error() {
        return format!("{} ({})", said.message(), said.code().code());
    }
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn config_hosts(url: &SecretString) -> usize {
    url.expose_secret().parse().map_or(1, |config: tokio_postgres::Config| config.get_hosts().len())
}
