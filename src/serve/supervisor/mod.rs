//! Keeps one integration connected, and makes sure that it uses the right records.
//!
//! Each integration has connections and a supervisor of its own: a problem of one integration (a message that
//! kills the client's connection, a queue that is refused) does not affect the others.

mod pauses;

use crate::broker::claim::ClaimGuard;
use crate::broker::consumers::Consumers;
use crate::broker::link::{self, Link};
use crate::broker::redelivery::Redelivery::Recount;
use crate::broker::settler::Settler;
use crate::broker::topology::{self, Declared, Queues};
use crate::broker::vanished::Watch;
use crate::broker::{self, Error};
use crate::config::Settings;
use crate::gate::Pass;
use crate::record;
use crate::serve::admin::{ConnectionState, Health};
use crate::serve::systemd::notify;
use crate::text::remedy;
use crate::worker::Worker;
use crate::worker::intake::Intake;
use jiff::Timestamp;
use pauses::Pauses;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How often the broker is told the epoch of the records: they may be a minute ahead at most.
const CLAIM_EVERY: Duration = Duration::from_secs(30);
/// The longest that a stop waits for the broker to be told the epoch a last time.
const LONGEST_LAST_CLAIM: Duration = Duration::from_secs(2);
/// How often the binding of the work queue is renewed.
const BIND_EVERY: Duration = Duration::from_secs(30);
/// How often the depth of the queues is read.
const DEPTH_EVERY: Duration = Duration::from_secs(5);

/// Why an integration cannot be served now.
enum Trouble {
    Broker(Error),
    Records(record::Failed),
}

/// Why consuming ended, and the state of the integration after it.
struct Lost {
    why: String,
    standing: ConnectionState,
}

impl Lost {
    fn records(why: String) -> Lost {
        Lost { why, standing: ConnectionState::WithoutRecords }
    }
}

impl From<String> for Lost {
    fn from(why: String) -> Lost {
        Lost { why, standing: ConnectionState::Disconnected }
    }
}

impl From<Trouble> for Lost {
    fn from(trouble: Trouble) -> Lost {
        match trouble {
            Trouble::Broker(error) => error.to_string().into(),
            Trouble::Records(failed) => Lost::records(failed.to_string()),
        }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        Trouble::Broker(error)
    }
}

/// Keeps one integration connected.
pub struct Supervisor {
    pub settings: Arc<Settings>,
    pub worker: Arc<Worker>,
    pub health: Health,
    pub shutdown: CancellationToken,
}

impl Supervisor {
    /// Connects, and reconnects whenever the connection is lost, until the process must stop.
    pub async fn run(&self) {
        let integration = self.name();
        let mut pauses = Pauses::new();
        let (mut is_silent, mut was_bound, mut told) = (false, false, None);
        let mut watch = Watch::default();
        loop {
            let connected = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return,
                connected = Box::pin(self.connect(is_silent, was_bound)) => connected,
            };
            is_silent = matches!(&connected, Err(Trouble::Broker(error)) if error.is_silence());
            let pause = match connected {
                Ok((link, consumers)) => {
                    (was_bound, told) = (true, None);
                    pauses.connected();
                    let since = Instant::now();
                    let lost = Box::pin(self.consume(link, consumers, pauses.is_careful(), &mut watch)).await;
                    let Some(Lost { why, standing }) = lost else { return };
                    match standing {
                        ConnectionState::WithoutRecords => tracing::warn!(integration, why, "stopped consuming"),
                        _ => tracing::warn!(integration, why, "lost the broker; connecting again"),
                    }
                    self.health.show_trouble(integration, standing, &why);
                    pauses.after_loss(since.elapsed())
                }
                Err(Trouble::Records(error)) => {
                    let why = error.to_string();
                    self.tell_of_records(&error, told.as_ref() == Some(&why));
                    let standing =
                        if error.is_held() { ConnectionState::StandingBy } else { ConnectionState::WithoutRecords };
                    self.health.show_trouble(integration, standing, &why);
                    told = Some(why);
                    pauses.without_records()
                }
                Err(Trouble::Broker(error)) => {
                    tracing::error!(integration, %error, "cannot use the broker; trying again");
                    let standing =
                        if error.is_refusal() { ConnectionState::Refused } else { ConnectionState::Disconnected };
                    self.health.show_trouble(integration, standing, &error.to_string());
                    pauses.after_failure()
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.shutdown.cancelled() => return,
            }
        }
    }

    fn name(&self) -> &str {
        self.worker.integration().name.as_str()
    }

    fn show(&self, standing: ConnectionState) {
        if self.health.show(self.name(), standing) {
            tracing::info!(broker = self.settings.broker.shown(), "ready: consuming");
            notify(sd_notify::NotifyState::Ready);
        }
    }

