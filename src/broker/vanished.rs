//! Messages that leave the queues of an operator without one of the program's commands: dead letters, and what the
//! broker itself put into `.unreadable`.
//!
//! A policy can delete a letter silently: AMQP does not show policies, and a deleted message leaves no trace.
//! So the letters are counted. If `.dead` and `.aside` together hold fewer letters than at an earlier look
//! plus what this worker has certainly put there since, letters are missing; so they are if `.unreadable`,
//! where the broker puts them, holds fewer than at an earlier look. Missing does not mean gone: a
//! command, or any other consumer, may have them in hand. They are gone
//! - if no command can be at work: the worker holds the commands' lock while it counts,
//! - if no command removed any: each publishes a mark while it does, which lives for a minute (`.dead.marks`),
//! - if nobody else consumes, or somebody has for longer than the broker lets anybody keep a message,
//! - and if all of this holds at two looks in a row: a message in transit is counted nowhere.
//!
//! What cannot be detected: letters that leave while a command removes others, or while the worker is not
//! connected; with several workers, what the others put there meanwhile; and what leaves `.unreadable` between
//! two looks or while as much arrives.

use super::topology::{self, Queues};
use super::{Error, call, link};
use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Two looks that are further apart prove nothing: a command's mark may have been published and expired
/// between them.
const FURTHEST: Duration = Duration::from_secs(topology::MARK_LIFE.as_secs() / 2);
/// The longest that any consumer has a message in hand: the broker's `consumer_timeout`, and a little more.
const LONGEST_IN_HAND: Duration = Duration::from_secs(35 * 60);
/// How many looks in a row must agree.
const LOOKS: u32 = 2;

/// How many letters this worker puts into the queue. A publish that was begun before a look may be counted by
/// it; one that was confirmed before a look certainly is.
#[derive(Debug, Default)]
pub struct LettersPut {
    begun: AtomicU64,
    confirmed: AtomicU64,
}

impl LettersPut {
    /// A letter is about to be published.
    #[must_use]
    pub fn begin(self: &Arc<LettersPut>) -> LetterUnderWay {
        self.begun.fetch_add(1, Ordering::SeqCst);
        LetterUnderWay(Some(Arc::clone(self)))
    }
}

/// A letter that is being published. Dropping it means that the publish was given up and is no longer
/// counted.
#[derive(Debug)]
pub struct LetterUnderWay(Option<Arc<LettersPut>>);

