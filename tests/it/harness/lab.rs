//! One test's environment: an exchange, integrations with simulated gates, and a worker.

use super::broker::{self, Bench, Message};
use super::process::{Finished, Running};
use super::{Folder, Letter, poll_until, unique};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::BufReader;
use std::path::PathBuf;
use std::process::ChildStderr;
use std::rc::Rc;
use std::time::Duration;

/// The key of every simulated gate; no log may show it.
pub const PASSWORD: &str = "s3cr3t-encryption-key";

/// A simulated gate and the integration that points at it.
pub struct Simulated {
    pub integration: String,
    base: String,
    _process: Rc<Running>,
}

pub struct Lab {
    pub folder: Folder,
    pub bench: Bench,
    pub exchange: String,
    pub environment: BTreeMap<String, String>,
    pub simulated: Vec<Simulated>,
    pub worker: Option<Running>,
    client: reqwest::Client,
    delays_ms: Vec<u64>,
    extra_queues: Vec<String>,
}

/// The delays between attempts in most tests.
const DELAYS_MS: [u64; 4] = [50, 100, 150, 200];

/// The integration document of most tests.
pub fn document(base: &str) -> Value {
    json!({
        "type_id": "selligent",
        "authentication": { "username": "api_user", "password": PASSWORD },
        "properties": { "url": base, "gate": "didomi" },
        "mappings": [
            { "id": "MAIL", "value": "organization_user_id" },
            { "id": "OPTIN_NEWS", "value": "consents_purposes_newsletter_enabled" },
            { "id": "SOURCE", "constant": "didomi" },
        ],
        "upsert_mode": true,
    })
}

impl Lab {
    /// A lab with one integration for each change of the usual document.
    pub fn with(changes: &[&dyn Fn(&mut Value)]) -> Lab {
        Lab::at(&broker::url(), changes)
    }

    /// The same at the broker with this URL.
    pub fn at(url: &str, changes: &[&dyn Fn(&mut Value)]) -> Lab {
        let exchange = unique();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut lab = Lab {
            folder: Folder::new(),
            bench: Bench::at(url),
            environment: BTreeMap::from([
                ("CONSENT_GATE_BROKER__URL".to_owned(), url.to_owned()),
                ("CONSENT_GATE_SOURCE__EXCHANGE".to_owned(), exchange.clone()),
                ("CONSENT_GATE_ADMIN__LISTEN".to_owned(), "127.0.0.1:0".to_owned()),
                ("CONSENT_GATE_LOG__LEVEL".to_owned(), "debug".to_owned()),
            ]),
            exchange,
            simulated: Vec::new(),
            worker: None,
            // A server may close an idle connection just when it is used again.
            client: reqwest::Client::builder()
                .pool_idle_timeout(Duration::from_secs(1))
                .timeout(Duration::from_secs(30))
                .build()
                .unwrap(),
            delays_ms: Vec::new(),
            extra_queues: Vec::new(),
        };
        lab.set_delays(&DELAYS_MS);
        for change in changes {
            lab.add(1, change);
        }
        lab
    }

    /// A lab with one integration.
    pub fn new() -> Lab {
        Lab::with(&[&|_| {}])
    }

    /// A lab with `count` integrations at one simulated gate.
    pub fn with_many(count: usize) -> Lab {
        let mut lab = Lab::with(&[]);
        lab.add(count, &|_| {});
        lab
    }

