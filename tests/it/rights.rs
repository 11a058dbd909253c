//! The minimal permissions at the broker, as in `deploy/rabbitmq/permissions`: sufficient, and no more.

use super::dead::{letters, put, told};
use super::harness::{Bench, Lab, choice, ctl, person, poll_until, project, unique, url};
use super::newest::{JANE, news};
use lapin::ExchangeKind;
use lapin::options::{
    BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use std::sync::Once;

const USERS: [&str; 3] = ["consent-gate", "consents-publisher", "consent-gate-scaler"];

/// A virtual host with the documented users, removed with the test.
struct Host(String);

impl Host {
    fn new() -> Host {
        static USERS_ARE_THERE: Once = Once::new();
        USERS_ARE_THERE.call_once(|| {
            for user in USERS {
                // Another run at the same node may have left them.
                if !ctl(&["list_users", "--quiet"]).contains(&format!("{user}\t")) {
                    ctl(&["add_user", user, user]);
                }
            }
        });
        let host = Host(unique());
        ctl(&["add_vhost", &host.0]);
        ctl(&["set_permissions", "-p", &host.0, "guest", ".*", ".*", ".*"]);
        host.bench("guest").declare_exchange("consents", ExchangeKind::Topic);
        let node = std::env::var("CONSENT_GATE_TEST_BROKER_NODE").unwrap();
        let script = std::process::Command::new(project().join("deploy/rabbitmq/permissions"))
            .arg(&host.0)
            .env("RABBITMQCTL", format!("{} ctl {node}", project().join("scripts/broker").display()))
            .output()
            .unwrap();
        assert!(script.status.success(), "{}", String::from_utf8_lossy(&script.stderr));
        host
    }

    /// Each user's password is their name.
    fn url(&self, user: &str) -> String {
        let url = url();
        let broker = url.rsplit('@').next().unwrap().split('/').next().unwrap();
        format!("amqp://{user}:{user}@{broker}/{}", self.0)
    }

    fn bench(&self, user: &str) -> Bench {
        Bench::at(&self.url(user))
    }

    /// A lab in it, whose worker and commands have the documented permissions.
    fn lab(&self) -> Lab {
        let mut lab = Lab::at(&self.url("guest"), &[&|_| {}]);
        lab.set("CONSENT_GATE_SOURCE__EXCHANGE", "consents");
        lab.set("CONSENT_GATE_BROKER__URL", &self.url("consent-gate"));
        lab
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        ctl(&["delete_vhost", &self.0]);
    }
}

fn check(lab: &Lab) -> String {
    let checked = lab.run(&["check", "--connect"], b"");
    assert_eq!(checked.code, 0, "{}{}", checked.out, checked.err);
    checked.out
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn the_worker_and_its_commands_need_no_more_than_the_documented_rights() {
    let host = Host::new();
    let mut lab = host.lab();
    lab.declare();
    lab.start();
    assert!(check(&lab).contains("reached and logged in"));
    host.bench("consents-publisher").publish("consents", "didomi.event", vec![news(JANE, -60, true).into()]);
    lab.settled(1);
    // With the same permissions the worker notices missing letters; later it would assume that a command took
    // them.
    put(&lab, letters("r", 4));
    let name = lab.integration().to_owned();
    let dead = format!("consent_gate_queue_messages{{integration=\"{name}\",queue=\"dead\"}}");
    poll_until("the letters to show", || (lab.metric(&dead) == 4.0).then_some(()));
    assert_eq!(lab.dead().len(), 4);
    let vanished = format!("consent_gate_letters_vanished_total{{integration=\"{name}\"}}");
    poll_until("their loss to be told", || (lab.metric(&vanished) == 4.0).then_some(()));
    put(&lab, letters("p", 3));
    lab.bench.publish("", &lab.queue(".aside"), letters("q", 2));
    assert_eq!(told(&lab, "list", &[])[0]["letters"], 3);
    assert_eq!(told(&lab, "discard", &["--yes", "--limit", "1", "--to", "one.jsonl"])[0]["removed"], 1);
    assert_eq!(told(&lab, "import", &["one.jsonl"])[0]["imported"], 1);
    assert_eq!(told(&lab, "replay", &["--yes", "--wait"])[0]["delivered"], 3);
    assert_eq!(told(&lab, "replay", &["--aside", "--yes", "--wait"])[0]["delivered"], 2);
    let shown = lab.run(&["store", "show"], b"");
    assert!(shown.out.contains(": right"), "{}{}", shown.out, shown.err);
    let text = lab.worker().text();
    assert!(!text.contains("ACCESS_REFUSED") && !text.contains("cannot renew"), "{text}");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn the_scaler_sees_how_long_a_queue_is_and_nothing_else() {
    let host = Host::new();
    let lab = host.lab();
    lab.declare();
    let work = lab.queue("");
    lab.bench.publish("", &work, vec![choice(&person("p", 0), true).into()]);
    let scaler = host.bench("consent-gate-scaler");
    assert_eq!(scaler.depth(&work), 1);
    let refused = |what: &str, answer: lapin::Result<()>| {
        let error = answer.expect_err(what);
        let lapin::ErrorKind::ProtocolError(reply) = error.kind() else { panic!("{what}: {error}") };
        assert_eq!(reply.get_id(), 403, "{what}");
    };
    let name = || work.as_str().into();
    scaler.block_on(async {
        // Each refusal closes the channel.
        let channel = scaler.channel().await;
        let consumer = channel.basic_consume(name(), "".into(), BasicConsumeOptions::default(), FieldTable::default());
        refused("read a message", consumer.await.map(|_| ()));
        let channel = scaler.channel().await;
        refused("purge", channel.queue_purge(name(), QueuePurgeOptions::default()).await.map(|_| ()));
        let channel = scaler.channel().await;
        refused("delete", channel.queue_delete(name(), QueueDeleteOptions::default()).await.map(|_| ()));
        let channel = scaler.channel().await;
        let (bind, key) = (QueueBindOptions::default(), "#".into());
        refused("bind", channel.queue_bind(name(), "consents".into(), key, bind, FieldTable::default()).await);
        let channel = scaler.channel().await;
        let declared = channel.queue_declare(unique().into(), QueueDeclareOptions::default(), FieldTable::default());
        refused("declare", declared.await.map(|_| ()));
    });
    let message = vec![b"x".to_vec().into()];
    assert!(scaler.try_publish("", &work, &message).is_err(), "publish");
    assert_eq!(lab.bench.depth(&work), 1);
}

/// Declares somebody else's queue and returns what `check --connect` says about it.
fn checked_source(lab: &mut Lab, arguments: &[(&str, &str)]) -> String {
    let queue = unique();
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert((*name).into(), AMQPValue::LongString((*value).into()));
    }
    lab.bench.declare_queue(&queue, table.clone());
    lab.also_delete(&queue);
    lab.environment.remove("CONSENT_GATE_SOURCE__EXCHANGE");
    lab.set("CONSENT_GATE_SOURCE__QUEUE", &queue);
    let said = check(lab);
    // It has not changed.
    lab.bench.declare_queue(&queue, table);
    said.lines().find(|line| line.contains("source queue")).unwrap_or_default().to_owned()
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_source_queue_that_would_delete_what_nobody_can_read_is_named() {
    let mut lab = Lab::new();
    let mut says = |arguments: &[(&str, &str)], expected: &str| {
        let line = checked_source(&mut lab, arguments);
        assert!(line.contains(expected), "{arguments:?}: {line}");
        line
    };
    let quorum = ("x-queue-type", "quorum");
    let line = says(&[quorum], "silently deletes messages there that no client can read");
    assert!(line.starts_with("warning") && line.contains("rabbitmqctl list_queues"), "{line}");
    says(&[], "it is a classic queue");
    let line = says(&[quorum, ("x-dead-letter-exchange", "amq.fanout")], "go to its dead-letter exchange");
    assert!(line.starts_with("ok"), "{line}");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_source_queue_that_may_only_be_read_is_looked_at_as_far_as_that_goes() {
    let host = Host::new();
    let mut lab = host.lab();
    let line = checked_source(&mut lab, &[("x-queue-type", "quorum")]);
    // On 4.3 even a passive declare needs some permission on the queue; whether it exists shows later.
    assert!(line.starts_with("warning") && line.contains("rabbitmqctl list_queues"), "{line}");
}
