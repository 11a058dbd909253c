//! `send`: triggers the real gate once. Nothing else proves that the key and the gate's name are right.

use super::dead::preview::begun;
use super::store::compared;
use super::{Failure, agreed, integration, print, read_event, retention, talk, verdict_of};
use crate::cli::SendArgs;
use crate::config::{Environment, Settings};
use crate::event::Body;
use crate::gate::{Answer, GateRequest, Outcome};
use crate::integration::Integration;
use crate::plan::{self, Plan, plan};
use crate::text::shown;
use crate::verdict::Processed;
use jiff::Timestamp;
use serde_json::json;
use std::io::Write;
use std::path::Path;

/// Sends the request for one event, after asking for confirmation unless `yes`. The records learn nothing of it.
///
/// # Errors
/// Problems of configuration or usage (exit code 2); the event is not to be sent, the records know something
/// newer of its person, or the gate did not accept it (1).
pub async fn send(
    args: &SendArgs,
    file: Option<&Path>,
    environment: &Environment,
    as_json: bool,
) -> Result<(), Failure> {
    let (settings, integration) = integration(&args.integration, file, environment)?;
    let body = read_event(&args.event)?;
    let now = Timestamp::now();
    let not_sent = |processed: Processed| Failure::Failed(not_sent(&processed, &integration));
    let (_, planned) = plan(Body::of_file(&body), &integration, now);
    let planned = planned.map_err(not_sent)?;
    let newer = match &planned {
        Plan::Trigger(send) => what_is_newer(send, &settings, &integration, now).await,
        Plan::Erase { .. } => None,
    };
    let request = planned.own_request(&integration).map_err(not_sent)?;
    if let Some(newer) = newer {
        return Err(Failure::Failed(format!(
            "not sent: {newer}; use a test person of whom nothing is on record, or date the event now"
        )));
    }
    announce(&integration, &request);
    if !args.yes && !agreed("trigger the real campaign for this person now?", "this triggers the real campaign")? {
        return Err(Failure::Failed("not sent".to_owned()));
    }
    let gate = integration.gate();
    let gate = gate.map_err(|error| Failure::Failed(format!("{error:#}")))?;
    let answer = gate.send(&request, Timestamp::now()).await;
    report(&answer, &integration, as_json)?;
    if answer.outcome == Outcome::Accepted { Ok(()) } else { Err(Failure::Failed(remedy(&answer).to_owned())) }
}

/// What the records know of the person that this event would undo.
async fn what_is_newer(
    send: &plan::PlannedRequest,
    settings: &Settings,
    integration: &Integration,
    now: Timestamp,
) -> Option<String> {
    let recorded = match compared(settings, integration).await {
        Ok(access) => access.person(&integration.records, &send.identifier).await.map_err(Failure::from),
        Err(why) => Err(why),
    };
    let recorded = match recorded {
        Ok(recorded) => recorded,
        Err(why) => {
            let why = why.why();
            talk(&format!("the records cannot be asked whether something newer is known of this person ({why})"));
            return None;
        }
    };
    match begun(send, &recorded, integration, retention(settings), now) {
        Ok((to_send, _)) if to_send.outdated > 0 || !to_send.unknown.is_empty() => Some(
            "newer choices of this person are on record, and this event would undo them at the gate (consent-gate map --recorded shows them)"
                .to_owned(),
        ),
        Err(processed @ Processed::NotWanted(_)) => {
            let (outcome, code) = verdict_of(&processed, integration);
            Some(format!("according to the records, this event would be {outcome} ({code})"))
        }
        Ok(_) | Err(_) => None,
    }
}

fn not_sent(processed: &Processed, integration: &Integration) -> String {
    let (outcome, code) = verdict_of(processed, integration);
    let detail = processed.error().map(|error| format!(": {error}")).unwrap_or_default();
    format!("nothing to send: this event would be {outcome} ({code}{detail})")
}

/// Shows the request on standard error, with every value and the signature masked.
fn announce(integration: &Integration, request: &GateRequest) {
    let names: Vec<&str> = request.names().collect();
    let endpoint = &integration.endpoint;
    let text = format!(
        "POST {}\nAuthorization: {}\ngate {}, properties {} (values masked)\nthe records learn nothing of it: use a test person\n",
        endpoint.url(),
        endpoint.masked_authorization(),
        endpoint.gate(),
        names.join(", ")
    );
    // Only a message: a closed standard error changes nothing.
    let _ = std::io::stderr().write_all(shown::output(&text).as_bytes());
}

fn report(answer: &Answer, integration: &Integration, as_json: bool) -> Result<(), Failure> {
    let (outcome, code) = verdict_of(&Processed::Answered(answer.clone()), integration);
    let ms = answer.duration.as_millis();
    if as_json {
        return print(&format!(
            "{}\n",
            json!({
                "result": answer.outcome.label(),
                "status": answer.status,
                "why": answer.error,
                "answer": answer.said,
                "ms": u64::try_from(ms).unwrap_or(u64::MAX),
                "verdict": outcome,
                "code": code,
            })
        ));
    }
    let status = answer.status.map_or_else(|| "none".to_owned(), |status| status.to_string());
    let said = shown::value(answer.said.as_deref().unwrap_or("(nothing)"));
    let result = answer.told().unwrap_or_else(|| answer.outcome.label().to_owned());
    let verdict = [outcome, code].join(" ");
    // The verdict is for an event in a queue: this command sends nothing again.
    print(&format!(
        "status   {status} after {ms} ms\nanswer   {said}\nresult   {result}\nverdict  an event would be {}\n",
        verdict.trim_end()
    ))
}

fn remedy(answer: &Answer) -> &'static str {
    match answer.outcome {
        Outcome::Accepted => "accepted",
        // Without a status, only a proxy can have refused.
        Outcome::Misconfigured if matches!(answer.status, None | Some(407)) => {
            "the proxy lets nothing through to the gate; check user and password in gate.proxy, and whether it may connect there"
        }
        Outcome::Misconfigured => {
            "the gate refuses the integration; check user, key, the gate's name, the API user's right, the IP filter and this machine's clock"
        }
        Outcome::Refused => "the gate refuses the request itself; check the inputs that the journey declares",
        Outcome::NotTheGate => {
            "something else answered in the gate's place: a firewall, a proxy or a login page; check the url, the IP filter and what lies between; if the gate itself answers like this, set properties.answer to \"status\""
        }
        Outcome::Rejected => "the gate answered with an error in its envelope; see the answer",
        Outcome::Unavailable => "no usable answer; check the host's name, the network and TLS",
        Outcome::Throttled => "the quota is used up; note that it hides whether the key is right",
        Outcome::UnexpectedStatus => "an answer that this gate does not document; check the url",
    }
}