impl LetterUnderWay {
    /// The broker has confirmed it.
    pub fn confirmed(mut self) {
        if let Some(put) = self.0.take() {
            put.confirmed.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Drop for LetterUnderWay {
    fn drop(&mut self) {
        if let Some(put) = self.0.take() {
            put.begun.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// What one look saw.
#[derive(Clone, Copy, Debug)]
pub struct QueueCounts {
    at: Instant,
    /// In `.dead`.
    pub dead: u32,
    /// In `.aside`.
    pub aside: u32,
    /// In `.unreadable`.
    pub unreadable: u32,
    /// A command removed letters within the last minute.
    is_marked: bool,
    has_consumers: bool,
    /// How many of this worker's letters had certainly arrived by then.
    confirmed: u64,
    /// How many may have arrived.
    begun: u64,
}

impl QueueCounts {
    fn letters(&self) -> u64 {
        u64::from(self.dead) + u64::from(self.aside)
    }
}

/// How many messages are gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vanished {
    /// From `.dead` and `.aside` together.
    pub letters: u64,
    /// From `.unreadable`.
    pub unreadable: u64,
}

/// What is known about an integration's letters.
#[derive(Debug, Default)]
pub struct Watch {
    put: Arc<LettersPut>,
    base: Option<Base>,
    last: Option<Instant>,
}

/// What further looks are compared with.
#[derive(Clone, Copy, Debug)]
struct Base {
    letters: u64,
    unreadable: u32,
    begun: u64,
    /// Since when letters are missing.
    missing_since: Option<Instant>,
    /// How many looks in a row found them gone.
    gone: u32,
}

impl Watch {
    /// The counter of what this worker puts there.
    #[must_use]
    pub fn put(&self) -> Arc<LettersPut> {
        Arc::clone(&self.put)
    }

    /// Looks at the queues.
    ///
    /// # Errors
    /// A queue or the broker is gone.
    pub async fn see(&self, channel: &Channel, queues: &Queues) -> Result<QueueCounts, Error> {
        see(channel, queues, &self.put).await
    }

    /// Compares what was seen with the looks before it, and returns how many messages are gone without
    /// a command.
    pub async fn judge(
        &mut self,
        seen: QueueCounts,
        settings: &link::BrokerSettings,
        queues: &Queues,
    ) -> Option<Vanished> {
        if !self.are_missing(&seen) {
            return None;
        }
        // On a connection of its own: a client that is refused the lock loses its channel.
        match see_alone(settings, queues, &self.put).await {
            Ok(Some(alone)) => self.gone(&alone),
            // A command is at work, or whether one is cannot be known.
            Ok(None) | Err(_) => {
                self.wait();
                None
            }
        }
    }

    /// Whether letters are missing; if not, the next look is compared with this one.
    fn are_missing(&mut self, seen: &QueueCounts) -> bool {
        let is_far = self.last.is_none_or(|last| seen.at.duration_since(last) > FURTHEST);
        self.last = Some(seen.at);
        let is_missing = !is_far && self.missing(seen).is_some();
        if !is_missing {
            self.begin(seen);
        }
        is_missing
    }

    /// How many of the messages that should be there are not, if any.
    fn missing(&self, seen: &QueueCounts) -> Option<Vanished> {
        let base = self.base.filter(|_| !seen.is_marked)?;
        let surely_new = seen.confirmed.saturating_sub(base.begun);
        let letters = (base.letters + surely_new).saturating_sub(seen.letters());
        let unreadable = base.unreadable.saturating_sub(seen.unreadable).into();
        Some(Vanished { letters, unreadable }).filter(|gone| *gone != Vanished::default())
    }

    /// How many messages are gone, when no command can be at work.
    fn gone(&mut self, alone: &QueueCounts) -> Option<Vanished> {
        let missing = self.missing(alone);
        let Some(base) = self.base.as_mut().filter(|_| missing.is_some()) else {
            self.begin(alone);
            return None;
        };
        let since = *base.missing_since.get_or_insert(alone.at);
        if alone.has_consumers && alone.at.duration_since(since) < LONGEST_IN_HAND {
            base.gone = 0;
            return None;
        }
        base.gone += 1;
        if base.gone < LOOKS {
            return None;
        }
        self.begin(alone);
        missing
    }

    /// Begins the count of looks again: this one proves nothing.
    fn wait(&mut self) {
        if let Some(base) = &mut self.base {
            base.gone = 0;
        }
    }

    fn begin(&mut self, seen: &QueueCounts) {
        let (letters, unreadable) = (seen.letters(), seen.unreadable);
        self.base = Some(Base { letters, unreadable, begun: seen.begun, missing_since: None, gone: 0 });
    }
}

async fn see(channel: &Channel, queues: &Queues, put: &LettersPut) -> Result<QueueCounts, Error> {
    let confirmed = put.confirmed.load(Ordering::SeqCst);
    let dead = topology::look(channel, &queues.dead).await?;
    let aside = topology::look(channel, &queues.aside).await?;
    let unreadable = topology::look(channel, &queues.unreadable).await?;
    let marks = topology::depth(channel, &queues.marks).await?;
    Ok(QueueCounts {
        at: Instant::now(),
        dead: dead.message_count(),
        aside: aside.message_count(),
        unreadable: unreadable.message_count(),
        is_marked: marks > 0,
        has_consumers: [dead, aside, unreadable].iter().any(|queue| queue.consumer_count() > 0),
        confirmed,
        begun: put.begun.load(Ordering::SeqCst),
    })
}

/// Looks while holding the commands' lock; `None` if a command is at work.
async fn see_alone(
    settings: &link::BrokerSettings,
    queues: &Queues,
    put: &LettersPut,
) -> Result<Option<QueueCounts>, Error> {
    let connection = link::dial_to_declare(settings).await?;
    let channel = call("open a channel", connection.create_channel()).await?;
    let exclusive = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(queues.letters_lock.as_str().into(), exclusive, FieldTable::default());
    let seen = match call("hold the dead letters", declared).await {
        Ok(_) => see(&channel, queues, put).await.map(Some),
        Err(error) if error.code() == Some(405) => Ok(None),
        Err(error) => Err(error),
    };
    topology::close(&connection).await;
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A look `seconds` after the first, with this many letters; the worker has put none.
    fn seen(start: Instant, seconds: u64, letters: u64) -> QueueCounts {
        let dead = u32::try_from(letters).unwrap();
        let at = start + Duration::from_secs(seconds);
        QueueCounts {
            at,
            dead,
            aside: 0,
            unreadable: 0,
            is_marked: false,
            has_consumers: false,
            confirmed: 0,
            begun: 0,
        }
    }

    /// The result of a look while no command is at work.
    fn look(watch: &mut Watch, seen: QueueCounts) -> Option<Vanished> {
        if watch.are_missing(&seen) { watch.gone(&seen) } else { None }
    }

    #[expect(clippy::unnecessary_wraps, reason = "it stands for the result of a look")]
    fn letters(letters: u64) -> Option<Vanished> {
        Some(Vanished { letters, unreadable: 0 })
    }

    #[test]
    fn what_is_missing_at_two_looks_is_gone_and_told_once() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        let told: Vec<_> =
            [9, 9, 4, 4, 4, 6].iter().zip(0..).map(|(n, at)| look(&mut watch, seen(start, at * 5, *n))).collect();
        assert_eq!(told, [None, None, None, letters(5), None, None]);
        assert_eq!([look(&mut watch, seen(start, 30, 0)), look(&mut watch, seen(start, 35, 0))], [None, letters(6)]);
    }

    #[test]
    fn what_leaves_the_unreadable_is_gone_whatever_arrives_beside_it() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        let told: Vec<_> = [(4, 2), (4, 5), (9, 1), (9, 1), (9, 1)]
            .iter()
            .zip(0..)
            .map(|((dead, unreadable), at)| {
                look(&mut watch, QueueCounts { unreadable: *unreadable, ..seen(start, at * 5, *dead) })
            })
            .collect();
        assert_eq!(told, [None, None, None, Some(Vanished { letters: 0, unreadable: 4 }), None]);
    }

    #[test]
    fn what_was_on_its_way_or_in_the_hands_of_a_command_is_not_gone() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        for (at, letters) in [(0, 9), (5, 4), (10, 9)] {
            assert_eq!(look(&mut watch, seen(start, at, letters)), None, "{at}");
        }
        for at in (15..600).step_by(5) {
            assert!(watch.are_missing(&seen(start, at, 0)));
            watch.wait();
        }
        assert_eq!(look(&mut watch, seen(start, 600, 9)), None);
        assert_eq!(look(&mut watch, seen(start, 605, 8)), None, "one look is not enough after the wait");
    }

    #[test]
    fn what_a_command_removed_is_not_missed() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        for (at, letters, is_marked) in [(0, 9, false), (5, 3, true), (10, 0, true), (15, 0, false), (20, 0, false)] {
            assert_eq!(look(&mut watch, QueueCounts { is_marked, ..seen(start, at, letters) }), None, "{at}");
        }
    }

    #[test]
    fn looks_that_are_far_apart_say_nothing() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        for at in [0, 31, 36, 100] {
            assert_eq!(look(&mut watch, seen(start, at, 100 - at)), None, "{at}");
        }
    }

    #[test]
    fn letters_that_go_as_fast_as_others_come_are_missed() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        let steady = |at: u64, count: u64| QueueCounts { confirmed: count, begun: count + 1, ..seen(start, at, 10) };
        let told: Vec<_> = (0..4).map(|n| look(&mut watch, steady(n * 5, n * 3))).collect();
        assert_eq!(
            told,
            [None, None, letters(5), None],
            "one that was under way at the first look may be counted by it"
        );
    }

    #[test]
    fn who_consumes_may_have_them_in_hand_for_as_long_as_the_broker_lets_them() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        let mut told = Vec::new();
        for at in (0..2_200).step_by(5) {
            let seen = QueueCounts { has_consumers: true, ..seen(start, at, if at == 0 { 9 } else { 2 }) };
            told.extend(look(&mut watch, seen).map(|gone| (at, gone)));
        }
        assert_eq!(told, [(2_110, Vanished { letters: 7, unreadable: 0 })]);
    }
}
