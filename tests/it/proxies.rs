//! Gates behind an HTTP proxy: a real one, with a password, with TLS through it, and down for a while.

use super::harness::{Folder, Lab, choice, events, poll_until, project};
use super::tls::{address, certificates, in_front_of};
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

const PASSWORD: &str = "hunter2-of-the-proxy";

/// A private proxy, ended with the test.
struct Proxy {
    folder: Folder,
    port: u16,
}

impl Proxy {
    fn start(port: u16, credentials: &[&str]) -> Proxy {
        let folder = Folder::new();
        let started = Command::new(project().join("scripts/proxy"))
            .args(["start", folder.0.to_str().unwrap(), &port.to_string()])
            .args(credentials)
            .output()
            .unwrap();
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        Proxy { folder, port }
    }

    fn url(&self, password: &str) -> String {
        format!("http://worker:{password}@127.0.0.1:{}", self.port)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.0.join("log")).unwrap_or_default()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let stopped =
            Command::new(project().join("scripts/proxy")).args(["stop", self.folder.0.to_str().unwrap()]).status();
        assert!(stopped.is_ok_and(|status| status.success()));
    }
}

/// A port on which nobody listens: one that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Makes the integration reach its gate under another URL.
fn reach_by(lab: &Lab, url: &str) {
    lab.edit(0, |document| document["properties"]["url"] = url.into());
}

