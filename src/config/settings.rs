//! `consent-gate.toml`, and the environment, which overrides it.

use super::binding::{self, Doubt};
use super::fields::{At, Fields, Problems, bare, remedy};
use super::node::{self, Node, Value};
use super::{Environment, secrets};
use crate::broker::link;
use crate::broker::topology::Source;
use crate::gate::way::{Proxy, Way};
use crate::gate::{Limits, Mode};
use crate::integration::{Integration, Name};
use crate::record::address::Address;
use crate::record::{self, Backend};
use crate::schedule::{OnOutage, Retry, Schedule};
use crate::shown::{is_like_address, quoted};
use crate::suggest::{asked, nearest};
use crate::telemetry::{self, Format, Level};
use crate::traces;
use secrecy::{ExposeSecret, SecretString};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

const VARIABLE_PREFIX: &str = "CONSENT_GATE_";
const SECTIONS: [&str; 10] =
    ["broker", "source", "integrations", "retry", "records", "gate", "admin", "log", "traces", "shutdown"];
/// Pairs of keys that replace each other, so that the environment can override either form.
const ALTERNATIVES: [(&str, &str); 8] = [
    ("proxy", "proxy_file"),
    ("proxy_file", "proxy"),
    ("url", "url_file"),
    ("url_file", "url"),
    ("queue", "exchange"),
    ("exchange", "queue"),
    ("store", "store_file"),
    ("store_file", "store"),
];

/// Settings that do not belong to a single integration.
#[derive(Clone, Debug)]
pub struct Settings {
    pub broker: link::Settings,
    pub source: Source,
    /// The directory of the integration documents.
    pub integrations: PathBuf,
    /// Defaults for every gate.
    pub gate: Limits,
    /// Defaults for every schedule.
    pub retry: Retry,
    pub records: record::Settings,
    /// Where metrics and health are served.
    pub admin: SocketAddr,
    pub log: telemetry::Settings,
    /// Where spans are sent; `None` creates none.
    pub traces: Option<String>,
    /// The longest that a drain may take.
    pub shutdown_deadline: Duration,
}

impl Settings {
    /// The sections that differ from those in force and are only read at a start. A different role or
    /// password for the same database takes effect at once.
    #[must_use]
    pub fn at_next_start(&self, in_force: &Settings) -> String {
        let is_other_place = !self.records.place.is_same(&in_force.records.place);
        let changed = [
            ("[records]", is_other_place || self.records.retention != in_force.records.retention),
            ("[admin]", self.admin != in_force.admin),
            ("[log]", self.log != in_force.log),
            ("[traces]", self.traces != in_force.traces),
            ("[shutdown]", self.shutdown_deadline != in_force.shutdown_deadline),
        ];
        changed.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }
}

/// Overrides the file's tree by the variables `CONSENT_GATE_<SECTION>__<KEY>`.
pub(super) fn overlay(mut tree: Node, environment: &Environment, problems: &Problems) -> Node {
    let Value::Table(sections) = &mut tree.value else { return tree };
    for (variable, value) in environment {
        let Some((section, key)) = variable.strip_prefix(VARIABLE_PREFIX).and_then(|rest| rest.split_once("__")) else {
            continue;
        };
        let (section, key) = (section.to_lowercase(), key.to_lowercase());
        let place = node::Location::Variable(variable.clone());
        if !SECTIONS.contains(&section.as_str()) {
            let remedy = remedy(&section, &SECTIONS);
            problems.add(&place, format!("{} is unknown{remedy}", quoted(&section)));
            continue;
        }
        set(sections, &section, &key, Node { value: Value::Text(bare(value).to_owned()), place });
    }
    tree
}

