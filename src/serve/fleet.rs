//! All integrations that are served, and how they change while the worker runs.
//!
//! Each has a task that serves it. When its document changes, the task drains what is in hand and serves it
//! by the new one. Nothing in flight is lost, and no other integration is affected.

use crate::broker::redelivery::Unsettled;
use crate::config::Settings;
use crate::gate;
use crate::integration::{Integration, Name};
use crate::observe::facts::{Facts, labels};
use crate::observe::metrics::Metrics;
use crate::observe::traces::Tracer;
use crate::record::Records;
use crate::serve::admin::{ConnectionState, Health};
use crate::serve::supervisor::Supervisor;
use crate::task;
use crate::worker::quarantine::Quarantine;
use crate::worker::{AcrossReloads, Stops, Worker};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long an integration that cannot be served waits before it is tried again.
const CANNOT_SERVE_PAUSE: Duration = Duration::from_secs(10);

/// What the tasks of all integrations share.
#[derive(Clone, Debug)]
pub struct SharedParts {
    pub metrics: Metrics,
    pub tracer: Tracer,
    pub health: Health,
    pub records: Arc<Records>,
    pub quarantine: Quarantine,
    pub shutdown: CancellationToken,
}

/// What an integration's task must serve.
#[derive(Debug)]
struct Assignment {
    settings: Arc<Settings>,
    integration: Integration,
}

/// The tasks, by integration. A task whose integration was removed waits for its return.
#[derive(Debug)]
pub struct Fleet {
    context: SharedParts,
    orders: BTreeMap<Name, watch::Sender<Option<Arc<Assignment>>>>,
    tasks: JoinSet<()>,
}

/// How many integrations were added, changed and removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub added: usize,
    pub changed: usize,
    pub removed: usize,
}

impl Fleet {
    /// Serves nothing yet.
    #[must_use]
    pub fn new(context: SharedParts) -> Fleet {
        Fleet { context, orders: BTreeMap::new(), tasks: JoinSet::new() }
    }

    /// Serves these integrations from now on, and no others. Those that did not change continue undisturbed.
    pub fn serve(&mut self, settings: &Arc<Settings>, integrations: Vec<Integration>) -> Changes {
        self.context.records.renew(&settings.records);
        let mut changes = Changes::default();
        let steps = integrations.iter().map(|integration| integration.schedule.attempts() - 1).max().unwrap_or(0);
        let labels = labels(steps as usize);
        for (name, order) in &self.orders {
            let stays = integrations.iter().any(|integration| integration.name == *name);
            if !stays && order.borrow().is_some() {
                order.send_replace(None);
                tracing::info!(integration = name.as_str(), "its document is gone; finishing what is in hand");
                changes.removed += 1;
            }
        }
        for integration in integrations {
            self.context.metrics.prepare(integration.name.as_str(), &labels);
            let name = integration.name.clone();
            let order = Arc::new(Assignment { settings: Arc::clone(settings), integration });
            match self.orders.get(&name) {
                Some(known) if known.borrow().as_ref().is_some_and(|known| known.is_same(&order)) => {}
                Some(known) => {
                    let was_served = known.send_replace(Some(order)).is_some();
                    if was_served { changes.changed += 1 } else { changes.added += 1 }
                }
                None => {
                    // At once, so that the worker is not ready without it.
                    self.context.health.show_trouble(name.as_str(), ConnectionState::Disconnected, "connecting");
                    let (sender, orders) = watch::channel(Some(order));
                    self.tasks.spawn(serve_until_removed(self.context.clone(), name.clone(), orders));
                    self.orders.insert(name, sender);
                    changes.added += 1;
                }
            }
        }
        changes
    }

    /// Returns when all tasks have drained after the shutdown began.
    pub async fn drained(self) {
        self.tasks.join_all().await;
    }
}

impl Assignment {
    fn is_same(&self, other: &Assignment) -> bool {
        let is_same_way =
            self.settings.broker == other.settings.broker && self.settings.source == other.settings.source;
        is_same_way && self.integration == other.integration
    }
}

/// Serves the assigned document, until the process must stop. A fault ends only this integration's
/// connections; after a pause it is served again.
async fn serve_until_removed(context: SharedParts, name: Name, orders: watch::Receiver<Option<Arc<Assignment>>>) {
    let unsettled = Arc::new(Unsettled::new(context.records.has_notes()));
    let serve = || {
        let (context, name, unsettled, orders) =
            (context.clone(), name.clone(), Arc::clone(&unsettled), orders.clone());
        follow(context, name, unsettled, orders).boxed()
    };
    serve_in_spite_of_faults(&context.health, &context.shutdown, name.as_str(), serve).await;
}

