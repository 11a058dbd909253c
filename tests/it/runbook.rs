//! Every command of the runbook and of `docs/operating.md`, really executed next to a running worker.

use super::harness::{Folder, Lab, Message, Node, choice, events, fixture, person, poll_until, project};
use super::newest::deliver;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, ExchangeKind};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::{Command, Stdio};

fn page(name: &str) -> String {
    fs::read_to_string(project().join(name)).unwrap()
}

/// The commands on the pages: lines of their blocks, and those quoted with all arguments.
fn commands() -> BTreeSet<String> {
    let page = page("docs/runbook.md") + &page("docs/operating.md");
    let lines = page.lines().map(|line| line.split(" #").next().unwrap().trim());
    let quoted = page.split('`').skip(1).step_by(2).filter(|quoted| quoted.contains("--"));
    let typed = lines.chain(quoted).filter(|line| line.starts_with("consent-gate ") && !line.contains('`'));
    typed.filter(|line| !line.contains('…')).map(str::to_owned).collect()
}

/// A dead letter as the worker writes it.
fn letter(reason: &str) -> (String, Message) {
    let event = choice(&person("runbook", 0), true);
    let id = event["parameters"]["entity"]["id"].as_str().unwrap().to_owned();
    let mut headers = FieldTable::default();
    headers.insert("consent-gate-reason".into(), AMQPValue::LongString(reason.into()));
    let properties = BasicProperties::default().with_headers(headers).with_delivery_mode(2);
    (id, Message { body: event.to_string().into_bytes(), properties })
}

/// A lab whose commands are typed as the runbook says, in the operator's own shell.
struct Desk {
    lab: Lab,
    /// The operator's folder.
    folder: Folder,
    _state: Option<Folder>,
    /// What the function that the operator pastes from the runbook runs.
    function: String,
}

impl Desk {
    /// Commands next to the worker, in its folder, with its variables.
    fn beside(mut lab: Lab) -> Desk {
        lab.start();
        let prefix = format!("env -C '{}' {}", lab.folder.0.display(), env!("CARGO_BIN_EXE_consent-gate"));
        Desk { lab, folder: Folder::new(), _state: None, function: prefix }
    }

    /// Commands as in an image or in systemd's unit: another user, a read-only folder, only the variables
    /// that are set there, and a state directory.
    fn within(mut lab: Lab) -> Desk {
        const NOBODY: &str = "65534";
        let state = Folder::new();
        let is_root = nix::unistd::geteuid().is_root();
        let enter: &[&str] = if is_root {
            chown(&state.0, Some(NOBODY.parse().unwrap()), None).unwrap();
            &["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]
        } else {
            &["env"]
        };
        lab.set("STATE_DIRECTORY", state.0.to_str().unwrap());
        lab.start_by(&[&["env", "-u", "HOME"], enter].concat());
        fs::set_permissions(&lab.folder.0, Permissions::from_mode(0o555)).unwrap();
        let variables = lab.environment.iter().map(|(name, value)| format!("{name}='{value}'"));
        let (place, variables) = (lab.folder.0.display(), variables.collect::<Vec<_>>().join(" "));
        let (enter, program) = (enter.join(" "), env!("CARGO_BIN_EXE_consent-gate"));
        let function = format!("env -i -C '{place}' PATH=\"$PATH\" {variables} {enter} {program}");
        Desk { lab, folder: Folder::new(), _state: Some(state), function }
    }

    /// Types a line, and asserts that it succeeded.
    fn types(&self, line: &str) {
        let script = format!("consent-gate() {{ {} \"$@\"; }}\n{line}\n", self.function);
        let mut bash = Command::new("bash");
        bash.args(["-ec", &script]).current_dir(&self.folder.0).stdin(Stdio::null());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CONSENT_GATE_")) {
            bash.env_remove(name);
        }
        did(bash.envs(&self.lab.environment), line);
    }

