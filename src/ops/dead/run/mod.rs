//! A replay under way: letters go to the retry queue, and the worker reports what becomes of them.
//!
//! Each letter moves by publish, confirm, ack, so a kill at any moment loses none; at most it leaves a letter in
//! both queues, and its second delivery changes nothing. The snapshot is as long as the browse before it saw;
//! letters that die again meanwhile are behind it, carry a mark, and stay.

mod stop;

pub use stop::StopReason;

use super::asking::Asking;
use super::filter::{LetterFilter, Taking};
use super::letter::Letter;
use super::preview::Preview;
use super::rate_limit::Rate;
use super::tally::Tally;
use super::{LockedLetters, Progress};
use crate::broker::headers::{for_replay, report_to};
use crate::broker::letter_acks::LetterAcks;
use crate::broker::letters::Chunk;
use crate::broker::report::Report;
use crate::broker::settler::Publishers;
use crate::broker::topology::Queues;
use crate::broker::{self, link};
use crate::serve::shutdown;
use futures_util::StreamExt;
use jiff::Timestamp;
use lapin::Consumer;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stop::broken;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The fewest first attempts for which a share of failures means something.
const LEAST: usize = 10;
/// How many channels publish.
const PUBLISHERS: usize = 32;
/// How often to check whether the next letter may go.
const TICK: Duration = Duration::from_millis(10);
/// How long a replay that does not wait for every verdict waits for the first ones.
const LAST_LOOK: Duration = Duration::from_secs(2);

/// The options of a replay.
#[derive(Clone, Debug)]
pub struct Options {
    pub filter: LetterFilter,
    pub canary: u32,
    /// How long verdicts may take.
    pub deadline: Duration,
    pub rate: Rate,
    /// The largest share of first attempts that may fail.
    pub abort_above: f64,
    /// Whether all verdicts are waited for.
    pub is_watched: bool,
}

/// How a replay ended.
pub struct ReplayEnd {
    pub tally: Tally,
    /// Letters that were not sent because they would die again at once, by reason.
    pub invalid: BTreeMap<&'static str, u32>,
    pub stopped: Option<StopReason>,
    /// How long sending took.
    pub seconds: f64,
}

/// A letter whose publish ended, successfully or not.
struct PublishedLetter {
    /// Its index in its chunk.
    index: usize,
    id: String,
    result: Result<(), broker::Error>,
}

/// A replay.
pub struct Run<'r> {
    session: &'r LockedLetters,
    asking: &'r Asking<'r>,
    options: &'r Options,
    now: Timestamp,
    retry: String,
    report_to: String,
    publishers: Arc<Publishers>,
    tally: Arc<Mutex<Tally>>,
    taking: Taking<'r>,
    under_way: JoinSet<PublishedLetter>,
    acks: Option<LetterAcks>,
    interrupted: CancellationToken,
    invalid: BTreeMap<&'static str, u32>,
    begun: Instant,
    paced: f64,
    is_canary_over: bool,
}

