//! Which process of the server a connection was given when it began.
//!
//! A server names the process that serves the connection, so that a statement can be cancelled. A pooler names
//! something of its own, because it gives each statement or session another connection to the server.

use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio_postgres::Client;
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

/// The length in bytes of a request to cancel: its length, a code, the process, and a secret, of four bytes each
/// (PostgreSQL's documentation, "Message Formats", `CancelRequest`).
const CANCEL_BYTES: usize = 16;
/// The answer to a request for TLS: go on with it.
const TLS_GRANTED: &[u8] = b"S";

/// The process that was named when the connection began. The client tells it only in a request to cancel, which is
/// written into memory here and never sent.
pub(super) async fn named_process(client: &Client) -> Option<i32> {
    let (mut reader, writer) = duplex(64);
    reader.write_all(TLS_GRANTED).await.ok()?;
    client.cancel_token().cancel_query_raw(Memory(writer), Unencrypted).await.ok()?;
    let mut written = Vec::new();
    reader.read_to_end(&mut written).await.ok()?;
    let request = written.last_chunk::<CANCEL_BYTES>()?;
    request[8..].first_chunk().map(|process| i32::from_be_bytes(*process))
}

/// What takes the place of the connection's own encryption.
struct Unencrypted;

impl TlsConnect<Memory> for Unencrypted {
    type Stream = Memory;
    type Error = io::Error;
    type Future = Ready<io::Result<Memory>>;

    fn connect(self, stream: Memory) -> Self::Future {
        ready(Ok(stream))
    }
}

struct Memory(DuplexStream);

impl TlsStream for Memory {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Memory {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Memory {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
