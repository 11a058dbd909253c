//! `dead`: lists, shows, replays, exports, imports and discards dead letters.
//!
//! One command at a time works with an integration's letters: each locks them first. Every command begins with a
//! browse, which changes nothing; a command that moves or removes letters goes through them once more, and
//! publishes and acks through [`crate::broker::settler`].

mod asking;
mod discard;
mod export;
pub mod file;
mod filter;
mod import;
mod letter;
mod list;
pub(super) mod preview;
mod rate_limit;
mod replay;
mod run;
mod show;
mod tally;
mod value;

use super::audit::audit;
use super::{Failure, Progress, counted, integration, talk};
use crate::broker::letter_acks::LetterAcks;
use crate::broker::letters::{DeadLetters, Pile};
use crate::cli::Dead;
use crate::config::{Environment, Settings};
use crate::integration::Integration;
use crate::observe::audit::{AuditedAction, Scope};
use crate::record::sequencer::person;
use filter::LetterFilter;
use jiff::Timestamp;
use letter::Letter;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

/// Runs one of the commands.
///
/// # Errors
/// Problems of configuration or usage (exit code 2); the broker refuses or is gone, or what was asked for was not
/// done (1).
pub async fn run(command: &Dead, file: Option<&Path>, environment: &Environment, as_json: bool) -> Result<(), Failure> {
    let context = CommandContext { file, environment, as_json };
    match command {
        Dead::List(args) => list::list(args, &context).await,
        Dead::Show(args) => show::show(args, &context).await,
        Dead::Replay(args) => replay::replay(args, &context).await,
        Dead::Discard(args) => discard::discard(args, &context).await,
        Dead::Export(args) => export::export(args, &context).await,
        Dead::Import(args) => import::import(args, &context).await,
    }
}

/// What every command receives.
struct CommandContext<'p> {
    file: Option<&'p Path>,
    environment: &'p Environment,
    as_json: bool,
}

/// One command's work on an integration's letters, which it has locked.
struct LockedLetters {
    settings: Settings,
    integration: Integration,
    letters: DeadLetters,
    /// Which of the letters that the last browse saw are selected. Letters that arrived since are behind them, but
    /// letters that a pass gives back would come before those.
    meant: RefCell<Vec<bool>>,
}

impl LockedLetters {
    /// Loads the configuration, and locks the integration's letters.
    async fn open(name: &str, pile: Pile, context: &CommandContext<'_>) -> Result<LockedLetters, Failure> {
        let (settings, integration) = integration(name, context.file, context.environment)?;
        LockedLetters::hold(settings, integration, pile).await
    }

    /// Locks an integration's letters.
    async fn hold(settings: Settings, integration: Integration, pile: Pile) -> Result<LockedLetters, Failure> {
        let letters = DeadLetters::hold(&settings.broker, &integration.name, pile).await?;
        let session = LockedLetters { settings, integration, letters, meant: RefCell::default() };
        session.warn_if_shared();
        Ok(session)
    }

    /// Switches to the letters in the other queue.
    async fn turn_to(&mut self, pile: Pile) -> Result<(), Failure> {
        self.letters.turn_to(pile).await?;
        self.warn_if_shared();
        Ok(())
    }

    fn warn_if_shared(&self) {
        if self.letters.is_shared {
            talk("another client consumes this queue: letters that it holds are not seen");
        }
    }

