//! One event per person at a time, in the order of receipt.
//!
//! Two requests for one person that are under way at once could be executed in either sequencer. So each event joins
//! its person's line when it is received, which takes no time, and waits there for its turn. Events of different
//! persons never wait for each other, and a line is short: an event that finds it full waits at the broker.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;

/// The most events of one person in hand, the one under way included.
const LONGEST_LINE: usize = 8;

type WaitingLines = Mutex<HashMap<Arc<str>, VecDeque<oneshot::Sender<()>>>>;

/// The lines of one integration.
#[derive(Clone, Debug, Default)]
pub struct Sequencer(Arc<WaitingLines>);

/// A place in a person's line. Dropping it gives the place up and lets the next event go on.
#[derive(Debug)]
pub struct Ticket {
    lines: Arc<WaitingLines>,
    person: Arc<str>,
    waiting: Option<oneshot::Receiver<()>>,
}

impl Sequencer {
    /// Takes the last place in a person's line, if there is one.
    #[must_use]
    pub fn join(&self, identifier: &str) -> Option<Ticket> {
        let person: Arc<str> = person(identifier).into();
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = match lines.get_mut(&person) {
            Some(line) if line.len() + 1 >= LONGEST_LINE => return None,
            Some(line) => {
                let (ahead, turn) = oneshot::channel();
                line.push_back(ahead);
                Some(turn)
            }
            None => {
                lines.insert(Arc::clone(&person), VecDeque::new());
                None
            }
        };
        Some(Ticket { lines: Arc::clone(&self.0), person, waiting })
    }

    /// How many persons have an event under way.
    #[must_use]
    pub fn persons(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Ticket {
    /// Waits until every event ahead is done.
    pub async fn turn(&mut self) {
        if let Some(turn) = &mut self.waiting {
            // The sender stays in the line until it is used, so there can be no error.
            let _ = turn.await;
            self.waiting = None;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(turn) = &mut self.waiting {
            turn.close();
            if turn.try_recv().is_err() {
                return; // not our turn yet; the event ahead skips us
            }
        }
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(line) = lines.get_mut(&self.person) else { return };
        while let Some(next) = line.pop_front() {
            if next.send(()).is_ok() {
                return;
            }
        }
        lines.remove(&self.person);
    }
}

/// The key of a person: e-mail addresses are compared trimmed and in lower case.
#[must_use]
pub fn person(identifier: &str) -> Cow<'_, str> {
    if !identifier.contains('@') {
        return Cow::Borrowed(identifier);
    }
    let address = identifier.trim();
    let is_lower = address.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase());
    if is_lower { Cow::Borrowed(address) } else { Cow::Owned(address.to_lowercase()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn a_person_is_served_in_the_order_of_receipt() {
        let sequencer = Sequencer::default();
        let mut first = sequencer.join("Jane@example.com").unwrap();
        let mut second = sequencer.join("jane@EXAMPLE.com ").unwrap();
        let mut third = sequencer.join("jane@example.com").unwrap();
        assert!(first.turn().now_or_never().is_some());
        assert!(second.turn().now_or_never().is_none());
        drop(first);
        assert!(third.turn().now_or_never().is_none());
        assert!(second.turn().now_or_never().is_some());
        drop(second);
        assert!(third.turn().now_or_never().is_some());
    }

    #[test]
    fn who_gives_up_does_not_hold_up_the_line() {
        let sequencer = Sequencer::default();
        let first = sequencer.join("a").unwrap();
        let gives_up_early = sequencer.join("a").unwrap();
        let gives_up_when_called = sequencer.join("a").unwrap();
        let mut last = sequencer.join("a").unwrap();
        drop(gives_up_early);
        drop(first);
        drop(gives_up_when_called);
        assert!(last.turn().now_or_never().is_some());
        drop(last);
        assert_eq!(sequencer.persons(), 0);
    }

    #[test]
    fn a_line_has_an_end() {
        let sequencer = Sequencer::default();
        let line: Vec<Option<Ticket>> = (0..10).map(|_| sequencer.join("a")).collect();
        assert_eq!(line.iter().flatten().count(), LONGEST_LINE);
        assert!(sequencer.join("b").is_some());
        drop(line);
        assert!(sequencer.join("a").is_some());
    }

    #[test]
    fn identifiers_that_are_no_addresses_are_taken_as_they_are() {
        let sequencer = Sequencer::default();
        let mut upper = sequencer.join("ID-A").unwrap();
        let mut lower = sequencer.join("id-a").unwrap();
        assert!(upper.turn().now_or_never().is_some());
        assert!(lower.turn().now_or_never().is_some());
    }
}
