//! What the worker on this machine reports about its integrations, and how many dead letters there are; for
//! `check --connect`, which itself sends no event and so cannot know whether the gate accepts any.

use super::finding::Finding;
use super::healthcheck;
use crate::broker::topology::{self, Queues};
use crate::broker::{self, link};
use crate::config::Config;
use crate::gate::breaker::RUN;
use crate::integration::Name;
use serde_json::Value;

/// One finding for each integration of the local worker, or one that there is none. With `others`, also for those
/// that it serves and whose documents cannot be read; returns their names, too.
pub(super) async fn local(config: &Config, others: bool) -> (Vec<Finding>, Vec<Name>) {
    let admin = config.settings.admin;
    if admin.port() == 0 {
        // The system chooses the port, so nobody can know where a worker listens.
        return (Vec::new(), Vec::new());
    }
    let found = |result, is_doubtful| {
        (vec![Finding { is_doubtful, ..Finding::new(format!("worker at {admin}"), result) }], Vec::new())
    };
    let Ok((_, body)) = healthcheck::ask(admin).await else {
        return found(Ok("none answers here, so nothing is known of one".to_owned()), false);
    };
    match serde_json::from_slice::<Value>(&body) {
        Ok(told) if told.get("ready").is_some() => {
            let readable: Vec<&Name> = config.integrations.iter().map(|integration| &integration.name).collect();
            let served = told.get("gates").and_then(Value::as_object).into_iter().flat_map(|gates| gates.keys());
            let served = served.filter(|_| others).filter_map(|name| Name::new(name).ok());
            let others: Vec<Name> = served.filter(|name| !readable.contains(&name)).collect();
            let names = readable.into_iter().chain(&others).map(Name::as_str);
            let findings = names.flat_map(|name| std::iter::once(judged(name, &told)).chain(vanished(name, &told)));
            (findings.collect(), others)
        }
        _ => found(Ok("another program answers there; a worker needs a different [admin] listen".to_owned()), true),
    }
}

/// What the worker's `/readyz` says about an integration.
fn judged(name: &str, told: &Value) -> Finding {
    let text = |key: &str| told.get(key).and_then(|of| of.get(name)).and_then(Value::as_str);
    let state = told.get("state").and_then(Value::as_str);
    let unsettled = told.get("unsettled").and_then(Value::as_array);
    let is_unsettled = unsettled.is_some_and(|names| names.iter().any(|unsettled| unsettled == name));
    let (result, is_doubtful) = match (text("gates"), text("reasons"), state) {
        (None, ..) => (Ok("runs, and does not serve it: are these its settings?".to_owned()), true),
        (_, reason, Some(state @ ("standby" | "stopping"))) => (Ok(with_reason(state, reason)), true),
        (_, Some(reason), _) => (Err(format!("does not consume: {reason}")), false),
        _ if is_unsettled => (
            Err("cannot publish or ack: a policy limits a queue (rabbitmqctl list_policies), or an alarm blocks \
                 publishers (rabbitmqctl status); its log has the reason, \"could not settle\""
                .to_owned()),
            false,
        ),
        (Some("misconfigured"), ..) => (
            Err("its gate refuses it (401, 403, 404, 407 or a redirect): check the API user's name, key and rights, \
                 the gate's name and the url; after a fix, send proves it"
                .to_owned()),
            false,
        ),
        (Some("down"), ..) => (
            Err(format!(
                "its gate is down: the last {RUN} requests or more had no proper answer; the log has their results, and \
                 send shows what the gate answers now"
            )),
            false,
        ),
        (Some("ok"), ..) if told["ready"] == true => (Ok("runs, and its gate accepts what it sends".to_owned()), false),
        (Some("unknown"), ..) if told["ready"] == true => (
            Ok("runs, and has had no proper answer from its gate since it started; send proves the key and the \
                gate's name"
                .to_owned()),
            false,
        ),
        (Some("ok" | "unknown"), ..) => (Ok("runs, and is not ready".to_owned()), true),
        (Some(other), ..) => (Err(format!("says that its gate is {other}")), false),
    };
    Finding { is_doubtful, ..Finding::new(format!("worker of {name}"), result) }
}