    /// Declares everything and connects.
    async fn connect(&self, was_silent: bool, was_bound: bool) -> Result<(Link, Consumers), Trouble> {
        let Settings { broker, source, .. } = &*self.settings;
        if was_silent {
            link::knock(broker).await?;
        }
        self.worker.open_records().await.map_err(Trouble::Records)?;
        let integration = self.worker.integration();
        let Declared { connection, was_missing } = topology::declare(broker, source, integration).await?;
        if was_missing && was_bound {
            self.worker.facts().exchange_missing();
        }
        self.claim(connection).await?;
        let link = Link::open(broker).await?;
        let (unsettled, prefetch) = (self.worker.unsettled(), self.worker.prefetch());
        let consumers = Consumers::open(&link.consuming, source, &integration.name, unsettled, prefetch).await?;
        Ok((link, consumers))
    }

    /// Makes sure that the records are those to which this integration's earlier events went, and lets the
    /// broker remember their epoch. This runs in a task of its own, which continues to its end even if nobody
    /// waits for it any more: the client keeps a connection open, and with it the lock, that is dropped while
    /// it has a consumer.
    async fn claim(&self, connection: lapin::Connection) -> Result<(), Trouble> {
        let (settings, worker) = (Arc::clone(&self.settings), Arc::clone(&self.worker));
        let claiming = tokio::spawn(async move { claim(&settings, &worker, connection).await });
        // A task that panicked has logged it already.
        claiming.await.unwrap_or_else(|_| Err(Trouble::Broker(Error::consumer_gone())))
    }

    /// Tells the broker the latest epoch of records in a folder, which nobody else may hold: a copy of the
    /// folder made a moment ago must not be taken for them. If this fails, the next start makes up for it.
    async fn claim_while_stopping(&self) {
        if !self.worker.keeps_folder() {
            return;
        }
        let claiming = async { self.claim(link::dial_to_declare(&self.settings.broker).await?).await };
        let _ = tokio::time::timeout(LONGEST_LAST_CLAIM, claiming).await;
    }

    /// Tells the broker the epoch of the records while they commit. Returns if it cannot, or if they are no
    /// longer the right ones.
    async fn keep_claim(&self) -> Trouble {
        let records = self.worker.records();
        let mut known = records.commits();
        loop {
            tokio::time::sleep(CLAIM_EVERY).await;
            let commits = records.commits();
            if commits == known {
                continue;
            }
            known = commits;
            let claimed = match link::dial_to_declare(&self.settings.broker).await {
                Ok(connection) => self.claim(connection).await,
                Err(error) => Err(error.into()),
            };
            if let Err(trouble) = claimed {
                return trouble;
            }
        }
    }

    /// Declares the exchange and its bindings again from time to time; a failure does not stop consuming.
    async fn keep_bound(&self) {
        let Settings { broker, source, .. } = &*self.settings;
        loop {
            tokio::time::sleep(BIND_EVERY).await;
            match topology::keep_bound(broker, source, self.worker.integration()).await {
                Ok(false) => {}
                Ok(true) => self.worker.facts().exchange_missing(),
                Err(error) => tracing::warn!(integration = self.name(), %error, "cannot renew the bindings"),
            }
        }
    }

    /// Consumes. Returns why the connection was lost, or `None` after a drain.
    async fn consume(&self, link: Link, mut consumers: Consumers, is_careful: bool, watch: &mut Watch) -> Option<Lost> {
        let worker = &self.worker;
        // Cancelled at the end of this function, so that the settler ends with its connections.
        let over = CancellationToken::new();
        let _ended = over.clone().drop_guard();
        let (missing, publishing) = (Arc::new(Notify::new()), Arc::clone(&link.publishing));
        let settler =
            Arc::new(Settler::new(publishing, &worker.integration().name, over, Arc::clone(&missing), watch.put()));
        tracing::info!(integration = self.name(), "consuming");
        self.show(ConnectionState::Consuming);
        let intake = Intake { worker, consumers: &mut consumers, settler: &settler, is_careful };
        let lost = tokio::select! {
            biased;
            () = self.shutdown.cancelled() => None,
            why = link.lost() => Some(why.into()),
            error = intake.run() => {
                if error.is_flood() {
                    link.cut();
                }
                Some(error.to_string().into())
            }
            () = missing.notified() => Some("a queue is missing; declaring it again".to_owned().into()),
            error = self.watch_depths(&link, watch) => Some(error.to_string().into()),
            () = worker.faulted() => Some("an event's task ended because of a bug in the worker".to_owned().into()),
            () = worker.records_failed() => Some(Lost::records("the records failed".to_owned())),
            trouble = self.keep_claim() => Some(trouble.into()),
            error = broker::audit::listen(&link, &worker.integration().name, |entry| worker.facts().audited(entry)) => {
                Some(error.to_string().into())
            }
            () = Box::pin(self.keep_bound()) => None,
        };
        if lost.is_none() {
            self.health.show_trouble(self.name(), ConnectionState::Draining, "finishing what is in hand");
            // While it still consumes: without a consumer, nothing but the epoch tells a copy of the folder.
            self.claim_while_stopping().await;
            // Deliveries that were not looked at yet go back to their queue with the end of the connection.
            for incoming in consumers.stop().await.unwrap_or_default() {
                // Otherwise many reloads in a row would bring it to the broker's own delivery limit.
                if incoming.redelivery == Recount {
                    worker.begin(incoming, &settler, Pass::Usual).await;
                }
            }
            worker.at_rest().await;
            let _ = consumers.acked().await;
            self.claim_while_stopping().await;
        }
        link.close().await;
        lost
    }

