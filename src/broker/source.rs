//! What can be found out about somebody else's queue. AMQP cannot list a queue's arguments, but a client that
//! declares an existing queue with a different argument is told the difference.
//!
//! So a queue that was found is declared again with values that no queue can have: if it exists, the answer
//! says which values it has; if it no longer exists, the broker refuses to create it. This takes the
//! permission to configure the queue, which the documented permissions leave out; without it, the answer only
//! says what to look at.

use super::{Error, call, link};
use lapin::Connection;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};

/// The argument that says where the broker dead-letters what it gives up on.
const TARGET: &str = "x-dead-letter-exchange";
const TYPE: &str = "x-queue-type";

/// What happens to a message in somebody else's queue that no client can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnreadableFate {
    /// It is dead-lettered, as the queue's arguments say.
    Kept,
    /// A quorum queue without a dead-letter exchange: the message is deleted at the delivery limit, by
    /// default at the 21st return on 4.x.
    Deleted,
    /// A classic queue, which keeps no count: the message is returned without end.
    Returned,
    /// Not known.
    Unknown,
}

/// Asks what happens to a message that no client can read. Creates and changes nothing.
///
/// # Errors
/// There is no such queue, or the broker is gone.
pub async fn unreadable(settings: &link::BrokerSettings, queue: &str) -> Result<UnreadableFate, Error> {
    let connection = link::dial_to_declare(settings).await?;
    super::topology::find_queue(&connection, queue).await?;
    let told = ask(settings, queue, TARGET, AMQPValue::LongInt(1)).await?;
    match difference(&told, TARGET) {
        Some(Difference::Has(_)) => Ok(UnreadableFate::Kept),
        Some(Difference::HasNone) => {
            let told = ask(settings, queue, TYPE, AMQPValue::LongString("consent-gate asks".into())).await?;
            Ok(of_type(difference(&told, TYPE)))
        }
        None => Ok(UnreadableFate::Unknown),
    }
}

/// Declares a queue with an argument that no queue can have, and returns the broker's answer.
async fn ask(settings: &link::BrokerSettings, queue: &str, argument: &str, value: AMQPValue) -> Result<String, Error> {
    let connection: Connection = link::dial_to_declare(settings).await?;
    let channel = call("open a channel", connection.create_channel()).await?;
    let mut arguments = FieldTable::default();
    arguments.insert(argument.into(), value);
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(queue.into(), durable, arguments);
    match call(&format!("ask for \"{argument}\" of queue \"{queue}\""), declared).await {
        Err(error) if error.is_refusal() => Ok(error.to_string()),
        Err(error) => Err(error),
        Ok(_) => Ok(String::new()),
    }
}

/// The value that a queue has for the argument that was asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Difference<'t> {
    Has(&'t str),
    HasNone,
}

/// Reads the broker's answer, which is the same on 3.10, 4.0 and 4.3. With a long queue name it may be cut
/// short, and then says nothing.
fn difference<'t>(told: &'t str, argument: &str) -> Option<Difference<'t>> {
    if !told.contains(&format!("inequivalent arg '{argument}' for queue")) {
        return None;
    }
    let (_, current) = told.rsplit_once(" but current is ")?;
    Some(if current.trim_end() == "none" { Difference::HasNone } else { Difference::Has(current) })
}

/// A queue without a type is a classic one.
fn of_type(difference: Option<Difference<'_>>) -> UnreadableFate {
    match difference {
        Some(Difference::HasNone) => UnreadableFate::Returned,
        Some(Difference::Has(current)) if current.contains("'classic'") => UnreadableFate::Returned,
        Some(Difference::Has(current)) if current.contains("'quorum'") => UnreadableFate::Deleted,
        Some(Difference::Has(_)) | None => UnreadableFate::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brokers_words_are_read_and_none_is_guessed() {
        let none = "ask: PRECONDITION_FAILED - inequivalent arg 'x-dead-letter-exchange' for queue 'but current is none' in vhost '/': received the value '1' of type 'signedint' but current is none";
        assert_eq!(difference(none, TARGET), Some(Difference::HasNone));
        let some =
            "inequivalent arg 'x-dead-letter-exchange' for queue 'q' in vhost '/': received '1' but current is 'dlx'";
        assert_eq!(difference(some, TARGET), Some(Difference::Has("'dlx'")));
        for other in [
            "",
            "ACCESS_REFUSED - configure access to queue 'q' in vhost '/' refused for user 'u'",
            "inequivalent arg 'durable' for queue 'q' in vhost '/': received 'true' but current is 'false'",
            "invalid type 'signedint' for arg 'x-dead-letter-exchange' in queue 'q' in vhost '/'",
            "inequivalent arg 'x-dead-letter-exchange' for queue 'a-name-of-255-bytes",
        ] {
            assert_eq!(difference(other, TARGET), None, "{other}");
        }
    }

    #[test]
    fn types_as_each_version_tells_them() {
        let of = |current| of_type(Some(Difference::Has(current)));
        assert_eq!([of("'quorum'"), of("the value 'quorum' of type 'longstr'")], [UnreadableFate::Deleted; 2]);
        assert_eq!([of("'classic'"), of_type(Some(Difference::HasNone))], [UnreadableFate::Returned; 2]);
        assert_eq!([of("'stream'"), of_type(None)], [UnreadableFate::Unknown; 2]);
    }
}