/// Gives the integration a proxy of its own.
fn override_proxy(lab: &Lab, proxy: &str) {
    lab.edit(0, |document| document["overrides"]["gate"]["proxy"] = proxy.into());
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn requests_pass_a_proxy_that_asks_for_a_password_and_tls_goes_through_it() {
    let mut lab = Lab::new();
    let proxy = Proxy::start(free_port(), &["worker", PASSWORD]);
    let (authority, config) = certificates();
    let authority = lab.folder.write("authority.pem", authority);
    let port = in_front_of(&lab, address(lab.gate(0).base()), config);
    reach_by(&lab, &format!("localhost:{port}"));
    lab.set("CONSENT_GATE_GATE__CA_FILE", authority.to_str().unwrap());
    lab.set("CONSENT_GATE_GATE__PROXY", &proxy.url("wrong"));
    let refused = lab.run(&["check", "--connect"], b"");
    assert!(
        refused.code == 1
            && refused.out.contains("the proxy does not connect to the gate; check its user and password"),
        "{}",
        refused.out
    );
    let event = choice("jane@example.com", true).to_string();
    let send = ["send", "--yes", "--integration", lab.integration(), "-"];
    let refused = lab.run(&send, event.as_bytes());
    assert!(refused.code == 1 && refused.out.contains("misconfigured"), "{}", refused.out);
    assert!(proxy.log().contains("CONNECT"), "it was asked");
    assert_eq!(lab.gate(0).outcome("accepted"), 0);
    lab.set("CONSENT_GATE_GATE__PROXY", &proxy.url(PASSWORD));
    let reached = lab.run(&["check", "--connect"], b"");
    assert!(reached.out.contains(&format!("through the proxy 127.0.0.1:{}: reached", proxy.port)), "{}", reached.out);
    lab.start();
    lab.publish(vec![event.into_bytes().into()]);
    lab.settled(1);
    assert_eq!(lab.gate(0).outcome("accepted"), 1);
    let text = lab.worker().text();
    for shown in [&text, &reached.out, &reached.err, &refused.out, &refused.err] {
        assert!(!shown.contains(PASSWORD) && !shown.contains("worker:"), "{shown}");
    }
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_proxy_that_is_itself_behind_tls_is_verified_and_leads_to_any_gate() {
    let lab = Lab::new();
    let proxy = Proxy::start(free_port(), &["worker", PASSWORD]);
    let [(of_gate, gate), (of_proxy, front)] = [certificates(), certificates()];
    let port = in_front_of(&lab, address(&format!("http://127.0.0.1:{}", proxy.port)), front);
    let gate = in_front_of(&lab, address(lab.gate(0).base()), gate);
    let url = format!("https://worker:{PASSWORD}@localhost:{port}");
    let authorities = lab.folder.write("authorities.pem", format!("{of_gate}{of_proxy}"));
    let trusting = [("CONSENT_GATE_GATE__PROXY", &*url), ("CONSENT_GATE_GATE__CA_FILE", authorities.to_str().unwrap())];
    let told = lab.run_with(&trusting[..1], &["check", "--connect"], b"");
    assert!(told.code == 1 && told.out.contains("signed its certificate in gate.ca_file"), "{}", told.out);
    let plain = format!("http://worker:{PASSWORD}@localhost:{port}");
    let wrong = lab.run_with(&[("CONSENT_GATE_GATE__PROXY", &plain)], &["check", "--connect"], b"");
    assert!(wrong.code == 1 && wrong.out.contains("gate's host"), "{}", wrong.out);
    let event = choice("jane@example.com", true).to_string();
    let send = ["send", "--yes", "--integration", lab.integration(), "-"];
    for (count, word) in [(1, "POST"), (2, "CONNECT")] {
        let done = lab.run_with(&trusting, &send, event.as_bytes());
        assert_eq!(done.code, 0, "{}{}", done.out, done.err);
        assert_eq!(lab.gate(0).outcome("accepted"), count);
        assert!(proxy.log().contains(word), "{word}: it went through the proxy");
        reach_by(&lab, &format!("localhost:{gate}"));
    }
    let refused = url.replace(PASSWORD, "wrong");
    let refused = lab.run_with(&[("CONSENT_GATE_GATE__PROXY", &refused), trusting[1]], &send, event.as_bytes());
    assert!(refused.code == 1 && refused.err.contains("user and password in gate.proxy"), "{}", refused.err);
    for shown in [&told, &wrong] {
        assert!(!format!("{}{}", shown.out, shown.err).contains(PASSWORD), "{shown:?}");
    }
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_proxy_that_is_away_for_a_while_loses_nothing() {
    let mut lab = Lab::new();
    let port = free_port();
    lab.set("CONSENT_GATE_GATE__PROXY", &format!("http://127.0.0.1:{port}"));
    lab.set_delays(&[500; 9]);
    lab.start();
    lab.publish(vec![choice("jane@example.com", true).into()]);
    let unavailable =
        format!("consent_gate_attempts_total{{integration=\"{}\",result=\"unavailable\"}}", lab.integration());
    poll_until("an attempt to fail", || (lab.metric(&unavailable) >= 1.0).then_some(()));
    let proxy = Proxy::start(port, &[]);
    lab.settled(1);
    assert_eq!(lab.gate(0).outcome("accepted"), 1);
    assert!(proxy.log().contains("POST"), "it went through the proxy");
}

#[test]
#[ignore = "a minute and a half: scripts/chaos"]
fn a_proxy_that_is_away_for_a_minute_loses_nothing_by_the_real_schedule() {
    let mut lab = Lab::new();
    let (authority, config) = certificates();
    let authority = lab.folder.write("authority.pem", authority);
    let port = in_front_of(&lab, address(lab.gate(0).base()), config);
    reach_by(&lab, &format!("localhost:{port}"));
    let at = free_port();
    lab.set("CONSENT_GATE_GATE__CA_FILE", authority.to_str().unwrap());
    lab.set("CONSENT_GATE_GATE__PROXY", &format!("http://worker:{PASSWORD}@127.0.0.1:{at}"));
    lab.set_delays(&[10_000, 30_000, 60_000, 120_000]);
    lab.start();
    let since = Instant::now();
    lab.publish(events("p", 20));
    poll_until("a minute to be over", || (since.elapsed() > Duration::from_secs(60)).then_some(()));
    let proxy = Proxy::start(at, &["worker", PASSWORD]);
    poll_until("the fourth attempts", || (lab.gate(0).outcome("accepted") == 20).then_some(()));
    assert!(lab.dead().is_empty());
    assert!(proxy.log().contains("CONNECT"), "TLS went through it");
    assert!(!lab.worker().text().contains(PASSWORD));
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_connect_that_the_proxy_refuses_is_the_integrations_fault() {
    let mut lab = Lab::new();
    let proxy = Proxy::start(free_port(), &[]);
    reach_by(&lab, &format!("https://localhost:{}", free_port()));
    lab.set("CONSENT_GATE_GATE__PROXY", &format!("http://127.0.0.1:{}", proxy.port));
    lab.start();
    lab.publish(vec![choice("jane@example.com", true).into()]);
    lab.settled(1);
    assert_eq!(lab.dead()[0].header("consent-gate-reason").as_deref(), Some("misconfigured"));
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn only_what_is_written_decides_whether_a_proxy_is_asked() {
    let mut lab = Lab::new();
    let nobody = format!("http://127.0.0.1:{}", free_port());
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        lab.set(name, &nobody);
    }
    let event = choice("jane@example.com", true).to_string();
    let send = ["send", "--yes", "--integration", lab.integration(), "-"].map(str::to_owned);
    let send: Vec<&str> = send.iter().map(String::as_str).collect();
    assert_eq!(lab.run(&send, event.as_bytes()).code, 0, "the environment's are nobody's wish");
    lab.set("NO_PROXY", "*");
    lab.set("CONSENT_GATE_GATE__PROXY", &nobody);
    assert_eq!(lab.run(&send, event.as_bytes()).code, 1, "ours is");
    lab.set("CONSENT_GATE_GATE__NO_PROXY", "[\"127.0.0.0/8\"]");
    assert_eq!(lab.run(&send, event.as_bytes()).code, 0, "but not for these hosts");
    lab.environment.remove("CONSENT_GATE_GATE__NO_PROXY");
    override_proxy(&lab, "none");
    assert_eq!(lab.run(&send, event.as_bytes()).code, 0, "nor for this customer");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_proxy_is_read_from_a_file_and_a_customer_may_have_another() {
    let mut lab = Lab::new();
    let nobody = format!("http://worker:{PASSWORD}@127.0.0.1:{}", free_port());
    // As an editor on Windows saves it.
    let file = lab.folder.write("proxy", format!("\u{feff}{nobody}\r\n"));
    lab.set("CONSENT_GATE_GATE__PROXY_FILE", file.to_str().unwrap());
    let event = choice("jane@example.com", true).to_string();
    let send = ["send", "--yes", "--integration", lab.integration(), "-"].map(str::to_owned);
    let send: Vec<&str> = send.iter().map(String::as_str).collect();
    let refused = lab.run(&send, event.as_bytes());
    assert_eq!(refused.code, 1, "nobody listens where the file leads");
    assert!(!format!("{}{}", refused.out, refused.err).contains(PASSWORD), "{}{}", refused.out, refused.err);
    let proxy = Proxy::start(free_port(), &["worker", PASSWORD]);
    override_proxy(&lab, &proxy.url(PASSWORD));
    let passed = lab.run(&send, event.as_bytes());
    assert_eq!(passed.code, 0, "{}{}", passed.out, passed.err);
    assert!(proxy.log().contains("POST"), "the customer's own was asked");
}