    /// Logs that the records cannot be used, at a lower level if this reason was logged already: it may last
    /// for days, and `/readyz` shows it all the time. To stand by is not an error.
    fn tell_of_records(&self, error: &record::Failed, was_told: bool) {
        let integration = self.name();
        match (was_told, error.is_held()) {
            (false, true) => tracing::info!(integration, why = %error, "standby: another worker holds the records"),
            (false, false) => {
                let error = remedy::told(&error.to_string());
                tracing::error!(integration, %error, "cannot use the records; trying again");
            }
            (true, _) => tracing::debug!(integration, %error, "still without the records"),
        }
    }

    /// Shows how many messages wait in each queue; returns if the depths cannot be read.
    async fn watch_depths(&self, link: &Link, watch: &mut Watch) -> Error {
        let consuming = Timestamp::now();
        loop {
            if let Err(error) = self.look_at_depths(link, watch).await {
                return error;
            }
            self.worker.facts().listened(consuming, Timestamp::now());
            self.show(ConnectionState::Consuming);
            tokio::time::sleep(DEPTH_EVERY).await;
        }
    }

    async fn look_at_depths(&self, link: &Link, watch: &mut Watch) -> Result<(), broker::Error> {
        let channel = link.channel().await?;
        let integration = self.worker.integration();
        let queues = Queues::of(&integration.name);
        let mut delayed = 0;
        for delay in integration.schedule.distinct() {
            delayed += topology::depth(&channel, &queues.delay(delay)).await?;
        }
        let retrying = topology::depth(&channel, &queues.retry).await?;
        if delayed + retrying > 0 {
            self.worker.gate().expect_retries(2 * DEPTH_EVERY);
        }
        let facts = self.worker.facts();
        facts.clock_offset(self.worker.records().clock_offset());
        facts.depth("delay", delayed);
        facts.depth("retry", retrying);
        facts.depth("work", topology::depth(&channel, &queues.work).await?);
        // One look serves both the metric and the watch: letters that were shown are missed when they vanish.
        let seen = watch.see(&channel, &queues).await?;
        facts.depth("dead", seen.dead);
        facts.depth("aside", seen.aside);
        facts.depth("unreadable", seen.unreadable);
        if let Some(gone) = watch.judge(seen, &self.settings.broker, &queues).await {
            facts.vanished(&gone, Timestamp::now());
        }
        Ok(())
    }
}

async fn claim(settings: &Settings, worker: &Worker, connection: lapin::Connection) -> Result<(), Trouble> {
    let (records, name) = (worker.records(), &worker.integration().name);
    let look = match ClaimGuard::take(&settings.broker, connection, name).await {
        Err(error) if error.code() == Some(405) => return Err(Trouble::Records(record::Failed::looked_at(name))),
        look => look?,
    };
    let known = look.known();
    // Records in a folder are for one worker, so another consumer means a worker with a copy of them.
    let is_elsewhere = worker.is_first_claim() && look.consumers().await? > 0;
    let verified = if is_elsewhere {
        let compared = records.compare(name, known.as_ref()).await;
        compared
            .map_err(|failed| failed.while_consumed(name))
            .and(Err(record::Failed::elsewhere(name, records.place())))
    } else {
        worker.verify(known.as_ref()).await
    };
    match verified {
        Ok(Some(claim)) => {
            if known.is_none() && records.was_claimed(name).await.map_err(Trouble::Records)? {
                worker.facts().records_unknown(Timestamp::now());
            }
            look.replace(&claim).await?;
            records.set_claimed(name).await.map_err(Trouble::Records)
        }
        Ok(None) => {
            look.leave().await;
            Ok(())
        }
        Err(failed) => {
            look.leave().await;
            Err(Trouble::Records(failed))
        }
    }
}
