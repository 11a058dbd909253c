//! The two connections to the broker: one consumes, one publishes.
//!
//! They are separate because a broker that runs out of memory or disk blocks publishing connections, and the
//! client then writes nothing on such a connection, not even acks.

use super::{CALL_TIMEOUT, Error, addresses, call};
use async_compat::Compat;
use futures_util::StreamExt;
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{AsyncTcpStream, Channel, Connection, ConnectionProperties, Event};
use secrecy::{ExposeSecret, SecretString};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The default: a broker on a developer's machine.
pub const DEFAULT_URL: &str = "amqp://guest:guest@localhost:5672/%2f";

/// The largest frame, in bytes: the size that the broker offers anyway. A client that knows it from the start
/// allocates its buffers (64 frames for each connection) at once, and the system only provides memory for the
/// parts that are written to. A client that learns it later grows its buffers by writing to all of them.
const FRAME_MAX: u32 = 128 * 1024;
/// The same for connections that carry no event: the least that every version of the broker accepts. Memory
/// that is freed and allocated again has been written to.
const BRIEF_FRAME_MAX: u32 = 8 * 1024;

/// The first bytes that an AMQP 0-9-1 client sends.
const PROTOCOL_HEADER: &[u8] = b"AMQP\0\0\x09\x01";

/// A checked `[broker]` section; neither the password nor the client's key can be printed.
#[derive(Clone, Debug)]
pub struct BrokerSettings {
    url: SecretString,
    shown: String,
    is_plain: bool,
    is_beyond_loopback: bool,
    /// PEM of the authorities that are trusted in addition to the system's.
    pub ca: Option<String>,
    /// PEM of the client's certificate, and of its key.
    pub identity: Option<(String, SecretString)>,
}

impl PartialEq for BrokerSettings {
    fn eq(&self, other: &BrokerSettings) -> bool {
        let identity = |settings: &BrokerSettings| {
            settings.identity.as_ref().map(|(pem, key)| (pem.clone(), key.expose_secret().to_owned()))
        };
        self.url.expose_secret() == other.url.expose_secret()
            && self.ca == other.ca
            && identity(self) == identity(other)
    }
}

impl Default for BrokerSettings {
    fn default() -> BrokerSettings {
        BrokerSettings {
            url: DEFAULT_URL.into(),
            shown: "localhost:5672".to_owned(),
            is_plain: true,
            is_beyond_loopback: false,
            ca: None,
            identity: None,
        }
    }
}

impl BrokerSettings {
    /// Checks a broker's URL.
    ///
    /// # Errors
    /// What is wrong with it, without quoting it, because it contains a password.
    pub fn new(
        url: &SecretString,
        ca: Option<String>,
        identity: Option<(String, SecretString)>,
    ) -> Result<BrokerSettings, String> {
        let text = url.expose_secret().trim();
        let form = "write amqp://user:password@host:5672/%2f or amqps://…";
        let parsed = reqwest::Url::parse(text).map_err(|e| format!("is not an address ({e}); {form}"))?;
        if !matches!(parsed.scheme(), "amqp" | "amqps") {
            return Err(format!("has another scheme; {form}"));
        }
        let behind_host = [Some(parsed.path()), parsed.query(), parsed.fragment()];
        if behind_host.into_iter().flatten().any(|part| part.contains('@')) {
            return Err(
                "has an @ after the host; percent-encode user and password (/ is %2F, # is %23, ? is %3F)".to_owned()
            );
        }
        let host = parsed.host_str().unwrap_or_default().to_owned();
        if host.is_empty() {
            return Err(format!("names no host; {form}"));
        }
        if host.starts_with('[') {
            return Err(
                "names an IPv6 address, which the client would silently replace by localhost; write a host name"
                    .to_owned(),
            );
        }
        if parsed.path() == "/" {
            return Err(
                "ends in / and so names the virtual host \"\"; write /%2f for the default one, or leave the / out"
                    .to_owned(),
            );
        }
        let uri: AMQPUri = text.parse().map_err(|_| format!("cannot be read; {form}"))?;
        Ok(BrokerSettings {
            url: url.clone(),
            shown: format!("{}:{}", uri.authority.host, uri.authority.port),
            is_plain: uri.scheme == AMQPScheme::AMQP,
            is_beyond_loopback: !crate::gate::endpoint::is_loopback(&host),
            ca,
            identity,
        })
    }

    /// Host and port, safe to show.
    #[must_use]
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// A warning about a setting that is allowed but risky.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        (self.is_plain && self.is_beyond_loopback).then(|| {
            format!("broker {} is reached without TLS: passwords and consents can be read in transit; amqps:// protects them", self.shown)
        })
    }

    fn tls(&self) -> OwnedTLSConfig {
        OwnedTLSConfig {
            identity: self.identity.as_ref().map(|(pem, key)| OwnedIdentity::PKCS8 {
                pem: pem.clone().into_bytes(),
                key: key.expose_secret().as_bytes().to_vec(),
            }),
            cert_chain: self.ca.clone(),
        }
    }
}

/// Whether a text contains a certificate in PEM.
#[must_use]
pub fn holds_certificate(pem: &str) -> bool {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    CertificateDer::pem_slice_iter(pem.as_bytes()).next().is_some_and(|certificate| certificate.is_ok())
}

/// Opens one connection; `purpose` becomes part of its name on the management page.
///
/// # Errors
/// Why the broker cannot be reached.
pub async fn dial(settings: &BrokerSettings, purpose: &str) -> Result<Connection, Error> {
    Ok(connect(settings, purpose, FRAME_MAX).await?.0)
}

