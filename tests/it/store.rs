//! The records as a whole: lost, replaced, shared, queried by commands while a worker holds them.

use super::harness::{Bench, Finished, Lab, Message, PgNode, Running, Schema, choice, note, poll_until, project};
use super::newest::{JANE, at_gate, copy, deliver, news, quiet, shuffled};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a command with the worker's environment.
fn command(lab: &Lab, arguments: &[&str]) -> Finished {
    lab.run(arguments, b"")
}

/// The lines of a command that succeeded.
fn lines(lab: &Lab, arguments: &[&str]) -> Vec<Value> {
    let done = command(lab, arguments);
    assert_eq!(done.code, 0, "{arguments:?}: {}", done.err);
    done.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A lab whose records are in a schema of its own.
fn shared() -> (Lab, Schema) {
    let mut lab = Lab::with(&[&|document| document["overrides"] = json!({ "gate": { "timeout": "300ms" } })]);
    let schema = Schema::new();
    lab.set("CONSENT_GATE_RECORDS__STORE", &schema.url());
    (lab, schema)
}

/// Asserts that the worker refuses its records with this message, and consumes nothing.
fn refused(lab: &mut Lab, words: &str) {
    lab.spawn();
    let line = lab.worker().line_with("cannot use the records");
    assert!(line.contains(words) && line.contains("store adopt"), "{line}");
    let (status, body) = lab.admin("/readyz");
    assert!(status == 503 && body.contains("not available"), "{body}");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_directory_that_is_there_keeps_its_rights_and_one_of_others_is_refused() {
    let rights = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let mut lab = Lab::new();
    let records = lab.folder.0.join("records");
    fs::create_dir(&records).unwrap();
    fs::set_permissions(&records, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(records.join("lost+found")).unwrap();
    lab.start();
    lab.stop();
    assert_eq!(rights(&records), 0o755, "it is somebody's");
    let made = fs::read_dir(&records).unwrap().map(|entry| entry.unwrap().path());
    let made: Vec<PathBuf> = made.filter(|path| !path.ends_with("lost+found")).collect();
    assert!(made.len() > 2, "{made:?}");
    for path in made {
        assert_eq!(rights(&path) & 0o077, 0, "{} is its owner's alone", path.display());
    }
    lab.folder.write("shared/of-somebody", "");
    lab.set("CONSENT_GATE_RECORDS__STORE", "shared");
    let checked = command(&lab, &["check", "--connect"]);
    assert!(checked.code == 1 && checked.out.contains("contains other files and no records"), "{}", checked.out);
    lab.spawn();
    lab.worker().line_with("contains other files and no records");
    let shared = fs::read_dir(lab.folder.0.join("shared")).unwrap();
    assert_eq!(shared.count(), 1, "nothing was made there");
    lab.stop();
    // Below the state directory of systemd or of the image, which settings may override.
    lab.environment.remove("CONSENT_GATE_RECORDS__STORE");
    let state = lab.folder.0.join("state");
    lab.set("STATE_DIRECTORY", state.to_str().unwrap());
    let shown = command(&lab, &["check", "--connect"]);
    assert!(shown.out.contains("state/records"), "{}", shown.out);
    lab.folder.write("store-url", "off");
    lab.set("CONSENT_GATE_RECORDS__STORE_FILE", "store-url");
    let shown = command(&lab, &["check", "--connect"]);
    assert!(shown.out.contains("records off"), "{}", shown.out);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn records_that_are_not_those_of_earlier_events_are_refused_until_they_are_adopted() {
    let mut lab = Lab::new();
    lab.start();
    deliver(&mut lab, news(JANE, -1, false), 1);
    lab.stop();
    fs::rename(lab.folder.0.join("records"), lab.folder.0.join("lost")).unwrap();
    lab.publish(vec![news(JANE, -60, true).into()]);
    refused(&mut lab, "not those of this integration's earlier events");
    assert_eq!(lab.gate(0).outcome("accepted"), 1, "nothing is delivered in the meantime");
    let unasked = command(&lab, &["store", "adopt", "--lose-records"]);
    assert!(unasked.code == 2 && unasked.err.contains("add --yes"), "{}", unasked.err);
    let name = lab.integration().to_owned();
    let shown = command(&lab, &["store", "show", "--json"]);
    let line: Value = serde_json::from_str(shown.out.lines().nth(1).unwrap()).unwrap();
    assert_eq!((shown.code, &line["integration"], &line["ok"]), (1, &json!(name), &json!(false)));
    // The worker holds the records, so the command asks it.
    let unmeant = command(&lab, &["store", "adopt", "--yes"]);
    assert!(unmeant.code == 2 && unmeant.err.contains("add --lose-records"), "{}", unmeant.err);
    assert!(unmeant.err.contains("are empty") && unmeant.err.contains("who was erased"), "{}", unmeant.err);
    assert_eq!(command(&lab, &["store", "show"]).code, 1, "nothing was adopted");
    let adopted = lines(&lab, &["store", "adopt", "--yes", "--lose-records", "--json"]);
    assert_eq!(adopted[0]["adopted"], name);
    lab.worker().line_with("ready: consuming");
    lab.settled(1);
    assert_eq!(lines(&lab, &["store", "show", "--json"])[1]["ok"], true);
    // Another customer's broken document keeps nobody from looking.
    lab.folder.write("integrations/broken.json", "{");
    let beside = command(&lab, &["store", "show"]);
    assert!(beside.code == 2 && beside.err.contains("broken.json"), "{}", beside.err);
    assert!(beside.out.contains(": right\n"), "{}", beside.out);
    fs::remove_file(lab.folder.0.join("integrations/broken.json")).unwrap();
    lab.stop();
    // Now the others are the wrong ones.
    fs::rename(lab.folder.0.join("records"), lab.folder.0.join("second")).unwrap();
    fs::rename(lab.folder.0.join("lost"), lab.folder.0.join("records")).unwrap();
    refused(&mut lab, "not those of this integration's earlier events");
}

/// As in a `StatefulSet` with two replicas, where each pod has a volume of its own.
#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_second_worker_with_a_store_of_its_own_is_refused_and_nothing_is_lost() {
    let mut lab = Lab::new();
    lab.start();
    deliver(&mut lab, news(JANE, -1, false), 1);
    let first = lab.worker.take();
    lab.set("CONSENT_GATE_RECORDS__STORE", "second");
    let checked = command(&lab, &["check", "--connect"]);
    lab.spawn();
    let line = lab.worker().line_with("cannot use the records");
    assert!(line.contains("not those of this integration's earlier events"), "{line}");
    // Nobody is told to adopt them: those of the running worker are the right ones.
    for said in [checked.out, line, lab.admin("/readyz").1, command(&lab, &["store", "show"]).out] {
        assert!(said.contains("its records are the right ones") && !said.contains("store adopt"), "{said}");
    }
    assert!(lab.admin("/readyz").1.contains("\"not ready\""), "it does not even stand by");
    // They cannot be adopted by mistake, whatever is typed: a worker is running with the right ones.
    let unmeant = command(&lab, &["store", "adopt", "--yes", "--lose-records"]);
    assert!(unmeant.code == 1 && unmeant.err.contains("a worker consumes events of"), "{}", unmeant.err);
    let mut second = std::mem::replace(&mut lab.worker, first).unwrap();
    let late = (0..20).map(|n| news(&format!("p{n}@example.com"), -1, true).into());
    lab.publish(late.chain([news(JANE, -60, true).into()]).collect());
    lab.settled(22);
    assert_eq!(at_gate(&lab, JANE), "0");
    assert_eq!(lab.gate(0).profiles().as_object().unwrap().len(), 21);
    // Without the first worker it takes nothing either: the events wait for the first one.
    lab.stop();
    lab.publish(vec![news("late@example.com", -1, true).into()]);
    let tries = || second.text().matches("still without the records").count();
    let before = tries();
    poll_until("two more tries", || (tries() > before + 1).then_some(()));
    assert!(!second.text().contains("\"consuming\""), "{}", second.text());
    assert_eq!(lab.bench.depth(&lab.queue("")), 1);
    // Records that were refused are not accepted just because the broker has forgotten which ones it knew.
    lab.bench.delete_queue(&lab.queue(".store"));
    let before = tries();
    poll_until("two more tries", || (tries() > before + 1).then_some(()));
    assert!(!second.text().contains("\"consuming\""), "{}", second.text());
    second.signal("TERM");
    assert_eq!(second.ended(), Some(0));
    lab.set("CONSENT_GATE_RECORDS__STORE", "records");
    lab.start();
    lab.settled(1);
    assert_eq!(at_gate(&lab, "late@example.com"), "1");
    assert!(lab.dead().is_empty());
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn what_a_database_forgot_is_known_to_be_forgotten() {
    let (mut lab, schema) = shared();
    lab.start();
    deliver(&mut lab, news(JANE, -1, false), 1);
    deliver(&mut lab, news("john@example.com", -1, false), 2);
    lab.stop();
    // More than a year without an event of Jane's.
    schema.sql(
        "UPDATE consent_gate_records SET merged = now() - interval '366 days'
            WHERE key = (SELECT key FROM consent_gate_records ORDER BY merged LIMIT 1)",
    );
    lab.start();
    poll_until("the sweep", || schema.sql("SELECT count(*) FROM consent_gate_records").contains('1').then_some(()));
    let marks = "SELECT name FROM consent_gate_notes WHERE name LIKE 'swept %'";
    assert_eq!(schema.sql(marks).matches("swept ").count(), 1);
    deliver(&mut lab, news(JANE, -366 * 86_400, true), 1);
    assert_eq!(lab.dead()[0].header("consent-gate-reason").as_deref(), Some("older_than_retention"));
    assert_eq!(at_gate(&lab, JANE), "0");
    deliver(&mut lab, news(JANE, -60, true), 2);
    assert_eq!(at_gate(&lab, JANE), "1", "what is newer than what was forgotten counts");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_database_whose_clock_differs_is_told() {
    let (mut lab, schema) = shared();
    let role = format!("{}_apart", schema.name);
    // Found before the server's own function.
    schema.sql(&format!(
        "CREATE FUNCTION clock_timestamp() RETURNS timestamptz LANGUAGE sql
            AS $$ SELECT pg_catalog.clock_timestamp() + interval '60 s' $$;
         CREATE ROLE {role} LOGIN; GRANT CREATE, USAGE ON SCHEMA {name} TO {role};
         ALTER ROLE {role} SET search_path = {name}, pg_catalog",
        name = schema.name
    ));
    let url = schema.url().replace("consent_gate@", &format!("{role}@"));
    lab.set("CONSENT_GATE_RECORDS__STORE", url.split(['?', '&']).next().unwrap());
    lab.start();
    lab.worker().line_with("clock and this machine's are seconds apart");
    poll_until("the gauge", || {
        let ahead = lab.metric("consent_gate_store_clock_offset_seconds");
        (50.0 < ahead && ahead < 70.0).then_some(())
    });
    lab.stop();
    schema.sql(&format!("REASSIGN OWNED BY {role} TO CURRENT_USER; DROP OWNED BY {role}; DROP ROLE {role}"));
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_worker_stands_by_while_somebody_else_holds_what_the_broker_knows() {
    let mut lab = Lab::new();
    lab.declare();
    let holder = Bench::hold_lock(&lab.queue(".lock"));
    lab.spawn();
    let line = lab.worker().line_with("standby");
    assert!(line.contains("\"INFO\"") && line.contains("or a running copy"), "{line}");
    assert!(lab.admin("/readyz").1.contains("\"standby\""), "{}", lab.admin("/readyz").1);
    drop(holder);
    lab.worker().line_with("ready: consuming");
    assert!(!lab.worker().text().contains("ERROR"), "{}", lab.worker().text());
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_command_makes_no_records_and_believes_none_but_those_that_the_broker_knows() {
    let mut lab = Lab::new();
    lab.start();
    deliver(&mut lab, news(JANE, -60, true), 1);
    lab.stop();
    let name = lab.integration().to_owned();
    let forget = ["person", "forget", "--integration", &name, JANE, "--yes"];
    lab.set("CONSENT_GATE_RECORDS__STORE", "elsewhere");
    for arguments in [&forget[..], &["person", "show", "--integration", &name, JANE], &["store", "show"]] {
        let refused = command(&lab, arguments);
        assert!(refused.code == 1 && refused.err.contains("there are no records in"), "{}{}", refused.out, refused.err);
    }
    assert!(!lab.folder.0.join("elsewhere").exists());
    lab.set("CONSENT_GATE_RECORDS__STORE", "off");
    for arguments in [&forget[..], &["store", "show"]] {
        let refused = command(&lab, arguments);
        let told = refused.out + &refused.err;
        assert!(refused.code == 1 && told.contains("the broker knows records, store "), "{told}");
    }
    let shown = command(&lab, &["person", "show", "--integration", &name, JANE]);
    assert!(shown.code == 1 && shown.err.contains("no records are kept"), "{}", shown.err);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn without_records_a_person_is_forgotten_as_far_as_that_goes() {
    let mut lab = Lab::new();
    lab.set("CONSENT_GATE_RECORDS__STORE", "off");
    lab.declare();
    let name = lab.integration().to_owned();
    let forgotten = command(&lab, &["person", "forget", "--integration", &name, JANE, "--yes"]);
    assert!(forgotten.code == 0 && forgotten.err.contains("can bring the person back"), "{}", forgotten.err);
    assert!(!forgotten.out.contains("will be skipped"), "{}", forgotten.out);
}

/// A wrong address of the broker must not look like a right one, neither now nor at the next look.
#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_command_that_looks_declares_nothing() {
    let mut lab = Lab::new();
    lab.start();
    deliver(&mut lab, news(JANE, -60, true), 1);
    lab.stop();
    let name = lab.integration().to_owned();
    let queues = ["", ".dead", ".aside", ".dead.marks", ".audit", ".store"].map(|suffix| lab.queue(suffix));
    for queue in &queues {
        lab.bench.delete_queue(queue);
    }
    for arguments in [
        &["store", "show"][..],
        &["person", "show", "--integration", &name, JANE],
        &["person", "forget", "--integration", &name, JANE, "--yes"],
        &["dead", "list", "--integration", &name],
        &["dead", "replay", "--dry-run", "--integration", &name],
    ] {
        let looked = command(&lab, arguments);
        let told = looked.out + &looked.err;
        let is_told = told.contains("has forgotten these records") || told.contains("are not declared at this broker");
        assert!(is_told, "{arguments:?}: {told}");
    }
    let there: Vec<_> = queues.iter().filter(|queue| lab.bench.has_queue(queue)).collect();
    assert!(there.is_empty(), "{there:?}");
    let checked = command(&lab, &["check", "--connect"]);
    assert!(checked.out.contains("its queues are not declared"), "{}", checked.out);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn an_older_state_of_the_records_is_refused() {
    let mut lab = Lab::new();
    let (records, older) = (lab.folder.0.join("records"), lab.folder.0.join("older"));
    lab.start();
    deliver(&mut lab, news(JANE, -60, true), 1);
    lab.stop();
    copy(&records, &older);
    lab.start();
    deliver(&mut lab, news(JANE, -1, false), 1);
    lab.stop();
    fs::remove_dir_all(&records).unwrap();
    fs::rename(&older, &records).unwrap();
    refused(&mut lab, "are older than those of");
    lab.stop();
    let adopted = lines(&lab, &["store", "adopt", "--yes", "--json", "--integration", lab.integration()]);
    assert_eq!(adopted.len(), 1, "no worker holds them: the command opens them itself");
    lab.start();
    // What they no longer know, they know again once it is published again.
    deliver(&mut lab, news(JANE, -1, false), 1);
    deliver(&mut lab, news(JANE, -30, true), 2);
    assert_eq!(at_gate(&lab, JANE), "0");
}

/// Somebody copied the folder of a running worker, to inspect it or to move it.
#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_copy_of_the_records_is_not_used_beside_the_worker() {
    let mut lab = Lab::new();
    lab.start();
    deliver(&mut lab, news(JANE, -60, true), 1);
    copy(&lab.folder.0.join("records"), &lab.folder.0.join("copied"));
    let first = lab.worker.take();
    lab.set("CONSENT_GATE_RECORDS__STORE", "copied");
    let name = lab.integration().to_owned();
    for arguments in [
        &["person", "forget", "--integration", &name, JANE, "--yes"][..],
        &["person", "show", "--integration", &name, JANE],
        &["store", "show"],
        &["check", "--connect"],
    ] {
        let refused = command(&lab, arguments);
        let told = refused.out + &refused.err;
        assert!(refused.code == 1 && told.contains("with records in a place other than"), "{arguments:?}: {told}");
    }
    lab.spawn();
    let line = lab.worker().line_with("standby");
    assert!(line.contains("\"INFO\"") && line.contains("with records in a place other than"), "{line}");
    let mut second = std::mem::replace(&mut lab.worker, first).unwrap();
    deliver(&mut lab, news(JANE, -1, false), 2);
    assert!(!second.text().contains("\"consuming\""), "{}", second.text());
    // When the right worker stops, it tells the broker its last epoch.
    lab.stop();
    second.line_with("are older than those of");
    second.signal("TERM");
    assert_eq!(second.ended(), Some(0));
}

/// Types the line of docs/operating.md that begins like this, for the schema of a test.
fn typed(lab: &Lab, schema: &Schema, begins: &str) {
    let page = fs::read_to_string(project().join("docs/operating.md")).unwrap();
    let line = page.lines().find(|line| line.starts_with(begins)).unwrap();
    let line = line.replace("--schema=consent_gate", &format!("--schema={}", schema.name));
    let typed =
        Command::new("bash").args(["-ec", &line]).env("STORE", schema.url()).current_dir(&lab.folder.0).output();
    let typed = typed.unwrap();
    assert!(typed.status.success(), "{line}: {}", String::from_utf8_lossy(&typed.stderr));
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_restored_database_is_refused_until_it_is_adopted() {
    let (mut lab, schema) = shared();
    lab.start();
    deliver(&mut lab, news(JANE, -60, true), 1);
    // While the worker runs, as docs/operating.md says.
    typed(&lab, &schema, "pg_dump ");
    lab.stop();
    lab.start();
    deliver(&mut lab, news(JANE, -1, false), 1);
    lab.stop();
    typed(&lab, &schema, "pg_restore ");
    refused(&mut lab, "are older than those of");
    lab.stop();
    assert_eq!(lines(&lab, &["store", "adopt", "--yes", "--json"]).len(), 1);
    lab.start();
    deliver(&mut lab, news(JANE, -1, false), 1);
    deliver(&mut lab, news(JANE, -30, true), 2);
    assert_eq!(at_gate(&lab, JANE), "0");
    lab.stop();
    schema.sql("UPDATE consent_gate_notes SET value = '999' WHERE name = 'version'");
    lab.spawn();
    let line = lab.worker().line_with("cannot use the records");
    assert!(line.contains("belong to a newer version"), "{line}");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn records_are_given_up_only_on_purpose_and_what_was_delivered_without_them_is_noticed() {
    let mut lab = Lab::new();
    lab.set("CONSENT_GATE_RECORDS__STORE", "off");
    lab.start();
    lab.stop();
    lab.set("CONSENT_GATE_RECORDS__STORE", "records");
    lab.start();
    lab.stop();
    lab.set("CONSENT_GATE_RECORDS__STORE", "off");
    refused(&mut lab, "a late retry of an older consent can win");
    let name = lab.integration().to_owned();
    let adopt = ["store", "adopt", "--yes", "--json", "--integration", &name];
    let checked = command(&lab, &["check", "--connect"]);
    assert!(checked.code == 1 && checked.out.contains("the broker knows records, store "), "{}", checked.out);
    lab.stop();
    let asked = command(&lab, &adopt);
    assert!(asked.code == 2 && asked.err.contains("--lose-records"), "{}", asked.err);
    assert_eq!(lines(&lab, &[&adopt[..], &["--lose-records"]].concat()).len(), 1);
    assert_eq!(lines(&lab, &adopt).len(), 0, "nothing is left to give up");
    lab.start();
    let shown = command(&lab, &["store", "show"]);
    assert!(shown.code == 0 && shown.out.contains(": right"), "{}", shown.out);
    lab.stop();
    lab.set("CONSENT_GATE_RECORDS__STORE", "records");
    refused(&mut lab, "do not contain the latest events");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_renamed_integration_keeps_its_records() {
    let mut lab = Lab::new();
    lab.start();
    deliver(&mut lab, news(JANE, -1, false), 1);
    lab.stop();
    let old = lab.integration().to_owned();
    let file = lab.folder.0.join(format!("integrations/{old}.json"));
    let mut document: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    document["records"] = json!(old);
    let new = format!("{old}-new");
    lab.folder.write(&format!("integrations/{new}.json"), document.to_string());
    fs::remove_file(&file).unwrap();
    for suffix in [
        "",
        ".retry",
        ".dead",
        ".aside",
        ".dead.marks",
        ".audit",
        ".unreadable",
        ".store",
        ".delay.50",
        ".delay.100",
        ".delay.150",
        ".delay.200",
    ] {
        lab.also_delete(&format!("consent-gate.{new}{suffix}"));
    }
    lab.start();
    lab.bench.publish("", &format!("consent-gate.{new}"), vec![news(JANE, -60, true).into()]);
    lab.settled_of(&new, 1);
    assert_eq!(at_gate(&lab, JANE), "0");
    let twice = lab.folder.write(&format!("integrations/{old}.json"), document.to_string());
    let checked = command(&lab, &["check"]);
    assert!(checked.code == 2 && checked.err.contains("both keep their records"), "{}", checked.err);
    fs::remove_file(twice).unwrap();
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_person_is_shown_and_forgotten_while_the_worker_runs() {
    let mut lab = Lab::new();
    lab.start();
    deliver(&mut lab, news(JANE, -60, true), 1);
    let name = lab.integration().to_owned();
    let person = |verb, more: &[&'static str]| {
        [&["person", verb, "--integration", &name, "Jane@Example.com", "--json"][..], more].concat()
    };
    let hidden = lines(&lab, &person("show", &[]));
    assert_eq!((&hidden[0]["property"], &hidden[0]["value"]), (&json!("OPTIN_NEWS"), &Value::Null));
    assert!(hidden[0]["accepted_at"].is_string() && hidden[0]["event"].is_string(), "{hidden:?}");
    let shown = command(&lab, &person("show", &["--reveal"]));
    assert!(shown.out.contains("\"value\":true"), "{}", shown.out);
    assert!(shown.err.contains("personal data was touched") && !shown.err.contains("ane@"), "{}", shown.err);
    let forgotten = lines(&lab, &person("forget", &["--yes"]));
    assert_eq!(forgotten[0]["was_known"], true);
    assert!(lab.worker().text().contains("a person was forgotten"));
    deliver(&mut lab, news(JANE, -30, true), 2);
    assert_eq!(lab.gate(0).outcome("accepted"), 1, "older events are skipped");
    lab.stop();
    let after = lines(&lab, &person("show", &[]));
    assert!(after[0]["erased"].is_string(), "{after:?}");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn everybody_in_a_file_is_forgotten_and_nobody_when_a_line_is_bad() {
    let mut lab = Lab::new();
    lab.start();
    let john = "john@example.com";
    lab.publish(vec![news(JANE, -60, true).into(), news(john, -60, true).into()]);
    lab.settled(2);
    lab.bench.publish("", &lab.queue(".dead"), vec![news(john, -90, true).into()]);
    poll_until("the letter", || (lab.bench.depth(&lab.queue(".dead")) == 1).then_some(()));
    let name = lab.integration().to_owned();
    let forget = |more: &[&'static str]| [&["person", "forget", "--integration", &name, "--from"][..], more].concat();
    // If one line is bad, nobody is forgotten.
    lab.folder.write("bad.txt", format!("{JANE}\n 17\n{john}\nj\tohn\n"));
    let bad = command(&lab, &forget(&["bad.txt", "--yes"]));
    assert!(bad.code == 2 && bad.out.is_empty(), "{}", bad.out);
    assert!(bad.err.contains("line 2: ") && bad.err.contains("line 4: ") && !bad.err.contains("ohn"), "{}", bad.err);
    assert!(lines(&lab, &["person", "show", "--integration", &name, JANE, "--json"])[0]["property"].is_string());
    let file = format!("\u{feff}{JANE}\r\n\r\nnobody@example.com\r\n{john}\r\n");
    let unasked = lab.run(&forget(&["-"]), file.as_bytes());
    assert!(unasked.code == 2 && unasked.err.contains("add --yes"), "{}", unasked.err);
    // Another command holds the letters: each line says so, and the same command can be repeated later.
    let lock = Bench::hold_lock(&lab.queue(".dead.lock"));
    let refused = lab.run(&forget(&["-", "--yes"]), file.as_bytes());
    assert!(refused.code == 1 && refused.err.contains("3 of 3 persons not forgotten"), "{}", refused.err);
    assert!(
        refused.out.starts_with("line 1: refused: ") && refused.out.contains("line 4: refused: "),
        "{}",
        refused.out
    );
    drop(lock);
    lab.folder.write("persons.txt", &file);
    let forgotten = command(&lab, &forget(&["persons.txt", "--yes"]));
    assert_eq!(forgotten.code, 0, "{}", forgotten.err);
    let told = "line 1: done, dead letters removed: 0\nline 3: nothing known\nline 4: done, dead letters removed: 1\n";
    assert_eq!(forgotten.out, told);
    assert!(forgotten.err.contains("personal data was touched") && !forgotten.err.contains('@'), "{}", forgotten.err);
    assert!(!lab.worker().text().contains("@example.com"));
    lab.publish([JANE, "nobody@example.com", john].map(|person| news(person, -30, true).into()).into());
    lab.settled(5);
    assert_eq!(lab.gate(0).outcome("accepted"), 2, "older events are skipped");
    lab.stop();
    // Without a worker the command opens the records itself.
    let again = lines(&lab, &forget(&["persons.txt", "--yes", "--json"]));
    assert!(again.iter().all(|line| line["forgotten"] == true && line["was_known"] == true), "{again:?}");
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn of_two_workers_on_one_database_the_newest_wins_whoever_delivers_it() {
    let (mut lab, schema) = shared();
    lab.set_delays(&[1_000, 1_000]);
    lab.gate(0).faults(json!([{ "status": 503, "times": 1 }]));
    lab.start();
    lab.publish(vec![news(JANE, -60, true).into()]);
    lab.worker().line_with("another one follows");
    lab.stop();
    lab.start();
    let first = lab.worker.take();
    lab.start();
    lab.publish(vec![news(JANE, -1, false).into()]);
    poll_until("both at the gate", || (lab.gate(0).outcome("accepted") == 2).then_some(()));
    assert_eq!(at_gate(&lab, JANE), "0");
    let rows = schema.sql("SELECT count(*), max(revision) > 1, max(record) LIKE '%jane%' FROM consent_gate_records");
    assert_eq!(rows, "1|t|f", "one record, and no identifier in it");
    drop(first);
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_database_that_goes_away_stops_everything_and_loses_nothing() {
    let node = PgNode::start();
    let mut lab = Lab::new();
    lab.set("CONSENT_GATE_RECORDS__STORE", &node.url);
    lab.start();
    deliver(&mut lab, news(JANE, -60, true), 1);
    for violent in [false, true] {
        if violent {
            node.kill();
        } else {
            node.stop();
        }
        lab.publish((0..20).map(|n| news(&format!("p{violent}{n}@example.com"), -1, true).into()).collect());
        poll_until("not ready", || (lab.admin("/readyz").0 == 503).then_some(()));
        let before = lab.gate(0).outcome("accepted");
        let line = lab.worker().line_with("cannot use the records");
        assert!(line.contains("PostgreSQL"), "{line}");
        assert!(before <= 21, "what is sent without records would not be remembered");
        node.restart();
        poll_until("ready", || (lab.admin("/readyz").0 == 200).then_some(()));
    }
    lab.settled(41);
    assert_eq!(lab.gate(0).profiles().as_object().unwrap().len(), 41);
    assert!(lab.dead().is_empty());
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_role_that_may_only_read_and_write_rows_is_enough_once_the_tables_are_there() {
    let (mut lab, schema) = shared();
    let role = schema.name.clone();
    schema.sql(&format!("CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA {role} TO {role}"));
    let restricted = schema.url().replace("consent_gate@", &format!("{role}@"));
    lab.set("CONSENT_GATE_RECORDS__STORE", &restricted);
    lab.spawn();
    let line = lab.worker().line_with("cannot use the records");
    assert!(line.contains("permission denied") && line.contains("docs/postgresql.md"), "{line}");
    // The first start creates the tables, with a role that may do so.
    let waiting = lab.worker.take();
    lab.set("CONSENT_GATE_RECORDS__STORE", &schema.url());
    lab.start();
    lab.stop();
    lab.worker = waiting;
    schema.sql(&format!("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {role} TO {role}"));
    lab.worker().line_with("ready: consuming");
    deliver(&mut lab, news(JANE, -1, true), 1);
    lab.stop();
    schema.sql(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn a_database_is_verified_before_anything_is_told() {
    let (node, cert) = PgNode::start_with_tls();
    let mut lab = Lab::new();
    lab.set("CONSENT_GATE_RECORDS__STORE", &node.url);
    lab.start();
    lab.stop();
    let url = |host: &str, mode: &str| node.url.replace("127.0.0.1", host).replace("sslmode=disable", mode);
    let checked = |url: &str| lab.run_with(&[("CONSENT_GATE_RECORDS__STORE", url)], &["store", "show"], b"");
    let trusted = format!("&sslrootcert={}", cert.display());
    for (host, mode, works) in [
        ("localhost", format!("sslmode=verify-full{trusted}"), true),
        ("127.0.0.1", format!("sslmode=verify-full{trusted}"), false),
        ("127.0.0.1", format!("sslmode=verify-ca{trusted}"), true),
        ("localhost", "sslmode=verify-full".to_owned(), false),
        ("localhost", "sslmode=verify-ca".to_owned(), false),
        ("localhost", "sslmode=require".to_owned(), true),
    ] {
        let done = checked(&url(host, &mode));
        assert_eq!(done.code == 0, works, "{host} {mode}: {}", done.err);
        assert!(works || done.err.contains("certificate"), "{}", done.err);
    }
}

#[test]
#[cfg_attr(not(feature = "broker"), ignore = "needs a broker: scripts/test")]
fn every_profile_is_right_after_two_workers_were_killed_at_random() {
    let is_whole = std::env::var_os("CONSENT_GATE_CHAOS_WHOLE").is_some();
    let (people, events) = if is_whole { (2_000, 20_000) } else { (200, 2_000) };
    let (mut lab, _schema) = shared();
    lab.set_delays(&[50, 100, 400]);
    lab.gate(0).faults(json!([
        { "share": 0.06, "status": 503 }, { "share": 0.05, "reset": true }, { "share": 0.04, "lose_answer": true },
        { "share": 0.02, "hang": true }, { "share": 0.03, "execute_after_ms": 350, "status": 504 },
    ]));
    lab.declare();
    let (messages, newest) = shuffled(people, events, 43);
    let published = messages.len();
    lab.publish(messages);
    let executed = |lab: &Lab| lab.gate(0).requests()["executed"].as_u64().unwrap();
    let mut workers: [Option<Running>; 2] = [None, None];
    let kills = 8;
    for kill in 1..=kills {
        for worker in &mut workers {
            if worker.is_none() {
                lab.spawn();
                *worker = lab.worker.take();
            }
        }
        poll_until("some progress", || (executed(&lab) > (kill * events / (2 * kills)) as u64).then_some(()));
        let mut killed = workers[kill % 2].take().unwrap();
        killed.signal("KILL");
        killed.ended();
    }
    lab.worker = workers.into_iter().flatten().next();
    lab.worker().line_with("ready: consuming");
    quiet(&mut lab);
    lab.gate(0).faults(json!([]));
    let letters = lab.dead();
    note(&format!("{published} messages, {kills} kills of two workers, {} dead letters", letters.len()));
    assert!(letters.len() < published / 2, "{} of {published} are dead", letters.len());
    let letters = letters.into_iter().map(|letter| Message { body: letter.body, properties: letter.properties });
    lab.bench.publish("", &lab.queue(""), letters.collect());
    quiet(&mut lab);
    let profiles = lab.gate(0).profiles();
    let is_wrong = |(person, text): &(&String, &&str)| profiles[*person]["OPTIN_NEWS"] != ***text;
    let wrong: Vec<_> = newest.iter().filter(is_wrong).collect();
    assert!(wrong.is_empty(), "{} of {} profiles are wrong: {wrong:?}", wrong.len(), newest.len());
    assert!(lab.dead().is_empty());
    // A person without any event so far.
    deliver(&mut lab, choice("late@example.com", true), 1);
}
