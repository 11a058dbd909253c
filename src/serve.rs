//! `run`: wires the parts, and drains with a deadline.

use crate::admin::{self, Health};
use crate::config::Config;
use crate::facts::{Facts, labels};
use crate::metrics::Metrics;
use crate::record::{Records, desk};
use crate::shutdown;
use crate::supervisor::Supervisor;
use crate::worker::Worker;
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

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
    let steps = integrations.iter().map(|integration| integration.schedule.attempts() - 1).max().unwrap_or(0);
    let metrics = Metrics::new(&names, &labels(steps as usize))?;
    let health = Health::new(&names, metrics.clone());
    let listener = admin::bind(settings.admin).await?;
    let admin = listener.local_addr()?;
    tokio::spawn(admin::serve(listener, health.clone()));
    let quarantine = Arc::new(Mutex::new(()));
    let (in_a_hurry, hurry) = shutdown::channel();
    let records = Arc::new(Records::new(settings.records.clone()));
    tokio::spawn(desk::serve(Arc::clone(&records)));
    let workers = integrations
        .iter()
        .map(|integration| {
            let facts = Facts::of(integration, &metrics);
            Ok(Arc::new(Worker::new(
                integration.clone(),
                facts,
                Arc::clone(&records),
                hurry.clone(),
                Arc::clone(&quarantine),
            )?))
        })
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
    let deadline = settings.shutdown_deadline;
    let settings = Arc::new(settings);
    let mut supervisors = JoinSet::new();
    for worker in workers {
        let (settings, health, shutdown) = (Arc::clone(&settings), health.clone(), shutdown.clone());
        supervisors.spawn(async move { Supervisor { settings, worker, health, shutdown }.run().await });
    }
    tokio::select! {
        () = shutdown.wait() => {}
        // Supervisors end only when they are to stop.
        _ = supervisors.join_next() => anyhow::ensure!(shutdown.is_stopping(), "a supervisor ended unasked"),
    }
    tokio::spawn(async move {
        tokio::time::sleep(deadline / 2).await;
        in_a_hurry.stop();
    });
    match tokio::time::timeout(deadline, supervisors.join_all()).await {
        Ok(_) => tracing::info!("stopped; nothing was left in hand"),
        Err(_) => tracing::warn!(?deadline, "stopped with events in hand; the broker delivers them again"),
    }
    Ok(())
}
