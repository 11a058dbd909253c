//! The mappings of an integration document, with warnings about what is valid but unlikely to be intended.

use super::fields::{At, Fields};
use super::node::{Location, Node, NodeValue};
use super::problems::Problems;
use crate::mapping::{Mapping, Mappings, Path, PathKind, ValueSource, format_time};
use crate::text::shown::{is_like_address, quoted};
use crate::text::suggest::did_you_mean;
use jiff::Timestamp;
use std::sync::Arc;

/// Compiles the list of mappings; `None` if something is wrong, which is reported.
pub(super) fn compile(
    list: Node,
    identifier: Option<At<String>>,
    place: &Location,
    problems: &Problems,
) -> Option<Mappings> {
    let before = problems.count();
    let NodeValue::List(items) = list.value else {
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
    // A mapping that failed could be the identifier's: one problem for it is enough.
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
    let kind = source.as_ref().map(ValueSource::kind);
    let texts = switch_texts(&mut fields, kind);
    let date_format = date_format(&mut fields, kind);
    let none = fields.text("none");
    if let Some((none, kind)) = none.as_ref().zip(kind.filter(|kind| !kind.may_be(PathKind::Selection))) {
        warn_of_no_use("none", &none.place, kind, &fields);
    }
    fields.finish_with_strangers();
    let mapping = Mapping::new(&id?.value, source?);
    let none = none.map(|at| at.value).unwrap_or_default().into();
    Some(Mapping { texts, none, date_format, ..mapping })
}

/// The texts for true and for false.
fn switch_texts(fields: &mut Fields<'_>, kind: Option<PathKind>) -> (Arc<str>, Arc<str>) {
    const DEFAULTS: (&str, &str) = ("1", "0");
    let (on, off) = (fields.filled("true"), fields.filled("false"));
    if let Some(kind) = kind.filter(|kind| !kind.may_be(PathKind::Switch)) {
        for (key, at) in [("true", &on), ("false", &off)] {
            if let Some(at) = at {
                warn_of_no_use(key, &at.place, kind, fields);
            }
        }
    } else {
        let alone = |written: &Option<At<String>>, other: &Option<At<String>>, default| {
            written.clone().filter(|at| other.is_none() && at.value != default)
        };
        let refusal = format!("so a withdrawal is sent as \"{}\"; write \"false\" too", DEFAULTS.1);
        let consent = format!("so a consent is sent as \"{}\"; write \"true\" too", DEFAULTS.0);
        for (key, missing, told, at) in [
            ("true", "false", refusal, alone(&on, &off, DEFAULTS.0)),
            ("false", "true", consent, alone(&off, &on, DEFAULTS.1)),
        ] {
            if let Some(at) = at {
                fields.problems().warn(&at.place, format!("mappings: \"{key}\" without \"{missing}\", {told}"));
            }
        }
    }
    let on = on.map_or_else(|| DEFAULTS.0.to_owned(), |at| at.value);
    let off = off.map_or_else(|| DEFAULTS.1.to_owned(), |at| at.value);
    let says = |text: &str, words: [&str; 6]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    if says(&on, ["0", "n", "no", "false", "off", "out"]) || says(&off, ["1", "y", "yes", "true", "on", "in"]) {
        let told = "look exchanged: a consent is sent as";
        fields.problems().warn(fields.place(), format!("mappings: true and false {told} \"{}\"", quoted(&on)));
    }
    if on == off {
        fields.problems().add(
            fields.place(),
            "mappings: true and false have the same text, so a withdrawal would look like a consent",
        );
    }
    (on.into(), off.into())
}

fn warn_of_no_use(key: &str, place: &Location, kind: PathKind, fields: &Fields<'_>) {
    fields.problems().warn(place, format!("mappings.{key} changes nothing here: the value is {kind}; remove it"));
}

fn date_format(fields: &mut Fields<'_>, kind: Option<PathKind>) -> Option<String> {
    let format = fields.filled("date_format")?;
    let complain = |why: &str| fields.problems().add(&format.place, format!("mappings.date_format{why}"));
    if let Some(kind) = kind.filter(|kind| !kind.may_be(PathKind::Time)) {
        complain(&format!(" is for times, and the value is {kind}; remove it"));
        return None;
    }
    match check_format(&format.value) {
        Ok(()) => Some(format.value),
        Err(why) => {
            complain(&format!(": {why}; write one such as \"%Y%m%d\""));
            None
        }
    }
}

/// Checks that a format is valid and that different times look different.
fn check_format(format: &str) -> Result<(), String> {
    if let Some(unknown) = directives(format).find(|directive| shown_at(0, directive).is_none()) {
        return Err(format!("\"{}\" is not a strftime directive", quoted(unknown)));
    }
    let has = |letters: &str| directives(format).any(|directive| directive.ends_with(|last| letters.contains(last)));
    if has("M") && !has("HIklRTcXrsN+") {
        return Err(format!("\"{}\" has minutes (%M) and no hour; the month is %m", quoted(format)));
    }
    if has("m") && has("HIklRT") && !has("deDFjxcs+") {
        return Err(format!("\"{}\" has an hour and a month (%m), and no day; minutes are %M", quoted(format)));
    }
    let months = directives(format).filter(|directive| directive.ends_with('m')).count();
    if has("HIkl") && !has("M") && months > 1 {
        return Err(format!("\"{}\" has an hour, the month (%m) twice, and no minutes, which are %M", quoted(format)));
    }
    // Two times that differ in everything but the zone.
    if shown_at(0, format) == shown_at(1_781_962_448, format) {
        let format = quoted(format);
        return Err(format!("\"{format}\" has no directive for a part of a time, such as %Y, so all times look alike"));
    }
    Ok(())
}

fn shown_at(second: i64, format: &str) -> Option<String> {
    format_time(Timestamp::from_second(second).ok()?, format).filter(|text| !text.is_empty())
}

/// Each directive: a `%` with its flags, width and letter.
fn directives(format: &str) -> impl Iterator<Item = &str> {
    let mut rest = format;
    std::iter::from_fn(move || {
        rest = rest.get(rest.find('%')?..)?;
        let is_before_letter = |c: char| c.is_ascii_digit() || "-_^#.:".contains(c);
        let letter = rest.char_indices().skip(1).find(|(_, c)| !is_before_letter(*c));
        let end = letter.map_or(rest.len(), |(at, c)| at + c.len_utf8());
        let (directive, behind) = rest.split_at(end);
        rest = behind;
        Some(directive)
    })
}

fn source(fields: &mut Fields<'_>) -> Option<ValueSource> {
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
                let why = if is_like_address(&value.value) { "an address is not a path".to_owned() } else { why };
                fields.problems().add(&value.place, format!("mappings.value: {why}"));
            })
            .ok()
            .map(ValueSource::Path),
        (None, constant) => constant.map(|at| ValueSource::Constant(at.value.into())),
    }
}

