//! `consent-gate.toml`, and the environment, which overrides it.

mod broker;
mod gate;
mod records;
mod retry;
mod source;
mod together;
mod variables;

pub(super) use gate::limits;
pub use records::place;
pub(super) use retry::{place_of_schedule, retry};
pub(super) use source::binding_keys;
pub(super) use together::check_together;
pub use variables::environment;
pub(super) use variables::overlay;

use super::fields::Fields;
use super::node::Node;
use super::problems::Problems;
use super::{Environment, secrets};
use crate::broker::link;
use crate::broker::topology::EventSource;
use crate::gate::Limits;
use crate::observe::telemetry::{self, Format, Level};
use crate::observe::traces;
use crate::record;
use crate::schedule::{Retry, Schedule};
use crate::text::shown::quoted;
use broker::broker;
use records::records;
use source::source;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use variables::strangers;

/// Settings that do not belong to a single integration.
#[derive(Clone, Debug)]
pub struct Settings {
    pub broker: link::BrokerSettings,
    pub source: EventSource,
    /// The directory of the integration documents.
    pub integrations: PathBuf,
    /// Defaults for every gate.
    pub gate: Limits,
    /// Defaults for every schedule.
    pub retry: Retry,
    pub records: record::RecordsSettings,
    /// Where metrics and health are served.
    pub admin: SocketAddr,
    pub log: telemetry::LogSettings,
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

fn not_zero(fields: &mut Fields<'_>, key: &'static str) -> Option<Duration> {
    let duration = fields.duration(key)?;
    if duration.value.is_zero() {
        fields.problems().add(&duration.place, format!("{} must be greater than zero", fields.name(key)));
        return None;
    }
    Some(duration.value)
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

fn log(mut fields: Fields<'_>) -> telemetry::LogSettings {
    let format = fields.word("format", &Format::WORDS).map(|at| Format::of(at.value));
    let level = fields.word("level", &Level::WORDS).map(|at| Level::of(at.value));
    fields.finish();
    telemetry::LogSettings { format: format.unwrap_or_default(), level: level.unwrap_or_default() }
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