    /// Types every command of the pages, each with a letter to work on.
    fn types_everything(mut self) {
        self.lab.publish(vec![choice(&person("known", 0), true).into()]);
        self.lab.settled(1);
        self.folder.write("event.json", choice(&person("sent", 0), true).to_string());
        let commands = commands();
        assert!(commands.len() > 15, "{commands:?}");
        for command in commands {
            let words: Vec<&str> = command.split(' ').collect();
            let reason = words.iter().skip_while(|word| **word != "--reason").nth(1).copied();
            let (id, letter) = letter(reason.unwrap_or("attempts_exhausted"));
            self.lab.bench.publish("", &self.lab.queue(".dead"), vec![letter]);
            poll_until("the letter", || (self.lab.bench.depth(&self.lab.queue(".dead")) > 0).then_some(()));
            let known = person("known", 0);
            let typed = words.iter().map(|word| match *word {
                "acme" => self.lab.integration(),
                "ID" => &id,
                "IDENTIFIER" => &known,
                word => word,
            });
            let mut typed = typed.collect::<Vec<_>>().join(" ");
            let asking = ["dead replay", "dead discard", "send", "store adopt"];
            let asks_nothing = ["--dry-run", "--yes"].iter().any(|flag| typed.contains(flag));
            if let Some(asks) = asking.iter().find(|asks| typed.contains(**asks) && !asks_nothing) {
                typed = typed.replacen(asks, &format!("{asks} --yes"), 1);
            }
            self.types(&typed);
        }
    }
}

/// Asserts that a typed line succeeded.
fn did(bash: &mut Command, line: &str) {
    let done = bash.output().unwrap();
    let told = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(done.status.success(), "{line}\n{}{}", told(&done.stdout), told(&done.stderr));
}

/// A lab whose commands know the admin port of its worker: a port that was free a moment ago.
fn lab() -> Lab {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut lab = Lab::new();
    lab.set("CONSENT_GATE_ADMIN__LISTEN", &free.to_string());
    lab
}

/// The functions that an operator pastes, from the runbook's table.
fn functions() -> Vec<String> {
    let page = page("docs/runbook.md");
    let quoted = page.split('`').skip(1).step_by(2).filter(|quoted| quoted.starts_with("consent-gate() {"));
    quoted.map(|quoted| quoted.replace("\\|", "|")).collect()
}

