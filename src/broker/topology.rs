//! Names and declarations of the exchange and queues.
//!
//! A queue's arguments cannot change once it exists, so they are final: see `docs/rabbitmq.md`
//! for what each of them prevents.

use super::{Error, call, link};
use crate::integration::{Integration, Name};
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ExchangeKind};

/// Where events come from: `[source]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An exchange, declared as a durable topic exchange where it is absent.
    Exchange { name: String, binding_keys: Vec<String> },
    /// A queue that somebody else declared.
    Queue(String),
}

impl Default for Source {
    fn default() -> Source {
        Source::Exchange { name: "consents".to_owned(), binding_keys: vec!["#".to_owned()] }
    }
}

/// The queues of one integration that this version uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queues {
    /// First attempts: `consent-gate.{i}`.
    pub work: String,
    /// Events at rest, for an operator: `consent-gate.{i}.dead`.
    pub dead: String,
    /// What the broker gave up on: `consent-gate.{i}.unreadable`.
    pub unreadable: String,
}

impl Queues {
    /// The names for an integration.
    #[must_use]
    pub fn of(name: &Name) -> Queues {
        let work = format!("consent-gate.{name}");
        Queues { dead: format!("{work}.dead"), unreadable: format!("{work}.unreadable"), work }
    }
}

/// How often a message may return to the work queue before the broker gives up on it.
const WORK_DELIVERY_LIMIT: i64 = 20;
/// Means "never", on every version of the broker: -1 deletes at the first return on 3.10, and no
/// argument deletes at the 21st on 4.0.
const NO_DELIVERY_LIMIT: i64 = 1_000_000_000;

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn work_arguments(queues: &Queues) -> FieldTable {
    let mut arguments = quorum(WORK_DELIVERY_LIMIT);
    arguments.insert("x-dead-letter-exchange".into(), text(""));
    arguments.insert("x-dead-letter-routing-key".into(), text(&queues.unreadable));
    arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
    arguments.insert("x-overflow".into(), text("reject-publish"));
    arguments
}

fn quorum(delivery_limit: i64) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("quorum"));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(delivery_limit));
    arguments
}

/// An integration whose queues the broker refuses to declare, and why.
#[derive(Debug)]
pub struct Refused {
    pub integration: Name,
    pub error: Error,
}

/// Declares exchange, queues and bindings of every integration, on a connection of its own: an
/// exchange that is absent costs the channel that looked for it, and perhaps its connection. Gives
/// the integrations that were refused; the others are ready.
///
/// # Errors
/// What concerns all of them: the broker cannot be reached, or the source cannot be used.
pub async fn declare(
    settings: &link::Settings,
    source: &Source,
    integrations: &[&Integration],
) -> Result<Vec<Refused>, Error> {
    let mut connection = link::dial(settings, "declaring").await?;
    match source {
        Source::Exchange { name, .. } => connection = declare_exchange(settings, connection, name).await?,
        Source::Queue(queue) => find_queue(&connection, queue).await?,
    }
    let mut refused = Vec::new();
    let mut channel = call("open a channel", connection.create_channel()).await?;
    for integration in integrations {
        match declare_queues(&channel, source, integration).await {
            Ok(()) => {}
            Err(error) if error.is_refusal() => {
                refused.push(Refused { integration: integration.name.clone(), error });
                // The refusal closed the channel and perhaps its connection.
                connection = link::dial(settings, "declaring").await?;
                channel = call("open a channel", connection.create_channel()).await?;
            }
            Err(error) => return Err(error),
        }
    }
    let _ = call("close", connection.close(200, "done".into())).await;
    Ok(refused)
}

async fn find_queue(connection: &Connection, queue: &str) -> Result<(), Error> {
    let channel = call("open a channel", connection.create_channel()).await?;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(queue.into(), passive, FieldTable::default());
    let declared = call(&format!("find the source queue \"{queue}\""), declared).await;
    declared.map(|_| ()).map_err(|e| explain(e, "declare it at the broker, or set source.exchange instead"))
}

/// Uses the exchange as it is, whatever its type, and declares it only where it is absent.
async fn declare_exchange(settings: &link::Settings, connection: Connection, name: &str) -> Result<Connection, Error> {
    let what = format!("look for the exchange \"{name}\"");
    let channel = call("open a channel", connection.create_channel()).await?;
    let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let found = channel.exchange_declare(name.into(), ExchangeKind::Topic, passive, FieldTable::default());
    match call(&what, found).await {
        Ok(()) => return Ok(connection),
        Err(error) if error.code() == Some(404) => {}
        Err(error) => return Err(error),
    }
    let connection = link::dial(settings, "declaring").await?;
    let channel = call("open a channel", connection.create_channel()).await?;
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let declared = channel.exchange_declare(name.into(), ExchangeKind::Topic, durable, FieldTable::default());
    call(&format!("declare the exchange \"{name}\""), declared).await?;
    Ok(connection)
}

async fn declare_queues(channel: &Channel, source: &Source, integration: &Integration) -> Result<(), Error> {
    let queues = Queues::of(&integration.name);
    // Targets first, so that nothing is ever dead-lettered into nowhere.
    declare_queue(channel, &queues.unreadable, quorum(NO_DELIVERY_LIMIT)).await?;
    declare_queue(channel, &queues.dead, quorum(NO_DELIVERY_LIMIT)).await?;
    declare_queue(channel, &queues.work, work_arguments(&queues)).await?;
    let Source::Exchange { name, binding_keys } = source else { return Ok(()) };
    for key in integration.binding_keys.as_ref().unwrap_or(binding_keys) {
        let what = format!("bind queue \"{}\" to exchange \"{name}\" with key \"{key}\"", queues.work);
        let bound = channel.queue_bind(
            queues.work.as_str().into(),
            name.as_str().into(),
            key.as_str().into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        call(&what, bound).await?;
    }
    Ok(())
}

async fn declare_queue(channel: &Channel, name: &str, arguments: FieldTable) -> Result<(), Error> {
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let declared =
        call(&format!("declare queue \"{name}\""), channel.queue_declare(name.into(), durable, arguments)).await;
    declared
        .map(|_| ())
        .map_err(|e| explain(e, "its messages are untouched; move them away, delete the queue, and start again"))
}

fn explain(error: Error, remedy: &str) -> Error {
    match error.code() {
        Some(404 | 406) => Error::refused(error.to_string(), remedy),
        _ => error,
    }
}

/// How many messages wait in a queue.
///
/// # Errors
/// The queue is gone, or the broker.
pub async fn depth(channel: &Channel, queue: &str) -> Result<u32, Error> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declared = call("look at a queue", channel.queue_declare(queue.into(), passive, FieldTable::default())).await?;
    Ok(declared.message_count())
}
