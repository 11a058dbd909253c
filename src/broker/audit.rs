//! The queue into which commands put their audit entries; a worker takes them from there and writes them to
//! its log.
//!
//! Entries wait there while no worker runs. The queue is bounded and refuses entries beyond its limit; an
//! entry that no client can read goes to `.unreadable`, as from the work queue.

use super::link::{self, Link};
use super::settler::Publishers;
use super::topology::Queues;
use super::wire;
use super::{Error, call};
use crate::integration::Name;
use futures_util::StreamExt;
use lapin::BasicProperties;
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use std::sync::Arc;
use std::time::Duration;

/// Entries in hand at once.
const PREFETCH: u16 = 16;
/// The longest that a command waits for the broker to take its entry.
const LONGEST: Duration = Duration::from_secs(10);

/// Puts an entry into the queue for the worker.
///
/// # Errors
/// The queue is full or absent, or the broker does not take the entry in time.
pub async fn put(settings: &link::BrokerSettings, name: &Name, entry: &[u8]) -> Result<(), Error> {
    let queue = Queues::of(name).audit;
    let putting = async {
        let publishers = Publishers::new(Arc::new(link::dial(settings, "audit").await?), 1);
        let properties = BasicProperties::default()
            .with_delivery_mode(super::headers::PERSISTENT)
            .with_content_type("application/json".into());
        let put = publishers.put(&queue, entry, properties).await;
        publishers.close().await;
        put
    };
    let late = |_| Err(Error::refused(format!("publish to \"{queue}\""), format!("no answer within {LONGEST:?}")));
    tokio::time::timeout(LONGEST, putting).await.unwrap_or_else(late)
}

/// Calls `take` with each entry as it arrives, and acks it afterwards; an entry may come twice. Returns when
/// the broker is gone or refuses.
pub async fn listen(link: &Link, name: &Name, take: impl Fn(&[u8])) -> Error {
    consume(link, &Queues::of(name).audit, take).await.err().unwrap_or_else(Error::consumer_gone)
}

async fn consume(link: &Link, queue: &str, take: impl Fn(&[u8])) -> Result<(), Error> {
    let channel = link.channel().await?;
    call("limit the prefetch", channel.basic_qos(PREFETCH, BasicQosOptions::default())).await?;
    let consumer =
        channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default());
    let mut consumer = call(&format!("consume queue \"{queue}\""), consumer).await?;
    while let Some(Ok(entry)) = consumer.next().await {
        take(&entry.data);
        wire::ack(&channel, entry.delivery_tag, false).await?;
    }
    Ok(())
}
