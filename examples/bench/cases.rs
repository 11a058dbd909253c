//! The cases, each a few runs of the same shape: fill a queue, start what is measured, wait until
//! the gate has seen it all.

use crate::gate::Gate;
use crate::instructions::Instructions;
use crate::process::{Process, program, wait};
use crate::queue::Bench;
use crate::size;
use crate::table::{Page, Series, say};
use anyhow::Context;
use consent_gate::record::{Backend, RecordsSettings};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const ROUNDS: usize = 3;
/// For the comparison with others, which counts most.
const MORE_ROUNDS: usize = 5;
/// After so many events, connections, caches, the allocator and the store are as they stay.
const WARM: u64 = 20_000;
/// How long after its start a worker counts as idle: by then it has checked its queues twice.
const IDLE: Duration = Duration::from_secs(10);
/// How long a gate is observed whose limit is to be found.
const LONG_ENOUGH: Duration = Duration::from_secs(15);
/// An hour of soaking; `CONSENT_GATE_BENCH_SOAK_MINUTES` sets another time.
const SOAK_MINUTES: u64 = 60;
const SOAK_PER_SECOND: u32 = 300;
/// How many people an hour's events are about: records are merged, not only created.
const SOAK_PEOPLE: u64 = 20_000;
/// In each part of this length, the gate refuses everything for the first seconds.
const SOAK_PART: Duration = Duration::from_secs(60);
const SOAK_OUTAGE: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(600);
const CASES: [&str; 13] = [
    "bare", "latency", "added", "memory", "many", "hanging", "stores", "replay", "size", "cold", "large", "adaptive",
    "peers",
];
/// Run only when they are asked for.
const ON_REQUEST: [&str; 2] = ["soak", "instructions"];

/// A name for an integration that no other run has.
fn new_name() -> String {
    format!("bench-{}", jiff::Timestamp::now().as_microsecond())
}

struct Cases {
    folder: PathBuf,
    broker: String,
    postgres: Option<String>,
    bench: Bench,
    gate: Gate,
    /// The same over TLS 1.3.
    secure: Gate,
    /// The file of the authority of its certificate.
    authority: PathBuf,
    page: Page,
    /// 10 for a whole run, which is ten times as long, else 1.
    scale: u64,
}

/// What one run showed.
struct Run {
    per_second: f64,
    cpu_us: f64,
    /// Processor time for each of the first events, the start included.
    cold_us: f64,
    peak_mb: f64,
    first_ms: f64,
}

/// What is measured.
#[derive(Clone, Copy, PartialEq)]
enum Contender {
    Bare,
    BareTuned,
    Worker(&'static str),
    /// A program in another language: its interpreter and its file.
    Peer(&'static str, &'static str),
}

/// What the contenders are given to do.
#[derive(Clone, Copy)]
struct Load {
    events: u64,
    /// How many of them come before what is measured.
    warm: u64,
    bytes: usize,
    latency: Duration,
    in_flight: u16,
    is_secure: bool,
}

impl Load {
    /// Small events, of which a tenth is not measured, to a gate that is asked in plain text.
    fn of(events: u64, latency: Duration, in_flight: u16) -> Load {
        Load { events, warm: events / 10, bytes: 0, latency, in_flight, is_secure: false }
    }
}

pub fn run(folder: &Path, out: &Path, wanted: &[String]) -> anyhow::Result<()> {
    for case in wanted {
        let is_known = CASES.contains(&case.as_str()) || ON_REQUEST.contains(&case.as_str());
        anyhow::ensure!(is_known, "no case {case}; there are {}, {}", CASES.join(", "), ON_REQUEST.join(", "));
    }
    let broker = std::env::var("CONSENT_GATE_BROKER__URL").context("CONSENT_GATE_BROKER__URL is missing")?;
    let (secure, pem) = Gate::listen_securely()?;
    let authority = folder.join("authority.pem");
    fs::write(&authority, pem)?;
    let mut cases = Cases {
        folder: folder.to_owned(),
        postgres: std::env::var("CONSENT_GATE_BENCH_POSTGRES_URL").ok(),
        bench: Bench::connect(&broker)?,
        broker,
        gate: Gate::listen()?,
        secure,
        authority,
        page: Page::default(),
        scale: if std::env::var_os("CONSENT_GATE_BENCH_WHOLE").is_some() { 10 } else { 1 },
    };
    for case in CASES {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == case) {
            continue;
        }
        if case == "peers" && std::env::var_os("CONSENT_GATE_BENCH_NO_PEERS").is_some() {
            say("(k) is left out: node, npm or python3 with venv is missing");
            continue;
        }
        match case {
            "bare" => cases.against_bare()?,
            "latency" => cases.latency()?,
            "added" => cases.added()?,
            "memory" => cases.memory()?,
            "many" => cases.many()?,
            "stores" => cases.stores()?,
            "size" => cases.size()?,
            "cold" => cases.cold()?,
            "hanging" => cases.hanging()?,
            "replay" => cases.replay()?,
            "adaptive" => cases.adaptive()?,
            "peers" => cases.peers()?,
            _ => cases.large()?,
        }
    }
    for case in wanted {
        match case.as_str() {
            "soak" => cases.soak()?,
            "instructions" => cases.instructions()?,
            _ => {}
        }
    }
    fs::write(out, cases.page.text())?;
    Ok(())
}

