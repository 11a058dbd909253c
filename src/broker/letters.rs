//! Dead letters, as the operators' commands handle them.
//!
//! Browsing changes nothing. Letters are consumed and never acked, and go back when their channel closes; the
//! queue's delivery limit is a thousand million returns. Returned letters come before fresh ones, in the
//! order of their return (`docs/rabbitmq.md`), and channels are closed in the order in which they read, so
//! the order stays the same, too. A snapshot holds as many letters as were ready when it began; letters that
//! arrive later are behind them and are not read.
//!
//! Moving letters goes through the queue once. After a browse all letters count as returned, so the letters
//! of a chunk that stay go behind the others when its channel closes; after one full pass everything is in
//! its old order again. No letter is in hand for longer than its chunk takes.

use super::report::PREFIX;
use super::settler::Publishers;
use super::topology::Queues;
use super::{Error, call, link, topology};
use crate::integration::Name;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, Consumer};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Letters in the first chunk, before their sizes are known.
const FIRST_CHUNK: u32 = 64;
/// Letters in a chunk at most; more only if the channels of a connection would not suffice otherwise.
const LARGEST_CHUNK: u32 = 1_000;
/// The most chunks that one browse holds: a connection has 2,047 channels.
const MOST_CHUNKS: u32 = 1_800;
/// The total size of the bodies of a chunk, in bytes, as far as it can be foreseen.
const CHUNK_BYTES: u64 = 16 * 1024 * 1024;
/// How long to wait for the next letter before assuming that another consumer has it.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest that letters take to be back in their queue.
const RETURNING: Duration = Duration::from_secs(10);
/// How long to try to take the lock.
const LOCKED: Duration = Duration::from_secs(1);
/// The pause between two checks.
const PAUSE: Duration = Duration::from_millis(2);

/// How often a command that removes letters publishes a mark: each mark lives for three times as long.
const MARK_EVERY: Duration = Duration::from_secs(topology::MARK_LIFE.as_secs() / 3);
/// The body of a mark.
const MARK: &[u8] = b"a command removes letters";

/// Which queue holds the letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pile {
    /// The queue into which the worker puts them.
    Dead,
    /// The queue into which the broker moves them because of a policy.
    Aside,
}

impl Pile {
    fn queue(self, queues: &Queues) -> &str {
        match self {
            Pile::Dead => &queues.dead,
            Pile::Aside => &queues.aside,
        }
    }
}

/// The letters of one integration in one queue, locked against all other commands.
#[derive(Debug)]
pub struct DeadLetters {
    connection: Arc<Connection>,
    /// Holds the lock; depths are asked for on it.
    channel: Channel,
    queue: String,
    queues: Queues,
    is_removing: bool,
    /// Somebody else consumes the queue: the letters that they have in hand cannot be seen.
    pub is_shared: bool,
}

impl DeadLetters {
    /// Locks them. The broker releases the lock when this process ends, however it ends.
    ///
    /// # Errors
    /// Another command works with them, their queue has other arguments than it must have, or the broker
    /// refuses or is gone.
    pub async fn hold(settings: &link::BrokerSettings, name: &Name, pile: Pile) -> Result<DeadLetters, Error> {
        let queues = Queues::of(name);
        let (connection, channel) = lock(settings, name, &queues.letters_lock).await?;
        // A look must not make a broker seem in use where nobody declared anything.
        if topology::depth_if_there(&connection, &queues.dead).await?.is_none() {
            topology::close(&connection).await;
            let remedy = "check whether broker.url is the worker's; its first start and consent-gate declare make them";
            return Err(Error::refused(format!("the queues of {name} are not declared at this broker"), remedy));
        }
        topology::declare_letters(&channel, &queues).await?;
        let mut letters = DeadLetters {
            connection: Arc::new(connection),
            channel,
            queue: pile.queue(&queues).to_owned(),
            queues,
            is_shared: false,
            is_removing: false,
        };
        letters.is_shared = letters.is_still_consumed().await?;
        Ok(letters)
    }

    /// Switches to the letters in the other queue; the lock is kept.
    ///
    /// # Errors
    /// The queue or the broker is gone.
    pub async fn turn_to(&mut self, pile: Pile) -> Result<(), Error> {
        pile.queue(&self.queues).clone_into(&mut self.queue);
        self.is_shared = self.is_still_consumed().await?;
        Ok(())
    }

