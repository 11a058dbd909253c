//! An integration document: the form that Didomi's documentation shows, its older form, and the optional
//! keys.

use super::fields::{At, Fields};
use super::node::{Node, NodeValue};
use super::problems::Problems;
use super::{Environment, Settings, mappings, secrets, settings};
use crate::event::{REGULATIONS, TYPES};
use crate::gate::{Belief, Endpoint, Limits, Mode, endpoint};
use crate::integration::filter::Filter;
use crate::integration::{Integration, Name};
use crate::mapping::Mappings;
use crate::schedule::{OnOutage, Schedule};
use crate::text::shown::quoted;
use crate::text::suggest::did_you_mean;
use secrecy::SecretString;

/// The host in the document that Didomi's documentation shows.
const EXAMPLE_HOST: &str = "my-selligent-installation.com";

/// The context in which a document is read.
pub(super) struct DocumentContext<'c> {
    /// The folder to which paths of secrets are relative.
    pub folder: &'c std::path::Path,
    pub environment: &'c Environment,
    pub settings: &'c Settings,
    /// The file's stem, for warnings.
    pub name: &'c str,
}

/// A document without its name, which comes from the file's name.
pub(super) struct Document {
    records: Option<Name>,
    endpoint: Endpoint,
    mappings: Mappings,
    filter: Filter,
    binding_keys: Option<Vec<String>>,
    limits: Limits,
    schedule: Schedule,
    on_outage: OnOutage,
}

impl Document {
    pub(super) fn named(self, name: Name) -> Integration {
        Integration {
            records: self.records.unwrap_or_else(|| name.clone()),
            name,
            endpoint: self.endpoint,
            mappings: self.mappings,
            filter: self.filter,
            binding_keys: self.binding_keys,
            limits: self.limits,
            schedule: self.schedule,
            on_outage: self.on_outage,
        }
    }
}

/// Reads a document; `None` if a required part is missing or wrong, which is reported.
pub(super) fn read(
    tree: Node,
    context: &DocumentContext<'_>,
    problems: &Problems,
    warnings: &mut Vec<String>,
) -> Option<Document> {
    let mut root = Fields::open("", tree, problems);
    refuse_bidirectional(&mut root);
    let (endpoint, list) =
        if root.has("config") { older_form(&mut root, context) } else { documented_form(&mut root, context) };
    let identifier = root.filled("identifier");
    let mappings = list.and_then(|list| mappings::compile(list, identifier, root.place(), problems));
    let (filter, binding_keys) = events(root.table("events"), context, warnings);
    let records = records(&mut root);
    let overrides = root.table("overrides");
    let (limits, schedule, on_outage) = overridden(overrides, context);
    root.finish_with_strangers();
    Some(Document {
        records,
        endpoint: endpoint?,
        mappings: mappings?,
        filter,
        binding_keys,
        limits,
        schedule: schedule?,
        on_outage,
    })
}

/// The name that an integration had when its records began.
fn records(root: &mut Fields<'_>) -> Option<Name> {
    let name = root.filled("records")?;
    Name::new(&name.value).map_err(|why| root.problems().add(&name.place, format!("records: {why}"))).ok()
}

/// The limits and schedule of the settings, overridden by the document's own.
fn overridden(mut overrides: Fields<'_>, context: &DocumentContext<'_>) -> (Limits, Option<Schedule>, OnOutage) {
    let limits = settings::limits(overrides.table("gate"), &context.settings.gate, context.folder, context.environment);
    let retry = overrides.table("retry");
    let place = settings::place_of_schedule(&retry);
    let retry = settings::retry(retry, &context.settings.retry);
    let problems = overrides.problems();
    overrides.finish();
    let is_inherited = retry == context.settings.retry && limits.timeout == context.settings.gate.timeout;
    let schedule = Schedule::new(&retry, limits.timeout);
    // A problem of the settings themselves is reported there.
    let schedule =
        schedule.map_err(|why| (!is_inherited).then(|| problems.add(&place, format!("overrides.retry: {why}"))));
    (limits, schedule.ok(), retry.on_outage)
}

fn refuse_bidirectional(fields: &mut Fields<'_>) {
    if let Some(node) = fields.node("bidirectional") {
        let asked = !matches!(node.value, NodeValue::Bool(false));
        if asked {
            let why = format!(
                "{}: consents flow one way only, from Didomi to Selligent; remove the key",
                fields.name("bidirectional")
            );
            fields.problems().add(&node.place, why);
        }
    }
}

fn documented_form(root: &mut Fields<'_>, context: &DocumentContext<'_>) -> (Option<Endpoint>, Option<Node>) {
    if let Some(kind) = root.text("type_id")
        && kind.value != "selligent"
    {
        let meant = did_you_mean(&kind.value, ["selligent"].into_iter());
        root.problems().add(
            &kind.place,
            format!("type_id: \"{}\" is not supported, only selligent is{meant}", quoted(&kind.value)),
        );
    }
    if let Some(upsert) = root.flag("upsert_mode")
        && !upsert.value
    {
        root.problems().add(
            &upsert.place,
            "upsert_mode: the campaign behind the gate always creates or updates; write true or remove the key",
        );
    }
    let mut authentication = root.table("authentication");
    let credentials = credentials(&mut authentication, context);
    authentication.finish_with_strangers();
    let mut properties = root.table("properties");
    let endpoint = endpoint_of(&mut properties, credentials, context);
    properties.finish_with_strangers();
    (endpoint, root.node("mappings").or_else(|| missing_mappings(root, "mappings")))
}

