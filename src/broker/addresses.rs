//! Which of a host name's addresses is used: the first one that answers.
//!
//! A host that can be reached by one address family often has addresses of another that drop every packet.
//! The system gives up on such an address after two minutes, so after a moment the next one is tried in
//! parallel (RFC 8305).

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// How long an address is tried alone.
const STAGGER: Duration = Duration::from_millis(250);
/// The longest that all of them together are tried.
const LONGEST: Duration = Duration::from_secs(10);

/// Looks a name up, connects to its addresses, and returns the first connection that is made.
///
/// # Errors
/// The name has no address, or none answers; then the error is that of the last one tried.
pub(super) async fn first_of<T, F>(host: &str, port: u16, connect: impl Fn(SocketAddr) -> F) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let found = tokio::net::lookup_host((host, port)).await;
    let unknown = |error| {
        io::Error::other(format!("no address is known for the name {host}: is it spelled correctly? ({error})"))
    };
    let addresses = found.map_err(unknown)?.collect();
    let silent = || io::Error::new(io::ErrorKind::TimedOut, format!("no address of {host} answers within {LONGEST:?}"));
    tokio::time::timeout(LONGEST, race(in_turn(addresses), connect)).await.unwrap_or_else(|_| Err(silent()))
}

/// Alternates between the address families, beginning with the one that the system prefers.
fn in_turn(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let prefers_ipv6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (preferred, others): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|a| a.is_ipv6() == prefers_ipv6);
    let (mut preferred, mut others) = (preferred.into_iter(), others.into_iter());
    let pairs = std::iter::from_fn(|| match (preferred.next(), others.next()) {
        (None, None) => None,
        (one, other) => Some(one.into_iter().chain(other)),
    });
    pairs.flatten().collect()
}

async fn race<T, F>(addresses: Vec<SocketAddr>, connect: impl Fn(SocketAddr) -> F) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut addresses = addresses.into_iter().peekable();
    let mut trying = FuturesUnordered::new();
    loop {
        trying.extend(addresses.next().map(&connect));
        let next = async {
            match addresses.peek() {
                Some(_) => tokio::time::sleep(STAGGER).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            answer = trying.next() => match answer {
                Some(Ok(connected)) => return Ok(connected),
                Some(Err(error)) => failed = error,
                None => return Err(failed),
            },
            () = next => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use tokio::time::Instant;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn families_are_tried_in_turn() {
        let given = addresses(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"]);
        assert_eq!(in_turn(given), addresses(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"]));
        let given = addresses(&["1.1.1.1:1", "2.2.2.2:1", "[::1]:1"]);
        assert_eq!(in_turn(given), addresses(&["1.1.1.1:1", "[::1]:1", "2.2.2.2:1"]));
        assert_eq!(in_turn(Vec::new()), []);
    }

    /// Connects to ports: 1 is silent, 2 refuses, any other answers. Returns which port was tried when, in
    /// milliseconds.
    async fn tried(texts: &[&str]) -> (io::Result<SocketAddr>, Vec<(u16, u128)>) {
        let (began, tried) = (Instant::now(), Mutex::new(Vec::new()));
        let connect = |address: SocketAddr| {
            tried.lock().unwrap().push((address.port(), began.elapsed().as_millis()));
            async move {
                match address.port() {
                    1 => std::future::pending().await,
                    2 => Err(io::ErrorKind::ConnectionRefused.into()),
                    _ => Ok(address),
                }
            }
        };
        let first = race(addresses(texts), connect).await;
        (first, tried.into_inner().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_is_silent_costs_a_moment_and_one_that_refuses_nothing() {
        let (first, who) = tried(&["[::1]:1", "1.1.1.1:2", "[::2]:3", "1.1.1.1:4"]).await;
        assert_eq!(first.unwrap().port(), 3);
        assert_eq!(who, [(1, 0), (2, 250), (3, 250)]);
        let (first, who) = tried(&["[::1]:3", "1.1.1.1:4"]).await;
        assert_eq!((first.unwrap().port(), who), (3, vec![(3, 0)]));
    }

    #[tokio::test(start_paused = true)]
    async fn where_none_answers_the_last_ones_reason_is_told() {
        let (first, who) = tried(&["[::1]:2", "1.1.1.1:2"]).await;
        assert_eq!(first.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(who, [(2, 0), (2, 0)]);
        assert_eq!(tried(&[]).await.0.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