async fn serve_in_spite_of_faults(
    health: &Health,
    shutdown: &CancellationToken,
    name: &str,
    mut serve: impl FnMut() -> BoxFuture<'static, ()>,
) {
    while task::watched("supervisor", Some(name), serve()).await.is_none() {
        health.show_trouble(name, ConnectionState::Faulted, "its task ended because of a bug in the worker");
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(task::PAUSE) => {}
        }
    }
}

async fn follow(
    context: SharedParts,
    name: Name,
    unsettled: Arc<Unsettled>,
    mut orders: watch::Receiver<Option<Arc<Assignment>>>,
) {
    // What was learned about the gate under one document is kept under the next one.
    let mut known = None;
    while !context.shutdown.is_cancelled() {
        let order = orders.borrow_and_update().clone();
        if let Some(order) = order {
            context.health.show_trouble(name.as_str(), ConnectionState::Disconnected, "connecting");
            known = serve(&context, &order, &unsettled, &mut orders, known).await;
        } else {
            known = None;
            context.health.forget(name.as_str());
            tokio::select! {
                () = context.shutdown.cancelled() => {}
                _ = orders.changed() => {}
            }
        }
    }
}

/// Serves by one document. Returns what is known about its gate once there is another document and everything
/// in hand has drained.
async fn serve(
    context: &SharedParts,
    order: &Assignment,
    unsettled: &Arc<Unsettled>,
    orders: &mut watch::Receiver<Option<Arc<Assignment>>>,
    known: Option<gate::Learned>,
) -> Option<gate::Learned> {
    let Assignment { settings, integration } = order;
    let (hurry, stopping) = (CancellationToken::new(), CancellationToken::new());
    let _ended = [&hurry, &stopping].map(|token| token.clone().drop_guard());
    let name = integration.name.as_str();
    let facts = Facts::of(integration, &context.metrics, &context.tracer, context.health.seen(name));
    let records = Arc::clone(&context.records);
    let before = AcrossReloads { unsettled: Arc::clone(unsettled), quarantine: context.quarantine.clone() };
    let stops = Stops { stopping: stopping.clone(), hurry: hurry.clone() };
    let supervisor = match Worker::new(integration.clone(), facts, records, stops, before) {
        Ok(worker) => {
            let (settings, worker) = (Arc::clone(settings), Arc::new(worker));
            if let Some(known) = &known {
                worker.gate().follow(known);
            }
            context.health.served_by(name, &worker);
            Supervisor { settings, worker, health: context.health.clone(), shutdown: stopping.clone() }
        }
        Err(error) => {
            let error = format!("{error:#}");
            tracing::error!(integration = name, error, "cannot be served");
            context.health.show_trouble(name, ConnectionState::Disconnected, &error);
            // Its document may change, and so may the machine's certificates.
            tokio::select! {
                () = context.shutdown.cancelled() => {}
                _ = orders.changed() => {}
                () = tokio::time::sleep(CANNOT_SERVE_PAUSE) => {}
            }
            return known;
        }
    };
    let ending = async {
        tokio::select! {
            () = context.shutdown.cancelled() => {}
            _ = orders.changed() => {}
        }
        stopping.cancel();
        tokio::time::sleep(settings.shutdown_deadline / 2).await;
        hurry.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = supervisor.run() => {}
        () = ending => {}
    }
    Some(supervisor.worker.gate().learned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_fault_takes_down_its_own_integration_until_it_is_served_anew() {
        let metrics = Metrics::new(|| 0).unwrap();
        let health = Health::new(metrics);
        let shutdown = CancellationToken::new();
        health.show("shop", ConnectionState::Consuming);
        let consumes = |health: &Health, name: &str| {
            health.page().contains(&format!("consent_gate_consuming{{integration=\"{name}\"}} 1\n"))
        };
        let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
        let serve = || {
            let (health, seen, before) = (health.clone(), Arc::clone(&seen), consumes(&health, "acme"));
            let serve = async move {
                health.show("acme", ConnectionState::Consuming);
                tokio::task::yield_now().await;
                let mut seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                seen.push(before);
                assert!(seen.len() > 2, "jane@example.com");
            };
            serve.boxed()
        };
        serve_in_spite_of_faults(&health, &shutdown, "acme", serve).await;
        let seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        assert_eq!(*seen, [false, false, false], "down in between");
        assert!(consumes(&health, "acme") && consumes(&health, "shop"));
    }
}
