//! Connections: HTTP/1.1 with keep-alive, one task each, reset if a fault asks for it.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::control;
use crate::effect::Ending;
use crate::simulator::Simulator;
use crate::talk::say;
use crate::visit::Visit;

/// How long a connection may take to send the next request's head, idle time included. It is
/// longer than clients keep idle connections, so that they are the ones who close them.
const HEADER_TIMEOUT: Duration = Duration::from_secs(120);

/// How long to wait before accepting again, when the system is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections for as long as it is polled.
pub async fn serve(listener: TcpListener, simulator: Arc<Simulator>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(connection(stream, Arc::clone(&simulator)));
            }
            Err(error) => {
                say(&format!("cannot accept a connection: {error}"));
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection until it ends, or resets it as soon as a request asks for that.
async fn connection(stream: TcpStream, simulator: Arc<Simulator>) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let reset = Arc::new(Notify::new());
    let service = {
        let reset = Arc::clone(&reset);
        service_fn(move |request| serve_one(Arc::clone(&simulator), Arc::clone(&reset), request))
    };
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let is_reset = tokio::select! {
        // How a connection ends does not matter; what matters is recorded for each request.
        _ = &mut connection => false,
        () = reset.notified() => true,
    };
    if is_reset {
        abort(&connection.into_parts().io.into_inner());
    }
}

/// Makes the coming close of this stream a TCP reset.
fn abort(stream: &TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        say(&format!("cannot reset a connection: {error}"));
    }
}

async fn serve_one(
    simulator: Arc<Simulator>,
    reset: Arc<Notify>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if control::owns(request.uri().path()) {
        return Ok(control::answer(&simulator, request).await.into_response());
    }
    let mut visit = Visit::begin(simulator);
    match visit.receive(request).await {
        Ending::Answer(answer) => Ok(answer.into_response()),
        Ending::Silence => pending().await,
        Ending::Reset => {
            reset.notify_one();
            pending().await
        }
    }
}
