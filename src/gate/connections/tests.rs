//! Real servers on this machine, with host names that the tests resolve.

use super::*;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A server that keeps connections open, and what it does with each request on them.
#[derive(Clone)]
struct Server {
    address: SocketAddr,
    /// How many requests arrived.
    requests: Arc<AtomicUsize>,
}

/// What a server does with a request, given how many came before it on all connections and on this one.
type Behaviour = fn(usize, usize) -> Does;

enum Does {
    Answers,
    Closes,
    Hangs,
}

impl Server {
    async fn start(behaviour: Behaviour) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, requests) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let server = Server { address, requests };
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(stream, behaviour));
            }
        });
        server
    }

    async fn serve(self, mut stream: TcpStream, behaviour: Behaviour) {
        for here in 0.. {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => return,
                }
            }
            match behaviour(self.requests.fetch_add(1, Ordering::SeqCst), here) {
                Does::Answers => stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap(),
                Does::Closes => return,
                Does::Hangs => std::future::pending().await,
            }
        }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// Resolves every host name to the given address.
#[derive(Clone)]
struct Names(Arc<Mutex<SocketAddr>>);

impl Resolve for Names {
    fn resolve(&self, _: Name) -> Resolving {
        let address = *self.0.lock().unwrap();
        Box::pin(async move { Ok(Box::new(std::iter::once(address)) as Addrs) })
    }
}

fn connections(names: &Names) -> Connections {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let names = names.clone();
    Connections::new(None, move |client| {
        client.dns_resolver(Arc::new(names.clone())).timeout(Duration::from_millis(500))
    })
    .unwrap()
}

async fn get(connections: &Connections) -> Result<(), Unanswered> {
    connections.send(|client| client.get("http://gate.example/")).await.map(drop)
}

/// Two connections to a server that hangs now, and another server that its name means now. Each of the first two
/// requests waited for the other, so that there are two connections.
async fn after_an_outage() -> (Server, Server, Connections) {
    let old = Server::start(|before, _| if before < 2 { Does::Answers } else { Does::Hangs }).await;
    let new = Server::start(|_, _| Does::Answers).await;
    let names = Names(Arc::new(Mutex::new(old.address)));
    let connections = connections(&names);
    let (one, other) = tokio::join!(get(&connections), get(&connections));
    assert!(one.is_ok() && other.is_ok());
    *names.0.lock().unwrap() = new.address;
    (old, new, connections)
}

#[tokio::test]
async fn a_name_that_means_another_address_after_an_outage_is_found_by_the_next_request() {
    let (old, new, connections) = after_an_outage().await;
    let failed = get(&connections).await.unwrap_err();
    assert!(failed.error.is_timeout() && !failed.was_closed_meanwhile);
    get(&connections).await.unwrap();
    assert_eq!((old.requests(), new.requests()), (3, 1));
}

#[tokio::test]
async fn a_request_that_was_given_up_counts_as_failed() {
    let (_old, new, connections) = after_an_outage().await;
    assert!(tokio::time::timeout(Duration::from_millis(50), get(&connections)).await.is_err());
    get(&connections).await.unwrap();
    assert_eq!(new.requests(), 1);
}

#[tokio::test]
async fn only_a_connection_that_was_used_before_can_have_been_closed_meanwhile() {
    let server = Server::start(|_, here| if here == 0 { Does::Answers } else { Does::Closes }).await;
    let names = Names(Arc::new(Mutex::new(server.address)));
    let used = connections(&names);
    get(&used).await.unwrap();
    assert!(get(&used).await.unwrap_err().was_closed_meanwhile);
    get(&used).await.unwrap();
    let server = Server::start(|_, _| Does::Closes).await;
    let fresh = connections(&Names(Arc::new(Mutex::new(server.address))));
    for _ in 0..2 {
        assert!(!get(&fresh).await.unwrap_err().was_closed_meanwhile);
    }
}
