//! TOML, JSON and the environment as one kind of tree, in which every value knows where it was written.

use jsonc_parser::ast;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A file, and a line number from 1.
    Line(Arc<str>, usize),
    /// A file as a whole.
    File(Arc<str>),
    /// An environment variable.
    Variable(String),
}

impl Location {
    /// The file, if it is in one.
    #[must_use]
    pub fn file(&self) -> Option<&Arc<str>> {
        match self {
            Location::Line(file, _) | Location::File(file) => Some(file),
            Location::Variable(_) => None,
        }
    }

    /// The line, if it is known.
    #[must_use]
    pub fn line(&self) -> Option<usize> {
        match self {
            Location::Line(_, line) => Some(*line),
            Location::File(_) | Location::Variable(_) => None,
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Line(file, line) => write!(f, "{file}:{line}"),
            Location::File(file) => f.write_str(file),
            Location::Variable(name) => f.write_str(name),
        }
    }
}

/// A value and where it was written.
#[derive(Clone, Debug)]
pub struct Node {
    pub value: NodeValue,
    pub place: Location,
}

/// The value of a node.
#[derive(Clone, Debug)]
pub enum NodeValue {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    /// Keys in the order written; a key may occur twice, which is reported.
    Table(Vec<(String, Node)>),
}

impl NodeValue {
    /// The type's name for people.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self {
            NodeValue::Null => "null",
            NodeValue::Bool(_) => "true or false",
            NodeValue::Integer(_) | NodeValue::Float(_) => "a number",
            NodeValue::Text(_) => "a string",
            NodeValue::List(_) => "a list",
            NodeValue::Table(_) => "a table",
        }
    }
}

/// Turns byte offsets into lines.
struct LineIndex<'t> {
    file: Arc<str>,
    text: &'t str,
}

impl LineIndex<'_> {
    fn at(&self, offset: usize) -> Location {
        let before = self.text.as_bytes().get(..offset).unwrap_or_default();
        Location::Line(Arc::clone(&self.file), 1 + before.iter().filter(|byte| **byte == b'\n').count())
    }
}

/// Reads TOML.
///
/// # Errors
/// Where and why it is not TOML; the text itself is not quoted, because it may contain secrets.
pub fn from_toml(text: &str, file: &str) -> Result<Node, (Location, String)> {
    let lines = LineIndex { file: file.into(), text };
    let place_of = |span: Option<Range<usize>>| lines.at(span.map_or(0, |span| span.start));
    let table = DeTable::parse(text).map_err(|e| (place_of(e.span()), format!("not TOML: {}", e.message())))?;
    Ok(Node { value: toml_table(table.get_ref(), &lines), place: Location::File(lines.file.clone()) })
}

fn toml_table(table: &DeTable<'_>, lines: &LineIndex<'_>) -> NodeValue {
    let entries = table.iter().map(|(key, value)| {
        let mut node = toml_node(value, lines);
        node.place = lines.at(key.span().start);
        (key.get_ref().to_string(), node)
    });
    NodeValue::Table(entries.collect())
}

fn toml_node(spanned: &Spanned<DeValue<'_>>, lines: &LineIndex<'_>) -> Node {
    let value = match spanned.get_ref() {
        DeValue::String(text) => NodeValue::Text(text.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => NodeValue::Integer(number),
            Err(_) => NodeValue::Float(f64::INFINITY),
        },
        DeValue::Float(number) => NodeValue::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(flag) => NodeValue::Bool(*flag),
        DeValue::Datetime(time) => NodeValue::Text(time.to_string()),
        DeValue::Array(items) => NodeValue::List(items.iter().map(|item| toml_node(item, lines)).collect()),
        DeValue::Table(table) => toml_table(table, lines),
    };
    Node { value, place: lines.at(spanned.span().start) }
}

/// Reads JSON as Didomi's documentation shows it: trailing commas and comments are allowed.
///
/// # Errors
/// Where and why it is not JSON.
pub fn from_json(text: &str, file: &str) -> Result<Node, (Location, String)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = LineIndex { file: file.into(), text };
    let options = jsonc_parser::ParseOptions {
        allow_comments: true,
        allow_trailing_commas: true,
        allow_loose_object_property_names: false,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    };
    let parsed = jsonc_parser::parse_to_ast(text, &jsonc_parser::CollectOptions::default(), &options)
        .map_err(|e| (lines.at(e.range().start), format!("not JSON: {}{}", e.kind(), unquoted(&e))))?;
    match parsed.value {
        Some(value) => Ok(json_node(&value, &lines)),
        None => Err((Location::File(lines.file.clone()), "is empty; write an integration document".to_owned())),
    }
}

/// What to do about a word where a value must be.
fn unquoted(error: &jsonc_parser::errors::ParseError) -> &'static str {
    use jsonc_parser::errors::ParseErrorKind as Kind;
    let is_unquoted = matches!(
        error.kind(),
        Kind::UnexpectedWord
            | Kind::UnexpectedToken
            | Kind::UnexpectedTokenInObject
            | Kind::ExpectedStringObjectProperty
    );
    if is_unquoted { "; texts and keys need double quotes, and keys a colon after them" } else { "" }
}

fn json_node(value: &ast::Value<'_>, lines: &LineIndex<'_>) -> Node {
    use jsonc_parser::common::Ranged;
    let node = match value {
        ast::Value::NullKeyword(_) => NodeValue::Null,
        ast::Value::BooleanLit(flag) => NodeValue::Bool(flag.value),
        ast::Value::StringLit(text) => NodeValue::Text(text.value.to_string()),
        ast::Value::NumberLit(number) => match number.value.parse::<i64>() {
            Ok(whole) => NodeValue::Integer(whole),
            Err(_) => NodeValue::Float(number.value.parse().unwrap_or(f64::NAN)),
        },
        ast::Value::Array(array) => NodeValue::List(array.elements.iter().map(|item| json_node(item, lines)).collect()),
        ast::Value::Object(object) => {
            let entries = object.properties.iter().map(|property| {
                let mut inner = json_node(&property.value, lines);
                inner.place = lines.at(property.range().start);
                (property.name.as_str().to_owned(), inner)
            });
            NodeValue::Table(entries.collect())
        }
    };
    Node { value: node, place: lines.at(value.range().start) }
}
