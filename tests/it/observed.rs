//! Metrics, rules, dashboard and runbook are consistent: none refers to anything that another lacks.

use super::harness::project;
use consent_gate::verdict::DeadReason;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

const RULES: &str = "deploy/prometheus/rules/consent-gate.yml";
const DASHBOARD: &str = "deploy/grafana/consent-gate.json";
const RUNBOOK: &str = "docs/runbook.md";

fn read(name: &str) -> String {
    fs::read_to_string(project().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Every exposed metric with the names of its labels.
fn exposed() -> BTreeMap<String, BTreeSet<String>> {
    let mut metrics: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in read("tests/golden/metrics-series.txt").lines() {
        let (name, labels) = line.split_once('{').unwrap_or((line, ""));
        let name = name.trim_end_matches("_sum").trim_end_matches("_count");
        let labels = labels.split('"').step_by(2).filter_map(|text| text.strip_suffix('='));
        let labels = labels.map(|label| label.trim_start_matches(',').to_owned());
        metrics.entry(name.to_owned()).or_default().extend(labels);
    }
    metrics
}

/// The names that a query may use: every metric, and the series of a histogram.
fn known() -> BTreeSet<String> {
    let with_parts = |name: &String| ["", "_bucket", "_sum", "_count"].map(|part| format!("{name}{part}"));
    exposed().keys().flat_map(with_parts).chain(recorded()).collect()
}

/// The names that the recording rules define.
fn recorded() -> BTreeSet<String> {
    read(RULES).lines().filter_map(|line| Some(line.split_once("- record: ")?.1.to_owned())).collect()
}

/// The names of metrics in a text.
fn named(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = text.split(|c| !is_part(c)).map(|word| word.trim_end_matches(':'));
    words.filter(|word| word.contains("consent_gate")).map(str::to_owned).collect()
}

/// Every query of the dashboard, with its panel's title.
fn queries() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let (title, query) = (panel["title"].as_str().unwrap(), target["expr"].as_str().unwrap());
            found.push((title.to_owned(), query.to_owned()));
        }
    }
    assert!(found.len() > 20, "{found:?}");
    found
}

fn alerts() -> BTreeSet<String> {
    let alerts: BTreeSet<String> =
        read(RULES).lines().filter_map(|line| Some(line.split_once("- alert: ")?.1.to_owned())).collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    alerts
}

/// A heading's anchor, as GitHub generates it.
pub fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-' || *c == '_');
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

fn anchors() -> BTreeSet<String> {
    read(RUNBOOK)
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| anchor(line.trim_start_matches('#').trim()))
        .collect()
}

/// The texts after each `mark`, up to one of the ends.
fn behind<'a>(text: &'a str, mark: &str, ends: &[char]) -> Vec<&'a str> {
    text.split(mark).skip(1).map(|rest| rest.split(ends).next().unwrap_or_default()).collect()
}

#[test]
fn the_table_on_the_page_on_monitoring_has_every_metric_with_its_labels_and_no_other() {
    let page = read("docs/monitoring.md");
    let mut table: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in page.lines().filter(|line| line.starts_with("| `consent_gate_")) {
        let first = row.split('|').nth(1).unwrap();
        for metric in first.split('`').skip(1).step_by(2) {
            let (name, labels) = metric.split_once('{').unwrap_or((metric, "}"));
            let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
            table.insert(name.to_owned(), labels.map(str::to_owned).collect());
        }
    }
    assert_eq!(table, exposed());
}

#[test]
fn rules_and_their_tests_use_only_metrics_that_exist() {
    let known = known();
    let folder = project().join("deploy/prometheus/tests");
    let tests = fs::read_dir(folder).unwrap().map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap());
    for text in tests.chain([read(RULES)]) {
        let unknown: Vec<String> = named(&text).difference(&known).cloned().collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
}

#[test]
fn the_dashboard_uses_only_metrics_that_exist() {
    let known = known();
    for (title, query) in queries() {
        let unknown: Vec<String> = named(&query).difference(&known).cloned().collect();
        assert!(unknown.is_empty(), "{title}: {unknown:?}");
    }
    // Everything else in the file, such as the variable's query.
    let unknown: Vec<String> = named(&read(DASHBOARD)).difference(&known).cloned().collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

/// Grafana keeps only one result for each name.
#[test]
fn no_panel_asks_two_queries_by_one_name() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        let targets = panel["targets"].as_array().into_iter().flatten();
        let names: Vec<&str> = targets.map(|target| target["refId"].as_str().unwrap()).collect();
        let apart: BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(apart.len(), names.len(), "{}: {names:?}", panel["title"]);
    }
}

