//! Names and declarations of the exchange and the queues.
//!
//! A queue's arguments cannot change once it exists, so they are final: see `docs/rabbitmq.md` for what each
//! of them prevents.

use super::{Error, call, link};
use crate::integration::{Integration, Name};
use crate::schedule::Schedule;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ExchangeKind, Queue};
use std::time::Duration;

/// Where events come from: `[source]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventSource {
    /// An exchange, declared as a durable topic exchange if it is absent.
    Exchange { name: String, binding_keys: Vec<String> },
    /// A queue that somebody else declared.
    Queue(String),
}

impl Default for EventSource {
    fn default() -> EventSource {
        EventSource::Exchange { name: "consents".to_owned(), binding_keys: vec!["#".to_owned()] }
    }
}

/// The queues of one integration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queues {
    /// First attempts: `consent-gate.{i}`.
    pub work: String,
    /// Events whose delay is over: `consent-gate.{i}.retry`.
    pub retry: String,
    /// Dead letters, for an operator: `consent-gate.{i}.dead`.
    pub dead: String,
    /// Dead letters that the broker itself moved out of `.dead` because of a policy:
    /// `consent-gate.{i}.aside`.
    pub aside: String,
    /// Marks of commands that remove letters from these two queues, so that the letters are not reported as
    /// missing: `consent-gate.{i}.dead.marks`. Holds no event.
    pub marks: String,
    /// Audit entries of the commands that touch personal data, for the worker's log:
    /// `consent-gate.{i}.audit`. Holds no event.
    pub audit: String,
    /// What the broker gave up on (delivery limit): `consent-gate.{i}.unreadable`.
    pub unreadable: String,
    /// The lock held by a command that works with dead letters: `consent-gate.{i}.dead.lock`.
    pub letters_lock: String,
    /// Which records the integration's events went to: `consent-gate.{i}.store`. Holds no event.
    pub store: String,
    /// The lock held while the `.store` queue is read: `consent-gate.{i}.lock`.
    pub lock: String,
}

impl Queues {
    /// The names for an integration.
    #[must_use]
    pub fn of(name: &Name) -> Queues {
        let work = format!("consent-gate.{name}");
        Queues {
            retry: format!("{work}.retry"),
            dead: format!("{work}.dead"),
            aside: format!("{work}.aside"),
            letters_lock: format!("{work}.dead.lock"),
            marks: format!("{work}.dead.marks"),
            audit: format!("{work}.audit"),
            unreadable: format!("{work}.unreadable"),
            store: format!("{work}.store"),
            lock: format!("{work}.lock"),
            work,
        }
    }

    /// The queue in which events wait for this delay: `consent-gate.{i}.delay.{ms}`. The delay is part of the
    /// name because a queue's arguments cannot change.
    #[must_use]
    pub fn delay(&self, delay: Duration) -> String {
        format!("{}.delay.{}", self.work, delay.as_millis())
    }

    /// Every queue of an integration with this schedule, and its arguments. Queues that are dead-letter
    /// targets of others come first, so that no message is ever dead-lettered into nothing.
    #[must_use]
    pub fn all(&self, schedule: &Schedule) -> Vec<(String, FieldTable)> {
        let delays = schedule.distinct().into_iter().map(|delay| (self.delay(delay), delaying(self, delay)));
        let first = [(self.store.clone(), remembering()), (self.unreadable.clone(), resting())];
        let others = delays.chain([(self.work.clone(), consumed(self))]);
        let retry = [(self.retry.clone(), consumed(self))];
        first.into_iter().chain(self.of_letters()).chain(retry).chain(others).collect()
    }

    /// The queues that commands on dead letters need, in the order in which they are declared.
    fn of_letters(&self) -> [(String, FieldTable); 4] {
        [
            (self.marks.clone(), marking()),
            (self.audit.clone(), auditing(self)),
            (self.aside.clone(), resting()),
            (self.dead.clone(), unlimited(leading_to(&self.aside))),
        ]
    }
}