/// Opens a connection for declarations, on which no event travels.
///
/// # Errors
/// Why the broker cannot be reached.
pub async fn dial_to_declare(settings: &BrokerSettings) -> Result<Connection, Error> {
    Ok(connect(settings, "declaring", BRIEF_FRAME_MAX).await?.0)
}

/// A connection's socket, through which it can be ended at once.
type Socket = Arc<OnceLock<TcpStream>>;

async fn connect(settings: &BrokerSettings, purpose: &str, frame_max: u32) -> Result<(Connection, Socket), Error> {
    let what = format!("connect to the broker at {}", settings.shown);
    let mut uri: AMQPUri =
        settings.url.expose_secret().trim().parse().map_err(|_| Error::refused(what.clone(), "unreadable URL"))?;
    uri.query.frame_max.get_or_insert(frame_max);
    let properties = ConnectionProperties::default().with_connection_name(format!("consent-gate {purpose}").into());
    let runtime = lapin::runtime::default_runtime().map_err(|e| Error::refused(what.clone(), e.to_string()))?;
    let tls = settings.tls();
    let socket = Socket::default();
    let known = Arc::clone(&socket);
    // The client itself would try one address after the other, each until the system gives up on it.
    let connect = async move |uri: AMQPUri, runtime| {
        let (host, port) = (uri.authority.host.as_str(), uri.authority.port);
        let stream: AsyncTcpStream<Compat<tokio::net::TcpStream>> =
            addresses::first_of(host, port, |address| AsyncTcpStream::connect(&runtime, address)).await?;
        if let AsyncTcpStream::Plain(plain) = &stream {
            let _ = known.set(TcpStream::from(plain.get_ref().as_fd().try_clone_to_owned()?));
        }
        match uri.scheme {
            AMQPScheme::AMQP => Ok(stream),
            AMQPScheme::AMQPS => Ok(stream.into_tls(host, tls.as_ref()).await?),
        }
    };
    // Without the timeout, a peer that accepts and stays silent would be waited for forever.
    let dialled = call(&what, Connection::connector(uri, runtime, connect, properties)).await;
    Ok((dialled.map_err(|error| error.while_dialling(settings.is_plain))?, socket))
}

/// Checks whether a broker that was silent answers now. Each connection attempt of the client leaves a thread
/// behind for as long as the silent peer keeps the connection; this check leaves nothing behind. With TLS,
/// accepting the TCP connection counts as an answer.
///
/// # Errors
/// It does not answer.
pub async fn knock(settings: &BrokerSettings) -> Result<(), Error> {
    let what = format!("check the broker at {}", settings.shown);
    let knocked = async {
        let (host, port) = settings.shown.rsplit_once(':').unwrap_or((&settings.shown, ""));
        let port = port.parse().unwrap_or_default();
        let mut stream = addresses::first_of(host, port, tokio::net::TcpStream::connect).await?;
        if settings.is_plain {
            stream.write_all(PROTOCOL_HEADER).await?;
            stream.read_u8().await?;
        }
        lapin::Result::Ok(())
    };
    call(&what, knocked).await
}

/// Both connections.
#[derive(Debug)]
pub struct Link {
    pub consuming: Connection,
    socket: Socket,
    pub publishing: Arc<Connection>,
}

impl Link {
    /// Opens both.
    ///
    /// # Errors
    /// Why the broker cannot be reached.
    pub async fn open(settings: &BrokerSettings) -> Result<Link, Error> {
        let (consuming, socket) = connect(settings, "consuming", FRAME_MAX).await?;
        let publishing = dial(settings, "publishing").await?;
        Ok(Link { consuming, socket, publishing: Arc::new(publishing) })
    }

    /// Ends the consuming connection at once: a close in order would be answered only after everything that
    /// the broker has sent already.
    pub fn cut(&self) {
        if let Some(socket) = self.socket.get() {
            // It may be closed already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// A channel for queries.
    ///
    /// # Errors
    /// The broker is gone.
    pub async fn channel(&self) -> Result<Channel, Error> {
        call("open a channel", self.consuming.create_channel()).await
    }

    /// Returns when either connection is lost, with the reason.
    pub async fn lost(&self) -> String {
        tokio::select! {
            why = lost(&self.consuming) => why,
            why = lost(&self.publishing) => why,
        }
    }

    /// Closes both in order, with a short timeout.
    pub async fn close(self) {
        for connection in [&self.consuming, &*self.publishing] {
            let _ = tokio::time::timeout(CALL_TIMEOUT / 10, connection.close(200, "done".into())).await;
        }
    }
}

impl Drop for Link {
    /// Deliveries in hand go back to the broker however a link ends: the client keeps a connection open that
    /// is dropped while it has a consumer.
    fn drop(&mut self) {
        self.cut();
    }
}

/// Waits for an error of the connection or of any of its channels. The end of a channel can end its
/// connection, too, so both are reasons to start again.
async fn lost(connection: &Connection) -> String {
    let mut events = Box::pin(connection.events_listener());
    if !connection.status().connected() {
        return "the connection is closed".to_owned();
    }
    while let Some(event) = events.next().await {
        match event {
            Event::Error(error) => return error.to_string(),
            Event::ConnectionBlocked(_) => {
                tracing::warn!(
                    "the broker blocks publishing (out of memory or disk); events stay queued until it has room"
                );
            }
            Event::ConnectionUnblocked => tracing::info!("the broker accepts publishes again"),
            _ => {}
        }
    }
    "the connection is gone".to_owned()
}