/// Stacked ages and latencies would show a sum that nobody has waited.
#[test]
fn no_panel_adds_up_seconds() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        let defaults = &panel["fieldConfig"]["defaults"];
        let is_stacked = defaults["custom"]["stacking"]["mode"] == "normal";
        assert!(!is_stacked || defaults["unit"] != "s", "{}", panel["title"]);
    }
}

#[test]
fn the_dashboard_shows_every_metric() {
    let shown: BTreeSet<String> = queries().iter().flat_map(|(_, query)| named(query)).collect();
    for metric in exposed().keys() {
        let is_shown = shown.iter().any(|name| name.trim_end_matches("_bucket") == metric);
        assert!(is_shown, "{metric} is in no panel");
    }
}

#[test]
fn the_runbook_uses_only_metrics_that_exist() {
    let unknown: Vec<String> = named(&read(RUNBOOK)).difference(&known()).cloned().collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn every_alert_has_its_section_in_the_runbook_and_every_section_its_alert() {
    let page = read(RUNBOOK);
    let sections: BTreeSet<String> = behind(&page, "\n### Alert ", &['\n']).into_iter().map(str::to_owned).collect();
    assert_eq!(sections, alerts());
}

#[test]
fn every_alert_links_to_its_own_section() {
    let rules = read(RULES);
    for alert in alerts() {
        let rule = behind(&rules, &format!("- alert: {alert}\n"), &[])[0];
        let rule = rule.split("- alert: ").next().unwrap();
        let link = behind(rule, "runbook_url: ", &['\n']);
        let section = anchor(&format!("Alert {alert}"));
        assert_eq!(link, [format!("{RUNBOOK}#{section}")], "{alert}");
        assert!(anchors().contains(&section), "{alert}");
    }
}

#[test]
fn every_alert_says_how_bad_it_is_and_what_it_is() {
    let rules = read(RULES);
    for alert in alerts() {
        let rule = behind(&rules, &format!("- alert: {alert}\n"), &[])[0];
        let rule = rule.split("- alert: ").next().unwrap();
        let severity = behind(rule, "severity: ", &['\n']);
        assert!(severity == ["critical"] || severity == ["warning"], "{alert}: {severity:?}");
        assert!(rule.contains("summary: ") && rule.contains("description: "), "{alert}");
    }
}

#[test]
fn the_operators_rules_are_the_same_as_prometheus() {
    let path = project().join("deploy/kubernetes/monitoring/rules.yaml");
    let indent = |line: &str| if line.trim().is_empty() { line.to_owned() } else { format!("  {line}") };
    let same: String = read(RULES).split_inclusive('\n').map(indent).collect();
    let head = "\
# Made of deploy/prometheus/rules/consent-gate.yml; a test compares the two, and UPDATE_GOLDEN=1 writes it anew.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: consent-gate
  labels:
    app.kubernetes.io/name: consent-gate
spec:
";
    let expected = format!("{head}{same}");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &expected).unwrap();
    }
    assert!(fs::read_to_string(&path).unwrap() == expected, "differs; UPDATE_GOLDEN=1 writes {}", path.display());
}

/// The labels that distinguish environments.
const KEPT: &str = "job, namespace, environment";

#[test]
fn every_rule_keeps_jobs_namespaces_and_environments_apart() {
    let rules = read(RULES);
    let code = rules.lines().map(|line| line.split(" # ").next().unwrap_or_default());
    let code: String = code.filter(|line| !line.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n");
    for word in ["sum", "max", "min", "avg", "count", "group", "on", "by"] {
        for (at, _) in code.match_indices(&format!(" {word} (")) {
            let rest = &code[at + word.len() + 3..];
            assert!(rest.starts_with(KEPT), "{word} ({}", rest.split('\n').next().unwrap_or_default());
        }
        for bare in [format!(" {word}("), format!("({word}(")] {
            assert!(word == "by" || !code.contains(&bare), "{bare} adds up whatever there is");
        }
    }
}

#[test]
fn links_within_the_runbook_lead_somewhere() {
    let (page, anchors) = (read(RUNBOOK), anchors());
    for link in behind(&page, "](#", &[')']) {
        assert!(anchors.contains(link), "#{link}");
    }
}

#[test]
fn the_runbook_has_a_line_for_every_reason_of_a_dead_letter() {
    let page = read(RUNBOOK);
    let section = page.split("## Reason codes").nth(1).unwrap();
    let rows: BTreeSet<&str> = behind(section, "\n| `", &['`']).into_iter().collect();
    assert_eq!(rows, DeadReason::ALL.iter().copied().map(DeadReason::code).collect());
}