impl Cases {
    /// A new integration's folder, its queues declared and empty.
    fn integration(&self, names: &[String]) -> anyhow::Result<PathBuf> {
        self.integration_at(&self.gate, names)
    }

    fn gate(&self, is_secure: bool) -> &Gate {
        if is_secure { &self.secure } else { &self.gate }
    }

    /// A new integration of a gate: its folder and its work queue.
    fn new_integration(&self, gate: &Gate) -> anyhow::Result<(PathBuf, String)> {
        let name = new_name();
        let home = self.integration_at(gate, std::slice::from_ref(&name))?;
        Ok((home, format!("consent-gate.{name}")))
    }

    fn integration_at(&self, gate: &Gate, names: &[String]) -> anyhow::Result<PathBuf> {
        let home = self.folder.join(&names[0]);
        fs::create_dir_all(home.join("integrations"))?;
        for name in names {
            let document = json!({
                "type_id": "selligent",
                "authentication": { "username": "api_user", "password": "bench-key" },
                "properties": { "url": gate.url, "gate": "didomi" },
                "mappings": [
                    { "id": "MAIL", "value": "organization_user_id" },
                    { "id": "OPTIN_NEWS", "value": "consents_purposes_newsletter_enabled" },
                    { "id": "OPTIN_PARTNERS", "value": "consents_purposes_partners_enabled" },
                    { "id": "SOURCE", "constant": "didomi" },
                ],
            });
            fs::write(home.join(format!("integrations/{name}.json")), document.to_string())?;
        }
        let status = std::process::Command::new(program("consent-gate")?)
            .arg("declare")
            .current_dir(&home)
            .envs(self.environment("off", 64))
            .stdout(std::process::Stdio::null())
            .status()?;
        anyhow::ensure!(status.success(), "declare failed");
        Ok(home)
    }

