//! What the worker reports about itself is true: every gauge and every word of `/readyz`, after every kind of
//! change.

use super::harness::{Lab, Node, events, poll_until};
use super::reload::{change, said};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

/// The delays between attempts, in milliseconds.
const DELAYS: [u64; 9] = [300, 301, 302, 303, 304, 305, 306, 307, 308];
/// No report is wrong for longer than this: queues are read every five seconds, and a probe follows at most
/// 30 seconds after the one before.
const LONGEST: Duration = Duration::from_secs(90);

/// With `on_outage = "hold"`, and at most three requests under way.
fn lab_at(url: &str, integrations: usize) -> Lab {
    let limited: &dyn Fn(&mut Value) = &|document| {
        document["overrides"] = json!({
            "gate": { "max_in_flight": 3, "adaptive": false },
            "retry": { "on_outage": "hold" },
        });
    };
    Lab::at(url, &vec![limited; integrations])
}

/// The true state of one integration.
#[derive(Clone, Copy, Debug)]
struct Truth {
    is_consuming: bool,
    gate: &'static str,
    is_open: bool,
    limit: u32,
    in_flight: u32,
}

/// Nothing is wrong, and nothing is under way.
const AT_REST: Truth = Truth { is_consuming: true, gate: "ok", is_open: false, limit: 3, in_flight: 0 };
const DOWN: Truth = Truth { gate: "down", is_open: true, ..AT_REST };

/// The true state of the whole process, in the words of `/readyz`.
#[derive(Clone, Copy, Debug)]
struct Words {
    state: &'static str,
    broker: &'static str,
    records: &'static str,
    configuration: &'static str,
}

const READY: Words = Words { state: "ready", broker: "connected", records: "held", configuration: "in force" };

type Gauges = BTreeMap<String, f64>;

/// All gauges on the page.
fn gauges(page: &str) -> Gauges {
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let families: Vec<&str> = types.filter_map(|line| line.strip_suffix(" gauge")).collect();
    let values = page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
    let gauges = values.filter(|(series, _)| families.contains(&series.split('{').next().unwrap_or_default()));
    gauges.map(|(series, value)| (series.to_owned(), value.parse().unwrap())).collect()
}

fn is(condition: bool) -> f64 {
    f64::from(u8::from(condition))
}

/// How many messages wait, by the broker's own count.
fn waiting(lab: &Lab, name: &str) -> BTreeMap<&'static str, u32> {
    let depth = |suffix: &str| lab.bench.depth(&format!("consent-gate.{name}{suffix}"));
    let delay = DELAYS.iter().map(|ms| depth(&format!(".delay.{ms}"))).sum();
    let others =
        [("work", ""), ("retry", ".retry"), ("dead", ".dead"), ("aside", ".aside"), ("unreadable", ".unreadable")];
    others.into_iter().map(|(queue, suffix)| (queue, depth(suffix))).chain([("delay", delay)]).collect()
}

/// What the page must show for these integrations, and for no others. The depths are the broker's own while
/// it is up, else as before.
fn expected(lab: &Lab, words: Words, truths: &[(&str, Truth)], before: &Gauges) -> Gauges {
    let mut gauges = BTreeMap::new();
    for (name, truth) in truths {
        let one = |metric: &str| format!("consent_gate_{metric}{{integration=\"{name}\"}}");
        gauges.insert(one("breaker_open"), is(truth.is_open));
        gauges.insert(one("misconfigured"), is(truth.gate == "misconfigured"));
        gauges.insert(one("consuming"), is(truth.is_consuming));
        gauges.insert(one("concurrency_limit"), f64::from(truth.limit));
        gauges.insert(one("in_flight"), f64::from(truth.in_flight));
        gauges.insert(one("skips_everything"), 0.0);
        gauges.insert(one("properties_without_value"), 0.0);
        gauges.insert(one("last_event_timestamp_seconds"), 1.0);
        let depth = |queue| format!("consent_gate_queue_messages{{integration=\"{name}\",queue=\"{queue}\"}}");
        if words.broker == "connected" {
            gauges.extend(waiting(lab, name).into_iter().map(|(queue, count)| (depth(queue), f64::from(count))));
        } else {
            let queues = ["work", "retry", "delay", "dead", "aside", "unreadable"].map(depth);
            gauges.extend(queues.into_iter().map(|series| (series.clone(), before[&series])));
        }
    }
    gauges.insert("consent_gate_broker_connected".to_owned(), is(words.broker == "connected"));
    gauges.insert("consent_gate_store_held".to_owned(), is(words.records == "held"));
    gauges.insert("consent_gate_configuration_refused".to_owned(), is(words.configuration == "refused"));
    gauges.insert("consent_gate_store_clock_offset_seconds".to_owned(), 0.0);
    gauges.insert(format!("consent_gate_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION")), 1.0);
    gauges
}