fn identifier_index(
    mappings: &[Mapping],
    wanted: Option<At<String>>,
    place: &Location,
    problems: &Problems,
) -> Option<usize> {
    if let Some(wanted) = wanted {
        let found = mappings.iter().position(|m| *m.id == *wanted.value && matches!(m.source, ValueSource::Path(_)));
        if found.is_none() {
            let why = if mappings.iter().any(|mapping| *mapping.id == *wanted.value) {
                "is a constant, which cannot identify a person".to_owned()
            } else {
                let paths = mappings.iter().filter(|mapping| matches!(mapping.source, ValueSource::Path(_)));
                let meant = did_you_mean(&wanted.value, paths.map(|mapping| &*mapping.id));
                format!("is not a mapped property{meant}")
            };
            problems.add(&wanted.place, format!("identifier: \"{}\" {why}", quoted(&wanted.value)));
        }
        let switch = found.and_then(|index| mappings.get(index)).is_some_and(|m| m.source.kind() == PathKind::Switch);
        if switch {
            problems.add(
                &wanted.place,
                format!("identifier: \"{}\" is true or false, which cannot identify a person", quoted(&wanted.value)),
            );
        }
        return found;
    }
    let names_person =
        |mapping: &Mapping| matches!(&mapping.source, ValueSource::Path(path) if path.is_organization_user_id());
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
