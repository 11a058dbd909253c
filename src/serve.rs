//! `run`: wires the parts, keeps them connected, and drains with a deadline.

use crate::admin::{self, Health};
use crate::broker;
use crate::broker::inbox::Inbox;
use crate::broker::link::Link;
use crate::broker::outbox::Outbox;
use crate::broker::topology::{self, Queues, Refused};
use crate::config::{Config, Settings};
use crate::facts::{Facts, labels};
use crate::integration::Integration;
use crate::metrics::Metrics;
use crate::shutdown::{self, Shutdown};
use crate::worker::Worker;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_retry::strategy::{ExponentialBackoff, jitter};

/// Delays of the default schedule, which the labels of `retries_total` follow.
const DEFAULT_DELAYS: usize = 4;
/// The longest pause between two tries to reach the broker.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A connection that lasted this long was a good one: the next try comes at once.
const GOOD_WHILE: Duration = Duration::from_secs(30);
/// How often an integration that was refused is tried again.
const REFUSED_EVERY: Duration = Duration::from_secs(5);
/// How often the depth of the queues is looked at.
const DEPTH_EVERY: Duration = Duration::from_secs(5);

/// Runs the worker until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// Something that no retry would mend: the admin port is taken, an HTTP client cannot be set up.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let Config { settings, integrations, warnings } = config;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let names: Vec<&str> = integrations.iter().map(|integration| integration.name.as_str()).collect();
    let metrics = Metrics::new(&names, &labels(DEFAULT_DELAYS))?;
    let health = Health::new(names.iter().map(|name| (*name).to_owned()).collect(), metrics.clone());
    let listener = admin::bind(settings.admin).await?;
    let admin = listener.local_addr()?;
    tokio::spawn(admin::serve(listener, health.clone()));
    let workers = integrations
        .iter()
        .map(|integration| Ok(Arc::new(Worker::new(integration.clone(), Facts::of(integration, &metrics))?)))
        .collect::<anyhow::Result<Vec<Arc<Worker>>>>()?;
    let (trigger, shutdown) = shutdown::channel();
    tokio::spawn(async move {
        match shutdown::signalled().await {
            Ok(signal) => tracing::info!(signal, "stopping: no new deliveries, finishing what is in hand"),
            Err(error) => tracing::error!(%error, "cannot listen to signals"),
        }
        trigger.stop();
    });
    tracing::info!(version = env!("CARGO_PKG_VERSION"), integrations = names.join(","), %admin, "starting");
    Service { settings, integrations, workers, health, shutdown }.supervise().await;
    Ok(())
}

/// Two connections and what is consumed over them.
struct Session {
    link: Link,
    inboxes: Vec<(Arc<Worker>, Inbox)>,
    refused: Vec<Refused>,
}

struct Service {
    settings: Settings,
    integrations: Vec<Integration>,
    workers: Vec<Arc<Worker>>,
    health: Health,
    shutdown: Shutdown,
}

impl Service {
    /// Connects, and connects again whenever the connection is lost, until the process is to stop.
    async fn supervise(&self) {
        let mut pauses = pauses();
        loop {
            let began = Instant::now();
            let connected = tokio::select! {
                biased;
                () = self.shutdown.wait() => return,
                connected = self.connect() => connected,
            };
            match connected {
                Ok(session) => match self.consume(session).await {
                    Some(why) => tracing::warn!(why, "lost the broker; connecting again"),
                    None => return,
                },
                Err(error) => tracing::error!(%error, "cannot use the broker; trying again"),
            }
            if began.elapsed() > GOOD_WHILE {
                pauses = self::pauses();
            }
            tokio::select! {
                () = tokio::time::sleep(pauses.next().unwrap_or(LONGEST_PAUSE)) => {}
                () = self.shutdown.wait() => return,
            }
        }
    }

    /// Declares everything, connects, and opens an inbox for each worker that can have one.
    async fn connect(&self) -> Result<Session, broker::Error> {
        let Settings { broker, source, .. } = &self.settings;
        let integrations: Vec<&Integration> = self.integrations.iter().collect();
        let mut refused = topology::declare(broker, source, &integrations).await?;
        if refused.len() == integrations.len()
            && let Some(Refused { error, .. }) = refused.pop()
        {
            return Err(error);
        }
        for Refused { integration, error } in &refused {
            tracing::error!(%integration, %error, "cannot serve this integration; the others are served");
        }
        let link = Link::open(broker).await?;
        let mut inboxes = Vec::with_capacity(self.workers.len());
        for worker in &self.workers {
            let integration = worker.integration();
            if refused.iter().all(|refused| refused.integration != integration.name) {
                let inbox = Inbox::open(&link.consuming, source, integration, worker.prefetch()).await?;
                inboxes.push((Arc::clone(worker), inbox));
            }
        }
        Ok(Session { link, inboxes, refused })
    }