    fn environment(&self, store: &str, in_flight: u16) -> BTreeMap<String, String> {
        let store = if store == "postgres" { self.postgres.as_deref().unwrap_or("off") } else { store };
        [
            ("CONSENT_GATE_BROKER__URL", self.broker.clone()),
            ("CONSENT_GATE_SOURCE__EXCHANGE", "bench-consents".to_owned()),
            ("CONSENT_GATE_ADMIN__LISTEN", "127.0.0.1:0".to_owned()),
            ("CONSENT_GATE_RECORDS__STORE", store.to_owned()),
            ("CONSENT_GATE_GATE__MAX_IN_FLIGHT", in_flight.to_string()),
            ("CONSENT_GATE_LOG__LEVEL", "warn".to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into_iter()
        .chain(self.trust())
        .collect()
    }

    /// The authority of the gate over TLS, for everything that is measured.
    fn trust(&self) -> BTreeMap<String, String> {
        [("SSL_CERT_FILE".to_owned(), self.authority.display().to_string())].into()
    }

    fn start(
        &self,
        contender: Contender,
        gate: &Gate,
        (home, queue): (&Path, &str),
        in_flight: u16,
    ) -> anyhow::Result<Process> {
        let given = [self.broker.as_str(), queue, &gate.url, &in_flight.to_string()];
        match contender {
            Contender::Bare | Contender::BareTuned => {
                let name = if contender == Contender::Bare { "bare" } else { "bare-tuned" };
                let arguments: Vec<&str> = [name].into_iter().chain(given).collect();
                Process::start(&std::env::current_exe()?, &arguments, home, &self.trust())
            }
            Contender::Peer(interpreter, file) => {
                let file = std::env::current_dir()?.join("examples/bench/peers").join(file);
                let file = file.to_str().context("the folder's name is not Unicode")?;
                let arguments: Vec<&str> = [file].into_iter().chain(given).collect();
                Process::start(Path::new(interpreter), &arguments, home, &self.trust())
            }
            Contender::Worker(store) => {
                Process::start(&program("consent-gate")?, &["run"], home, &self.environment(store, in_flight))
            }
        }
    }

    /// One run: fill, start, wait until the gate has seen everything.
    fn measure(&self, contender: Contender, load: Load) -> anyhow::Result<Run> {
        let gate = self.gate(load.is_secure);
        let (home, queue) = self.new_integration(gate)?;
        self.bench.fill(&queue, load.events, load.bytes)?;
        gate.reset(Some(load.latency));
        let begun = Instant::now();
        let process = self.start(contender, gate, (&home, &queue), load.in_flight)?;
        wait(PATIENCE, || Ok(gate.received() > 0))?;
        let first_ms = begun.elapsed().as_secs_f64() * 1_000.0;
        wait(PATIENCE, || Ok(gate.received() >= load.warm))?;
        let (since, from, cpu) = (Instant::now(), gate.received(), process.cpu()?);
        wait(PATIENCE, || Ok(gate.received() >= load.events))?;
        let (seconds, count) = (since.elapsed().as_secs_f64(), (load.events - from) as f64);
        let cpu_us = (process.cpu()? - cpu) * 1e6 / count;
        let cold_us = cpu * 1e6 / from as f64;
        let run = Run { per_second: count / seconds, cpu_us, cold_us, peak_mb: process.peak_mb()?, first_ms };
        process.stop()?;
        Ok(run)
    }

    /// Runs contenders in turn, several times, and returns their figures.
    fn compare(&self, contenders: &[Contender], load: Load, rounds: usize) -> anyhow::Result<Vec<[Series; 4]>> {
        let mut series: Vec<[Series; 4]> = contenders.iter().map(|_| Default::default()).collect();
        for _ in 0..rounds {
            for (contender, [rate, cpu, cold, peak]) in contenders.iter().zip(&mut series) {
                let run = self.measure(*contender, load)?;
                rate.push(run.per_second);
                cpu.push(run.cpu_us);
                cold.push(run.cold_us);
                peak.push(run.peak_mb);
            }
        }
        Ok(series)
    }

    fn rows(&mut self, names: &[&str], series: &[[Series; 4]]) {
        let Some([base_rate, base_cpu, ..]) = series.first() else { return };
        for (name, [rate, cpu, cold, peak]) in names.iter().zip(series) {
            self.page.row(&[
                (*name).to_owned(),
                rate.shown(0),
                format!("{:.2}", rate.median() / base_rate.median()),
                cpu.shown(1),
                format!("{:.2}", cpu.median() / base_cpu.median()),
                cold.shown(0),
                peak.shown(0),
            ]);
        }
        let bars = |index: usize| -> Vec<(&str, f64)> {
            names.iter().zip(series).map(|(name, series)| (*name, series[index].median())).collect()
        };
        self.page.bars("events/s", &bars(0));
        self.page.bars("CPU µs/event", &bars(1));
    }

    fn head(&mut self, title: &str) {
        let columns = ["", "events/s", "×", "CPU µs/event, warm", "×", "cold", "peak MB"];
        self.page.head(title, &columns);
    }

    fn against_bare(&mut self) -> anyhow::Result<()> {
        let contenders =
            [Contender::Bare, Contender::BareTuned, Contender::Worker("off"), Contender::Worker("records")];
        let names = ["bare loop", "bare loop on one thread", "worker, store off", "worker, embedded store"];
        for (how, is_secure) in [("in plain text", false), ("over TLS 1.3", true)] {
            self.head(&format!(
                "(a) Against a bare loop, {how}: a gate that answers at once, 256 in flight; warm is after {WARM} events"
            ));
            let load = Load::of(WARM + 30_000 * self.scale.min(3), Duration::ZERO, 256);
            let series = self.compare(&contenders, Load { warm: WARM, is_secure, ..load }, MORE_ROUNDS)?;
            self.rows(&names, &series);
        }
        Ok(())
    }

    /// What others would write with the usual libraries: like the bare loop, without order, records or retries.
    fn peers(&mut self) -> anyhow::Result<()> {
        self.head("(k) Against bare loops in other languages: a gate that answers at once, 256 in flight");
        let contenders = [
            Contender::Bare,
            Contender::Worker("records"),
            Contender::Peer("python3", "aio_pika_aiohttp.py"),
            Contender::Peer("node", "amqplib_undici.cjs"),
        ];
        let names = ["bare loop", "worker, embedded store", "aio-pika and aiohttp", "amqplib and undici"];
        let load = Load { warm: 4_000, ..Load::of(12_000, Duration::ZERO, 256) };
        let series = self.compare(&contenders, load, ROUNDS)?;
        self.rows(&names, &series);
        Ok(())
    }

    fn latency(&mut self) -> anyhow::Result<()> {
        self.page.head(
            "(b) Little's law: the default of 64 in flight, embedded store, beside the bare loop on one thread",
            &["gate's latency", "events/s", "of what 64 in flight allow", "bare loop, events/s"],
        );
        for (ms, events) in [(5, 30_000), (50, 8_000), (200, 3_000)] {
            let latency = Duration::from_millis(ms);
            let contenders = [Contender::Worker("records"), Contender::BareTuned];
            let series = self.compare(&contenders, Load::of(events, latency, 64), ROUNDS)?;
            let [worker, bare] = [0, 1].map(|contender: usize| &series[contender][0]);
            let allowed = 64_000.0 / ms as f64;
            let share = format!("{:.2}", worker.median() / allowed);
            self.page.row(&[format!("{ms} ms"), worker.shown(0), share, bare.shown(0)]);
        }
        Ok(())
    }

    fn added(&mut self) -> anyhow::Result<()> {
        self.page.head(
            "(c) From publication to the gate",
            &["events/s", "gate", "", "p50 ms", "p99 ms", "p99.9 ms", "CPU of one core"],
        );
        for (rate, events) in [(2_000, 20_000 * self.scale.min(3)), (200, 3_000)] {
            for (how, is_secure) in [("in plain text", false), ("over TLS 1.3", true)] {
                for (name, contender) in [
                    ("bare loop on one thread", Contender::BareTuned),
                    ("worker, embedded store", Contender::Worker("records")),
                ] {
                    let cells = self.waits_at((rate, events), is_secure, contender)?;
                    let row: Vec<String> =
                        [rate.to_string(), how.to_owned(), name.to_owned()].into_iter().chain(cells).collect();
                    self.page.row(&row);
                }
            }
        }
        Ok(())
    }

    /// How long events take to the gate at an even rate, and what that costs.
    fn waits_at(
        &self,
        (rate, events): (u32, u64),
        is_secure: bool,
        contender: Contender,
    ) -> anyhow::Result<[String; 4]> {
        let gate = self.gate(is_secure);
        let (home, queue) = self.new_integration(gate)?;
        self.bench.fill(&queue, 200, 0)?;
        gate.reset(Some(Duration::from_millis(5)));
        let process = self.start(contender, gate, (&home, &queue), 64)?;
        wait(PATIENCE, || Ok(gate.received() >= 200))?;
        gate.reset(Some(Duration::from_millis(5)));
        let (cpu, since) = (process.cpu()?, Instant::now());
        self.bench.trickle(&queue, rate, events)?;
        let share = (process.cpu()? - cpu) / since.elapsed().as_secs_f64();
        wait(PATIENCE, || Ok(gate.received() >= events))?;
        let waits = gate.waits_ms();
        let at = |permille: usize| format!("{:.2}", waits[(waits.len() - 1) * permille / 1_000]);
        let cells = [at(500), at(990), at(999), format!("{:.1} %", share * 100.0)];
        process.stop()?;
        Ok(cells)
    }

    fn memory(&mut self) -> anyhow::Result<()> {
        self.page.head("(d) Memory with a backlog, embedded store", &["waiting", "peak MB after 20,000 delivered"]);
        for waiting in [0, 100_000, 100_000 * self.scale].into_iter().take(if self.scale > 1 { 3 } else { 2 }) {
            let (home, queue) = self.new_integration(&self.gate)?;
            self.bench.fill(&queue, waiting + 20_000, 0)?;
            self.gate.reset(Some(Duration::from_millis(5)));
            let process = self.start(Contender::Worker("records"), &self.gate, (&home, &queue), 64)?;
            wait(PATIENCE, || Ok(self.gate.received() >= 20_000))?;
            self.page.row(&[waiting.to_string(), format!("{:.0}", process.peak_mb()?)]);
            process.stop()?;
            self.bench.purge(&queue)?;
        }
        Ok(())
    }

    fn many(&mut self) -> anyhow::Result<()> {
        self.page.head(
            "(e) Many integrations, embedded store, 200 events each",
            &[
                "integrations",
                "s to declare",
                "s from restart to ready",
                "idle MB",
                "threads",
                "all delivered, events/s",
                "peak MB",
            ],
        );
        for count in [1, 10, 100, 200] {
            let stamp = jiff::Timestamp::now().as_microsecond();
            let names: Vec<String> = (0..count).map(|n| format!("bench-{stamp}-{n}")).collect();
            let begun = Instant::now();
            let home = self.integration(&names)?;
            let declared = begun.elapsed();
            // The first start creates the records and makes them known to the broker.
            self.until_ready(&home)?.0.stop()?;
            let mut ready = Series::default();
            for _ in 1..ROUNDS {
                let (process, took) = self.until_ready(&home)?;
                process.stop()?;
                ready.push(took.as_secs_f64());
            }
            let (process, took) = self.until_ready(&home)?;
            ready.push(took.as_secs_f64());
            std::thread::sleep(IDLE);
            let (idle, threads) = (process.idle_mb()?, process.threads()?);
            process.stop()?;
            for name in &names {
                self.bench.fill(&format!("consent-gate.{name}"), 200, 0)?;
            }
            self.gate.reset(Some(Duration::from_millis(5)));
            let process = self.start(Contender::Worker("records"), &self.gate, (&home, ""), 64)?;
            wait(PATIENCE, || Ok(self.gate.received() > 0))?;
            let first = Instant::now();
            wait(PATIENCE, || Ok(self.gate.received() >= 200 * count))?;
            let rate = (200 * count) as f64 / first.elapsed().as_secs_f64();
            self.page.row(&[
                count.to_string(),
                format!("{:.1}", declared.as_secs_f64()),
                ready.shown(2),
                format!("{idle:.0}"),
                threads.to_string(),
                format!("{rate:.0}"),
                format!("{:.0}", process.peak_mb()?),
            ]);
            process.stop()?;
        }
        Ok(())
    }

    /// Starts a worker and waits until it consumes everything.
    fn until_ready(&self, home: &Path) -> anyhow::Result<(Process, Duration)> {
        let mut environment = self.environment("records", 64);
        environment.insert("CONSENT_GATE_LOG__LEVEL".to_owned(), "info".to_owned());
        let begun = Instant::now();
        let process = Process::start(&program("consent-gate")?, &["run"], home, &environment)?;
        wait(PATIENCE, || process.said("ready: consuming"))?;
        Ok((process, begun.elapsed()))
    }

    fn stores(&mut self) -> anyhow::Result<()> {
        self.head("(g) Stores: a gate that answers in 5 ms, 64 in flight");
        let mut contenders = vec![Contender::Worker("off"), Contender::Worker("records")];
        let mut names = vec!["off", "embedded"];
        if self.postgres.is_some() {
            contenders.push(Contender::Worker("postgres"));
            names.push("PostgreSQL on the same two cores");
        }
        let series =
            self.compare(&contenders, Load::of(20_000 * self.scale.min(3), Duration::from_millis(5), 64), ROUNDS)?;
        self.rows(&names, &series);
        Ok(())
    }

    fn size(&mut self) -> anyhow::Result<()> {
        self.page.head("Room for people in the embedded store", &["people", "MB", "bytes a person", "µs a person"]);
        for people in [100_000, 100_000 * self.scale].into_iter().take(if self.scale > 1 { 2 } else { 1 }) {
            let name = new_name();
            let home = self.integration(&[name])?;
            let directory = home.join("records");
            let place = Backend::Directory(directory.clone());
            let begun = Instant::now();
            size::fill(&home, RecordsSettings { place, ..RecordsSettings::default() }, people)?;
            let us = begun.elapsed().as_secs_f64() * 1e6 / people as f64;
            let bytes = size::on_disk(&directory)?;
            let each = bytes / people;
            self.page.row(&[people.to_string(), (bytes >> 20).to_string(), each.to_string(), format!("{us:.1}")]);
        }
        Ok(())
    }

    /// An even flow for a long time, with a gate that refuses for a while again and again: in the end, memory is to be
    /// the same as it was when everything had happened once.
    fn soak(&mut self) -> anyhow::Result<()> {
        let minutes = std::env::var("CONSENT_GATE_BENCH_SOAK_MINUTES").ok().map(|minutes| minutes.parse());
        let minutes: u64 = minutes.transpose()?.unwrap_or(SOAK_MINUTES);
        self.page.head(
            &format!(
                "Soak: {minutes} minutes at {SOAK_PER_SECOND} events/s of {SOAK_PEOPLE} people, embedded store, \
                 a gate that refuses everything for {} s of each minute",
                SOAK_OUTAGE.as_secs()
            ),
            &["minute", "MB", "threads", "descriptors", "accepted so far", "refused so far"],
        );
        let (home, queue) = self.new_integration(&self.gate)?;
        self.gate.reset(Some(Duration::from_millis(5)));
        let process = self.start(Contender::Worker("records"), &self.gate, (&home, &queue), 64)?;
        let (outage, part) = (SOAK_OUTAGE.as_secs(), SOAK_PART.as_secs());
        let mut sent = 0;
        for minute in 0..minutes {
            for (is_outage, seconds) in [(true, outage), (false, part - outage)] {
                self.gate.refuse(is_outage);
                let events = u64::from(SOAK_PER_SECOND) * seconds;
                let person = |n| format!("p{}@example.com", (sent + n) % SOAK_PEOPLE);
                self.bench.flow(&queue, SOAK_PER_SECOND, events, person)?;
                sent += events;
            }
            self.page.row(&[
                (minute + 1).to_string(),
                format!("{:.1}", process.idle_mb()?),
                process.threads()?.to_string(),
                process.descriptors()?.to_string(),
                self.gate.received().to_string(),
                self.gate.refused().to_string(),
            ]);
        }
        wait(PATIENCE, || Ok(self.gate.received() >= sent))?;
        process.stop()
    }

    /// The worker under callgrind, twice with each store: the difference is what events cost once it is warm.
    fn instructions(&mut self) -> anyhow::Result<()> {
        let (warm, events) = (2_000, 4_000);
        let mut columns = Vec::new();
        for (store, is_secure) in [("off", false), ("records", false), ("records", true)] {
            let mut runs = Vec::new();
            for count in [warm, warm + events] {
                runs.push(self.callgrind(store, is_secure, count)?);
            }
            columns.push(runs[0].per_event(&runs[1], events));
        }
        self.page.head(
            "Instructions for each event, by layer (callgrind, without the kernel's)",
            &["layer", "store off", "embedded store", "embedded store, gate over TLS 1.3"],
        );
        let total: Vec<f64> = columns.iter().map(|column| column.iter().map(|(_, count)| count).sum()).collect();
        for index in 0..columns[0].len() {
            let counts = columns.iter().map(|column| format!("{:.0}", column[index].1));
            let row: Vec<String> = [columns[0][index].0.to_owned()].into_iter().chain(counts).collect();
            self.page.row(&row);
        }
        let sums = total.iter().map(|total| format!("**{total:.0}**"));
        let row: Vec<String> = ["**all**".to_owned()].into_iter().chain(sums).collect();
        self.page.row(&row);
        Ok(())
    }

    fn callgrind(&self, store: &str, is_secure: bool, events: u64) -> anyhow::Result<Instructions> {
        let gate = self.gate(is_secure);
        let (home, queue) = self.new_integration(gate)?;
        self.bench.fill(&queue, events, 0)?;
        gate.reset(Some(Duration::ZERO));
        let (out, worker) = (home.join("callgrind.out"), program("consent-gate")?);
        let file = format!("--callgrind-out-file={}", out.display());
        let worker = worker.to_str().context("the folder's name is not Unicode")?;
        let mut environment = self.environment(store, 64);
        // Under callgrind everything takes fifty times as long.
        environment.insert("CONSENT_GATE_GATE__TIMEOUT".to_owned(), "60s".to_owned());
        environment.insert("CONSENT_GATE_RETRY__WINDOW".to_owned(), "1h".to_owned());
        let arguments = ["--tool=callgrind", "--dump-instr=no", &file, worker, "run"];
        let process = Process::start(Path::new("valgrind"), &arguments, &home, &environment)?;
        wait(PATIENCE, || Ok(gate.received() >= events))?;
        process.stop()?;
        Instructions::read(&out)
    }

    fn cold(&mut self) -> anyhow::Result<()> {
        self.page.head("(i) From start to the first request", &["", "ms"]);
        let mut first = Series::default();
        for _ in 0..ROUNDS {
            first.push(self.measure(Contender::Worker("records"), Load::of(100, Duration::ZERO, 64))?.first_ms);
        }
        self.page.row(&["one integration, embedded store".to_owned(), first.shown(0)]);
        Ok(())
    }

    fn hanging(&mut self) -> anyhow::Result<()> {
        self.page.head(
            "(f) One of ten gates never answers: the other nine, embedded store, 64 in flight each",
            &["", "the nine, events/s", "×", "p99 ms at 500 events/s"],
        );
        let silent = Gate::listen()?;
        silent.reset(None);
        let (events, mut base) = (1_000 * self.scale.min(5), None);
        for (name, url) in [("none hangs", self.gate.url.clone()), ("one hangs", silent.url.clone())] {
            let stamp = jiff::Timestamp::now().as_microsecond();
            let names: Vec<String> = (0..10).map(|n| format!("bench-{stamp}-{n}")).collect();
            let home = self.integration(&names)?;
            let document = home.join(format!("integrations/{}.json", names[9]));
            fs::write(&document, fs::read_to_string(&document)?.replace(&self.gate.url, &url))?;
            for name in &names {
                self.bench.fill(&format!("consent-gate.{name}"), events, 0)?;
            }
            let (is_one_silent, from) = (url == silent.url, events * 9 / 10);
            let all = if is_one_silent { events * 9 } else { events * 10 };
            self.gate.reset(Some(Duration::from_millis(5)));
            let process = self.start(Contender::Worker("records"), &self.gate, (&home, ""), 64)?;
            wait(PATIENCE, || Ok(self.gate.received() >= from))?;
            let since = Instant::now();
            wait(PATIENCE, || Ok(self.gate.received() >= all))?;
            // If all ten gates answer, nine tenths of the answers are the nine's.
            let nine = if is_one_silent { all - from } else { (all - from) * 9 / 10 };
            let rate = nine as f64 / since.elapsed().as_secs_f64();
            self.gate.reset(Some(Duration::from_millis(5)));
            self.bench.trickle(&format!("consent-gate.{}", names[0]), 500, 3_000)?;
            wait(PATIENCE, || Ok(self.gate.received() >= 3_000))?;
            let waits = self.gate.waits_ms();
            let p99 = waits[(waits.len() - 1) * 99 / 100];
            let base = *base.get_or_insert(rate);
            self.page.row(&[name.to_owned(), format!("{rate:.0}"), format!("{:.2}", rate / base), format!("{p99:.1}")]);
            process.stop()?;
        }
        Ok(())
    }

    fn replay(&mut self) -> anyhow::Result<()> {
        self.page.head(
            "(h) Replay of dead letters, as fast as it goes",
            &["letters", "moved, letters/s", "with the look before, letters/s"],
        );
        let letters = 20_000 * self.scale.min(5);
        let name = new_name();
        let home = self.integration(std::slice::from_ref(&name))?;
        self.bench.fill(&format!("consent-gate.{name}.dead"), letters, 0)?;
        let begun = Instant::now();
        let arguments = ["dead", "replay", "--integration", &name, "--yes", "--canary", "0", "--rate", "100000/s"];
        let mut environment = self.environment("off", 64);
        environment.insert("CONSENT_GATE_LOG__LEVEL".to_owned(), "error".to_owned());
        let output = std::process::Command::new(program("consent-gate")?)
            .args(arguments)
            .current_dir(&home)
            .envs(environment)
            .stderr(std::process::Stdio::null())
            .output()?;
        anyhow::ensure!(output.status.success(), "replay failed");
        let whole = letters as f64 / begun.elapsed().as_secs_f64();
        // Its report says: sent N in S s, R/s
        let report = String::from_utf8_lossy(&output.stdout).into_owned();
        let sent = report.lines().find(|line| line.trim_start().starts_with("sent")).context("no report")?;
        let moved = sent.rsplit(' ').next().unwrap_or_default().trim_end_matches("/s");
        self.page.row(&[letters.to_string(), moved.to_owned(), format!("{whole:.0}")]);
        Ok(())
    }

    fn adaptive(&mut self) -> anyhow::Result<()> {
        self.page.head(
            "Limits that are fixed, and one that is found, of gates that take 20 ms; embedded store",
            &["gate", "limit", "served/s", "refused", "mean ms"],
        );
        let shapes = [
            ("has room", 0, false),
            ("slower and slower beyond 16 at once", 16, false),
            ("429 beyond 16 at once", 16, true),
        ];
        for (shape, knee, refuses) in shapes {
            for (limit, is_adaptive, most) in [("8", "false", 8), ("64", "false", 64), ("found, up to 64", "true", 64)]
            {
                let (home, queue) = self.new_integration(&self.gate)?;
                // More than any of them can serve.
                self.bench.fill(&queue, 50_000, 0)?;
                self.gate.reset(Some(Duration::from_millis(20)));
                self.gate.bend(knee, refuses);
                let mut environment = self.environment("records", most);
                environment.insert("CONSENT_GATE_GATE__ADAPTIVE".to_owned(), is_adaptive.to_owned());
                let process = Process::start(&program("consent-gate")?, &["run"], &home, &environment)?;
                wait(PATIENCE, || Ok(self.gate.received() > 0))?;
                let since = Instant::now();
                wait(PATIENCE, || Ok(since.elapsed() >= LONG_ENOUGH))?;
                let (served, refused) = (self.gate.received() as f64, self.gate.refused() as f64);
                self.page.row(&[
                    shape.to_owned(),
                    limit.to_owned(),
                    format!("{:.0}", served / since.elapsed().as_secs_f64()),
                    format!("{:.0} %", refused / (served + refused) * 100.0),
                    format!("{:.0}", self.gate.mean_ms()),
                ]);
                process.stop()?;
                self.bench.purge(&queue)?;
            }
        }
        self.gate.reset(None);
        Ok(())
    }

    fn large(&mut self) -> anyhow::Result<()> {
        self.head("(j) Events of 30 KB: a gate that answers at once, 256 in flight");
        let contenders = [Contender::Bare, Contender::Worker("records")];
        let series =
            self.compare(&contenders, Load { bytes: 30_000, ..Load::of(8_000, Duration::ZERO, 256) }, ROUNDS)?;
        self.rows(&["bare loop", "worker, embedded store"], &series);
        Ok(())
    }
}
