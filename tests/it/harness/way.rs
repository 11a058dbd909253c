//! A proxy in front of a broker with which a test can simulate network faults.

use super::broker::{self, Bench};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// The state of the connections that are open now; later ones are not affected.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Open,
    Frozen,
    Cut,
}

pub struct Way {
    /// The broker's URL through this proxy.
    pub url: String,
    fate: watch::Sender<(u64, Fate)>,
}

impl Way {
    /// A proxy in front of the tests' broker.
    pub fn new(bench: &Bench) -> Way {
        Way::replacing(bench, (b"", b""))
    }

    /// A proxy that replaces some of the bytes sent to the broker by as many others.
    pub fn replacing(bench: &Bench, replace: (&'static [u8], &'static [u8])) -> Way {
        Way::open(bench, &[&broker::url()], replace)
    }

    /// A proxy that connects to the first of these brokers that is up.
    pub fn among(bench: &Bench, urls: &[&str]) -> Way {
        Way::open(bench, urls, (b"", b""))
    }

    fn open(bench: &Bench, urls: &[&str], replace: (&'static [u8], &'static [u8])) -> Way {
        let at = |url: &str| url.rsplit('@').next().unwrap().split('/').next().unwrap().to_owned();
        let brokers: Vec<SocketAddr> = urls.iter().map(|url| at(url).parse().unwrap()).collect();
        let (fate, fates) = watch::channel((0, Fate::Open));
        let port = bench.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            tokio::spawn(async move {
                while let Ok((front, _)) = listener.accept().await {
                    let Some(back) = first_of(&brokers).await else { continue };
                    let (mut there, mut here) = (fates.clone(), fates.clone());
                    // These two only follow changes from now on.
                    there.mark_unchanged();
                    here.mark_unchanged();
                    let (front_read, front_write) = front.into_split();
                    let (back_read, back_write) = back.into_split();
                    tokio::spawn(pass(front_read, back_write, there, replace));
                    tokio::spawn(pass(back_read, front_write, here, (b"", b"")));
                }
            });
            port
        });
        Way { url: urls[0].replace(&at(urls[0]), &format!("127.0.0.1:{port}")), fate }
    }

    /// From now on the open connections pass nothing, and neither side is told.
    pub fn freeze(&self) {
        self.fate.send_modify(|fate| *fate = (fate.0 + 1, Fate::Frozen));
    }

    /// Ends every connection.
    pub fn cut(&self) {
        self.fate.send_modify(|fate| *fate = (fate.0 + 1, Fate::Cut));
    }
}

async fn first_of(brokers: &[SocketAddr]) -> Option<TcpStream> {
    for broker in brokers {
        if let Ok(stream) = TcpStream::connect(broker).await {
            return Some(stream);
        }
    }
    None
}

async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut fate: watch::Receiver<(u64, Fate)>,
    (old, new): (&[u8], &[u8]),
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = tokio::select! {
            biased;
            _ = fate.changed() => match fate.borrow().1 {
                Fate::Frozen => break,
                Fate::Cut | Fate::Open => return,
            },
            length = from.read(&mut buffer) => length,
        };
        let Ok(length @ 1..) = length else { return };
        let bytes = &mut buffer[..length];
        while let Some(at) = (!old.is_empty()).then(|| bytes.windows(old.len()).position(|part| part == old)).flatten()
        {
            bytes[at..at + old.len()].copy_from_slice(new);
        }
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
    std::future::pending::<()>().await;
}