/// What the worker reports now; of the last event only whether there was one since the test began.
fn said_now(lab: &mut Lab, began: f64) -> (u16, Value, Gauges) {
    let (status, text) = lab.admin("/readyz");
    let mut ready: Value = serde_json::from_str(&text).unwrap();
    ready.as_object_mut().unwrap().remove("reasons").unwrap();
    let mut gauges = gauges(&lab.admin("/metrics").1);
    let heard = gauges.iter_mut().filter(|(series, _)| series.contains("last_event_timestamp_seconds"));
    heard.for_each(|(_, at)| *at = is(*at >= began));
    (status, ready, gauges)
}

/// A lab, and what its worker last reported.
struct Watched {
    lab: Lab,
    began: f64,
    gauges: Gauges,
}

impl Watched {
    /// Waits until everything that the worker reports is true, word by word and gauge by gauge.
    fn says(&mut self, when: &str, words: Words, truths: &[(usize, Truth)]) {
        let names: Vec<(String, Truth)> =
            truths.iter().map(|(index, truth)| (self.lab.simulated[*index].integration.clone(), *truth)).collect();
        let truths: Vec<(&str, Truth)> = names.iter().map(|(name, truth)| (name.as_str(), *truth)).collect();
        let gates: BTreeMap<&str, &str> = truths.iter().map(|(name, truth)| (*name, truth.gate)).collect();
        let ready = json!({
            "ready": words.state == "ready",
            "state": words.state,
            "broker": words.broker,
            "records": words.records,
            "configuration": words.configuration,
            "refused": [],
            "faulted": [],
            "unsettled": [],
            "vanished": {},
            "gates": gates,
        });
        let right = (if words.state == "ready" { 200 } else { 503 }, ready);
        let deadline = Instant::now() + LONGEST;
        poll_until(when, || {
            let expected = expected(&self.lab, words, &truths, &self.gauges);
            let (status, ready, gauges) = said_now(&mut self.lab, self.began);
            let differ = difference(&expected, &gauges);
            let is_right = (status, &ready) == (right.0, &right.1) && differ.is_empty();
            assert!(is_right || Instant::now() < deadline, "{when}: {status} {ready}, not {right:?}; {differ}");
            is_right.then(|| self.gauges = gauges)
        });
    }

    /// The gate of the first integration fails, and events are published until its breaker opens.
    fn open(&mut self, kind: &str, status: u16) {
        let before = said(&mut self.lab, "the gate is down");
        self.lab.gate(0).faults(json!([{ "status": status }]));
        self.lab.publish(events(kind, 20));
        poll_until("the breaker to open", || (said(&mut self.lab, "the gate is down") > before).then_some(()));
    }

    /// The gate works again, and its document gets this limit.
    fn mend(&mut self, limit: u32) {
        self.lab.gate(0).faults(json!([]));
        change(&mut self.lab, 0, |document| document["overrides"]["gate"]["max_in_flight"] = json!(limit));
    }
}

