//! A publisher and an operator at a real broker.

use super::Folder;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions,
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind, Queue};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::runtime::Runtime;

/// The broker of the tests.
pub fn url() -> String {
    std::env::var("CONSENT_GATE_TEST_BROKER_URL").expect(
        "these tests need a broker: run scripts/test, or set CONSENT_GATE_TEST_BROKER_URL to one whose queues may be touched",
    )
}

/// Runs `rabbitmqctl` against the tests' own node, and returns its output.
pub fn ctl(arguments: &[&str]) -> String {
    let node = std::env::var("CONSENT_GATE_TEST_BROKER_NODE")
        .expect("this test needs a broker of the tests' own: run scripts/test without CONSENT_GATE_TEST_BROKER_URL");
    let script = super::project().join("scripts/broker");
    let output = std::process::Command::new(script).args(["ctl", &node]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// How many messages of these queues, on the tests' own node, are unacked.
pub fn unacked(queues: &[String]) -> u32 {
    let listed = ctl(&["--silent", "list_queues", "name", "messages_unacknowledged"]);
    let rows = listed.lines().filter_map(|line| line.split_once('\t'));
    let ours = rows.filter(|(name, _)| queues.iter().any(|queue| queue == name));
    ours.map(|(_, count)| count.trim().parse::<u32>().unwrap()).sum()
}

/// A broker node for a single test, which may stop and kill it.
pub struct Node {
    folder: Folder,
    environment: Vec<(&'static str, String)>,
    /// Its URL, whether it runs or not.
    pub url: String,
}

impl Node {
    /// Starts a node.
    pub fn start() -> Node {
        Node::with(Vec::new())
    }

    /// Starts a node with the shovel plugin.
    pub fn with_shovel() -> Node {
        Node::with(vec![("CONSENT_GATE_BROKER_PLUGINS", "rabbitmq_shovel".to_owned())])
    }

    /// Starts a cluster of three. The first node must outlive the others.
    pub fn cluster() -> [Node; 3] {
        let first = Node::start();
        let joins = first.folder.0.join("node").to_str().unwrap().to_owned();
        let joining = || Node::with(vec![("CONSENT_GATE_BROKER_JOIN", joins.clone())]);
        let (second, third) = (joining(), joining());
        [first, second, third]
    }

    fn with(environment: Vec<(&'static str, String)>) -> Node {
        let mut node = Node { folder: Folder::new(), environment, url: String::new() };
        node.url = node.script("start", &[]).trim().into();
        node
    }

    /// The node's folder, as `scripts/broker` creates it.
    pub fn place(&self) -> std::path::PathBuf {
        self.folder.0.join("node")
    }

    fn script(&self, verb: &str, arguments: &[&str]) -> String {
        let mut command = std::process::Command::new(super::project().join("scripts/broker"));
        command.env("CONSENT_GATE_BROKER_FROM", "packages").envs(self.environment.iter().cloned());
        let output = command.arg(verb).arg(self.place()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{verb} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts it again with its data.
    pub fn restart(&self) {
        assert_eq!(self.script("start", &[]).trim(), self.url);
    }

    /// Stops it in order.
    pub fn stop(&self) {
        self.script("stop", &[]);
    }

    pub fn kill(&self) {
        self.script("kill", &[]);
    }

    /// Sends its process a signal.
    pub fn signal(&self, name: &str) {
        let pid = std::fs::read_to_string(self.folder.0.join("node/node.pid")).unwrap();
        let status = std::process::Command::new("kill").args([&format!("-{name}"), pid.trim()]).status().unwrap();
        assert!(status.success());
    }

    /// Runs `rabbitmqctl` on it.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        self.script("ctl", arguments)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.script("remove", &[]);
    }
}

/// What a publisher sends.
pub struct Message {
    pub body: Vec<u8>,
    pub properties: BasicProperties,
}

impl From<Vec<u8>> for Message {
    fn from(body: Vec<u8>) -> Message {
        Message { body, properties: BasicProperties::default().with_delivery_mode(2) }
    }
}

impl From<serde_json::Value> for Message {
    fn from(body: serde_json::Value) -> Message {
        body.to_string().into_bytes().into()
    }
}

/// What an operator finds in a queue.
pub struct Letter {
    pub body: Vec<u8>,
    pub properties: BasicProperties,
}

impl Letter {
    /// The identifier of its event's person.
    pub fn person(&self) -> String {
        let event: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        event["parameters"]["entity"]["user"]["organization_user_id"].as_str().unwrap().to_owned()
    }

    /// A header's text or number; `None` when it is absent.
    pub fn header(&self, name: &str) -> Option<String> {
        let value = self.properties.headers().as_ref()?.inner().get(name)?;
        Some(match value {
            AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
            AMQPValue::LongLongInt(number) => number.to_string(),
            other => format!("{other:?}"),
        })
    }

    /// Its `consent-gate-history`: each attempt by key, without the results' names.
    pub fn history(&self) -> Vec<BTreeMap<String, i64>> {
        let headers = self.properties.headers().clone().unwrap_or_default();
        let Some(AMQPValue::FieldArray(attempts)) = headers.inner().get("consent-gate-history") else {
            return Vec::new();
        };
        let attempts = attempts.as_slice().iter().map(|attempt| {
            let AMQPValue::FieldTable(attempt) = attempt else { panic!("{attempt:?} is no table") };
            let numbers = attempt.inner().iter().filter_map(|(key, value)| match value {
                AMQPValue::LongLongInt(number) => Some((key.to_string(), *number)),
                _ => None,
            });
            numbers.collect()
        });
        attempts.collect()
    }

    /// The names of the publisher's headers; the broker adds its counts when the message is fetched.
    pub fn header_names(&self) -> Vec<String> {
        let headers = self.properties.headers().clone().unwrap_or_default();
        let names = headers.inner().keys().map(ToString::to_string);
        names.filter(|name| name != "x-delivery-count" && name != "x-acquired-count").collect()
    }
}

/// Looks for a queue, without declaring it.
async fn look(channel: &Channel, queue: &str) -> lapin::Result<Queue> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), passive, FieldTable::default()).await
}

/// Takes a message out of its queue.
async fn take(message: Delivery) -> Letter {
    message.acker.ack(BasicAckOptions::default()).await.unwrap();
    Letter { body: message.data, properties: message.properties }
}

/// The test's own connection to a broker.
pub struct Bench {
    runtime: Runtime,
    connection: Connection,
}

impl Bench {
    /// A connection to the broker at this URL.
    pub fn at(url: &str) -> Bench {
        Bench::try_at(url).unwrap_or_else(|| panic!("no broker at {url}"))
    }

    /// The same; `None` if the broker is down.
    pub fn try_at(url: &str) -> Option<Bench> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let connection = runtime.block_on(Connection::connect(url, ConnectionProperties::default())).ok()?;
        Some(Bench { runtime, connection })
    }

    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub async fn channel(&self) -> Channel {
        self.connection.create_channel().await.unwrap()
    }

    /// Publishes to an exchange and waits for every confirm.
    pub fn publish(&self, exchange: &str, key: &str, messages: Vec<Message>) {
        assert_eq!(self.try_publish(exchange, key, &messages).unwrap(), messages.len());
    }

    /// Publishes to an exchange and returns how many of the first messages the broker confirmed.
    pub fn try_publish(&self, exchange: &str, key: &str, messages: &[Message]) -> lapin::Result<usize> {
        self.block_on(async {
            let channel = self.connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            let mut confirms = Vec::new();
            for message in messages {
                let options = BasicPublishOptions::default();
                let properties = message.properties.clone();
                confirms.push(
                    channel.basic_publish(exchange.into(), key.into(), options, &message.body, properties).await?,
                );
            }
            let mut confirmed = 0;
            for confirm in confirms {
                if !confirm.await?.is_ack() {
                    break;
                }
                confirmed += 1;
            }
            Ok(confirmed)
        })
    }

    /// Takes all messages that are in a queue now.
    pub fn take_all(&self, queue: &str) -> Vec<Letter> {
        self.block_on(async {
            let channel = self.channel().await;
            let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
            let mut consumer = channel.basic_consume(queue.into(), "".into(), options, arguments).await.unwrap();
            let mut letters = Vec::new();
            loop {
                match tokio::time::timeout(Duration::from_millis(20), consumer.next()).await {
                    Ok(message) => letters.push(take(message.unwrap().unwrap()).await),
                    Err(_) if self.depth_on(&channel, queue).await == 0 => break,
                    Err(_) => {}
                }
            }
            channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await.unwrap();
            while let Some(message) = consumer.next().await {
                letters.push(take(message.unwrap()).await);
            }
            // The queue answers only after the acks that it has received.
            for _ in 0..4 {
                self.depth_on(&channel, queue).await;
            }
            letters
        })
    }

    pub async fn depth_on(&self, channel: &Channel, queue: &str) -> u32 {
        look(channel, queue).await.unwrap().message_count()
    }

    /// How many messages are ready in a queue.
    pub fn depth(&self, queue: &str) -> u32 {
        self.block_on(async { self.depth_on(&self.channel().await, queue).await })
    }

    /// Whether there is such a queue.
    pub fn has_queue(&self, queue: &str) -> bool {
        self.block_on(async { look(&self.channel().await, queue).await.is_ok() })
    }

    /// Declares somebody else's queue.
    pub fn declare_queue(&self, queue: &str, arguments: FieldTable) {
        self.block_on(async {
            let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
            self.channel().await.queue_declare(queue.into(), durable, arguments).await.unwrap();
        });
    }

    /// Holds a lock of the worker or of its commands, for as long as the connection lives.
    pub fn hold_lock(queue: &str) -> Bench {
        let holder = Bench::at(&url());
        holder.block_on(async {
            let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
            holder.channel().await.queue_declare(queue.into(), options, FieldTable::default()).await.unwrap();
        });
        holder
    }

    pub fn declare_exchange(&self, exchange: &str, kind: ExchangeKind) {
        self.block_on(async {
            let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
            let channel = self.channel().await;
            channel.exchange_declare(exchange.into(), kind, options, FieldTable::default()).await.unwrap();
        });
    }

    pub fn delete_queue(&self, queue: &str) {
        self.block_on(async {
            // A queue may be gone already; a connection that is gone has already failed its test.
            if let Ok(channel) = self.connection.create_channel().await {
                let _ = channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await;
            }
        });
    }

    pub fn delete_exchange(&self, exchange: &str) {
        self.block_on(async {
            if let Ok(channel) = self.connection.create_channel().await {
                let _ = channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await;
            }
        });
    }
}