/// Whether messages left an integration's queues without a command, as far as the worker has seen.
fn vanished(name: &str, told: &Value) -> Option<Finding> {
    let of = told.get("vanished")?.get(name)?;
    let (messages, at) = (of.get("messages")?.as_u64()?, of.get("at")?.as_str()?);
    let told = format!(
        "{messages} left .dead, .aside, .unreadable or .store without a command since the worker started, the last at {at}: \
         look for a policy that deletes them (rabbitmqctl list_policies) before any dead command; \
         docs/runbook.md, ConsentGateLettersVanished"
    );
    Some(Finding { is_doubtful: true, ..Finding::new(format!("queues of {name}"), Ok(told)) })
}

fn with_reason(state: &str, reason: Option<&str>) -> String {
    reason.map_or_else(|| state.to_owned(), |reason| format!("{state}: {reason}"))
}

/// How many messages wait for an operator, wherever the integration's worker runs: dead letters, and those that the
/// broker itself moved away.
pub(super) async fn letters(config: &Config, name: &Name) -> Finding {
    let told = match depths(config, &Queues::of(name)).await {
        Ok(Some([dead, aside, unreadable])) => waiting(name, dead, aside, unreadable),
        Ok(None) => Some("its queues are not declared, so nothing is kept for it: consent-gate declare".to_owned()),
        Err(error) => Some(format!("cannot be counted: {error}")),
    };
    let is_doubtful = told.is_some();
    let told = told.unwrap_or_else(|| "none".to_owned());
    Finding { is_doubtful, ..Finding::new(format!("dead letters of {name}"), Ok(told)) }
}

/// What waits for an operator, if anything, and where to look.
fn waiting(name: &Name, dead: u32, aside: u32, unreadable: u32) -> Option<String> {
    let parts = [
        (dead, format!("consent-gate dead list --integration {name} --group shows why")),
        (
            aside,
            format!(
                "that the broker moved to .aside because of a policy: remove it first (rabbitmqctl list_policies), \
                 then consent-gate dead list --aside --integration {name}"
            ),
        ),
        (
            unreadable,
            "undelivered that the broker moved to .unreadable: docs/runbook.md, ConsentGateUnreadableMessages"
                .to_owned(),
        ),
    ];
    let told: Vec<String> =
        parts.iter().filter(|(count, _)| *count > 0).map(|(count, look)| format!("{count}: {look}")).collect();
    (!told.is_empty()).then(|| told.join("; "))
}

/// How many messages wait in `.dead`, `.aside` and `.unreadable`, by one connection; `None` if the queue for events or
/// that for dead letters is missing.
async fn depths(config: &Config, queues: &Queues) -> Result<Option<[u32; 3]>, broker::Error> {
    let connection = link::dial_to_declare(&config.settings.broker).await?;
    let depths = async {
        if topology::depth_if_there(&connection, &queues.work).await?.is_none() {
            return Ok(None);
        }
        let Some(dead) = topology::depth_if_there(&connection, &queues.dead).await? else { return Ok(None) };
        let aside = topology::depth_if_there(&connection, &queues.aside).await?.unwrap_or_default();
        let unreadable = topology::depth_if_there(&connection, &queues.unreadable).await?.unwrap_or_default();
        Ok(Some([dead, aside, unreadable]))
    };
    let depths = depths.await;
    topology::close(&connection).await;
    depths
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
            (json!({ "ready": true, "gates": { "acme": "unknown" }, "reasons": {} }), true, false),
            (json!({ "ready": true, "gates": { "acme": "ok" }, "unsettled": ["acme"] }), false, false),
            (json!({ "ready": true, "gates": { "acme": "ok" }, "unsettled": ["other"] }), true, false),
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

    #[test]
    fn what_left_its_queue_and_what_waits_is_told_with_where_to_look() {
        let told = json!({ "vanished": { "acme": { "messages": 4, "at": "2026-11-28T06:00:00Z" } } });
        let found = vanished("acme", &told).unwrap();
        assert!(
            found.is_doubtful && found.result.as_ref().is_ok_and(|told| told.contains("list_policies")),
            "{found:?}"
        );
        assert!(vanished("shop", &told).is_none() && vanished("acme", &json!({})).is_none());
        let name = Name::new("acme").unwrap();
        assert_eq!(waiting(&name, 0, 0, 0), None);
        for (counts, parts) in
            [((3, 0, 0), ["3: ", "--group"]), ((0, 2, 0), ["2: ", "--aside"]), ((0, 0, 1), ["1: ", ".unreadable"])]
        {
            let told = waiting(&name, counts.0, counts.1, counts.2).unwrap();
            assert!(parts.iter().all(|part| told.contains(part)) && !told.contains("; "), "{told}");
        }
        assert_eq!(waiting(&name, 3, 2, 1).unwrap().matches("; ").count(), 2);
    }
}