/// Reports variables that look like settings but are not. `known` has all sections and keys.
fn strangers(environment: &Environment, known: &[(String, &'static str)], problems: &Problems) {
    let keys = known.iter().filter(|(section, _)| SECTIONS.contains(&section.as_str()));
    let names: Vec<String> = keys.map(|(section, key)| format!("{section}__{key}").to_uppercase()).collect();
    for variable in environment.keys() {
        let upper = variable.to_uppercase();
        let is_read = variable.strip_prefix(VARIABLE_PREFIX).is_some_and(|rest| rest.contains("__"));
        let Some(rest) = upper.strip_prefix(VARIABLE_PREFIX).filter(|rest| !is_read && !is_service_link(rest)) else {
            continue;
        };
        let place = node::Location::Variable(variable.clone());
        let joined = |name: &str| name.split('_').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("_");
        if let Some(right) = names.iter().find(|name| joined(name) == joined(rest)) {
            problems.add(&place, format!("the variable is unknown; write {VARIABLE_PREFIX}{right}"));
            continue;
        }
        let meant = nearest(rest, names.iter().map(String::as_str));
        let meant = meant.map_or_else(String::new, |name| asked(&format!("{VARIABLE_PREFIX}{name}")));
        problems.warn(&place, format!("the variable is unknown and changes nothing{meant}"));
    }
}

/// Whether it is a variable that Kubernetes sets in every pod for a service whose name begins like the
/// prefix.
fn is_service_link(rest: &str) -> bool {
    let words: Vec<&str> = rest.split('_').collect();
    let is_port = |words: &[&str]| words.contains(&"PORT") && (words.ends_with(&["PORT"]) || words.contains(&"TCP"));
    is_port(&words) || rest.ends_with("SERVICE_HOST") || rest.contains("SERVICE_PORT")
}

fn set(sections: &mut Vec<(String, Node)>, section: &str, key: &str, node: Node) {
    let index = sections.iter().position(|(name, _)| name == section).unwrap_or_else(|| {
        sections.push((section.to_owned(), Node { value: Value::Table(Vec::new()), place: node.place.clone() }));
        sections.len() - 1
    });
    let Some((_, Node { value: Value::Table(entries), .. })) = sections.get_mut(index) else { return };
    let from_file = |node: &Node| !matches!(node.place, node::Location::Variable(_));
    entries.retain(|(name, old)| name != key && !(from_file(old) && ALTERNATIVES.contains(&(key, name.as_str()))));
    entries.push((key.to_owned(), node));
}

/// Reads every section; a wrong value is reported and replaced by its default.
pub(super) fn read(
    tree: Node,
    base: &Path,
    environment: &Environment,
    problems: &Problems,
    warnings: &mut Vec<String>,
) -> Settings {
    let mut root = Fields::open("", tree, problems);
    let mut integrations = root.table("integrations");
    let directory = integrations.bare("directory").map_or_else(|| "integrations".to_owned(), |at| at.value);
    integrations.finish();
    let mut shutdown = root.table("shutdown");
    let shutdown_deadline = shutdown.duration("deadline").map_or(Duration::from_secs(20), |at| at.value);
    shutdown.finish();
    let broker = broker(root.table("broker"), base, environment, warnings);
    let source = source(root.table("source"));
    let gate = limits(root.table("gate"), &Limits::default(), base, environment);
    let retry_section = root.table("retry");
    let retry_place = place_of_schedule(&retry_section);
    let retry = retry(retry_section, &Retry::default());
    if let Err(why) = Schedule::new(&retry, gate.timeout) {
        problems.add(&retry_place, format!("retry: {why}"));
    }
    let settings = Settings {
        broker,
        source,
        integrations: secrets::resolve(base, &directory),
        gate,
        retry,
        records: records(root.table("records"), base, environment, warnings),
        admin: admin(root.table("admin")),
        log: log(root.table("log")),
        traces: traces(root.table("traces")),
        shutdown_deadline,
    };
    root.finish();
    strangers(environment, &problems.take_known(), problems);
    settings
}

fn broker(
    mut fields: Fields<'_>,
    base: &Path,
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> link::Settings {
    let place = fields.place().clone();
    let url_place = fields.place_of("url").or_else(|| fields.place_of("url_file")).unwrap_or_else(|| place.clone());
    let url = secrets::secret(&mut fields, ("url", "url_file"), base, environment, None);
    let mut file = |key| {
        let path = fields.bare(key)?;
        if key == "client_key_file" {
            secrets::warn_of_others(&path, key, base, &fields);
        }
        secrets::text_file(&path, key, base, &fields)
    };
    let (ca, cert, key) = (file("ca_file"), file("client_cert_file"), file("client_key_file"));
    for (name, pem) in [("ca_file", &ca), ("client_cert_file", &cert)] {
        if pem.as_ref().is_some_and(|pem| !link::holds_certificate(pem)) {
            fields.problems().add(&place, format!("broker.{name} contains no certificate; it must be PEM"));
        }
    }
    let identity = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert, key.into())),
        (None, None) => None,
        _ => {
            let why = "broker.client_cert_file and broker.client_key_file belong together; write both or none";
            fields.problems().add(&place, why);
            None
        }
    };
    let problems = fields.problems();
    fields.finish();
    let url = url.unwrap_or_else(|| link::DEFAULT_URL.into());
    match link::Settings::new(&url, ca, identity) {
        Ok(settings) => {
            warnings.extend(settings.warning());
            settings
        }
        Err(why) => {
            problems.add(&url_place, format!("broker.url: {why}"));
            link::Settings::default()
        }
    }
}

