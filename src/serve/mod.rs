//! `run`: connects the parts, checks for changed documents, and drains with a deadline.

pub mod admin;
pub mod fleet;
pub mod shutdown;
pub mod supervisor;
pub mod systemd;

use crate::config::{self, Config, Environment, Problem, Settings};
use crate::gate::tls;
use crate::observe::metrics::Metrics;
use crate::observe::traces::Exporter;
use crate::record::{Records, control_socket};
use crate::task;
use crate::worker::quarantine::Quarantine;
use admin::Health;
use fleet::{Changes, Fleet, SharedParts};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// How often the content of files and mounted secrets is checked for changes.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long reading them may take before that is logged.
const LONGEST_LOOK: Duration = Duration::from_secs(30);

/// Runs the worker until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// Something that no retry would fix: the admin port is taken, signals cannot be listened to.
pub async fn run(
    config: Config,
    metrics: Metrics,
    file: Option<&Path>,
    environment: &Environment,
) -> anyhow::Result<()> {
    let Config { settings, integrations, warnings } = config;
    tell_of(&warnings, &[]);
    let health = Health::new(metrics.clone());
    let listener = admin::bind(settings.admin).await?;
    let admin = listener.local_addr()?;
    let records = Arc::new(Records::new(settings.records.clone()));
    let shutdown = CancellationToken::new();
    let quarantine = Quarantine::default();
    let names: Vec<&str> = integrations.iter().map(|integration| integration.name.as_str()).collect();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), integrations = names.join(","), %admin, "starting");
    let deadline = settings.shutdown_deadline;
    let settings = Arc::new(settings);
    let exporter = settings.traces.as_deref().map(|endpoint| Exporter::start(endpoint, &metrics)).transpose()?;
    let (exporter, tracer) = exporter.unzip();
    let tracer = tracer.unwrap_or_default();
    serve_beside(listener, &health, &records);
    let mut fleet = Fleet::new(SharedParts {
        metrics: metrics.clone(),
        tracer,
        health: health.clone(),
        records,
        quarantine,
        shutdown: shutdown.clone(),
    });

    fleet.serve(&settings, integrations);
    let (file, environment) = (file.map(Path::to_owned), environment.clone());
    let mut reload = Reload::new(settings, file, environment, warnings, health.clone());
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks.tick().await;
    let signalled = shutdown::signalled();
    tokio::pin!(signalled);
    loop {
        tokio::select! {
            signal = &mut signalled => {
                tracing::info!(signal = signal?, "stopping: no new deliveries, finishing what is in hand");
                break;
            }
            _ = hang_up.recv() => reload.ask(),
            _ = looks.tick() => reload.look(&metrics),
            loaded = reload.loaded() => reload.end(loaded, &mut fleet, &metrics),
        }
    }
    health.stop();
    systemd::notify(sd_notify::NotifyState::Stopping);
    shutdown.cancel();
    match tokio::time::timeout(deadline, fleet.drained()).await {
        Ok(()) => tracing::info!("stopped; nothing was left in hand"),
        Err(_) => tracing::warn!(?deadline, "stopped with events in hand; the broker delivers them again"),
    }
    if let Some(exporter) = exporter {
        exporter.finish().await;
    }
    Ok(())
}

/// Starts the tasks that serve the whole process, each on its own: one that ends by a fault is started again.
fn serve_beside(listener: TcpListener, health: &Health, records: &Arc<Records>) {
    let records = Arc::clone(records);
    tokio::spawn(task::kept("control socket", async move || control_socket::serve(&records).await));
    let watched = health.clone();
    tokio::spawn(task::kept("watchdog", async move || systemd::keep_watchdog(&watched).await));
    let health = health.clone();
    tokio::spawn(task::kept("admin port", async move || admin::serve(&listener, &health).await));
}

/// Logs the warnings about what can be read but is probably not meant, unless they were logged before.
fn tell_of(warnings: &[String], before: &[String]) {
    for warning in warnings.iter().filter(|warning| !before.contains(warning)) {
        tracing::warn!("{warning}");
    }
}

