//! The rules in a simulated process that dies and starts again: the rules are the real ones, the process is
//! not.

use super::*;
use crate::broker::redelivery::{Redelivery, redelivery};
use crate::record::{Note, SuspectState};
use futures_util::FutureExt;
use jiff::Timestamp;
use proptest::prelude::*;
use std::collections::HashMap;

/// The rule under test, or a weakened one.
type Rule = fn(Option<u32>) -> Care;

#[derive(Clone, Debug)]
struct Message {
    integration: usize,
    kills: bool,
    /// How often it came back.
    returns: i64,
    is_done: bool,
    is_dead: bool,
}

impl Message {
    fn new(integration: usize, kills: bool) -> Message {
        Message { integration, kills, returns: 0, is_done: false, is_dead: false }
    }
}

struct World {
    messages: Vec<Message>,
    notes: HashMap<usize, Note>,
    rule: Rule,
    /// How long each gate takes to answer, in milliseconds.
    latencies: Vec<u64>,
    crashes: u32,
    elapsed_ms: u64,
    random: u64,
}

/// One life of the process.
struct Life {
    name: String,
    /// How each suspect is to be handled; `None` for all other messages.
    care: Vec<Option<Care>>,
    /// The messages under way: when each ends, and which it is.
    busy: Vec<(u64, usize)>,
    /// How many of these are at each gate, and how many are handled as "many" or "few".
    at_gate: Vec<usize>,
    many: usize,
    few: usize,
    is_alone: bool,
}

impl Life {
    fn may_begin(&self, message: usize, integration: usize) -> bool {
        let has_slot = !self.is_alone && self.at_gate[integration] < 64;
        match self.care[message] {
            None => has_slot,
            Some(Care::Many) => has_slot && self.many < MANY,
            Some(Care::Few) => has_slot && self.few < FEW,
            Some(Care::Alone) => self.busy.is_empty(),
            Some(Care::Convicted) => true,
        }
    }

    fn begin(&mut self, message: usize, integration: usize, end: u64) {
        self.busy.push((end, message));
        self.at_gate[integration] += 1;
        match self.care[message] {
            Some(Care::Many) => self.many += 1,
            Some(Care::Few) => self.few += 1,
            Some(Care::Alone) => self.is_alone = true,
            Some(Care::Convicted) | None => {}
        }
    }

    fn end(&mut self, message: usize, integration: usize) {
        self.at_gate[integration] -= 1;
        match self.care[message] {
            Some(Care::Many) => self.many -= 1,
            Some(Care::Few) => self.few -= 1,
            Some(Care::Alone) => self.is_alone = false,
            Some(Care::Convicted) | None => {}
        }
    }
}

impl World {
    fn new(messages: Vec<Message>, latencies: Vec<u64>, rule: Rule, seed: u64) -> World {
        World { messages, notes: HashMap::new(), rule, latencies, crashes: 0, elapsed_ms: 0, random: seed | 1 }
    }

    fn below(&mut self, limit: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random >> 33).unwrap() % limit
    }

    /// Lets the process live and die until everything is settled. First it is killed from outside
    /// `outside_kills` times, each time when it has just begun with the messages in hand.
    fn run(&mut self, outside_kills: u32) {
        let mut outside = outside_kills;
        while self.messages.iter().any(|message| !message.is_done) {
            let kill_after = (outside > 0).then(|| self.below(self.messages.len()) + 1);
            if self.live(kill_after) {
                return;
            }
            outside = outside.saturating_sub(1);
            self.crashes += 1;
            self.elapsed_ms += 1_000;
            assert!(self.crashes < 200, "it never ends");
            for message in self.messages.iter_mut().filter(|message| !message.is_done) {
                message.returns += 1;
            }
        }
    }

    /// One life of the process; returns whether everything was settled. It ends when a message kills it, or
    /// from outside after `kill_after` messages were begun.
    fn live(&mut self, kill_after: Option<usize>) -> bool {
        let name = format!("life {}", self.crashes);
        let mut waiting: Vec<usize> = (0..self.messages.len()).filter(|index| !self.messages[*index].is_done).collect();
        for last in (1..waiting.len()).rev() {
            let other = self.below(last + 1);
            waiting.swap(last, other);
        }
        for message in self.messages.iter_mut().filter(|message| !message.is_done) {
            if redelivery(message.returns > 0, Some(message.returns), false, true) == Redelivery::Recount {
                message.returns = 0;
            }
        }
        let care = (0..self.messages.len()).map(|index| self.care(index, &name)).collect();
        let at_gate = vec![0; self.latencies.len()];
        let mut life = Life { name, care, busy: Vec::new(), at_gate, many: 0, few: 0, is_alone: false };
        let mut begun = 0;
        loop {
            let mut is_held_up = false;
            let mut later = Vec::with_capacity(waiting.len());
            for message in waiting {
                // A message that must be handled alone holds up those behind it.
                if is_held_up || !life.may_begin(message, self.messages[message].integration) {
                    is_held_up |= life.care[message] == Some(Care::Alone);
                    later.push(message);
                    continue;
                }
                begun += 1;
                if !self.begin(&mut life, message) || kill_after == Some(begun) {
                    return false;
                }
            }
            waiting = later;
            let Some(next) = life.busy.iter().map(|(end, _)| *end).min() else { return true };
            self.elapsed_ms = self.elapsed_ms.max(next);
            let (ended, busy): (Vec<(u64, usize)>, _) = life.busy.iter().partition(|(end, _)| *end <= next);
            life.busy = busy;
            for (_, message) in ended {
                life.end(message, self.messages[message].integration);
                self.messages[message].is_done = true;
                self.notes.remove(&message);
            }
        }
    }

    /// How a suspect is to be handled; `None` for all other messages.
    fn care(&self, index: usize, own: &str) -> Option<Care> {
        let message = &self.messages[index];
        match redelivery(message.returns > 0, Some(message.returns), false, true) {
            Redelivery::Suspect => {
                let SuspectState::Deaths(deaths) = Note::known(self.notes.get(&index), own, |_| false) else {
                    return None;
                };
                Some((self.rule)(Some(deaths)))
            }
            _ => None,
        }
    }

    /// Begins to handle a message; false if that kills the process.
    fn begin(&mut self, life: &mut Life, index: usize) -> bool {
        let care = life.care[index];
        if care == Some(Care::Convicted) {
            self.messages[index].is_dead = true;
            self.messages[index].is_done = true;
            return true;
        }
        if care.is_some() {
            let SuspectState::Deaths(deaths) = Note::known(self.notes.get(&index), &life.name, |_| false) else {
                return true;
            };
            let note = Note { deaths, holder: Some(life.name.clone()), at: Timestamp::UNIX_EPOCH };
            self.notes.insert(index, note);
        }
        let Message { integration, kills, .. } = self.messages[index];
        life.begin(index, integration, self.elapsed_ms + self.latencies[integration]);
        !kills
    }

    fn dead(&self) -> (usize, usize) {
        let dead = self.messages.iter().filter(|message| message.is_dead);
        let (guilty, innocent): (Vec<&Message>, Vec<&Message>) = dead.partition(|message| message.kills);
        (guilty.len(), innocent.len())
    }
}