    /// Tells the workers that letters are being removed, from now until a while after this process has ended,
    /// however it ends: those letters are not reported as missing.
    ///
    /// # Errors
    /// The broker refuses or is gone.
    pub async fn begin_to_remove(&mut self) -> Result<(), Error> {
        if !self.is_removing {
            let (publishers, queue) = (Publishers::new(Arc::clone(&self.connection), 1), self.queues.marks.clone());
            publishers.put(&queue, MARK, BasicProperties::default()).await?;
            tokio::spawn(keep_marking(publishers, queue));
            self.is_removing = true;
        }
        Ok(())
    }

    /// Waits until the consumer of a command that was killed is gone from the queue, and returns whether
    /// somebody else still consumes it.
    async fn is_still_consumed(&self) -> Result<bool, Error> {
        let deadline = Instant::now() + PATIENCE;
        while topology::consumers(&self.channel, &self.queue).await? > 0 {
            if Instant::now() > deadline {
                return Ok(true);
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(false)
    }

    /// How many letters wait now.
    ///
    /// # Errors
    /// The queue or the broker is gone.
    pub async fn count(&self) -> Result<u32, Error> {
        topology::depth(&self.channel, &self.queue).await
    }

    /// Begins to read every letter that is there now; `most` limits their number where it is known already.
    ///
    /// # Errors
    /// The queue or the broker is gone.
    pub async fn walk(&self, most: u32) -> Result<Walk<'_>, Error> {
        let count = self.count().await?.min(most);
        let least = count / MOST_CHUNKS + 1;
        Ok(Walk { letters: self, count, left: count, read: 0, least, size: FIRST_CHUNK.max(least), held: Vec::new() })
    }

    /// Declares a queue of this command's own for reports, and consumes it.
    ///
    /// # Errors
    /// The broker refuses or is gone.
    pub async fn reports(&self) -> Result<(String, Consumer), Error> {
        let channel = call("open a channel", self.connection.create_channel()).await?;
        let queue = format!("{PREFIX}{:016x}", RandomState::new().hash_one(std::process::id()));
        let exclusive = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(queue.as_str().into(), exclusive, FieldTable::default());
        call(&format!("declare \"{queue}\""), declared).await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consumer = channel.basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default());
        let consumer = call(&format!("consume \"{queue}\""), consumer).await?;
        Ok((queue, consumer))
    }

    /// Closes a channel, and waits until its letters are back in the queue: otherwise those of the next
    /// channel would overtake them.
    async fn give_back(&self, channel: &Channel, letters: usize) -> Result<(), Error> {
        let before = self.count().await?;
        call("close a channel", channel.close(200, "done".into())).await?;
        let letters = u32::try_from(letters).unwrap_or(u32::MAX);
        let deadline = Instant::now() + RETURNING;
        while self.count().await? < before.saturating_add(letters) && Instant::now() < deadline {
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Closes the connection in order.
    pub async fn close(self) {
        topology::close(&self.connection).await;
    }
}

/// Takes the lock. A worker holds it for a moment when it misses letters; a command holds it for as long as
/// it works.
async fn lock(settings: &link::BrokerSettings, name: &Name, lock: &str) -> Result<(Connection, Channel), Error> {
    let deadline = Instant::now() + LOCKED;
    loop {
        let connection = link::dial(settings, "dead letters").await?;
        let channel = call("open a channel", connection.create_channel()).await?;
        let exclusive = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let locked = channel.queue_declare(lock.into(), exclusive, FieldTable::default());
        match call(&format!("hold \"{lock}\""), locked).await {
            Ok(_) => return Ok((connection, channel)),
            Err(error) if error.code() != Some(405) => return Err(error),
            Err(_) if Instant::now() > deadline => {
                let what = format!("the dead letters of {name} are in use");
                return Err(Error::refused(what, "another command is using them; wait until it ends, or end it"));
            }
            Err(_) => topology::close(&connection).await,
        }
        tokio::time::sleep(LOCKED / 10).await;
    }
}

/// Publishes marks for as long as the connection lives.
async fn keep_marking(publishers: Publishers, queue: String) {
    loop {
        tokio::time::sleep(MARK_EVERY).await;
        if publishers.put(&queue, MARK, BasicProperties::default()).await.is_err() {
            return;
        }
    }
}

/// Some letters, in their order.
#[derive(Debug)]
pub struct Chunk {
    /// The channel on which they are acked; closing it returns those that were not.
    pub channel: Channel,
    pub letters: Vec<Delivery>,
}

/// One pass through a snapshot.
#[derive(Debug)]
pub struct Walk<'d> {
    letters: &'d DeadLetters,
    /// How many letters were ready when it began.
    pub count: u32,
    left: u32,
    read: u32,
    least: u32,
    size: u32,
    held: Vec<(Channel, usize)>,
}

impl Walk<'_> {
    /// How many letters were read so far.
    #[must_use]
    pub fn read(&self) -> u32 {
        self.read
    }