/// `{"config": {"url", "gate", "authentication", "properties": [{"id", "value"}]}}`.
fn older_form(root: &mut Fields<'_>, context: &DocumentContext<'_>) -> (Option<Endpoint>, Option<Node>) {
    let mut config = root.table("config");
    let mut authentication = config.table("authentication");
    let credentials = credentials(&mut authentication, context);
    authentication.finish_with_strangers();
    let list = config.node("properties").or_else(|| missing_mappings(&mut config, "properties"));
    let endpoint = endpoint_of(&mut config, credentials, context);
    config.finish_with_strangers();
    (endpoint, list)
}

fn missing_mappings(fields: &mut Fields<'_>, key: &'static str) -> Option<Node> {
    fields.missing(key, "write at least [{\"id\": \"MAIL\", \"value\": \"organization_user_id\"}]");
    None
}

fn credentials(fields: &mut Fields<'_>, context: &DocumentContext<'_>) -> Option<(String, SecretString)> {
    let username = required(fields, "username", "write the name of Selligent's API user", context);
    let remedy = "write the API user's encryption key, \"${A_VARIABLE}\", or password_file";
    let password =
        secrets::secret(fields, ("password", "password_file"), context.folder, context.environment, Some(remedy));
    let username = username?;
    if username.value.chars().any(|c| c.is_control() || c == ':' || c.is_whitespace()) {
        let why = format!("{}: a user's name has no spaces, colons or control characters", fields.name("username"));
        fields.problems().add(&username.place, why);
        return None;
    }
    Some((username.value, password?))
}

fn required(
    fields: &mut Fields<'_>,
    key: &'static str,
    remedy: &str,
    context: &DocumentContext<'_>,
) -> Option<At<String>> {
    if !fields.has(key) {
        fields.missing(key, remedy);
    }
    let text = fields.filled(key)?;
    secrets::expand(text, key, context.environment, fields)
}

fn endpoint_of(
    fields: &mut Fields<'_>,
    credentials: Option<(String, SecretString)>,
    context: &DocumentContext<'_>,
) -> Option<Endpoint> {
    refuse_bidirectional(fields);
    let url = required(fields, "url", "write the host of the Selligent installation", context);
    let gate = required(fields, "gate", "write the name of the campaign's gate", context);
    let mode = fields.word("mode", &["sync", "async"]);
    let answer = fields.word("answer", &["envelope", "status"]);
    let allow_http = fields.flag("allow_http").is_some_and(|flag| flag.value);
    let url = url?;
    if url.value.contains(EXAMPLE_HOST) {
        let what = "is the host of Didomi's example; write that of your Selligent installation";
        fields.problems().warn(&url.place, format!("{}: {EXAMPLE_HOST} {what}", fields.name("url")));
    }
    let base = endpoint::base(&url.value, allow_http);
    let base = base.map_err(|why| fields.problems().add(&url.place, format!("{}: {why}", fields.name("url")))).ok();
    let mode = if mode.is_some_and(|mode| mode.value == "async") { Mode::Async } else { Mode::Sync };
    let (username, key) = credentials?;
    let belief = if answer.is_some_and(|answer| answer.value == "status") { Belief::Status } else { Belief::Envelope };
    Some(Endpoint::new(base?, mode, username, key, gate?.value).believed(belief))
}

fn events(
    mut fields: Fields<'_>,
    context: &DocumentContext<'_>,
    warnings: &mut Vec<String>,
) -> (Filter, Option<Vec<String>>) {
    let mut filter = Filter::default();
    let problems = fields.problems();
    let mut list = |key: &'static str| {
        let at = if key == "binding_keys" { settings::binding_keys(&mut fields)? } else { fields.texts(key)? };
        if at.value.is_empty() {
            fields.problems().add(
                &at.place,
                format!("{} is empty, so nothing would arrive; remove the key for its default", fields.name(key)),
            );
            return None;
        }
        Some(at)
    };
    let binding_keys = list("binding_keys").map(|at| at.value);
    if let Some(regulations) = list("regulations") {
        warn_of_regulations(&regulations, problems);
        filter.regulations = regulations.value;
    }
    if let Some(types) = list("types") {
        for name in &types.value {
            if !TYPES.contains(&name.as_str()) {
                let meant = did_you_mean(name, TYPES.into_iter());
                fields.problems().add(
                    &types.place,
                    format!("events.types: \"{}\" is not one of {}{meant}", quoted(name), TYPES.join(", ")),
                );
            } else if name.ends_with(".deleted") {
                warnings.push(format!(
                    "{}: events of type {name} are always skipped: they name no choice that could be applied",
                    context.name
                ));
            }
        }
        filter.types = types.value;
    }
    filter.organization_id = fields.filled("organization_id").map(|at| at.value);
    fields.finish();
    (filter, binding_keys)
}

/// Didomi adds regulations every year, so an unknown one may be right; if it is not, every event is skipped.
fn warn_of_regulations(regulations: &At<Vec<String>>, problems: &Problems) {
    for name in &regulations.value {
        if !REGULATIONS.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            let meant = did_you_mean(name, REGULATIONS.into_iter());
            let why = "is not a known regulation of Didomi's; if it does not exist there, no event will match it";
            let name = quoted(name);
            problems.warn(&regulations.place, format!("events.regulations: \"{name}\" {why}{meant}"));
        }
    }
}
