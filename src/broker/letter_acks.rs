//! The acks of dead letters that a command is done with.

use super::{Error, wire};
use lapin::Channel;
use lapin::types::DeliveryTag;

/// Acks the letters of one channel with few commands: a broker's channel holds back acks beyond 32 that its
/// queue has not answered, and drops them when the channel closes (`docs/rabbitmq.md`).
#[derive(Debug)]
pub struct LetterAcks {
    channel: Channel,
    /// Whether each letter may be acked: index 0 is delivery tag 1.
    done: Vec<bool>,
    /// How many letters, from the first on, are acked.
    acked: usize,
}

impl LetterAcks {
    /// How many letters behind the first gap may be acked, each singly, on a channel.
    pub const SINGLES: usize = 12;
    /// At most this many acks with `multiple` are sent before the end.
    const PARTS: usize = 16;

    /// Begins with a channel that delivered this many letters and acked none.
    #[must_use]
    pub fn new(channel: Channel, letters: usize) -> LetterAcks {
        LetterAcks { channel, done: vec![false; letters], acked: 0 }
    }

    /// Marks a letter as done, because everything it needs is confirmed. Its ack may wait for those before
    /// it.
    ///
    /// # Errors
    /// The broker is gone; the letter is still there.
    pub async fn done(&mut self, index: usize) -> Result<(), Error> {
        if let Some(done) = self.done.get_mut(index) {
            *done = true;
        }
        let first = self.first();
        if first - self.acked > self.done.len() / LetterAcks::PARTS { self.ack_first(first).await } else { Ok(()) }
    }

    /// Acks every done letter that is not acked yet, and returns how many letters were acked in all.
    ///
    /// # Errors
    /// The broker is gone; the letters are still there.
    pub async fn finish(mut self) -> Result<u32, Error> {
        let first = self.first();
        if first > self.acked {
            self.ack_first(first).await?;
        }
        let mut all = first;
        for index in first..self.done.len() {
            if self.done.get(index) == Some(&true) {
                self.ack(index + 1, false).await?;
                all += 1;
            }
        }
        Ok(u32::try_from(all).unwrap_or(u32::MAX))
    }

    fn first(&self) -> usize {
        let next = self.done.iter().skip(self.acked).take_while(|done| **done).count();
        self.acked + next
    }

    async fn ack_first(&mut self, first: usize) -> Result<(), Error> {
        self.acked = first;
        self.ack(first, true).await
    }

    async fn ack(&self, tag: usize, multiple: bool) -> Result<(), Error> {
        let tag = DeliveryTag::try_from(tag).unwrap_or(DeliveryTag::MAX);
        wire::ack(&self.channel, tag, multiple).await
    }
}
