//! What the worker on this machine reports about its integrations, and how many dead letters there are; for
//! `check --connect`, which itself sends no event and so cannot know whether the gate accepts any.

use super::finding::Finding;
use super::healthcheck;
use crate::broker::topology::{self, Queues};
use crate::broker::{self, link};
use crate::config::Config;
use crate::integration::Integration;
use serde_json::Value;

/// One finding for each integration of the local worker, or one that there is none.
pub(super) async fn local(config: &Config) -> Vec<Finding> {
    let admin = config.settings.admin;
    if admin.port() == 0 {
        // The system chooses the port, so nobody can know where a worker listens.
        return Vec::new();
    }
    let found =
        |result, is_doubtful| vec![Finding { is_doubtful, ..Finding::new(format!("worker at {admin}"), result) }];
    let Ok((_, body)) = healthcheck::ask(admin).await else {
        return found(Ok("none answers here".to_owned()), false);
    };
    match serde_json::from_slice::<Value>(&body) {
        Ok(told) if told.get("ready").is_some() => {
            let names = config.integrations.iter().map(|integration| integration.name.as_str());
            names.map(|name| judged(name, &told)).collect()
        }
        _ => found(Ok("another program answers there; a worker needs a different [admin] listen".to_owned()), true),
    }
}

/// What the worker's `/readyz` says about an integration.
fn judged(name: &str, told: &Value) -> Finding {
    let text = |key: &str| told.get(key).and_then(|of| of.get(name)).and_then(Value::as_str);
    let state = told.get("state").and_then(Value::as_str);
    let (result, is_doubtful) = match (text("gates"), text("reasons"), state) {
        (None, ..) => (Ok("runs, and does not serve it: are these its settings?".to_owned()), true),
        (_, reason, Some(state @ ("standby" | "stopping"))) => (Ok(with_reason(state, reason)), true),
        (_, Some(reason), _) => (Err(format!("does not consume: {reason}")), false),
        (Some("misconfigured"), ..) => (
            Err("its gate refuses it (401, 403, 404, 407 or a redirect): check the API user's name, key and rights, \
                 the gate's name and the url; after a fix, send proves it"
                .to_owned()),
            false,
        ),
        (Some("ok"), ..) if told["ready"] == true => (Ok("runs, and knows nothing against its gate".to_owned()), false),
        (Some("ok"), ..) => (Ok("runs, and is not ready".to_owned()), true),
        (Some(other), ..) => (Err(format!("says that its gate is {other}")), false),
    };
    Finding { is_doubtful, ..Finding::new(format!("worker of {name}"), result) }
}

fn with_reason(state: &str, reason: Option<&str>) -> String {
    reason.map_or_else(|| state.to_owned(), |reason| format!("{state}: {reason}"))
}

/// How many dead letters an integration has, wherever its worker runs.
pub(super) async fn letters(config: &Config, integration: &Integration) -> Finding {
    let name = &integration.name;
    let Queues { dead, aside, .. } = Queues::of(name);
    let aside = depth(config, &aside).await.ok().flatten().unwrap_or_default();
    let (told, is_doubtful) = match depth(config, &dead).await {
        Ok(Some(0)) if aside == 0 => ("none".to_owned(), false),
        Ok(Some(count)) if aside == 0 => {
            (format!("{count}; consent-gate dead list --integration {name} --group shows why"), true)
        }
        Ok(Some(count)) => {
            let put =
                "that the broker put aside because of a policy: remove it first, then consent-gate dead list --aside";
            (format!("{count}, and {aside} {put} --integration {name}"), true)
        }
        Ok(None) => {
            ("its queues are not declared yet, so nothing is kept for it: consent-gate declare".to_owned(), true)
        }
        Err(error) => (format!("cannot be counted: {error}"), true),
    };
    Finding { is_doubtful, ..Finding::new(format!("dead letters of {name}"), Ok(told)) }
}

async fn depth(config: &Config, queue: &str) -> Result<Option<u32>, broker::Error> {
    let connection = link::dial_to_declare(&config.settings.broker).await?;
    let depth = topology::depth_if_there(&connection, queue).await;
    topology::close(&connection).await;
    depth
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_the_worker_says_of_its_gate_is_passed_on() {
        for (told, is_ok, is_doubtful) in [
            (json!({ "ready": true, "gates": { "acme": "ok" }, "reasons": {} }), true, false),
            (json!({ "ready": true, "gates": { "acme": "misconfigured" }, "reasons": {} }), false, false),
            (json!({ "ready": true, "gates": { "acme": "down" } }), false, false),
            (json!({ "ready": true, "gates": { "other": "ok" }, "reasons": {} }), true, true),
            (json!({ "ready": false, "gates": { "acme": "ok" }, "reasons": { "acme": "no route" } }), false, false),
            (json!({ "ready": false, "gates": { "acme": "ok" }, "reasons": { "other": "no route" } }), true, true),
            (
                json!({ "ready": false, "state": "standby", "gates": { "acme": "ok" }, "reasons": { "acme": "held" } }),
                true,
                true,
            ),
        ] {
            let judged = judged("acme", &told);
            assert_eq!((judged.result.is_ok(), judged.is_doubtful), (is_ok, is_doubtful), "{told}");
        }
    }
}
