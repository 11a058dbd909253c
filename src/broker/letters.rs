//! Dead letters, as operators' commands meet them.
//!
//! Browsing changes nothing: letters are consumed and never acked, each with the queue's own leave
//! to be returned a thousand million times, and go back when their channel closes. Returned ones
//! come before fresh ones, in the order of their return (`docs/rabbitmq.md`), and channels are
//! closed in the order in which they read: so the order stays, too. A snapshot is as many letters
//! as were ready when it began; what arrives later is behind them and is not read.
//!
//! Moving goes round: after a browse all letters count as returned, so those of a chunk that stay
//! go behind the others when its channel closes, and after one round everything is in its order.
//! No letter is in hand for longer than its chunk takes.

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
/// Letters in a chunk at most; more only where the channels of a connection would not suffice.
const LARGEST_CHUNK: u32 = 1_000;
/// Chunks that one browse holds at most: a connection has 2,047 channels.
const MOST_CHUNKS: u32 = 1_800;
/// What the bodies of a chunk may weigh, in bytes, as far as can be foreseen.
const CHUNK_BYTES: u64 = 16 * 1024 * 1024;
/// How long the next letter is waited for before somebody else is suspected to have it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long letters take at most to be back in their queue.
const RETURNING: Duration = Duration::from_secs(10);
/// How long it is tried to hold the lock.
const LOCKED: Duration = Duration::from_secs(1);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// How often a command that removes letters says so: each mark is known for three times as long.
const MARK_EVERY: Duration = Duration::from_secs(topology::MARK_LIFE.as_secs() / 3);
/// What a mark says.
const MARK: &[u8] = b"a command removes letters";

/// Where letters lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pile {
    /// Where the worker put them.
    Dead,
    /// Where the broker put them, as a policy told it.
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

/// The letters of one integration in one place, with which nobody else works meanwhile.
#[derive(Debug)]
pub struct DeadLetters {
    connection: Arc<Connection>,
    /// Holds the lock and looks at depths.
    channel: Channel,
    queue: String,
    queues: Queues,
    is_removing: bool,
    /// Somebody else consumes the queue: what is in their hands cannot be seen.
    pub is_shared: bool,
}

impl DeadLetters {
    /// Takes hold of them. The broker frees them when this process ends, however it does.
    ///
    /// # Errors
    /// Another command works with them, their queue is not as it must be, or the broker refuses or is
    /// gone.
    pub async fn hold(settings: &link::Settings, name: &Name, pile: Pile) -> Result<DeadLetters, Error> {
        let queues = Queues::of(name);
        let (connection, channel) = lock(settings, name, &queues.letters_lock).await?;
        topology::declare_letters(&channel, &queues).await?;
        let mut letters = DeadLetters {
            connection: Arc::new(connection),
            channel,
            queue: pile.queue(&queues).to_owned(),
            queues,
            is_shared: false,
            is_removing: false,
        };
        letters.is_shared = letters.settle_down().await?;
        Ok(letters)
    }

    /// Turns to the letters in the other queue, still alone.
    ///
    /// # Errors
    /// The queue is gone, or the broker.
    pub async fn turn_to(&mut self, pile: Pile) -> Result<(), Error> {
        pile.queue(&self.queues).clone_into(&mut self.queue);
        self.is_shared = self.settle_down().await?;
        Ok(())
    }

    /// Lets the workers know that letters are removed from now on, and until a while after this process
    /// ended, however it does: nobody misses those.
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

    /// Waits until a command that was killed is gone from the queue, and says whether somebody else
    /// still consumes it.
    async fn settle_down(&self) -> Result<bool, Error> {
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
    /// The queue is gone, or the broker.
    pub async fn count(&self) -> Result<u32, Error> {
        topology::depth(&self.channel, &self.queue).await
    }

    /// Begins to read everything that is there now; at most so many, where that is known already.
    ///
    /// # Errors
    /// The queue is gone, or the broker.
    pub async fn walk(&self, most: u32) -> Result<Walk<'_>, Error> {
        let count = self.count().await?.min(most);
        let least = count / MOST_CHUNKS + 1;
        Ok(Walk { letters: self, count, left: count, read: 0, least, size: FIRST_CHUNK.max(least), held: Vec::new() })
    }

    /// A queue of this command's own for reports, and what arrives in it.
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

    /// Closes a channel, and waits until the letters on it are back: those of the next one would
    /// overtake them.
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

    /// Lets go, politely.
    pub async fn close(self) {
        topology::close(&self.connection).await;
    }
}

/// Holds the lock. A worker has it for moments, when it misses letters; a command for as long as it works.
async fn lock(settings: &link::Settings, name: &Name, lock: &str) -> Result<(Connection, Channel), Error> {
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
                return Err(Error::refused(what, "another command works with them; wait for its end, or end it"));
            }
            Err(_) => topology::close(&connection).await,
        }
        tokio::time::sleep(LOCKED / 10).await;
    }
}

/// Marks for as long as the connection lives.
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
    /// Where they are acked; closing it returns those that were not.
    pub channel: Channel,
    pub letters: Vec<Delivery>,
}

/// One way through a snapshot.
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

    /// The next letters, at most so many; `None` at the end of the snapshot.
    ///
    /// # Errors
    /// The broker is gone, or letters that were counted do not come.
    pub async fn next(&mut self, most: usize) -> Result<Option<Chunk>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        let most = u32::try_from(most).unwrap_or(u32::MAX).clamp(1, self.size.min(self.left));
        let most = u16::try_from(most).unwrap_or(u16::MAX);
        let channel = call("open a channel", self.letters.connection.create_channel()).await?;
        // Exactly so many that nothing behind the snapshot is ever delivered.
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
        // What is missing was taken by others, or its time ran out.
        self.left = if received < u32::from(most) { 0 } else { self.left - received };
        self.size = self.size_after(&letters);
        Ok(Some(Chunk { channel, letters }))
    }

    /// Receives so many letters.
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

    /// Gives back what is left of a chunk of which so many letters were acked.
    ///
    /// # Errors
    /// The broker is gone; everything that was not acked is back then.
    pub async fn give_back(&self, chunk: Chunk, acked: u32) -> Result<(), Error> {
        let left = chunk.letters.len().saturating_sub(usize::try_from(acked).unwrap_or(usize::MAX));
        self.letters.give_back(&chunk.channel, left).await
    }

    /// Gives everything back in its order.
    ///
    /// # Errors
    /// The broker is gone; everything is back then.
    pub async fn end(self) -> Result<(), Error> {
        for (channel, letters) in &self.held {
            self.letters.give_back(channel, *letters).await?;
        }
        Ok(())
    }
}