    /// The next letters, at most `most`; `None` at the end of the snapshot.
    ///
    /// # Errors
    /// The broker is gone, or letters that were counted do not arrive.
    pub async fn next(&mut self, most: usize) -> Result<Option<Chunk>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        let most = u32::try_from(most).unwrap_or(u32::MAX).clamp(1, self.size.min(self.left));
        let most = u16::try_from(most).unwrap_or(u16::MAX);
        let channel = call("open a channel", self.letters.connection.create_channel()).await?;
        // The prefetch is exact, so that nothing behind the snapshot is ever delivered.
        call("limit the prefetch", channel.basic_qos(most, BasicQosOptions::default())).await?;
        let queue = self.letters.queue.as_str();
        let consumer =
            channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default());
        let mut consumer = call(&format!("consume queue \"{queue}\""), consumer).await?;
        let letters = self.receive(&mut consumer, most).await?;
        // Acks would make room for others.
        let cancelled = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        call("stop consuming", cancelled).await?;
        let received = u32::try_from(letters.len()).unwrap_or(u32::MAX);
        self.read += received;
        // Missing letters were taken by others, or have expired.
        self.left = if received < u32::from(most) { 0 } else { self.left - received };
        self.size = self.size_after(&letters);
        Ok(Some(Chunk { channel, letters }))
    }

    /// Receives `most` letters.
    async fn receive(&self, consumer: &mut Consumer, most: u16) -> Result<Vec<Delivery>, Error> {
        let mut letters = Vec::with_capacity(most.into());
        let queue = &self.letters.queue;
        let deadline = Instant::now() + super::CALL_TIMEOUT + PATIENCE;
        while letters.len() < usize::from(most) {
            match tokio::time::timeout(PATIENCE, consumer.next()).await {
                Ok(Some(Ok(letter))) => letters.push(letter),
                Ok(_) => return Err(Error::consumer_gone()),
                Err(_) if self.letters.count().await? == 0 => break,
                Err(_) if Instant::now() > deadline => {
                    let why = format!("{} letters of {} came, and no more", self.read(), self.count);
                    return Err(Error::refused(format!("read \"{queue}\""), why));
                }
                Err(_) => {}
            }
        }
        Ok(letters)
    }

    fn size_after(&self, letters: &[Delivery]) -> u32 {
        let bytes: u64 = letters.iter().map(|letter| letter.data.len() as u64).sum();
        let average = (bytes / (letters.len() as u64).max(1)).max(1);
        let size = u32::try_from(CHUNK_BYTES / average).unwrap_or(u32::MAX);
        size.clamp(16, LARGEST_CHUNK).max(self.least)
    }

    /// Keeps a chunk's letters from coming again until the walk ends.
    pub fn keep(&mut self, chunk: Chunk) {
        self.held.push((chunk.channel, chunk.letters.len()));
    }

    /// Gives back what is left of a chunk, `acked` of whose letters were acked.
    ///
    /// # Errors
    /// The broker is gone; then every letter that was not acked is back.
    pub async fn give_back(&self, chunk: Chunk, acked: u32) -> Result<(), Error> {
        let left = chunk.letters.len().saturating_sub(usize::try_from(acked).unwrap_or(usize::MAX));
        self.letters.give_back(&chunk.channel, left).await
    }

    /// Gives everything back, in its order.
    ///
    /// # Errors
    /// The broker is gone; then everything is back.
    pub async fn end(self) -> Result<(), Error> {
        for (channel, letters) in &self.held {
            self.letters.give_back(channel, *letters).await?;
        }
        Ok(())
    }
}
