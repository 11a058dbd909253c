//! Metrics and health, from outside.

use super::harness::{Lab, choice, golden, run};
use serde_json::json;

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn every_metric_and_series_is_there_from_the_start() {
    let mut lab = Lab::new();
    lab.start();
    let (status, page) = lab.admin("/metrics");
    assert_eq!(status, 200);
    let mut series: Vec<String> = page
        .lines()
        .filter(|line| !line.starts_with('#') && !line.contains("_bucket{"))
        .map(|line| line.rsplit_once(' ').unwrap().0.replace(lab.integration(), "NAME"))
        .collect();
    series.sort();
    golden("metrics-series.txt", &(series.join("\n") + "\n").replace(env!("CARGO_PKG_VERSION"), "VERSION"));
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn readiness_follows_the_broker_and_liveness_does_not() {
    let mut lab = Lab::new();
    lab.declare();
    let good = lab.environment["CONSENT_GATE_BROKER__URL"].clone();
    // A port on which nobody listens: one that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    lab.set("CONSENT_GATE_BROKER__URL", &format!("amqp://guest:guest@127.0.0.1:{free}/%2f"));
    lab.spawn();
    lab.worker().line_with("cannot use the broker");
    let (status, body) = lab.admin("/readyz");
    assert_eq!(status, 503);
    assert!(body.contains("\"ready\":false"), "{body}");
    assert_eq!(lab.admin("/livez").0, 200);
    assert!(lab.metric("consent_gate_broker_connected") < 0.5);
    lab.set("CONSENT_GATE_BROKER__URL", &good);
    lab.start();
    assert_eq!(lab.admin("/readyz").0, 200);
    assert!(lab.metric("consent_gate_broker_connected") > 0.5);
    assert_eq!(lab.admin("/elsewhere").0, 404);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_gate_that_refuses_the_integration_shows_but_does_not_make_the_worker_unready() {
    let mut lab = Lab::new();
    lab.gate(0).faults(json!([{ "status": 403 }]));
    lab.start();
    lab.publish(vec![choice("jane@example.com", true).into()]);
    lab.settled(1);
    let (status, body) = lab.admin("/readyz");
    assert_eq!(status, 200);
    assert!(body.contains("misconfigured"), "{body}");
    let series = format!("consent_gate_misconfigured{{integration=\"{}\"}}", lab.integration());
    assert!(lab.metric(&series) > 0.5);
    lab.gate(0).faults(json!([]));
    lab.publish(vec![choice("jane@example.com", true).into()]);
    lab.settled(2);
    assert!(lab.metric(&series) < 0.5);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn healthcheck_asks_the_local_worker() {
    let mut lab = Lab::new();
    lab.start();
    let line: serde_json::Value = serde_json::from_str(&lab.worker().line_with("\"starting\"")).unwrap();
    let admin = line["admin"].as_str().unwrap().to_owned();
    let asked = run(&lab.folder, &[("CONSENT_GATE_ADMIN__LISTEN", &admin)], &["healthcheck"], b"");
    assert_eq!((asked.code, asked.err.as_str()), (0, ""));
    lab.folder.write("integrations/broken.json", "{");
    lab.worker().signal("HUP");
    lab.worker().line_with("reload refused");
    let asked = run(&lab.folder, &[("CONSENT_GATE_ADMIN__LISTEN", &admin)], &["healthcheck"], b"");
    assert!(asked.code == 0 && asked.err.contains("the next start would fail"), "{}", asked.err);
    lab.worker().signal("TERM");
    lab.worker().ended();
    let asked = run(&lab.folder, &[("CONSENT_GATE_ADMIN__LISTEN", &admin)], &["healthcheck"], b"");
    assert_eq!(asked.code, 1);
    assert!(asked.err.contains("no worker answers; does one run? check whether [admin] listen"), "{}", asked.err);
    let other = lab.gate(0).base().replace("http://", "");
    let asked = run(&lab.folder, &[("CONSENT_GATE_ADMIN__LISTEN", &other)], &["healthcheck"], b"");
    assert!(asked.code == 1 && asked.err.contains("another program answers there"), "{}", asked.err);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_port_in_use_is_told_at_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut lab = Lab::new();
    lab.declare();
    lab.set("CONSENT_GATE_ADMIN__LISTEN", &taken.local_addr().unwrap().to_string());
    lab.spawn();
    assert_eq!(lab.worker().ended(), Some(1));
    assert!(lab.worker().text().contains("set admin.listen"), "{}", lab.worker().text());
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn consent_latency_counts_from_the_choice_and_late_events_apart() {
    let mut lab = Lab::new();
    lab.start();
    let mut late = choice("late@example.com", true);
    let two_hours_ago = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(2);
    late["parameters"]["entity"]["created_at"] = json!(two_hours_ago.to_string());
    lab.publish(vec![choice("jane@example.com", true).into(), late.into()]);
    lab.settled(2);
    let name = lab.integration().to_owned();
    assert!((lab.metric(&format!("consent_gate_late_events_total{{integration=\"{name}\"}}")) - 1.0).abs() < 0.1);
    let count = format!("consent_gate_consent_latency_seconds_count{{integration=\"{name}\",path=\"first\"}}");
    assert!((lab.metric(&count) - 1.0).abs() < 0.1);
}