/// Checks for changed settings and documents. If anything is wrong, all of it is refused, and the old ones stay
/// in force. Files are read on a thread of their own: their disk may hang, and a request to stop must be heard
/// all the same.
struct Reload {
    settings: Arc<Settings>,
    file: Option<PathBuf>,
    environment: Environment,
    /// The latest warnings, so that each is logged once.
    warnings: Vec<String>,
    health: Health,
    /// What is refused, and which changes take effect at the next start: each is logged once.
    refused: Option<String>,
    postponed: Option<String>,
    /// The check that is under way.
    look: Option<Look>,
    /// Somebody asked for a check that has not begun yet.
    is_asked: bool,
}

type Loaded = Result<Config, Vec<Problem>>;

struct Look {
    loading: JoinHandle<Loaded>,
    since: Instant,
    is_asked: bool,
    /// It was logged that this takes too long.
    is_told: bool,
}

impl Reload {
    fn new(
        settings: Arc<Settings>,
        file: Option<PathBuf>,
        environment: Environment,
        warnings: Vec<String>,
        health: Health,
    ) -> Reload {
        let (refused, postponed, look) = (None, None, None);
        Reload { settings, file, environment, warnings, health, refused, postponed, look, is_asked: false }
    }

    /// Checks at once, or as soon as the check that is under way has ended: that one may have begun before the
    /// change.
    fn ask(&mut self) {
        self.is_asked = true;
        if self.look.is_none() {
            self.begin();
        }
    }

    /// Begins a check, unless the files of the last one are still being read.
    fn look(&mut self, metrics: &Metrics) {
        let Some(look) = &mut self.look else { return self.begin() };
        if !look.is_told && look.since.elapsed() > LONGEST_LOOK {
            look.is_told = true;
            metrics.reload_failures.inc();
            self.health.show_configuration(true);
            tracing::error!("reading the configuration takes more than {LONGEST_LOOK:?}; does its disk hang?");
        }
    }

    fn begin(&mut self) {
        let (file, environment) = (self.file.clone(), self.environment.clone());
        let loading = tokio::task::spawn_blocking(move || {
            tls::look();
            config::load(file.as_deref(), &environment)
        });
        let is_asked = std::mem::take(&mut self.is_asked);
        self.look = Some(Look { loading, since: Instant::now(), is_asked, is_told: false });
    }

    /// Returns once the check that is under way has ended. Can be cancelled and called again.
    async fn loaded(&mut self) -> Result<Loaded, JoinError> {
        match &mut self.look {
            Some(look) => (&mut look.loading).await,
            None => std::future::pending().await,
        }
    }

    fn end(&mut self, loaded: Result<Loaded, JoinError>, fleet: &mut Fleet, metrics: &Metrics) {
        let was_asked = self.look.take().is_some_and(|look| look.is_asked);
        match loaded {
            Ok(Ok(config)) => self.take(config, fleet, was_asked),
            Ok(Err(problems)) => self.refuse(&problems, metrics, was_asked),
            // Only a panic ends it early, and its place was logged.
            Err(_) => metrics.reload_failures.inc(),
        }
        if self.is_asked {
            self.begin();
        }
    }

    fn take(&mut self, config: Config, fleet: &mut Fleet, is_asked: bool) {
        let Config { settings, integrations, warnings } = config;
        tell_of(&warnings, &self.warnings);
        self.warnings = warnings;
        let later = settings.at_next_start(&self.settings);
        if !later.is_empty() && (is_asked || self.postponed.as_ref() != Some(&later)) {
            tracing::warn!("changed settings that take effect at the next start: {later}");
        }
        self.postponed = (!later.is_empty()).then_some(later);
        self.refused = None;
        if self.health.show_configuration(false) {
            tracing::info!("the configuration can be used again");
        }
        let settings = Arc::new(settings);
        let Changes { added, changed, removed } = fleet.serve(&settings, integrations);
        if is_asked || added + changed + removed > 0 {
            tracing::info!(added, changed, removed, "reloaded");
        }
    }

    fn refuse(&mut self, problems: &[Problem], metrics: &Metrics, is_asked: bool) {
        let told = problems.iter().map(|problem| format!("{problem}")).collect::<Vec<_>>().join("\n");
        if !is_asked && self.refused.as_ref() == Some(&told) {
            return;
        }
        metrics.reload_failures.inc();
        self.health.show_configuration(true);
        for problem in problems {
            tracing::error!(%problem, "reload refused; what was loaded before stays in force");
        }
        self.refused = Some(told);
    }
}