/// How often a message may return to the work or the retry queue before the broker gives up on it.
const DELIVERY_LIMIT: i64 = 20;
/// Means "never", on every version of the broker: -1 deletes at the first return on 3.10, and no
/// argument deletes at the 21st on 4.0.
const NO_DELIVERY_LIMIT: i64 = 1_000_000_000;
/// How long a mark of a command that removes letters lives.
pub const MARK_LIFE: Duration = Duration::from_secs(60);
/// The most audit entries that wait for a worker.
const MOST_ENTRIES: i64 = 10_000;
/// The most marks that are kept.
const MOST_MARKS: i64 = 16;

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn quorum() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("quorum"));
    arguments
}

/// A queue whose messages may be returned without end.
fn unlimited(mut arguments: FieldTable) -> FieldTable {
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(NO_DELIVERY_LIMIT));
    arguments
}

/// A queue from which the broker itself never removes a message, unless a policy says so.
fn resting() -> FieldTable {
    let mut arguments = unlimited(quorum());
    arguments.insert("x-overflow".into(), text("reject-publish"));
    arguments
}

/// A queue that keeps only the last message published into it.
fn remembering() -> FieldTable {
    let mut arguments = unlimited(quorum());
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(1));
    arguments
}

/// A queue whose messages expire after a while; a few are as good as many.
fn marking() -> FieldTable {
    let mut arguments = quorum();
    let life = i64::try_from(MARK_LIFE.as_millis()).unwrap_or(i64::MAX);
    arguments.insert("x-message-ttl".into(), AMQPValue::LongLongInt(life));
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(MOST_MARKS));
    arguments
}

/// A queue that dead-letters its messages to `target`, at least once.
fn leading_to(target: &str) -> FieldTable {
    let mut arguments = quorum();
    arguments.insert("x-dead-letter-exchange".into(), text(""));
    arguments.insert("x-dead-letter-routing-key".into(), text(target));
    arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
    arguments.insert("x-overflow".into(), text("reject-publish"));
    arguments
}

/// A queue that is consumed.
fn consumed(queues: &Queues) -> FieldTable {
    let mut arguments = leading_to(&queues.unreadable);
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(DELIVERY_LIMIT));
    arguments
}

/// A queue that is consumed, with a bounded number of entries.
fn auditing(queues: &Queues) -> FieldTable {
    let mut arguments = consumed(queues);
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(MOST_ENTRIES));
    arguments
}

/// A queue in which messages wait. Never with `x-expires`, which deletes a queue together with its messages.
fn delaying(queues: &Queues, delay: Duration) -> FieldTable {
    let mut arguments = leading_to(&queues.retry);
    let ttl = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
    arguments.insert("x-message-ttl".into(), AMQPValue::LongLongInt(ttl));
    arguments
}

/// What was declared, and on which connection.
#[derive(Debug)]
pub struct Declared {
    pub connection: Connection,
    /// The exchange was absent.
    pub was_missing: bool,
}

/// Declares the exchange, and an integration's queues and bindings, on a connection of its own, which it
/// returns: looking for an exchange that is absent closes the channel, and perhaps its connection.
///
/// # Errors
/// The broker cannot be reached, or it refuses ([`Error::is_refusal`]).
pub async fn declare(
    settings: &link::BrokerSettings,
    source: &EventSource,
    integration: &Integration,
) -> Result<Declared, Error> {
    let connection = link::dial_to_declare(settings).await?;
    let declared = match source {
        EventSource::Exchange { name, .. } => declare_exchange(settings, connection, name).await?,
        EventSource::Queue(queue) => {
            find_queue(&connection, queue).await?;
            // After a refusal the connection may not be usable.
            close(&connection).await;
            Declared { connection: link::dial_to_declare(settings).await?, was_missing: false }
        }
    };
    let channel = call("open a channel", declared.connection.create_channel()).await?;
    declare_queues(&channel, integration).await?;
    bind(&channel, source, integration).await?;
    Ok(declared)
}

/// Makes sure that events still reach the work queue. Deleting an exchange deletes its bindings, and a
/// message published to an exchange without bindings is confirmed and lost. Returns whether the exchange was
/// absent.
///
/// # Errors
/// The broker cannot be reached, or it refuses.
pub async fn keep_bound(
    settings: &link::BrokerSettings,
    source: &EventSource,
    integration: &Integration,
) -> Result<bool, Error> {
    let EventSource::Exchange { name, .. } = source else { return Ok(false) };
    let connection = link::dial_to_declare(settings).await?;
    let Declared { connection, was_missing } = declare_exchange(settings, connection, name).await?;
    let channel = call("open a channel", connection.create_channel()).await?;
    bind(&channel, source, integration).await?;
    close(&connection).await;
    Ok(was_missing)
}