#[test]
fn every_function_to_paste_passes_on_what_is_typed() {
    let folder = Folder::new();
    let program = env!("CARGO_BIN_EXE_consent-gate");
    // Replaces the command that enters the worker's environment, which takes systemd, an engine or a cluster.
    let enter = format!(
        "#!/bin/sh\nwhile [ \"$1\" != consent-gate ] && [ \"$1\" != /usr/local/bin/consent-gate ]; do shift; done\nshift\nexec {program} \"$@\"\n"
    );
    for name in ["systemd-run", "docker", "kubectl"] {
        let path = folder.write(&format!("bin/{name}"), &enter);
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    let functions = functions();
    assert_eq!(functions.len(), 4, "{functions:?}");
    folder.write("event.json", fixture("event-created-v2.json"));
    folder.write("acme.json", fs::read_to_string(project().join("tests/fixtures/didomi-selligent.json")).unwrap());
    for function in functions {
        let script = format!(
            "PATH={}/bin:$PATH\n{function}\nconsent-gate map --integration ./acme.json - < event.json > out",
            folder.0.display()
        );
        let typed = Command::new("bash").args(["-ec", &script]).current_dir(&folder.0).output().unwrap();
        assert!(typed.status.success(), "{function}: {}", String::from_utf8_lossy(&typed.stderr));
        let out = fs::read_to_string(folder.0.join("out")).unwrap();
        assert!(out.contains("would be sent"), "{function}: {out}");
    }
}

#[test]
fn a_command_under_systemd_has_what_the_unit_gives_the_worker() {
    let unit = page("deploy/systemd/consent-gate.service");
    let functions = functions();
    let function = functions.iter().find(|function| function.contains("systemd-run")).unwrap();
    let given: BTreeSet<&str> = function.split(" -p ").skip(1).map(|given| given.split(' ').next().unwrap()).collect();
    // A dynamic user without a name of its own has the name of its unit.
    assert!(given.contains("User=consent-gate"), "{given:?}");
    for line in given.iter().filter(|line| !line.starts_with("User=")) {
        assert!(unit.lines().any(|of_unit| of_unit == *line), "{line} is not the unit's");
    }
    for key in ["DynamicUser", "StateDirectory", "WorkingDirectory", "EnvironmentFile"] {
        assert!(given.iter().any(|line| line.starts_with(&format!("{key}="))), "{key}");
    }
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn every_command_of_the_runbook_does_what_it_says() {
    Desk::beside(lab()).types_everything();
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn and_does_so_as_another_user_in_a_folder_that_is_read_only() {
    Desk::within(lab()).types_everything();
}

/// The blocks of a section of a page, each as its lines.
fn blocks(page: &str, section: &str) -> Vec<Vec<String>> {
    let section = page.split("\n## ").find(|part| part.starts_with(section)).unwrap();
    let blocks = section.split("\n```\n").skip(1).step_by(2);
    blocks.map(|block| block.lines().map(str::to_owned).collect()).collect()
}

/// A line of the page, adapted to the test's integration and to the node's own `rabbitmqctl`.
fn typed(lab: &Lab, node: &Node, line: &str) {
    let own = line.replace("\"consents\"", &format!("\"{}\"", lab.exchange));
    let own = own.replace("consent-gate.acme", &lab.queue("")).replace("acme-", &format!("{}-", lab.integration()));
    let (place, program) = (lab.folder.0.display(), env!("CARGO_BIN_EXE_consent-gate"));
    let functions = format!(
        "consent-gate() {{ env -C '{place}' {program} \"$@\"; }}\nrabbitmqctl() {{ '{}' ctl '{}' \"$@\"; }}\n",
        project().join("scripts/broker").display(),
        node.place().display()
    );
    let mut bash = Command::new("bash");
    bash.args(["-ec", &(functions + &own)]).envs(&lab.environment).stdin(Stdio::null());
    did(&mut bash, &own);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn what_expired_before_it_was_handled_is_moved_back_as_the_page_says_and_is_delivered() {
    let node = Node::with_shovel();
    let mut lab = Lab::at(&node.url, &[&|_| {}]);
    lab.declare();
    let mut expiring = events("late", 5);
    for event in &mut expiring {
        event.properties = event.properties.clone().with_expiration("1".into());
    }
    lab.publish(expiring);
    let unreadable = lab.queue(".unreadable");
    poll_until("them to expire", || (lab.bench.depth(&unreadable) == 5).then_some(()));
    lab.start();
    let page = page("docs/runbook.md");
    let moving = page.lines().find(|line| line.starts_with("rabbitmqctl set_parameter shovel acme-again")).unwrap();
    typed(&lab, &node, moving);
    deliver(&mut lab, choice("new@example.com", true), 6);
    assert_eq!(lab.bench.depth(&unreadable), 0);
    poll_until("the shovel's end", || (!node.ctl(&["list_parameters"]).contains("-again")).then_some(()));
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_queue_with_other_arguments_is_exchanged_as_the_page_says_and_nothing_is_lost() {
    let node = Node::with_shovel();
    let mut lab = Lab::at(&node.url, &[&|_| {}]);
    let meanwhile = format!("{}-meanwhile", lab.integration());
    lab.bench.declare_exchange(&lab.exchange, ExchangeKind::Topic);
    // The queue as another version declared it, with events in it.
    let queue = lab.queue("");
    let quorum = FieldTable::from(BTreeMap::from([("x-queue-type".into(), AMQPValue::LongString("quorum".into()))]));
    lab.bench.declare_queue(&queue, quorum);
    let bound = serde_json::json!({ "bindings": [{
        "source": lab.exchange, "vhost": "/", "destination": queue, "destination_type": "queue",
        "routing_key": "#", "arguments": {},
    }] });
    let definitions = lab.folder.write("bound.json", bound.to_string());
    node.ctl(&["import_definitions", definitions.to_str().unwrap()]);
    lab.publish(events("before", 200));
    lab.spawn();
    lab.worker().line_with("inequivalent arg");
    let declared = lab.run(&["declare"], b"");
    assert!(declared.code == 1 && declared.err.contains(&queue), "{}", declared.err);
    lab.stop();
    let blocks = blocks(&page("docs/operating.md"), "Queues with other arguments");
    assert_eq!(blocks.len(), 4);
    let mut published = 200;
    for (number, block) in blocks.iter().enumerate() {
        for line in block {
            typed(&lab, &node, line);
            // The bus keeps publishing.
            lab.publish(events(&format!("during{published}"), 10));
            published += 10;
        }
        match number {
            0 => poll_until("all of it moved", || (lab.bench.depth(&queue) == 0).then_some(())),
            1 => lab.start(),
            2 => poll_until("all of it back", || (lab.bench.depth(&meanwhile) == 0).then_some(())),
            _ => {}
        }
    }
    poll_until("everybody", || (lab.gate(0).profiles().as_object().unwrap().len() == published).then_some(()));
    let left = node.ctl(&["--silent", "list_queues", "name"]);
    assert!(!left.contains(&meanwhile) && left.contains(&queue), "{left}");
    deliver(&mut lab, choice("late@example.com", true), published + 1);
    assert!(lab.dead().is_empty());
}