fn source(mut fields: Fields<'_>) -> Source {
    let place = fields.place().clone();
    let exchange = fields.filled("exchange").filter(|at| fits_amqp(&fields, "exchange", at, &at.value));
    let queue = fields.filled("queue").filter(|at| fits_amqp(&fields, "queue", at, &at.value));
    let binding_keys = binding_keys(&mut fields);
    if let Some(queue) = queue.as_ref().filter(|queue| queue.value.starts_with("consent-gate.")) {
        fields.problems().add(
            &queue.place,
            "source.queue names one of the worker's own queues, which would loop; name another queue",
        );
    }
    let problems = fields.problems();
    fields.finish();
    match (queue, exchange) {
        (Some(queue), None) => {
            if let Some(keys) = binding_keys {
                problems.add(&keys.place, "source.binding_keys binds to an exchange; remove it beside source.queue");
            }
            Source::Queue(queue.value)
        }
        (Some(_), Some(_)) => {
            problems.add(&place, "source.exchange and source.queue are both written; keep one");
            Source::default()
        }
        (None, exchange) => {
            let binding_keys = binding_keys.map_or_else(|| vec!["#".to_owned()], |at| at.value);
            if binding_keys.is_empty() {
                problems
                    .add(&place, "source.binding_keys is empty, so nothing would arrive; write [\"#\"] for everything");
            }
            Source::Exchange { name: exchange.map_or_else(|| "consents".to_owned(), |at| at.value), binding_keys }
        }
    }
}

/// Checks that a name has at most 255 bytes, AMQP's limit.
fn fits_amqp<T>(fields: &Fields<'_>, key: &str, at: &At<T>, name: &str) -> bool {
    let fits = name.len() <= 255;
    if !fits {
        fields
            .problems()
            .add(&at.place, format!("{} is longer than 255 bytes, which AMQP does not allow", fields.name(key)));
    }
    fits
}

/// A list of binding keys, each of which was checked.
pub(super) fn binding_keys(fields: &mut Fields<'_>) -> Option<At<Vec<String>>> {
    let keys = fields.texts("binding_keys")?;
    let mut fit = true;
    for key in &keys.value {
        fit &= fits_amqp(fields, "binding_keys", &keys, key);
        let told = |why| format!("{}: {why}", fields.name("binding_keys"));
        match binding::doubt(key) {
            Some(Doubt::Never(why)) => {
                fields.problems().add(&keys.place, told(why));
                fit = false;
            }
            Some(Doubt::Hardly(why)) => fields.problems().warn(&keys.place, told(why)),
            None => {}
        }
    }
    fit.then_some(keys)
}

/// `[gate]`, or `overrides.gate` of a document on top of it.
pub(super) fn limits(mut fields: Fields<'_>, defaults: &Limits, folder: &Path, environment: &Environment) -> Limits {
    let limits = Limits {
        timeout: not_zero(&mut fields, "timeout").unwrap_or(defaults.timeout),
        connect_timeout: not_zero(&mut fields, "connect_timeout").unwrap_or(defaults.connect_timeout),
        max_in_flight: fields.count("max_in_flight", 10_000).map_or(defaults.max_in_flight, |at| at.value),
        is_adaptive: fields.flag("adaptive").map_or(defaults.is_adaptive, |at| at.value),
        requests_per_second: fields.rate("requests_per_second").map(|at| at.value).or(defaults.requests_per_second),
        way: way(&mut fields, &defaults.way, folder, environment),
    };
    fields.finish();
    limits
}