fn difference(expected: &Gauges, gauges: &Gauges) -> String {
    let names: BTreeSet<&String> = expected.keys().chain(gauges.keys()).collect();
    let differ = names.into_iter().filter(|name| expected.get(*name) != gauges.get(*name));
    differ.map(|name| format!("{name}: {:?}, not {:?}; ", gauges.get(name), expected.get(name))).collect()
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn every_gauge_and_every_word_is_the_truth_after_every_kind_of_change() {
    let node = Node::start();
    let mut lab = lab_at(&node.url, 2);
    lab.set_delays(&DELAYS);
    lab.declare();
    lab.start();
    #[expect(clippy::cast_precision_loss, reason = "some thousand million seconds")]
    let began = jiff::Timestamp::now().as_second() as f64;
    lab.publish(events("first", 1));
    let mut watched = Watched { lab, began, gauges: BTreeMap::new() };
    watched.says("at the start", READY, &[(0, AT_REST), (1, AT_REST)]);

    watched.open("a", 503);
    watched.says("while the breaker is open", READY, &[(0, DOWN), (1, AT_REST)]);
    a_reload_that_fails(&mut watched);
    watched.says("after it was mended", READY, &[(0, DOWN), (1, AT_REST)]);
    watched.mend(2);
    watched.says("after a changed document", READY, &[(0, Truth { limit: 2, ..AT_REST }), (1, AT_REST)]);

    watched.open("b", 503);
    watched.lab.gate(0).faults(json!([{ "status": 503, "latency_ms": 8_000 }]));
    let probed = Truth { in_flight: 1, limit: 2, ..DOWN };
    watched.says("while a probe is under way", READY, &[(0, probed), (1, AT_REST)]);
    watched.mend(3);
    watched.says("after a change while a probe was under way", READY, &[(0, AT_REST), (1, AT_REST)]);

    watched.open("c", 401);
    let refused = Truth { gate: "misconfigured", ..DOWN };
    watched.says("while the key is refused", READY, &[(0, refused), (1, AT_REST)]);
    watched.mend(2);
    watched.says("after the key was mended", READY, &[(0, Truth { limit: 2, ..AT_REST }), (1, AT_REST)]);

    watched.open("d", 503);
    removed_and_back(&mut watched);
    watched.says("after its return", READY, &[(0, Truth { limit: 2, ..AT_REST }), (1, AT_REST)]);
    a_lost_connection(&mut watched, &node);
    watched.says("after the broker's return", READY, &[(0, Truth { limit: 2, ..AT_REST }), (1, AT_REST)]);
    stopping(&mut watched);
}

fn a_reload_that_fails(watched: &mut Watched) {
    let path = watched.lab.file(0);
    let right = fs::read_to_string(&path).unwrap();
    fs::write(&path, "{}").unwrap();
    watched.lab.worker().signal("HUP");
    watched.lab.worker().line_with("reload refused");
    let refused = Words { configuration: "refused", ..READY };
    watched.says("after a reload that failed", refused, &[(0, DOWN), (1, AT_REST)]);
    fs::write(&path, right).unwrap();
    watched.lab.worker().signal("HUP");
    watched.lab.worker().line_with("can be used again");
}

fn removed_and_back(watched: &mut Watched) {
    let (here, aside) = (watched.lab.file(0), watched.lab.folder.0.join("aside.json"));
    fs::rename(&here, &aside).unwrap();
    watched.lab.worker().signal("HUP");
    watched.says("after its removal", READY, &[(1, AT_REST)]);
    watched.lab.gate(0).faults(json!([]));
    fs::rename(&aside, &here).unwrap();
    watched.lab.worker().signal("HUP");
}

fn a_lost_connection(watched: &mut Watched, node: &Node) {
    watched.open("e", 503);
    let open = Truth { limit: 2, ..DOWN };
    watched.says("before the broker goes", READY, &[(0, open), (1, AT_REST)]);
    node.stop();
    let away = Words { state: "not ready", broker: "not connected", ..READY };
    let [first, second] = [open, AT_REST].map(|truth| Truth { is_consuming: false, ..truth });
    watched.says("while the broker is away", away, &[(0, first), (1, second)]);
    node.restart();
    poll_until("the broker", || {
        watched.lab.look_for_the_broker();
        (watched.lab.admin("/readyz").0 == 200).then_some(())
    });
    watched.says("with the gate still down", READY, &[(0, open), (1, AT_REST)]);
    watched.lab.gate(0).faults(json!([]));
}

/// While it drains, it takes nothing more, and reports this.
fn stopping(watched: &mut Watched) {
    // An event that waits for its next attempt would be under way, too.
    let delivered = 1 + 5 * 20;
    poll_until("the rest", || (watched.lab.gate(0).outcome("accepted") == delivered).then_some(()));
    watched.lab.gate(0).faults(json!([{ "latency_ms": 9_000 }]));
    watched.lab.publish(events("last", 1));
    let busy = Truth { in_flight: 1, limit: 2, ..AT_REST };
    watched.says("while a request is under way", READY, &[(0, busy), (1, AT_REST)]);
    watched.lab.worker().signal("TERM");
    let words = Words { state: "stopping", ..READY };
    // The other integration had nothing in hand, so no worker serves it any more.
    let over = Truth { is_consuming: false, gate: "unknown", limit: 0, ..AT_REST };
    watched.says("while it drains", words, &[(0, Truth { is_consuming: false, ..busy }), (1, over)]);
    assert_eq!(watched.lab.worker().ended(), Some(0));
    assert_eq!(watched.lab.gate(0).outcome("accepted"), delivered + 1, "all of them, each once");
}

/// The state of the first integration's gate, by its gauges and by `/readyz`.
fn gate(lab: &mut Lab) -> (f64, f64, String) {
    let name = lab.integration().to_owned();
    let gauge = |metric: &str| format!("consent_gate_{metric}{{integration=\"{name}\"}}");
    let (open, misconfigured) = (lab.metric(&gauge("breaker_open")), lab.metric(&gauge("misconfigured")));
    let ready: Value = serde_json::from_str(&lab.admin("/readyz").1).unwrap();
    (open, misconfigured, ready["gates"][&name].as_str().unwrap().to_owned())
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_key_that_is_mended_while_the_breaker_is_open_ends_what_is_said_of_the_old_one() {
    let mut lab = lab_at(&super::harness::url(), 1);
    let path = lab.file(0);
    let right = fs::read_to_string(&path).unwrap();
    let mut wrong: Value = serde_json::from_str(&right).unwrap();
    wrong["authentication"]["password"] = json!("wrong");
    fs::write(&path, wrong.to_string()).unwrap();
    lab.start();
    lab.publish(events("p", 20));
    lab.worker().line_with("the gate is down");
    assert_eq!(gate(&mut lab), (1.0, 1.0, "misconfigured".to_owned()));
    let told = lab.worker().line_with("the gate is down");
    assert!(told.contains("misconfigured") && told.contains("401"), "{told}");
    fs::write(&path, right).unwrap();
    lab.worker().signal("HUP");
    lab.settled(20);
    assert_eq!(gate(&mut lab), (0.0, 0.0, "ok".to_owned()));
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn reloads_during_an_outage_cost_no_event_an_attempt() {
    let mut lab = lab_at(&super::harness::url(), 1);
    lab.set_delays(&DELAYS);
    lab.gate(0).faults(json!([{ "status": 503 }]));
    lab.start();
    lab.publish(events("p", 12));
    lab.worker().line_with("the gate is down");
    for limit in 2..12 {
        change(&mut lab, 0, |document| document["overrides"]["gate"]["max_in_flight"] = json!(limit));
        poll_until("its probe", || (lab.worker().text().matches("still down").count() > limit - 2).then_some(()));
        assert_eq!(gate(&mut lab), (1.0, 0.0, "down".to_owned()), "it was not asked by anybody else");
    }
    lab.gate(0).faults(json!([]));
    change(&mut lab, 0, |document| document["overrides"]["gate"]["max_in_flight"] = json!(20));
    lab.settled(12);
    assert!(lab.dead().is_empty());
    assert_eq!(lab.gate(0).outcome("accepted"), 12);
    assert_eq!(gate(&mut lab), (0.0, 0.0, "ok".to_owned()));
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_mapping_that_is_changed_while_the_breaker_is_open_ends_what_is_said_of_the_old_one() {
    let mut lab = lab_at(&super::harness::url(), 1);
    lab.gate(0).faults(json!([{ "status": 503 }]));
    lab.start();
    assert_eq!(gate(&mut lab), (0.0, 0.0, "unknown".to_owned()), "it was not asked yet");
    lab.publish(events("p", 20));
    lab.worker().line_with("the gate is down");
    assert_eq!(gate(&mut lab), (1.0, 0.0, "down".to_owned()));
    lab.gate(0).faults(json!([]));
    change(&mut lab, 0, |document| document["mappings"][1]["true"] = json!("YES"));
    lab.settled(20);
    assert_eq!(gate(&mut lab), (0.0, 0.0, "ok".to_owned()));
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_gate_that_is_down_is_said_to_be_down_also_where_events_are_not_held() {
    let mut lab = Lab::new();
    lab.set_delays(&DELAYS);
    lab.start();
    lab.publish(events("before", 1));
    lab.settled(1);
    assert_eq!(gate(&mut lab), (0.0, 0.0, "ok".to_owned()));
    lab.gate(0).faults(json!([{ "status": 503 }]));
    lab.publish(events("during", 1));
    lab.settled(2);
    assert_eq!(lab.dead().len(), 1, "after ten attempts");
    assert_eq!(gate(&mut lab), (0.0, 0.0, "down".to_owned()), "nothing is held, so no breaker is open");
    lab.gate(0).faults(json!([]));
    lab.publish(events("after", 1));
    lab.settled(3);
    assert_eq!(gate(&mut lab), (0.0, 0.0, "ok".to_owned()));
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn who_skips_everything_says_so_once_until_the_document_is_mended() {
    let mut lab = Lab::with(&[&|document| document["events"] = json!({ "regulations": ["cpra"] })]);
    lab.start();
    let skips = format!("consent_gate_skips_everything{{integration=\"{}\"}}", lab.integration());
    lab.publish(events("a", 999));
    lab.settled(999);
    assert_eq!(lab.metric(&skips), 0.0);
    lab.publish(events("b", 50));
    lab.settled(1049);
    let line: Value =
        serde_json::from_str(&lab.worker().line_with("every event in a long series was skipped")).unwrap();
    assert_eq!(
        (&line["level"], &line["events"], &line["reason"]),
        (&json!("WARN"), &json!(1000), &json!("other_regulation"))
    );
    assert_eq!((said(&mut lab, "every event in a long series was skipped"), lab.metric(&skips)), (1, 1.0));
    change(&mut lab, 0, |document| document["events"]["regulations"] = json!(["gdpr"]));
    poll_until("the mended document", || (said(&mut lab, "ready: consuming") == 2).then_some(()));
    assert_eq!(lab.metric(&skips), 0.0);
    lab.publish(events("c", 1));
    lab.settled(1050);
    assert_eq!(lab.gate(0).profiles().as_object().unwrap().len(), 1);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_property_that_never_has_a_value_is_told_once_until_its_path_is_mended() {
    let typo = json!({ "id": "TYPO", "value": "consents_purposes_newslettr_enabled" });
    let mut lab = Lab::with(&[&|document| document["mappings"].as_array_mut().unwrap().push(typo.clone())]);
    lab.start();
    let without = format!("consent_gate_properties_without_value{{integration=\"{}\"}}", lab.integration());
    lab.publish(events("a", 950));
    lab.settled(950);
    assert_eq!(lab.metric(&without), 0.0);
    lab.publish(events("b", 100));
    lab.settled(1050);
    let told = "no event so far had a value for these properties";
    let line: Value = serde_json::from_str(&lab.worker().line_with(told)).unwrap();
    assert_eq!((&line["level"], &line["properties"]), (&json!("WARN"), &json!("TYPO")));
    assert_eq!((said(&mut lab, told), lab.metric(&without)), (1, 1.0));
    let last = |document: &mut Value| document["mappings"].as_array().unwrap().len() - 1;
    change(&mut lab, 0, |document| {
        let index = last(document);
        document["mappings"][index]["value"] = json!("consents_purposes_newsletter_enabled");
    });
    poll_until("the mended document", || (said(&mut lab, "ready: consuming") == 2).then_some(()));
    assert_eq!(lab.metric(&without), 0.0);
}