    /// Shows every letter to `see`, changes nothing, and remembers which letters `see` selected. Returns how many
    /// letters it saw.
    async fn browse(&self, mut see: impl AsyncFnMut(Letter<'_>) -> Result<bool, Failure>) -> Result<u32, Failure> {
        let mut walk = self.letters.walk(u32::MAX).await?;
        let mut progress = Progress::new("read", "letters", walk.count);
        let mut meant = Vec::with_capacity(usize::try_from(walk.count).unwrap_or_default());
        while let Some(chunk) = walk.next(usize::MAX).await? {
            for delivery in &chunk.letters {
                meant.push(see(Letter::new(delivery, &self.integration)).await?);
            }
            walk.keep(chunk);
            progress.at(walk.read());
        }
        progress.end();
        let (read, count) = (walk.read(), walk.count);
        if read < count {
            talk(&format!(
                "warning: {} left the queue while it was read, and no command took them: before anything else, check for a \
                 policy that deletes or moves them (rabbitmqctl list_policies)",
                letters(count - read)
            ));
        }
        walk.end().await?;
        self.meant.replace(meant);
        Ok(read)
    }

    /// How many letters the last browse saw.
    fn seen(&self) -> u32 {
        u32::try_from(self.meant.borrow().len()).unwrap_or(u32::MAX)
    }

    /// How many letters after the first `read` can be gone through on one channel.
    fn stretch(&self, read: u32) -> usize {
        let meant = self.meant.borrow();
        stretch(meant.get(usize::try_from(read).unwrap_or(usize::MAX)..).unwrap_or_default())
    }

    /// Writes an audit entry of who does what with which letters, before it is done.
    async fn audit(&self, command: AuditedAction, pile: Pile, filter: &LetterFilter, count: Option<u64>) {
        let queue = match pile {
            Pile::Dead => "dead",
            Pile::Aside => "aside",
        };
        let scope = Scope { queue: queue.to_owned(), filter: filter.scope(), count };
        audit(&self.settings, &self.integration.name, command, scope).await;
    }

    /// Counts the letters that a filter takes.
    async fn count(&self, filter: &LetterFilter) -> Result<Counted, Failure> {
        let mut counted = Counted::default();
        let mut take = filter.taking();
        counted.all = self
            .browse(async |letter| {
                let is_meant = take.takes(&letter);
                counted.matching += u32::from(is_meant);
                counted.unreadable += u32::from(letter.event().is_none());
                Ok(is_meant)
            })
            .await?;
        Ok(counted)
    }

    /// Removes those letters for which `choose` returns true, of those that the last browse saw.
    async fn remove(&mut self, mut choose: impl FnMut(&Letter<'_>) -> bool) -> Result<u32, Failure> {
        self.letters.begin_to_remove().await?;
        let mut walk = self.letters.walk(self.seen()).await?;
        let mut progress = Progress::new("removed", "letters", walk.count);
        let mut removed = 0;
        while let Some(chunk) = walk.next(self.stretch(walk.read())).await? {
            let mut acks = LetterAcks::new(chunk.channel.clone(), chunk.letters.len());
            for (index, delivery) in chunk.letters.iter().enumerate() {
                if choose(&Letter::new(delivery, &self.integration)) {
                    acks.done(index).await?;
                }
            }
            let acked = acks.finish().await?;
            walk.give_back(chunk, acked).await?;
            removed += acked;
            progress.at(walk.read());
        }
        progress.end();
        walk.end().await?;
        Ok(removed)
    }
}

/// How many letters there are.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    all: u32,
    matching: u32,
    /// Letters of which nobody can say whom they are about.
    unreadable: u32,
}

/// The letters of some persons, locked against all other commands; for `person forget`.
pub(super) struct OfPersons {
    session: LockedLetters,
    /// How many letters are theirs.
    pub letters: u32,
    /// How many cannot be read and so may be about anybody.
    pub unreadable: u32,
}

impl OfPersons {
    /// Counts them, including those that the broker put aside.
    ///
    /// # Errors
    /// Another command works with the letters, or the broker refuses or is gone (exit code 1).
    pub async fn count(settings: Settings, integration: Integration, persons: &[&str]) -> Result<OfPersons, Failure> {
        let session = LockedLetters::hold(settings, integration, Pile::Dead).await?;
        let (mut theirs, filter) = (OfPersons { session, letters: 0, unreadable: 0 }, LetterFilter::persons(persons));
        for pile in [Pile::Dead, Pile::Aside] {
            theirs.session.turn_to(pile).await?;
            let Counted { matching, unreadable, .. } = theirs.session.count(&filter).await?;
            theirs.letters += matching;
            theirs.unreadable += unreadable;
        }
        Ok(theirs)
    }

    /// Removes the letters of these persons, and returns how many of each, by [`person`].
    ///
    /// # Errors
    /// The broker is gone (exit code 1).
    pub async fn remove(mut self, persons: &[&str]) -> Result<BTreeMap<String, u32>, Failure> {
        let (mut removed, filter) = (BTreeMap::new(), LetterFilter::persons(persons));
        for pile in [Pile::Dead, Pile::Aside] {
            self.session.turn_to(pile).await?;
            if persons.is_empty() || self.session.count(&filter).await?.matching == 0 {
                continue;
            }
            let mut take = filter.taking();
            self.session
                .remove(|letter| {
                    let is_theirs = take.takes(letter);
                    if let (true, Some(identifier)) = (is_theirs, letter.identifier()) {
                        *removed.entry(person(&identifier).into_owned()).or_default() += 1;
                    }
                    is_theirs
                })
                .await?;
        }
        self.session.letters.close().await;
        Ok(removed)
    }
}

/// As many letters as few acks can settle: those at the beginning with one ack, and a few others singly.
fn stretch(meant: &[bool]) -> usize {
    let first = meant.iter().take_while(|is_meant| **is_meant).count();
    let others = meant.iter().enumerate().skip(first).filter(|(_, is_meant)| **is_meant);
    others.map(|(index, _)| index).nth(LetterAcks::SINGLES).unwrap_or(meant.len())
}

/// A time as people read it: local, and how long ago.
fn when(at: Timestamp, now: Timestamp) -> String {
    let local = at.to_zoned_datetime(jiff::tz::TimeZone::system());
    format!("{} ({})", local.strftime("%Y-%m-%d %H:%M:%S %:z"), ago(at, now))
}

fn ago(at: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(at).as_secs();
    match seconds {
        ..0 => "ahead".to_owned(),
        0..60 => format!("{seconds} s ago"),
        60..3_600 => format!("{} min ago", seconds / 60),
        3_600..172_800 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

/// A size as people read it.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1_024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

/// "1 letter", "2 letters".
fn letters(count: u32) -> String {
    counted(count, "letter")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_needs_few_acks() {
        assert_eq!(stretch(&[]), 0);
        assert_eq!(stretch(&[true; 500]), 500);
        assert_eq!(stretch(&[false; 500]), 500);
        let every_other: Vec<bool> = (0..500).map(|n| n % 2 == 0).collect();
        let length = stretch(&every_other);
        assert_eq!(every_other[1..length].iter().filter(|is_meant| **is_meant).count(), LetterAcks::SINGLES);
        assert_eq!(stretch(&[&[true; 40][..], &[false; 40]].concat()), 80);
    }

    #[test]
    fn times_and_sizes_are_read_at_a_glance() {
        let now = Timestamp::from_second(10_000_000).unwrap();
        let told = |seconds: i64| ago(Timestamp::from_second(10_000_000 - seconds).unwrap(), now);
        assert_eq!([told(-5), told(5), told(7_000), told(90_000)], ["ahead", "5 s ago", "1 h ago", "25 h ago"]);
        assert_eq!([size(10), size(1_500), size(3 << 20)], ["10 B", "1.5 KiB", "3.0 MiB"]);
        assert_eq!([letters(1), letters(2)], ["1 letter", "2 letters"]);
    }
}