    /// Lets every worker consume. Gives why the connection was lost, or `None` after a drain.
    async fn consume(&self, session: Session) -> Option<String> {
        let Session { link, inboxes, refused } = session;
        let mut consuming = JoinSet::new();
        // Dropped at the end of this function: with the connections, their outboxes are over.
        let (_trigger, over) = shutdown::channel();
        let missing = Arc::new(Notify::new());
        let served: Vec<Arc<Worker>> = inboxes.iter().map(|(worker, _)| Arc::clone(worker)).collect();
        for (worker, inbox) in inboxes {
            let name = &worker.integration().name;
            let outbox = Outbox::new(Arc::clone(&link.publishing), name, over.clone(), Arc::clone(&missing));
            consuming.spawn(worker.consume(inbox, Arc::new(outbox), self.shutdown.clone()));
        }
        self.health.set_connected(true, refused.iter().map(|refused| refused.integration.to_string()).collect());
        tracing::info!(broker = self.settings.broker.shown(), integrations = served.len(), "ready: consuming");
        let lost = tokio::select! {
            biased;
            () = self.shutdown.wait() => None,
            why = link.lost() => Some(why),
            _ = consuming.join_next() => Some("a consumer was cancelled or its channel closed".to_owned()),
            () = missing.notified() => Some("a queue is missing; declaring it again".to_owned()),
            () = self.one_of(&refused) => Some("a refused integration can be served now".to_owned()),
            why = watch_depths(&link, &served) => Some(why),
        };
        self.health.set_connected(false, Vec::new());
        if lost.is_none() {
            self.drain(consuming).await;
        }
        link.close().await;
        lost
    }

    /// Returns when one of these integrations is no longer refused.
    async fn one_of(&self, refused: &[Refused]) {
        let is_refused = |integration: &&Integration| refused.iter().any(|r| r.integration == integration.name);
        let integrations: Vec<&Integration> = self.integrations.iter().filter(is_refused).collect();
        loop {
            tokio::time::sleep(REFUSED_EVERY).await;
            let Settings { broker, source, .. } = &self.settings;
            // What concerns all of them shows on the connections, too.
            let Ok(still) = topology::declare(broker, source, &integrations).await else { continue };
            if still.len() < integrations.len() {
                return;
            }
        }
    }

    /// Finishes what is in hand, but not for longer than the deadline: what is not finished by
    /// then is still the broker's.
    async fn drain(&self, consuming: JoinSet<Inbox>) {
        let drained = async {
            let _open_until_drained = consuming.join_all().await;
            for worker in &self.workers {
                worker.drained().await;
            }
        };
        match tokio::time::timeout(self.settings.shutdown_deadline, drained).await {
            Ok(()) => tracing::info!("stopped; nothing was left in hand"),
            Err(_) => {
                let deadline = self.settings.shutdown_deadline;
                tracing::warn!(?deadline, "stopped with events in hand; the broker delivers them again");
            }
        }
    }
}

/// Shows how many messages wait in each queue; returns when they cannot be looked at.
async fn watch_depths(link: &Link, served: &[Arc<Worker>]) -> String {
    loop {
        if let Err(error) = look_at_depths(link, served).await {
            return error.to_string();
        }
        tokio::time::sleep(DEPTH_EVERY).await;
    }
}

async fn look_at_depths(link: &Link, served: &[Arc<Worker>]) -> Result<(), broker::Error> {
    let channel = link.channel().await?;
    for worker in served {
        let queues = Queues::of(&worker.integration().name);
        for (label, queue) in [("work", &queues.work), ("dead", &queues.dead), ("unreadable", &queues.unreadable)] {
            worker.facts().depth(label, topology::depth(&channel, queue).await?);
        }
    }
    Ok(())
}

fn pauses() -> impl Iterator<Item = Duration> {
    ExponentialBackoff::from_millis(2).factor(125).max_delay(LONGEST_PAUSE).map(jitter)
}