/// Closes a connection in order.
pub async fn close(connection: &Connection) {
    let _ = call("close", connection.close(200, "done".into())).await;
}

/// Finds somebody else's queue. Without the permission to look, it is taken as found: consuming will show
/// whether it exists.
pub(super) async fn find_queue(connection: &Connection, queue: &str) -> Result<(), Error> {
    let channel = call("open a channel", connection.create_channel()).await?;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(queue.into(), passive, FieldTable::default());
    match call(&format!("find the source queue \"{queue}\""), declared).await {
        Err(error) if !error.is_forbidden() => {
            Err(explain(error, "declare it at the broker, or set source.exchange instead"))
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Uses the exchange as it is, whatever its type, and declares it only if it is absent. Without the
/// permission to look (4.2.6 and 4.3.0 ask for the right to configure), it is taken as found: binding will
/// show whether it exists.
async fn declare_exchange(
    settings: &link::BrokerSettings,
    connection: Connection,
    name: &str,
) -> Result<Declared, Error> {
    let what = format!("check the exchange \"{name}\"");
    let channel = call("open a channel", connection.create_channel()).await?;
    let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let found = channel.exchange_declare(name.into(), ExchangeKind::Topic, passive, FieldTable::default());
    match call(&what, found).await {
        Ok(()) => return Ok(Declared { connection, was_missing: false }),
        Err(error) if error.code() == Some(404) => {}
        Err(error) if error.is_forbidden() => {
            let connection = link::dial_to_declare(settings).await?;
            return Ok(Declared { connection, was_missing: false });
        }
        Err(error) => return Err(error),
    }
    let connection = link::dial_to_declare(settings).await?;
    let channel = call("open a channel", connection.create_channel()).await?;
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let declared = channel.exchange_declare(name.into(), ExchangeKind::Topic, durable, FieldTable::default());
    call(&format!("declare the exchange \"{name}\""), declared).await?;
    Ok(Declared { connection, was_missing: true })
}

async fn declare_queues(channel: &Channel, integration: &Integration) -> Result<(), Error> {
    for (queue, arguments) in Queues::of(&integration.name).all(&integration.schedule) {
        declare_queue(channel, &queue, arguments).await?;
    }
    Ok(())
}

/// Binds the work queue; an existing binding stays as it is.
async fn bind(channel: &Channel, source: &EventSource, integration: &Integration) -> Result<(), Error> {
    let queues = Queues::of(&integration.name);
    let EventSource::Exchange { name, binding_keys } = source else { return Ok(()) };
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

/// Makes sure that an integration's queues of dead letters exist, with arguments under which looking at
/// letters can never delete them.
///
/// # Errors
/// The broker refuses, or a queue of that name has other arguments.
pub(super) async fn declare_letters(channel: &Channel, queues: &Queues) -> Result<(), Error> {
    for (queue, arguments) in queues.of_letters() {
        declare_queue(channel, &queue, arguments).await?;
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
/// The queue or the broker is gone.
pub async fn depth(channel: &Channel, queue: &str) -> Result<u32, Error> {
    Ok(look(channel, queue).await?.message_count())
}

/// How many messages wait in a queue; `None` if there is no such queue. Does not create it.
///
/// # Errors
/// The broker refuses or is gone.
pub async fn depth_if_there(connection: &Connection, queue: &str) -> Result<Option<u32>, Error> {
    let channel = call("open a channel", connection.create_channel()).await?;
    match depth(&channel, queue).await {
        Ok(depth) => Ok(Some(depth)),
        Err(error) if error.code() == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}

/// How many consumers a queue has.
///
/// # Errors
/// The queue or the broker is gone.
pub async fn consumers(channel: &Channel, queue: &str) -> Result<u32, Error> {
    Ok(look(channel, queue).await?.consumer_count())
}

/// How many messages wait in a queue, and how many consumers it has.
///
/// # Errors
/// The queue or the broker is gone.
pub(super) async fn look(channel: &Channel, queue: &str) -> Result<Queue, Error> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    call("check a queue", channel.queue_declare(queue.into(), passive, FieldTable::default())).await
}