/// How gates are reached: `proxy` (`"none"` for a direct connection), `no_proxy`, `ca_file`.
fn way(fields: &mut Fields<'_>, defaults: &Way, folder: &Path, environment: &Environment) -> Way {
    let at = fields.place_of("proxy").or_else(|| fields.place_of("proxy_file"));
    let written = secrets::secret(fields, ("proxy", "proxy_file"), folder, environment, None);
    let proxy = match written {
        None => defaults.proxy.clone(),
        Some(url) if url.expose_secret() == "none" => None,
        Some(url) => {
            let complain = |why| {
                let place = at.unwrap_or_else(|| fields.place().clone());
                fields.problems().add(&place, format!("{} {why}", fields.name("proxy")));
            };
            Proxy::new(&url).map_err(complain).ok()
        }
    };
    let no_proxy = fields.texts("no_proxy").map_or_else(|| defaults.no_proxy.clone(), |at| at.value);
    let ca = fields.bare("ca_file").and_then(|path| {
        let pem = secrets::text_file(&path, "ca_file", folder, fields)?;
        if !link::holds_certificate(&pem) {
            let why = format!("{} contains no certificate; it must be PEM", fields.name("ca_file"));
            fields.problems().add(&path.place, why);
            return None;
        }
        Some(pem.into())
    });
    Way { proxy, no_proxy, ca: ca.or_else(|| defaults.ca.clone()) }
}

fn not_zero(fields: &mut Fields<'_>, key: &'static str) -> Option<Duration> {
    let duration = fields.duration(key)?;
    if duration.value.is_zero() {
        fields.problems().add(&duration.place, format!("{} must be greater than zero", fields.name(key)));
        return None;
    }
    Some(duration.value)
}

/// Where to report an impossible schedule: as close as possible to what is written.
pub(super) fn place_of_schedule(retry: &Fields<'_>) -> node::Location {
    retry.place_of("delays").or_else(|| retry.place_of("window")).unwrap_or_else(|| retry.place().clone())
}

/// `[retry]`, or `overrides.retry` of a document on top of it. Whether it fits together with the timeout is
/// checked by [`Schedule::new`].
pub(super) fn retry(mut fields: Fields<'_>, defaults: &Retry) -> Retry {
    let on_outage = fields.word("on_outage", &["dead-letter", "hold"]).map(|at| match at.value {
        "hold" => OnOutage::Hold,
        _ => OnOutage::DeadLetter,
    });
    let retry = Retry {
        on_outage: on_outage.unwrap_or(defaults.on_outage),
        window: not_zero(&mut fields, "window").unwrap_or(defaults.window),
        delays: delays(&mut fields).unwrap_or_else(|| defaults.delays.clone()),
    };
    fields.finish();
    retry
}

fn delays(fields: &mut Fields<'_>) -> Option<Vec<Duration>> {
    let written = fields.texts("delays")?;
    let mut delays = Vec::with_capacity(written.value.len());
    for delay in &written.value {
        match super::fields::parse_duration(delay) {
            Ok(delay) => delays.push(delay),
            Err(why) => fields.problems().add(&written.place, format!("{}: {why}", fields.name("delays"))),
        }
    }
    (delays.len() == written.value.len()).then_some(delays)
}

