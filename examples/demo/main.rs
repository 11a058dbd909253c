//! The demonstration behind `scripts/demo`: starts a simulated gate and the worker, publishes the choices of people
//! who change them, shows what arrives, and checks it in the end.
//!
//! Exit code 0 only when every profile at the gate is what the events say.

mod people;
mod screen;
mod stage;
mod view;

use people::People;
use serde_json::json;
use stage::Stage;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use view::View;

/// How long the stream of choices lasts.
const STREAM: Duration = Duration::from_secs(20);
/// How long everything may take to arrive after the last choice.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the gate is down: the first and second attempts fail, the third succeeds.
const OUTAGE: Duration = Duration::from_secs(2);
/// Time between two publications.
const TICK: Duration = Duration::from_millis(10);
/// Choices published at once.
const PER_TICK: usize = 2;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(folder), Some(broker)) = (arguments.next(), std::env::var("CONSENT_GATE_BROKER__URL").ok()) else {
        return failed("usage: CONSENT_GATE_BROKER__URL=… demo FOLDER [--keep]; scripts/demo does it all");
    };
    let keep = arguments.next().is_some_and(|argument| argument == "--keep");
    let _ = rustls::crypto::ring::default_provider().install_default();
    let stage = match Stage::set(&PathBuf::from(folder), &broker).await {
        Ok(stage) => stage,
        Err(error) => return failed(&format!("{error:#}")),
    };
    let result = tokio::select! {
        result = play(&stage, keep) => result,
        () = interrupted() => Ok(false),
    };
    stage.strike().await;
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => failed(&format!("{error:#}")),
    }
}

fn failed(why: &str) -> ExitCode {
    // A closed standard error changes nothing.
    let _ = writeln!(std::io::stderr(), "demo: {why}");
    ExitCode::FAILURE
}

/// Waits until everything that was published reached its end.
async fn arrived(stage: &Stage, people: &People, view: &mut View) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut ticks = tokio::time::interval(TICK);
    while stage.numbers().await?.settled() < 2 * people.published() && Instant::now() < deadline {
        ticks.tick().await;
        view.update(stage, people, false).await?;
    }
    Ok(())
}

/// The gate goes down while people choose, and comes back; for one of them it stays down.
async fn outage(stage: &Stage, people: &mut People, view: &mut View) -> anyhow::Result<()> {
    view.say("outage    a firewall answers 200 with a page, the gate 503; eleven more people switch the newsletter off, one on");
    let for_one = json!({ "status": 503, "identifier": people::UNLUCKY });
    let firewall = json!({ "in_place": "firewall", "times": 5 });
    stage.faults(json!([for_one, firewall, { "status": 503 }])).await?;
    for message in people.caught_in_the_outage() {
        stage.publish(&message).await?;
    }
    let began = Instant::now();
    let mut ticks = tokio::time::interval(TICK);
    while began.elapsed() < OUTAGE {
        ticks.tick().await;
        view.update(stage, people, false).await?;
    }
    stage.faults(json!([for_one])).await?;
    view.say("recovery  the gate is back after two attempts, but for one of them; who opted in opts out");
    stage.publish(&people.opted_out()).await?;
    arrived(stage, people, view).await?;
    let texts =
        |attempts: Vec<(i64, String)>| attempts.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(", ");
    view.say(&format!(
        "newest    {}: the gate was sent {}: the late retry of the opt-in carries the opt-out",
        people::FICKLE,
        texts(stage.attempts(people::FICKLE).await?)
    ));
    let times = stage.attempts(people::UNLUCKY).await?;
    let times: Vec<String> = times.into_iter().map(|(ms, _)| format!("{:.1}", ms as f64 / 1000.0)).collect();
    view.say(&format!(
        "attempts  {}: at {} s (in earnest 0, 10, 40, 100, 220), then a dead letter",
        people::UNLUCKY,
        times.join(", ")
    ));
    Ok(())
}

/// An operator lists the dead letters, checks what a replay would do, and replays them.
async fn letters(stage: &Stage, people: &mut People, view: &mut View) -> anyhow::Result<()> {
    stage.faults(json!([])).await?;
    let [shop, magazine] = stage.integrations();
    let look = [vec!["dead", "list", "--group"], vec!["dead", "replay", "--dry-run"]];
    let replay = ["dead", "replay", "--yes", "--wait"];
    let commands = look.into_iter().map(|command| (command, shop));
    for (command, integration) in commands.chain([(replay.to_vec(), shop), (replay.to_vec(), magazine)]) {
        let command = [&command[..], &["--integration", integration]].concat();
        view.say(&format!("operator  consent-gate {}", command.join(" ")));
        for line in stage.command(&command).await?.lines() {
            view.say(&format!("          {line}"));
        }
    }
    people.replayed();
    Ok(())
}

async fn interrupted() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// The whole demonstration; returns whether every profile is right.
async fn play(stage: &Stage, keep: bool) -> anyhow::Result<bool> {
    let mut view = View::new();
    let mut people = People::new();
    view.say(&format!("worker    {}/metrics", stage.worker_url()));
    view.say(&format!("gate      {}/profiles", stage.gate_url()));
    view.say("samples   one of each documented shape of message, each of another person");
    for message in people.samples()? {
        stage.publish(&message).await?;
    }
    view.say(&format!("stream    {} people change their choices for {} s", people::COUNT, STREAM.as_secs()));
    let began = Instant::now();
    let mut ticks = tokio::time::interval(TICK);
    while began.elapsed() < STREAM {
        ticks.tick().await;
        for _ in 0..PER_TICK {
            stage.publish(&people.next_choice()).await?;
        }
        view.update(stage, &people, false).await?;
    }
    arrived(stage, &people, &mut view).await?;
    outage(stage, &mut people, &mut view).await?;
    letters(stage, &mut people, &mut view).await?;
    let wrong = people.wrong(&stage.profiles().await?, stage.integrations());
    view.summary(stage, &people, &wrong).await?;
    if keep {
        view.kept(stage);
        interrupted().await;
    }
    Ok(wrong.is_empty())
}
