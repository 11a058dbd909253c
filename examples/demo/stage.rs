//! The simulated gate, the worker, and a publisher; all of them end with the stage.

use anyhow::{Context, bail};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the worker waits between attempts: a shortened form of the default.
const DELAYS_SECONDS: [u32; 4] = [1, 2, 3, 4];
const WORKER_LOG: &str = "worker.log";
const START_PATIENCE: Duration = Duration::from_secs(30);

pub struct Stage {
    folder: PathBuf,
    environment: BTreeMap<&'static str, String>,
    processes: Vec<Child>,
    integrations: [String; 2],
    exchange: String,
    gate: String,
    worker: String,
    client: reqwest::Client,
    connection: Connection,
    channel: Channel,
}

impl Stage {
    /// Starts everything; documents and logs are in `folder`.
    pub async fn set(folder: &Path, broker: &str) -> anyhow::Result<Stage> {
        let suffix = std::process::id();
        let integrations = [format!("demo-shop-{suffix}"), format!("demo-magazine-{suffix}")];
        let exchange = format!("demo-consents-{suffix}");
        let mut processes = Vec::new();
        let gate = start_gate(folder, &integrations, &mut processes)?;
        for (name, document) in integrations.iter().zip(documents(&gate)) {
            write(&folder.join("integrations").join(format!("{name}.json")), &document)?;
        }
        let environment = environment(broker, &exchange);
        let worker = start_worker(folder, &environment, &mut processes)?;
        let connection = Connection::connect(broker, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let client = reqwest::Client::new();
        let folder = folder.to_owned();
        Ok(Stage { folder, environment, processes, integrations, exchange, gate, worker, client, connection, channel })
    }

    pub fn integrations(&self) -> &[String; 2] {
        &self.integrations
    }

    pub fn gate_url(&self) -> &str {
        &self.gate
    }

    pub fn worker_url(&self) -> &str {
        &self.worker
    }

    pub fn worker_log(&self) -> PathBuf {
        self.folder.join(WORKER_LOG)
    }

    /// Runs an operator's command beside the running worker, and returns what it prints.
    pub async fn command(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(program("consent-gate")?);
        command.args(arguments).current_dir(&self.folder).envs(&self.environment).stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        anyhow::ensure!(output.status.success(), "{arguments:?}: {err}");
        Ok(out.into_owned())
    }

    /// Publishes one message and waits until the broker has it.
    pub async fn publish(&self, body: &[u8]) -> anyhow::Result<()> {
        let properties = BasicProperties::default().with_delivery_mode(2);
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let publish =
            self.channel.basic_publish(self.exchange.as_str().into(), "consents".into(), options, body, properties);
        if publish.await?.await? != lapin::Confirmation::Ack(None) {
            bail!("the broker did not take an event");
        }
        Ok(())
    }

    /// Every profile that the gate has: integration, identifier, properties.
    pub async fn profiles(&self) -> anyhow::Result<Value> {
        let text = self.client.get(format!("{}/profiles", self.gate)).send().await?.text().await?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Sets what the gate does wrong from now on.
    pub async fn faults(&self, rules: Value) -> anyhow::Result<()> {
        let set = self.client.put(format!("{}/faults", self.gate)).body(rules.to_string()).send().await?;
        anyhow::ensure!(set.status().is_success(), "the simulator refuses the faults");
        Ok(())
    }

    /// When the first gate received each request about a person, in milliseconds after the first request, and what
    /// each said about the newsletter.
    pub async fn attempts(&self, person: &str) -> anyhow::Result<Vec<(i64, String)>> {
        let text = self.client.get(format!("{}/requests", self.gate)).send().await?.text().await?;
        let requests: Value = serde_json::from_str(&text)?;
        let of_person = |request: &&Value| {
            request["identifier"] == person && request["integration"] == self.integrations[0].as_str()
        };
        let requests = requests["recent"].as_array().context("no requests")?.iter().filter(of_person);
        let mut attempts = requests
            .map(|request| {
                let at = request["at"].as_str().context("no time")?.parse::<jiff::Timestamp>()?.as_millisecond();
                let said = request["properties"]["OPTIN_NEWS"].as_str().unwrap_or("nothing");
                Ok((at, said.to_owned()))
            })
            .collect::<anyhow::Result<Vec<(i64, String)>>>()?;
        attempts.sort_unstable();
        let first = attempts.first().map_or(0, |(at, _)| *at);
        Ok(attempts.into_iter().map(|(at, said)| (at - first, said)).collect())
    }

    /// What the worker's metrics page says.
    pub async fn numbers(&self) -> anyhow::Result<Numbers> {
        let page = self.client.get(format!("{}/metrics", self.worker)).send().await?.text().await?;
        Ok(Numbers(page.lines().filter(|line| !line.starts_with('#')).filter_map(series).collect()))
    }

    /// Ends everything that was started and deletes what was declared.
    pub async fn strike(mut self) {
        for process in self.processes.iter_mut().rev() {
            // A process that has ended already is just as good.
            let _ = Command::new("kill").arg(process.id().to_string()).stderr(Stdio::null()).status();
            let _ = process.wait();
        }
        for integration in &self.integrations {
            let delays = DELAYS_SECONDS.map(|seconds| format!(".delay.{}", seconds * 1000));
            for suffix in ["", ".retry", ".dead", ".aside", ".dead.marks", ".audit", ".unreadable", ".store"]
                .map(str::to_owned)
                .into_iter()
                .chain(delays)
            {
                let queue = format!("consent-gate.{integration}{suffix}");
                let _ = self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await;
            }
        }
        let _ = self.channel.exchange_delete(self.exchange.as_str().into(), ExchangeDeleteOptions::default()).await;
        let _ = self.connection.close(200, "done".into()).await;
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Two customers, each with their own fields, behind one simulator.
fn documents(gate: &str) -> [Value; 2] {
    let document = |user: &str, gate_name: &str, mappings: Value| {
        json!({
            "type_id": "selligent",
            "authentication": { "username": user, "password": format!("{user}-demo-key") },
            "properties": { "url": gate, "gate": gate_name },
            "mappings": mappings,
            "upsert_mode": true,
        })
    };
    [
        document(
            "shop",
            "shop-consents",
            json!([
                { "id": "MAIL", "value": "organization_user_id" },
                { "id": "OPTIN_NEWS", "value": "consents_purposes_newsletter_enabled", "true": "Y", "false": "N" },
                { "id": "OPTIN_SMS", "value": "consents_purposes_sms_offers_enabled", "true": "Y", "false": "N" },
                { "id": "SOURCE", "constant": "didomi" },
            ]),
        ),
        document(
            "magazine",
            "magazine-consents",
            json!([
                { "id": "EMAIL", "value": "organization_user_id" },
                { "id": "NEWSLETTER", "value": "consents_purposes_newsletter_enabled" },
                { "id": "CHANGED", "value": "created_at", "date_format": "%Y%m%d" },
            ]),
        ),
    ]
}

fn write(path: &Path, document: &Value) -> anyhow::Result<()> {
    fs::create_dir_all(path.parent().context("no folder")?)?;
    Ok(fs::write(path, format!("{document:#}\n"))?)
}

/// Programs of the same build.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe()?;
    Ok(here.ancestors().nth(2).context("no target folder")?.join(name))
}

fn start(command: &mut Command, log: &Path) -> anyhow::Result<Child> {
    let file = File::create(log)?;
    let name = command.get_program().to_string_lossy().into_owned();
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("cannot start {name}"))
}

fn start_gate(folder: &Path, integrations: &[String; 2], processes: &mut Vec<Child>) -> anyhow::Result<String> {
    let mut command = Command::new(program("gate-simulator")?);
    command.args(["--listen", "127.0.0.1:0", "--integration"]);
    for (name, document) in integrations.iter().zip(documents("https://gate.invalid")) {
        let path = folder.join("gate").join(format!("{name}.json"));
        write(&path, &document)?;
        command.arg(path);
    }
    let log = folder.join("gate-simulator.log");
    processes.push(start(&mut command, &log)?);
    let line = wait_for(&log, "listening on ", processes)?;
    Ok(line.rsplit(' ').next().unwrap_or_default().to_owned())
}

fn environment(broker: &str, exchange: &str) -> BTreeMap<&'static str, String> {
    let delays = DELAYS_SECONDS.map(|seconds| format!("\"{seconds}s\"")).join(", ");
    BTreeMap::from([
        ("CONSENT_GATE_RETRY__DELAYS", format!("[{delays}]")),
        ("CONSENT_GATE_BROKER__URL", broker.to_owned()),
        ("CONSENT_GATE_SOURCE__EXCHANGE", exchange.to_owned()),
        ("CONSENT_GATE_ADMIN__LISTEN", "127.0.0.1:0".to_owned()),
        ("CONSENT_GATE_LOG__FORMAT", "json".to_owned()),
    ])
}

fn start_worker(
    folder: &Path,
    environment: &BTreeMap<&'static str, String>,
    processes: &mut Vec<Child>,
) -> anyhow::Result<String> {
    let mut command = Command::new(program("consent-gate")?);
    command.arg("run").current_dir(folder).envs(environment);
    let log = folder.join(WORKER_LOG);
    processes.push(start(&mut command, &log)?);
    wait_for(&log, "ready: consuming", processes)?;
    let line = wait_for(&log, "\"starting\"", processes)?;
    let told: Value = serde_json::from_str(&line)?;
    Ok(format!("http://{}", told["admin"].as_str().context("no admin address")?))
}

/// Waits for a line of a program's log; the program ending or a long silence is an error.
fn wait_for(log: &Path, part: &str, processes: &mut [Child]) -> anyhow::Result<String> {
    let deadline = Instant::now() + START_PATIENCE;
    loop {
        let text = fs::read_to_string(log)?;
        if let Some(line) = text.lines().find(|line| line.contains(part)) {
            return Ok(line.to_owned());
        }
        let ended = processes.last_mut().is_some_and(|process| !matches!(process.try_wait(), Ok(None)));
        if ended || Instant::now() > deadline {
            for process in processes.iter_mut() {
                let _ = process.kill();
            }
            bail!("it did not start:\n{text}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One scrape: the value of each series.
pub struct Numbers(BTreeMap<String, f64>);

fn series(line: &str) -> Option<(String, f64)> {
    let (name, value) = line.rsplit_once(' ')?;
    Some((name.to_owned(), value.parse().ok()?))
}

impl Numbers {
    /// The sum of all series of a metric that contain `label`.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts of a demonstration")]
    pub fn sum(&self, metric: &str, label: &str) -> u64 {
        let prefix = format!("consent_gate_{metric}{{");
        self.0
            .iter()
            .filter(|(name, _)| name.starts_with(&prefix) && name.contains(label))
            .map(|(_, value)| value)
            .sum::<f64>() as u64
    }

    /// Events that reached their end, over all integrations.
    pub fn settled(&self) -> u64 {
        self.sum("events_total", "outcome=")
    }

    /// Each value of a label whose count is not zero, with its count.
    pub fn by(&self, metric: &str, label: &str) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for name in self.0.keys().filter(|name| name.starts_with(&format!("consent_gate_{metric}{{"))) {
            let value = name.split(&format!("{label}=\"")).nth(1).and_then(|rest| rest.split('"').next());
            if let Some(value) = value {
                counts.insert(value.to_owned(), self.sum(metric, &format!("{label}=\"{value}\"")));
            }
        }
        counts.retain(|_, count| *count > 0);
        counts
    }

    /// The upper bound, in seconds, of the bucket that holds this share of the consent latencies.
    pub fn latency(&self, share: f64) -> Option<f64> {
        let mut buckets: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
        for (name, count) in
            self.0.iter().filter(|(name, _)| name.starts_with("consent_gate_consent_latency_seconds_bucket"))
        {
            let bound = name.split("le=\"").nth(1)?.split('"').next()?.parse::<f64>().unwrap_or(f64::INFINITY);
            buckets.entry(bound.to_bits()).or_insert((bound, 0.0)).1 += count;
        }
        let total = buckets.values().last()?.1;
        buckets.values().find(|(_, count)| total > 0.0 && *count >= share * total).map(|(bound, _)| *bound)
    }
}