/// `counts` messages of each integration; one of the first integration's kills.
fn one_guilty(counts: &[usize], latencies: &[u64], rule: Rule, seed: u64) -> World {
    let mut messages: Vec<Message> =
        counts.iter().enumerate().flat_map(|(i, count)| (0..*count).map(move |_| Message::new(i, false))).collect();
    messages[0].kills = true;
    World::new(messages, latencies.to_vec(), rule, seed)
}

#[test]
fn what_kills_is_dead_at_its_fifth_crash_and_nobody_with_it() {
    for seed in 1..200 {
        let mut world = one_guilty(&[256, 256], &[1_500, 200], Care::of, seed);
        world.run(0);
        assert_eq!(world.crashes, 5, "seed {seed}");
        assert_eq!(world.dead(), (1, 0), "seed {seed}");
        assert!(world.elapsed_ms < 60_000, "seed {seed}: {} ms", world.elapsed_ms);
    }
}

#[test]
fn kills_from_outside_cost_a_crowd_no_more_than_its_gate_takes() {
    for seed in 1..20 {
        let messages = (0..20_000).map(|n| Message::new(n % 100, false)).collect();
        let mut world = World::new(messages, vec![200; 100], Care::of, seed);
        world.run(2);
        assert_eq!(world.dead(), (0, 0));
        assert!(world.elapsed_ms < 40_000, "seed {seed}: {} ms", world.elapsed_ms);
    }
}

/// Whether an innocent message becomes a dead letter in one of 99 worlds.
fn somebody_dies(rule: Rule) -> bool {
    (1..100).any(|seed| {
        let mut world = one_guilty(&[64, 64], &[1_500, 200], rule, seed);
        world.run(0);
        world.dead().1 > 0
    })
}

#[test]
fn each_rule_is_needed() {
    assert!(!somebody_dies(Care::of));
    let nobody_alone: Rule = |deaths| match Care::of(deaths) {
        Care::Alone => Care::Few,
        care => care,
    };
    assert!(somebody_dies(nobody_alone), "who is convicted was alone");
    let no_few: Rule = |deaths| match Care::of(deaths) {
        Care::Few => Care::Many,
        care => care,
    };
    let slowest = |rule: Rule| {
        let worlds = (1..50).map(|seed| {
            let mut world = one_guilty(&[256, 256], &[1_500, 200], rule, seed);
            world.run(0);
            world.elapsed_ms
        });
        worlds.max().unwrap()
    };
    let (with, without) = (slowest(Care::of), slowest(no_few));
    assert!(without > 2 * with, "without a smaller crowd too many go one by one: {without} ms, with it {with} ms");
}

#[tokio::test]
async fn a_share_follows_its_limit() {
    let (share, limit) = (Share::default(), AtomicUsize::new(1));
    let most = || limit.load(Ordering::Relaxed);
    let first = share.take(most).await;
    assert!(share.take(most).now_or_never().is_none());
    limit.store(3, Ordering::Relaxed);
    let (second, third) = (share.take(most).await, share.take(most).await);
    let fourth = share.take(most);
    tokio::pin!(fourth);
    assert!(fourth.as_mut().now_or_never().is_none());
    drop(second);
    assert!(fourth.as_mut().now_or_never().is_some());
    drop((first, third));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn several_guilty_ones_each_die_and_nobody_else(
        seed in 1_u64..,
        first in proptest::collection::vec(0..100_usize, 1..3),
        second in proptest::collection::vec(100..200_usize, 0..3),
    ) {
        let mut messages: Vec<Message> = (0..200).map(|n| Message::new(n / 100, false)).collect();
        for guilty in first.iter().chain(&second) {
            messages[*guilty].kills = true;
        }
        let guilty = messages.iter().filter(|message| message.kills).count();
        let mut world = World::new(messages, vec![200, 1_500], Care::of, seed);
        world.run(0);
        prop_assert_eq!(world.dead(), (guilty, 0));
        prop_assert!(world.crashes <= 5 * u32::try_from(guilty).unwrap());
    }
}