impl<'r> Run<'r> {
    /// Prepares a replay; nothing moves yet.
    pub async fn begin(
        session: &'r LockedLetters,
        asking: &'r Asking<'r>,
        options: &'r Options,
        now: Timestamp,
    ) -> Result<Run<'r>, broker::Error> {
        let (report_to, reports) = session.letters.reports().await?;
        let tally = Arc::new(Mutex::new(Tally::default()));
        tokio::spawn(listen(reports, Arc::clone(&tally)));
        let connection = link::dial(&session.settings.broker, "replaying").await?;
        Ok(Run {
            session,
            asking,
            options,
            now,
            retry: Queues::of(&session.integration.name).retry,
            report_to,
            publishers: Arc::new(Publishers::new(Arc::new(connection), PUBLISHERS)),
            tally,
            taking: options.filter.taking(),
            under_way: JoinSet::new(),
            acks: None,
            interrupted: interruption(),
            invalid: BTreeMap::new(),
            begun: Instant::now(),
            paced: 0.0,
            is_canary_over: options.canary == 0,
        })
    }

    /// Sends the letters, and waits for verdicts as the options ask for.
    pub async fn finish(mut self) -> ReplayEnd {
        let mut stopped = self.send_all().await.err();
        let seconds = self.begun.elapsed().as_secs_f64();
        if stopped.is_none() {
            stopped = self.last_verdicts().await.err();
        }
        self.publishers.close().await;
        let tally = std::mem::take(&mut *self.tally());
        ReplayEnd { tally, invalid: self.invalid, stopped, seconds }
    }

    async fn send_all(&mut self) -> Result<(), StopReason> {
        let session = self.session;
        let mut walk = session.letters.walk(session.seen()).await.map_err(broken)?;
        let mut progress = Progress::new("went through", "letters", walk.count);
        let mut ended = Ok(());
        while ended.is_ok()
            && let Some(chunk) = walk.next(self.stretch(walk.read())).await.map_err(broken)?
        {
            self.acks = Some(LetterAcks::new(chunk.channel.clone(), chunk.letters.len()));
            ended = self.send_some(&chunk).await;
            // Publishes that were begun are finished in any case.
            while !self.under_way.is_empty() {
                ended = ended.and(self.finish_one().await);
            }
            let acked = match self.acks.take() {
                Some(acks) => acks.finish().await.map_err(broken)?,
                None => 0,
            };
            walk.give_back(chunk, acked).await.map_err(broken)?;
            progress.at(walk.read());
        }
        progress.end();
        walk.end().await.map_err(broken)?;
        ended?;
        self.canary(true).await
    }

    async fn send_some(&mut self, chunk: &Chunk) -> Result<(), StopReason> {
        for (index, delivery) in chunk.letters.iter().enumerate() {
            let letter = Letter::new(delivery, &self.session.integration);
            if !self.is_to_go(&letter).await {
                continue;
            }
            self.may_go().await?;
            let (queue, publishers) = (self.retry.clone(), Arc::clone(&self.publishers));
            let properties = for_replay(letter.properties, &self.report_to);
            let (id, body) = (letter.id(), delivery.data.clone());
            self.tally().send(&id);
            self.under_way.spawn(async move {
                let result = publishers.put(&queue, &body, properties).await;
                PublishedLetter { index, id, result }
            });
        }
        Ok(())
    }

    /// Whether a letter is selected and would not die again at once.
    async fn is_to_go(&mut self, letter: &Letter<'_>) -> bool {
        let died_meanwhile = report_to(letter.properties) == Some(&self.report_to);
        if died_meanwhile || !self.taking.takes(letter) {
            return false;
        }
        match self.asking.quick(letter, self.now).await {
            Preview::Invalid(code) => {
                *self.invalid.entry(code).or_default() += 1;
                false
            }
            _ => true,
        }
    }

    /// Waits until the next letter may go.
    async fn may_go(&mut self) -> Result<(), StopReason> {
        self.canary(false).await?;
        let mut quiet = Quiet::new(self.reported());
        loop {
            self.look()?;
            while self.under_way.len() >= 2 * PUBLISHERS {
                self.finish_one().await?;
            }
            let due = self.options.rate.due(self.begun.elapsed());
            let is_reported = self.tally().unreported() < self.options.rate.most_unreported().max(self.options.canary);
            if !self.is_canary_over {
                return Ok(());
            }
            if is_reported && self.paced < due {
                // Unused rate is not made up for in a burst.
                self.paced = (self.paced + 1.0).max(due - self.options.rate.0);
                return Ok(());
            }
            if !is_reported {
                quiet.look(self)?;
            }
            self.rest().await?;
        }
    }

    /// After the first letters, waits until each of them was tried, but not for ever.
    async fn canary(&mut self, is_end: bool) -> Result<(), StopReason> {
        let sent = self.tally().sent();
        if self.is_canary_over || (sent < self.options.canary && !is_end) {
            return Ok(());
        }
        let deadline = Instant::now() + self.options.deadline;
        while self.tally().unreported() > 0 || !self.under_way.is_empty() {
            self.look()?;
            if Instant::now() > deadline {
                return Err(self.silence());
            }
            self.rest().await?;
        }
        self.is_canary_over = true;
        self.judge(1)?;
        // The rate ramps up from here.
        self.begun = Instant::now();
        self.paced = 0.0;
        Ok(())
    }

    /// Whether the replay is to stop. A canary is not judged before all of it was tried.
    fn look(&self) -> Result<(), StopReason> {
        let canary = usize::try_from(self.options.canary).unwrap_or(usize::MAX);
        self.judge(if self.is_canary_over { canary.max(LEAST) } else { usize::MAX })
    }

    fn judge(&self, least: usize) -> Result<(), StopReason> {
        if self.interrupted.is_cancelled() {
            return Err(StopReason::Interrupted);
        }
        match self.tally().too_many(self.options.abort_above, least) {
            Some((failed, of)) => Err(StopReason::TooMany(failed, of)),
            None => Ok(()),
        }
    }

    /// Waits a moment, or until a publish is done.
    async fn rest(&mut self) -> Result<(), StopReason> {
        tokio::select! {
            Some(done) = self.under_way.join_next() => self.finished(done).await,
            () = tokio::time::sleep(TICK) => Ok(()),
        }
    }

    async fn finish_one(&mut self) -> Result<(), StopReason> {
        match self.under_way.join_next().await {
            Some(done) => self.finished(done).await,
            None => Ok(()),
        }
    }

    /// Handles the end of a publish: a letter that was confirmed in the retry queue may be acked where it was.
    async fn finished(&mut self, done: Result<PublishedLetter, tokio::task::JoinError>) -> Result<(), StopReason> {
        // The task is never aborted and does not panic.
        let PublishedLetter { index, id, result } = done.map_err(|error| StopReason::Broker(error.to_string()))?;
        if let Err(error) = result {
            self.tally().unsend(&id);
            return Err(broken(error));
        }
        match &mut self.acks {
            Some(acks) => acks.done(index).await.map_err(broken),
            None => Ok(()),
        }
    }

    /// How many letters to have in hand next: few at a low rate, so that few are sent twice after a kill.
    fn stretch(&self, read: u32) -> usize {
        let soon = usize::try_from(self.options.rate.most_unreported()).unwrap_or(usize::MAX);
        self.session.stretch(read).min(soon)
    }

    async fn last_verdicts(&mut self) -> Result<(), StopReason> {
        let is_watched = self.options.is_watched;
        let schedule = &self.session.integration.schedule;
        let deadline = Instant::now() + LAST_LOOK;
        let mut quiet = Quiet { patience: schedule.window() + self.options.deadline, ..Quiet::new(self.reported()) };
        let mut progress = Progress::new("reported", "letters", self.tally().sent());
        loop {
            let (sent, open, unreported) = {
                let tally = self.tally();
                (tally.sent(), tally.open(), tally.unreported())
            };
            let is_over = if is_watched { open == 0 } else { unreported == 0 || Instant::now() > deadline };
            if is_over {
                progress.end();
                return Ok(());
            }
            if self.interrupted.is_cancelled() {
                return Err(StopReason::Interrupted);
            }
            quiet.look(self)?;
            progress.at(sent - open);
            self.rest().await?;
        }
    }

    fn reported(&self) -> u32 {
        self.tally().reported
    }

    fn silence(&self) -> StopReason {
        let deadline = self.options.deadline;
        if self.tally().holds > 0 { StopReason::Held(deadline) } else { StopReason::Silence(deadline) }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long no report has come.
struct Quiet {
    reported: u32,
    since: Instant,
    patience: Duration,
}

impl Quiet {
    fn new(reported: u32) -> Quiet {
        Quiet { reported, since: Instant::now(), patience: Duration::ZERO }
    }

    fn look(&mut self, run: &Run<'_>) -> Result<(), StopReason> {
        let reported = run.reported();
        if reported != self.reported {
            (self.reported, self.since) = (reported, Instant::now());
        }
        let patience = self.patience.max(run.options.deadline);
        if self.since.elapsed() > patience { Err(run.silence()) } else { Ok(()) }
    }
}

/// Keeps count of what the worker reports.
async fn listen(mut reports: Consumer, tally: Arc<Mutex<Tally>>) {
    while let Some(Ok(delivery)) = reports.next().await {
        if let Ok(report) = serde_json::from_slice::<Report>(&delivery.data) {
            tally.lock().unwrap_or_else(PoisonError::into_inner).hear(&report);
        }
    }
}

/// Becomes ready when the operator interrupts the command.
fn interruption() -> CancellationToken {
    let interrupted = CancellationToken::new();
    let trigger = interrupted.clone();
    tokio::spawn(async move {
        if shutdown::signalled().await.is_err() {
            // Then a signal has its default action, which loses nothing either.
            std::future::pending::<()>().await;
        }
        trigger.cancel();
    });
    interrupted
}