    /// Adds integrations that share one simulated gate.
    fn add(&mut self, count: usize, change: &dyn Fn(&mut Value)) {
        let names: Vec<String> = (0..count).map(|_| unique()).collect();
        let mut first = document("https://example.invalid");
        change(&mut first);
        let mut arguments = vec!["--listen".to_owned(), "127.0.0.1:0".to_owned(), "--integration".to_owned()];
        for name in &names {
            let path = self.folder.write(&format!("simulated/{name}.json"), first.to_string());
            arguments.push(path.to_str().unwrap().to_owned());
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let program = env!("CARGO_BIN_EXE_gate-simulator");
        let mut process = Running::start(program, &self.folder, &BTreeMap::new(), &arguments);
        let line = process.line_with("listening on ");
        let base = line.rsplit(' ').next().unwrap().to_owned();
        let process = Rc::new(process);
        let mut document = document(&base);
        change(&mut document);
        for integration in names {
            self.folder.write(&format!("integrations/{integration}.json"), document.to_string());
            self.simulated.push(Simulated { integration, base: base.clone(), _process: Rc::clone(&process) });
        }
    }

    /// The name of the first integration.
    pub fn integration(&self) -> &str {
        &self.simulated[0].integration
    }

    pub fn queue(&self, suffix: &str) -> String {
        format!("consent-gate.{}{suffix}", self.integration())
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    /// Sets the delays between attempts, in milliseconds.
    pub fn set_delays(&mut self, delays_ms: &[u64]) {
        let delays: Vec<String> = delays_ms.iter().map(|ms| format!("\"{ms}ms\"")).collect();
        self.set("CONSENT_GATE_RETRY__DELAYS", &format!("[{}]", delays.join(", ")));
        self.delays_ms.extend(delays_ms);
    }

    /// Deletes this queue together with the lab.
    pub fn also_delete(&mut self, queue: &str) {
        self.extra_queues.push(queue.to_owned());
    }

    /// Starts the worker without waiting for it to be ready.
    pub fn spawn(&mut self) {
        let program = env!("CARGO_BIN_EXE_consent-gate");
        self.worker = Some(Running::start(program, &self.folder, &self.environment, &["run"]));
    }

    /// Starts the worker through another program, called with these words, and waits until it consumes.
    pub fn start_by(&mut self, words: &[&str]) {
        let words = [words, &[env!("CARGO_BIN_EXE_consent-gate"), "run"]].concat();
        self.worker = Some(Running::start(words[0], &self.folder, &self.environment, &words[1..]));
        self.worker().line_with("ready: consuming");
    }

    /// Starts the worker with a pipe as its standard error, of which only the first lines are read.
    /// Waits until it consumes.
    pub fn start_with_pipe(&mut self) -> BufReader<ChildStderr> {
        let program = env!("CARGO_BIN_EXE_consent-gate");
        let (worker, errors) =
            Running::start_with_pipe(program, &self.folder, &self.environment, &["run"], "\"starting\"");
        self.worker = Some(worker);
        poll_until("the worker to be ready", || (self.admin("/readyz").0 == 200).then_some(()));
        errors
    }

    /// Starts the worker and waits until it consumes.
    pub fn start(&mut self) {
        self.spawn();
        self.worker().line_with("ready: consuming");
    }

    pub fn worker(&mut self) -> &mut Running {
        self.worker.as_mut().unwrap()
    }

    /// Stops the worker in order, and asserts that it exits with 0.
    pub fn stop(&mut self) {
        self.worker().signal("TERM");
        assert_eq!(self.worker().ended(), Some(0));
    }

    /// Runs a command to its end, with the worker's environment.
    pub fn run(&self, arguments: &[&str], input: &[u8]) -> Finished {
        self.run_with(&[], arguments, input)
    }

    /// The same, with these variables added to the worker's or replacing them.
    pub fn run_with(&self, more: &[(&str, &str)], arguments: &[&str], input: &[u8]) -> Finished {
        let own = self.environment.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let environment: Vec<(&str, &str)> = own.chain(more.iter().copied()).collect();
        super::run(&self.folder, &environment, arguments, input)
    }

    /// The file of an integration's document.
    pub fn file(&self, index: usize) -> PathBuf {
        self.folder.0.join(format!("integrations/{}.json", self.simulated[index].integration))
    }

    /// Changes an integration's document.
    pub fn edit(&self, index: usize, change: impl FnOnce(&mut Value)) {
        let path = self.file(index);
        let mut document: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut document);
        fs::write(&path, document.to_string()).unwrap();
    }

    pub fn declare(&self) {
        let declared = self.run(&["declare"], b"");
        assert_eq!(declared.code, 0, "{}", declared.err);
    }

    pub fn publish(&self, messages: Vec<Message>) {
        self.bench.publish(&self.exchange, "consents.event", messages);
    }

    /// Connects again to a broker that was down.
    pub fn look_for_the_broker(&mut self) {
        let url = self.environment["CONSENT_GATE_BROKER__URL"].clone();
        self.look_for_the_broker_at(&url);
    }

    fn look_for_the_broker_at(&mut self, url: &str) {
        if let Some(bench) = Bench::try_at(url) {
            self.bench = bench;
        }
    }

    /// Publishes to a broker that is not always up, until it has confirmed everything.
    pub fn publish_surely(&mut self, messages: Vec<Message>) {
        let url = self.environment["CONSENT_GATE_BROKER__URL"].clone();
        self.publish_surely_at(&url, messages);
    }

    /// The same at the broker with this URL.
    pub fn publish_surely_at(&mut self, url: &str, mut messages: Vec<Message>) {
        poll_until("every confirm", || {
            match self.bench.try_publish(&self.exchange, "consents.event", &messages) {
                Ok(confirmed) => drop(messages.drain(..confirmed)),
                Err(_) => self.look_for_the_broker_at(url),
            }
            messages.is_empty().then_some(())
        });
    }

    /// The URL of the worker's admin port.
    pub fn admin_address(&mut self) -> String {
        let line: Value = serde_json::from_str(&self.worker().line_with("\"starting\"")).unwrap();
        format!("http://{}", line["admin"].as_str().unwrap())
    }

    /// GET of the worker's admin port: status and body.
    pub fn admin(&mut self, path: &str) -> (u16, String) {
        let url = format!("{}{path}", self.admin_address());
        self.bench.block_on(async {
            // The worker may close a connection just when a request is written to it.
            let response = match self.client.get(&url).send().await {
                Ok(response) => response,
                Err(_) => self.client.get(&url).send().await.unwrap(),
            };
            (response.status().as_u16(), response.text().await.unwrap())
        })
    }

    /// A series' value on the metrics page.
    pub fn metric(&mut self, series: &str) -> f64 {
        let (_, page) = self.admin("/metrics");
        let line = page.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        let line = line.unwrap_or_else(|| panic!("no series {series} in\n{page}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Waits until `count` events of the first integration are settled.
    pub fn settled(&mut self, count: usize) {
        let name = self.integration().to_owned();
        self.settled_of(&name, count);
    }

    #[expect(clippy::cast_precision_loss, reason = "tests settle few events")]
    pub fn settled_of(&mut self, integration: &str, count: usize) {
        let series =
            |outcome| format!("consent_gate_events_total{{integration=\"{integration}\",outcome=\"{outcome}\"}}");
        poll_until(&format!("{count} settled events of {integration}"), || {
            let settled: f64 = ["delivered", "skipped", "dead_lettered"].map(|o| self.metric(&series(o))).iter().sum();
            (settled >= count as f64).then_some(())
        });
    }

    /// Takes the first integration's dead letters.
    pub fn dead(&self) -> Vec<Letter> {
        self.bench.take_all(&self.queue(".dead"))
    }

    pub fn gate(&self, index: usize) -> Gate<'_> {
        Gate { lab: self, base: &self.simulated[index].base, integration: &self.simulated[index].integration }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.worker = None;
        for simulated in &self.simulated {
            let delays = self.delays_ms.iter().map(|ms| format!(".delay.{ms}"));
            for suffix in ["", ".retry", ".dead", ".aside", ".dead.marks", ".audit", ".unreadable", ".store"]
                .map(str::to_owned)
                .into_iter()
                .chain(delays)
            {
                self.bench.delete_queue(&format!("consent-gate.{}{suffix}", simulated.integration));
            }
        }
        for queue in &self.extra_queues {
            self.bench.delete_queue(queue);
        }
        self.bench.delete_exchange(&self.exchange);
    }
}

/// One simulated gate, as its users see it.
pub struct Gate<'l> {
    lab: &'l Lab,
    base: &'l str,
    integration: &'l str,
}

impl Gate<'_> {
    /// Its base URL.
    pub fn base(&self) -> &str {
        self.base
    }

    fn get(&self, path: &str) -> Value {
        let url = format!("{}{path}", self.base);
        self.lab.bench.block_on(async {
            let text = self.lab.client.get(url).send().await.unwrap().text().await.unwrap();
            serde_json::from_str(&text).unwrap()
        })
    }

    /// All profiles: identifier to properties.
    pub fn profiles(&self) -> Value {
        self.get("/profiles")[self.integration].clone()
    }

    /// Counters and the recent requests.
    pub fn requests(&self) -> Value {
        self.get("/requests")
    }

    /// How many requests had this outcome.
    pub fn outcome(&self, outcome: &str) -> u64 {
        self.requests()["outcomes"][outcome].as_u64().unwrap()
    }

    /// Replaces the faults.
    pub fn faults(&self, rules: Value) {
        let url = format!("{}/faults", self.base);
        self.lab.bench.block_on(async {
            let response = self.lab.client.put(url).body(rules.to_string()).send().await.unwrap();
            assert!(response.status().is_success(), "{}", response.text().await.unwrap());
        });
    }

    /// How many requests the first rule affected.
    pub fn affected(&self) -> u64 {
        self.get("/faults")[0]["affected"].as_u64().unwrap()
    }

    /// Asserts that the gate reported no bad requests, apart from the faults that were configured.
    pub fn saw_only_good_requests(&self) {
        let outcomes = self.requests()["outcomes"].clone();
        for (outcome, count) in outcomes.as_object().unwrap() {
            let fine = matches!(outcome.as_str(), "accepted" | "fault" | "abandoned");
            assert!(fine || count == 0, "{outcomes}");
        }
    }
}
