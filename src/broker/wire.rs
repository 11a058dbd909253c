//! The only file in the crate that publishes or acks: for [`super::settler`], and for the modules that keep
//! notes of the worker's own at the broker.

use super::headers::PERSISTENT;
use super::{Error, call};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicPublishOptions};
use lapin::types::DeliveryTag;
use lapin::{BasicProperties, Channel, Confirmation};

/// How the broker answered a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PublishOutcome {
    Confirmed,
    /// No such queue.
    Returned,
    /// The queue is full or not available.
    Refused,
}

impl PublishOutcome {
    pub(super) fn or_refused(self, queue: &str) -> Result<(), Error> {
        let why = match self {
            PublishOutcome::Confirmed => return Ok(()),
            PublishOutcome::Returned => "returned: the queue does not exist",
            PublishOutcome::Refused => "refused by the broker: the queue is full or not available",
        };
        Err(Error::refused(format!("publish to \"{queue}\""), why))
    }
}

/// Acks a delivery, or it and all before it.
pub(super) async fn ack(channel: &Channel, tag: DeliveryTag, multiple: bool) -> Result<(), Error> {
    call("ack", channel.basic_ack(tag, BasicAckOptions { multiple })).await
}

/// Publishes on a channel in confirm mode on which no other publish is under way.
pub(super) async fn publish(
    channel: &Channel,
    queue: &str,
    body: &[u8],
    properties: BasicProperties,
) -> Result<PublishOutcome, Error> {
    let what = format!("publish to \"{queue}\"");
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let published = async { channel.basic_publish("".into(), queue.into(), options, body, properties).await?.await };
    match call(&what, published).await? {
        Confirmation::Ack(None) => Ok(PublishOutcome::Confirmed),
        Confirmation::Ack(Some(_)) => Ok(PublishOutcome::Returned),
        Confirmation::Nack(_) => Ok(PublishOutcome::Refused),
        Confirmation::NotRequested => Err(Error::refused(what, "the channel does not confirm")),
    }
}

/// Replaces the messages that were taken from a queue with one new message.
pub(super) async fn replace(channel: &Channel, queue: &str, taken: Vec<Delivery>, body: &[u8]) -> Result<(), Error> {
    let properties =
        BasicProperties::default().with_delivery_mode(PERSISTENT).with_content_type("application/json".into());
    publish(channel, queue, body, properties).await?.or_refused(queue)?;
    for old in taken {
        call("ack", old.acker.ack(BasicAckOptions::default())).await?;
    }
    Ok(())
}

/// Publishes without waiting: neither persistent nor confirmed.
pub(super) async fn tell(channel: &Channel, queue: &str, body: &[u8]) -> Result<(), Error> {
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    call("report", channel.basic_publish("".into(), queue.into(), options, body, properties)).await?;
    Ok(())
}
