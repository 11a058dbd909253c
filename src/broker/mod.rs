//! RabbitMQ: connections, declarations, incoming deliveries, and the one place where a delivery is settled.
//!
//! The pitfalls of the broker and of its client that shaped these files are described, with their
//! measurements, in `docs/rabbitmq.md` and `docs/lapin.md`. Every call is bounded by a timeout, because the
//! client's calls can wait forever.

pub mod ack_batcher;
mod addresses;
pub mod audit;
pub mod claim;
pub mod consumers;
mod dialled;
pub mod headers;
pub mod letter_acks;
pub mod letters;
pub mod link;
mod prefetch;
pub mod redelivery;
pub mod report;
pub mod settler;
pub mod source;
pub mod topology;
pub mod vanished;
mod wire;

use std::future::Future;
use std::time::Duration;

/// The longest wait for one answer of the broker.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Why an operation at the broker failed: what was tried, and what the broker said.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {cause}")]
pub struct Error {
    what: String,
    cause: Cause,
}

// The texts contain the client's errors, so these are not given as sources: a chain would print them twice.
#[derive(Debug, thiserror::Error)]
enum Cause {
    /// Connecting or logging in failed.
    #[error("{}", dialled::explained(error, *is_plain))]
    Dial { error: lapin::Error, is_plain: bool },
    /// The broker did not answer while a connection was being opened.
    #[error("no answer within {CALL_TIMEOUT:?}; {}", dialled::SILENT)]
    Silent,
    #[error("{0}")]
    Client(lapin::Error),
    #[error("no answer within {CALL_TIMEOUT:?}")]
    TimedOut,
    #[error("{0}")]
    Refused(String),
    #[error("more than {} MiB in hand; taking fewer messages at a time", .0 / (1024 * 1024))]
    TooManyBytes(usize),
}

impl Error {
    fn refused(what: impl Into<String>, why: impl Into<String>) -> Error {
        Error { what: what.into(), cause: Cause::Refused(why.into()) }
    }

    /// Marks the error as one of connecting: a refused login is not a refusal of an operation
    /// ([`Error::is_refusal`]).
    fn while_dialling(self, is_plain: bool) -> Error {
        let cause = match self.cause {
            Cause::Client(error) => Cause::Dial { error, is_plain },
            Cause::TimedOut => Cause::Silent,
            other => other,
        };
        Error { cause, ..self }
    }

    /// The broker cancelled a consumer or closed its channel.
    #[must_use]
    pub fn consumer_gone() -> Error {
        Error::refused("consume", "a queue is gone, or the channel to it")
    }

    /// So much arrived at once that memory could run out. What is in hand goes back to the broker and is
    /// delivered again in smaller parts.
    fn too_many_bytes(most: usize) -> Error {
        Error { what: "consume".to_owned(), cause: Cause::TooManyBytes(most) }
    }

    /// Whether more arrived at once than there is memory for; it will be delivered again.
    #[must_use]
    pub fn is_flood(&self) -> bool {
        matches!(self.cause, Cause::TooManyBytes(_))
    }

    /// Whether the broker, after the login, understood the request and refused it, so that an immediate retry
    /// would not help.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self.cause, Cause::Refused(_)) || matches!(self.code(), Some(403..=406))
    }

    /// Whether a permission is missing for this operation (not for the login).
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        self.code() == Some(403)
    }

    /// Whether the broker said nothing at all.
    #[must_use]
    pub fn is_silence(&self) -> bool {
        matches!(self.cause, Cause::TimedOut | Cause::Silent)
    }

    /// The broker's reply code, such as 404, when it closed the channel or connection.
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        match &self.cause {
            Cause::Client(error) => match error.kind() {
                lapin::ErrorKind::ProtocolError(reply) => Some(reply.get_id()),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Awaits one call to the broker, bounded in time.
async fn call<T>(what: &str, future: impl Future<Output = lapin::Result<T>>) -> Result<T, Error> {
    let cause = match tokio::time::timeout(CALL_TIMEOUT, future).await {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => Cause::Client(error),
        Err(_) => Cause::TimedOut,
    };
    Err(Error { what: what.to_owned(), cause })
}