fn records(
    mut fields: Fields<'_>,
    base: &Path,
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> record::Settings {
    let defaults = record::Settings::default();
    let at = fields.place_of("store").or_else(|| fields.place_of("store_file"));
    let store = secrets::secret(&mut fields, ("store", "store_file"), base, environment, None);
    let retention = not_zero(&mut fields, "retention").unwrap_or(defaults.retention);
    let place = match store {
        Some(store) => place(&store, base, warnings).unwrap_or_else(|why| {
            fields.problems().add(&at.unwrap_or_else(|| fields.place().clone()), format!("records.store: {why}"));
            Backend::Off
        }),
        None => match defaults.place {
            Backend::Directory(directory) => {
                let folder = super::state_directory(environment).unwrap_or_else(|| base.to_owned());
                Backend::Directory(folder.join(directory))
            }
            place => place,
        },
    };
    fields.finish();
    record::Settings { place, retention }
}

/// Where records are kept, as written in the settings; a relative directory is below `base`.
///
/// # Errors
/// What is wrong with it, without a password.
pub fn place(store: &SecretString, base: &Path, warnings: &mut Vec<String>) -> Result<Backend, String> {
    match store.expose_secret().trim() {
        "off" => Ok(Backend::Off),
        url if url.starts_with("postgres://") || url.starts_with("postgresql://") => {
            let address = Address::new(&url.into())?;
            warnings.extend(address.warning());
            Ok(Backend::Postgres(Box::new(address)))
        }
        other if is_like_address(other) || other.eq_ignore_ascii_case("off") => Err(format!(
            "{} is neither postgres://user:password@host:5432/database, nor a directory, nor \"off\"; write one of them",
            quoted(other)
        )),
        directory => Ok(Backend::Directory(secrets::resolve(base, directory))),
    }
}

fn admin(mut fields: Fields<'_>) -> SocketAddr {
    let default = SocketAddr::from((Ipv4Addr::LOCALHOST, 9464));
    let listen = fields.filled("listen");
    let address = listen.map_or(default, |listen| {
        listen.value.parse().unwrap_or_else(|_| {
            let why = format!(
                "admin.listen: \"{}\" is not an address; write one such as \"127.0.0.1:9464\"",
                quoted(&listen.value)
            );
            fields.problems().add(&listen.place, why);
            default
        })
    });
    fields.finish();
    address
}

fn log(mut fields: Fields<'_>) -> telemetry::Settings {
    let format = fields.word("format", &Format::WORDS).map(|at| Format::of(at.value));
    let level = fields.word("level", &Level::WORDS).map(|at| Level::of(at.value));
    fields.finish();
    telemetry::Settings { format: format.unwrap_or_default(), level: level.unwrap_or_default() }
}

fn traces(mut fields: Fields<'_>) -> Option<String> {
    let allow_http = fields.flag("allow_http").is_some_and(|flag| flag.value);
    let endpoint = fields.filled("endpoint").and_then(|at| {
        let checked = traces::endpoint(&at.value, allow_http);
        checked.map_err(|why| fields.problems().add(&at.place, format!("traces.endpoint {why}"))).ok()
    });
    fields.finish();
    endpoint
}

/// Checks what can only be checked once everything is read.
pub(super) fn check_together(
    settings: &Settings,
    integrations: &[Integration],
    problems: &Problems,
    warnings: &mut Vec<String>,
) {
    if let Source::Queue(queue) = &settings.source
        && integrations.len() > 1
    {
        let place = node::Location::File("source.queue".into());
        let why = format!(
            "\"{queue}\" can feed exactly one integration, but there are {}; use source.exchange",
            integrations.len()
        );
        problems.add(&place, why);
    }
    let mut recorded: BTreeMap<&Name, &Integration> = BTreeMap::new();
    let mut fed: BTreeMap<(&str, &str, &str), &Integration> = BTreeMap::new();
    for integration in integrations {
        let endpoint = &integration.endpoint;
        if let Some(other) = recorded.insert(&integration.records, integration) {
            let (one, two, records) = (&other.name, &integration.name, &integration.records);
            let why = format!("{one} and {two} both keep their records as {records}; each needs a name of its own");
            problems.add(&node::Location::File("records".into()), why);
        }
        if endpoint.mode() == Mode::Async {
            warnings.push(format!(
                "{}: mode async: Selligent may execute triggers in another order than they were sent",
                integration.name
            ));
        }
        if integration.filter.regulations.len() > 1 {
            warnings.push(format!(
                "{}: takes more than one regulation: the newest choice of any of them wins",
                integration.name
            ));
        }
        for mapping in
            integration.mappings.iter().filter(|mapping| *mapping.id != *integration.mappings.identifier_id())
        {
            let key = (endpoint.base(), endpoint.gate(), &*mapping.id);
            if let Some(other) = fed.insert(key, integration) {
                warnings.push(format!(
                    "{} and {} both feed {} through gate {}: neither knows what the other sent",
                    other.name,
                    integration.name,
                    mapping.id,
                    endpoint.gate()
                ));
            }
        }
    }
}
