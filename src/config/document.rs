//! An integration document: the one that Didomi's documentation shows, its older form, and the
//! optional keys.

use super::fields::{At, Fields, Problems, did_you_mean};
use super::node::{Node, Place, Value};
use super::{Environment, Settings, secrets, settings};
use crate::event::TYPES;
use crate::gate::{Belief, Endpoint, Limits, Mode, endpoint};
use crate::integration::{Integration, Name};
use crate::mapping::{Mapping, Mappings, Path, Source, format_time};
use crate::schedule::{OnOutage, Schedule};
use crate::shown::{is_like_address, quoted};
use crate::verdict::Filter;
use jiff::Timestamp;
use secrecy::SecretString;

/// What a document is read with.
pub(super) struct Context<'c> {
    /// Where relative paths of secrets start.
    pub folder: &'c std::path::Path,
    pub environment: &'c Environment,
    pub settings: &'c Settings,
    /// The file's stem, for warnings.
    pub name: &'c str,
}

/// A document without its name, which the file's name gives.
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

/// Reads a document; `None` when a required part is missing or wrong, which is then reported.
pub(super) fn read(
    tree: Node,
    context: &Context<'_>,
    problems: &Problems,
    warnings: &mut Vec<String>,
) -> Option<Document> {
    let mut root = Fields::open("", tree, problems);
    refuse_bidirectional(&mut root);
    let (endpoint, list) =
        if root.has("config") { older_form(&mut root, context) } else { documented_form(&mut root, context) };
    let identifier = root.filled("identifier");
    let mappings = list.and_then(|list| compile(list, identifier, root.place(), problems));
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

/// The settings' limits and schedule with the document's own laid over them.
fn overridden(mut overrides: Fields<'_>, context: &Context<'_>) -> (Limits, Option<Schedule>, OnOutage) {
    let limits = settings::limits(overrides.table("gate"), &context.settings.gate, context.folder, context.environment);
    let retry = overrides.table("retry");
    let place = settings::place_of_schedule(&retry);
    let retry = settings::retry(retry, &context.settings.retry);
    let problems = overrides.problems();
    overrides.finish();
    let is_inherited = retry == context.settings.retry && limits.timeout == context.settings.gate.timeout;
    let schedule = Schedule::new(&retry, limits.timeout);
    // What does not fit in the settings is reported there.
    let schedule =
        schedule.map_err(|why| (!is_inherited).then(|| problems.add(&place, format!("overrides.retry: {why}"))));
    (limits, schedule.ok(), retry.on_outage)
}

fn refuse_bidirectional(fields: &mut Fields<'_>) {
    if let Some(node) = fields.node("bidirectional") {
        let asked = !matches!(node.value, Value::Bool(false));
        if asked {
            let why = format!(
                "{}: consents flow one way only, from Didomi to Selligent; remove the key",
                fields.name("bidirectional")
            );
            fields.problems().add(&node.place, why);
        }
    }
}

fn documented_form(root: &mut Fields<'_>, context: &Context<'_>) -> (Option<Endpoint>, Option<Node>) {
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
fn older_form(root: &mut Fields<'_>, context: &Context<'_>) -> (Option<Endpoint>, Option<Node>) {
    let mut config = root.table("config");
    let mut authentication = config.table("authentication");
    let credentials = credentials(&mut authentication, context);
    authentication.finish_with_strangers();
    let list = config.node("properties").or_else(|| missing_mappings(&config, "properties"));
    let endpoint = endpoint_of(&mut config, credentials, context);
    config.finish_with_strangers();
    (endpoint, list)
}

fn missing_mappings(fields: &Fields<'_>, key: &str) -> Option<Node> {
    fields.missing(key, "write at least [{\"id\": \"MAIL\", \"value\": \"organization_user_id\"}]");
    None
}

fn credentials(fields: &mut Fields<'_>, context: &Context<'_>) -> Option<(String, SecretString)> {
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

fn required(fields: &mut Fields<'_>, key: &'static str, remedy: &str, context: &Context<'_>) -> Option<At<String>> {
    if !fields.has(key) {
        fields.missing(key, remedy);
    }
    let text = fields.filled(key)?;
    secrets::expand(text, key, context.environment, fields)
}

fn endpoint_of(
    fields: &mut Fields<'_>,
    credentials: Option<(String, SecretString)>,
    context: &Context<'_>,
) -> Option<Endpoint> {
    refuse_bidirectional(fields);
    let url = required(fields, "url", "write the host of the Selligent installation", context);
    let gate = required(fields, "gate", "write the name of the campaign's gate", context);
    let mode = fields.word("mode", &["sync", "async"]);
    let answer = fields.word("answer", &["envelope", "status"]);
    let allow_http = fields.flag("allow_http").is_some_and(|flag| flag.value);
    let url = url?;
    let base = endpoint::base(&url.value, allow_http);
    let base = base.map_err(|why| fields.problems().add(&url.place, format!("{}: {why}", fields.name("url")))).ok();
    let mode = if mode.is_some_and(|mode| mode.value == "async") { Mode::Async } else { Mode::Sync };
    let (username, key) = credentials?;
    let belief = if answer.is_some_and(|answer| answer.value == "status") { Belief::Status } else { Belief::Envelope };
    Some(Endpoint::new(base?, mode, username, key, gate?.value).believed(belief))
}

fn compile(list: Node, identifier: Option<At<String>>, place: &Place, problems: &Problems) -> Option<Mappings> {
    let before = problems.count();
    let Value::List(items) = list.value else {
        problems.add(&list.place, format!("mappings: expected a list, found {}", list.value.type_name()));
        return None;
    };
    if items.is_empty() {
        problems.add(&list.place, "mappings is empty; map at least organization_user_id");
        return None;
    }
    let mut compiled: Vec<Mapping> = Vec::new();
    for item in items {
        let item_place = item.place.clone();
        let Some(mapping) = mapping(Fields::open("mappings", item, problems)) else { continue };
        if compiled.iter().any(|other| other.id == mapping.id) {
            problems.add(&item_place, format!("mappings: {} is mapped twice; keep one", mapping.id));
        }
        compiled.push(mapping);
    }
    // A mapping that failed could be the identifier's: one complaint for it is enough.
    if problems.count() > before {
        return None;
    }
    let index = identifier_index(&compiled, identifier, place, problems)?;
    Some(Mappings::new(compiled, index))
}

fn mapping(mut fields: Fields<'_>) -> Option<Mapping> {
    if !fields.has("id") {
        fields.missing("id", "write the property's name at Selligent");
    }
    let id = fields.filled("id");
    if let Some(id) = id.as_ref().filter(|id| id.value.contains(char::is_control)) {
        fields.problems().add(&id.place, "mappings.id: a property's name has no control characters");
    }
    let source = source(&mut fields);
    let on = fields.filled("true").map_or_else(|| "1".to_owned(), |at| at.value);
    let off = fields.filled("false").map_or_else(|| "0".to_owned(), |at| at.value);
    if on == off {
        fields.problems().add(
            fields.place(),
            "mappings: true and false have the same text, so a withdrawal would look like a consent",
        );
    }
    let date_format = fields.filled("date_format").and_then(|format| {
        let rendered = format_time(Timestamp::UNIX_EPOCH, &format.value);
        if rendered.is_none_or(|text| text.is_empty()) {
            fields
                .problems()
                .add(&format.place, "mappings.date_format is no strftime format; write one such as \"%Y%m%d\"");
            return None;
        }
        Some(format.value)
    });
    let none = fields.text("none").map(|at| at.value).unwrap_or_default();
    fields.finish_with_strangers();
    let mapping = Mapping::new(&id?.value, source?);
    Some(Mapping { texts: (on.into(), off.into()), none: none.into(), date_format, ..mapping })
}

fn source(fields: &mut Fields<'_>) -> Option<Source> {
    if !fields.has("value") && !fields.has("constant") {
        fields.missing("value", "write a Didomi property such as consents_purposes_newsletter_enabled, or a constant");
    }
    let constant = fields.filled("constant");
    let value = fields.filled("value");
    match (value, constant) {
        (Some(_), Some(constant)) => {
            fields.problems().add(&constant.place, "mappings: value and constant are both written; keep one");
            None
        }
        (Some(value), None) => Path::compile(&value.value)
            .map_err(|why| {
                let why = if is_like_address(&value.value) { "an address is no path".to_owned() } else { why };
                fields.problems().add(&value.place, format!("mappings.value: {why}"));
            })
            .ok()
            .map(Source::Path),
        (None, constant) => constant.map(|at| Source::Constant(at.value.into())),
    }
}

fn identifier_index(
    mappings: &[Mapping],
    wanted: Option<At<String>>,
    place: &Place,
    problems: &Problems,
) -> Option<usize> {
    if let Some(wanted) = wanted {
        let found = mappings.iter().position(|m| *m.id == *wanted.value && matches!(m.source, Source::Path(_)));
        if found.is_none() {
            let meant = did_you_mean(&wanted.value, mappings.iter().map(|mapping| &*mapping.id));
            problems
                .add(&wanted.place, format!("identifier: \"{}\" is no mapped property{meant}", quoted(&wanted.value)));
        }
        let switch = found
            .and_then(|index| mappings.get(index))
            .is_some_and(|m| matches!(&m.source, Source::Path(path) if path.is_switch()));
        if switch {
            problems.add(
                &wanted.place,
                format!("identifier: \"{}\" is true or false, which names nobody", quoted(&wanted.value)),
            );
        }
        return found;
    }
    let names_person =
        |mapping: &Mapping| matches!(&mapping.source, Source::Path(path) if path.is_organization_user_id());
    let mut candidates =
        mappings.iter().enumerate().filter(|(_, mapping)| names_person(mapping)).map(|(index, _)| index);
    match (candidates.next(), candidates.next()) {
        (Some(index), None) => Some(index),
        (Some(_), Some(_)) => {
            problems.add(place, "organization_user_id is mapped more than once; name the property that identifies the person with \"identifier\"");
            None
        }
        (None, _) => {
            problems.add(place, "nothing identifies the person; map organization_user_id, or name a mapped property with \"identifier\"");
            None
        }
    }
}

fn events(mut fields: Fields<'_>, context: &Context<'_>, warnings: &mut Vec<String>) -> (Filter, Option<Vec<String>>) {
    let mut filter = Filter::default();
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
        filter.regulations = regulations.value;
    }
    if let Some(types) = list("types") {
        for name in &types.value {
            if !TYPES.contains(&name.as_str()) {
                let meant = did_you_mean(name, TYPES.into_iter());
                fields.problems().add(
                    &types.place,
                    format!("events.types: \"{}\" is none of {}{meant}", quoted(name), TYPES.join(", ")),
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
