//! Reads files and environment into settings and integrations, and reports every problem at once.
//!
//! This module depends on the parts that it configures: each part defines and checks what it needs, and this
//! module adds where a value was written and what to do about it.

mod binding;
mod document;
mod fields;
mod mappings;
mod node;
mod problems;
mod secrets;
mod settings;

pub use fields::parse_duration;
pub use problems::Problem;
pub use settings::{Settings, environment, place};

use crate::integration::{Integration, Name};
use crate::text::shown::quoted;
use crate::text::suggest;
use node::{Location, Node, NodeValue};
use problems::Problems;
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The settings file that is read by default.
pub const DEFAULT_FILE: &str = "consent-gate.toml";

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// The process's environment, passed as an argument so that tests control it.
pub type Environment = std::collections::BTreeMap<String, String>;

/// The service's own state directory, from systemd's `StateDirectory=` or from the image.
#[must_use]
pub fn state_directory(environment: &Environment) -> Option<PathBuf> {
    let first = environment.get("STATE_DIRECTORY")?.split(':').next()?;
    Some(PathBuf::from(first)).filter(|path| path.is_absolute())
}

/// Everything that `run` needs, checked.
#[derive(Debug)]
pub struct Config {
    pub settings: Settings,
    /// In the order of their names.
    pub integrations: Vec<Integration>,
    /// Warnings about settings that are allowed but may surprise.
    pub warnings: Vec<String>,
}

/// Loads the settings and every integration document.
///
/// # Errors
/// Every problem found, each with its file, its key or line, and a remedy.
pub fn load(file: Option<&Path>, environment: &Environment) -> Result<Config, Vec<Problem>> {
    let (config, problems, _) = load_all(file, environment);
    if problems.is_empty() { Ok(config) } else { Err(problems) }
}

/// Loads the settings and those integrations that can be loaded, with the problems of the others: what is
/// wrong with one document keeps nobody from looking at the rest.
///
/// # Errors
/// Every problem, if one is of the settings.
pub fn load_readable(file: Option<&Path>, environment: &Environment) -> Result<(Config, Vec<Problem>), Vec<Problem>> {
    let (config, problems, are_settings_right) = load_all(file, environment);
    if are_settings_right { Ok((config, problems)) } else { Err(problems) }
}

/// What could be loaded, every problem, and whether none is of the settings.
fn load_all(file: Option<&Path>, environment: &Environment) -> (Config, Vec<Problem>, bool) {
    let problems = Problems::default();
    let mut warnings = Vec::new();
    let settings = read_settings(file, environment, &problems, &mut warnings);
    let are_settings_right = problems.count() == 0;
    let integrations = load_directory(&settings, environment, &problems, &mut warnings);
    settings::check_together(&settings, &integrations, &problems, &mut warnings);
    warnings.extend(problems.take_warnings());
    (Config { settings, integrations, warnings }, problems.into_list(), are_settings_right)
}

/// One integration, or the names of those that exist.
#[derive(Debug)]
pub enum One {
    Found(Box<Settings>, Box<Integration>),
    Unknown(Vec<String>),
}

/// Loads the settings and one integration by its name, so that a problem in another integration's document
/// does not stop a command for this one.
///
/// # Errors
/// Every problem found in these files.
pub fn load_one(name: &str, file: Option<&Path>, environment: &Environment) -> Result<One, Vec<Problem>> {
    let problems = Problems::default();
    let settings = read_settings(file, environment, &problems, &mut Vec::new());
    let paths = documents(&settings, &problems, &mut Vec::new());
    let Some(path) = paths.iter().find(|path| path.file_stem() == Some(OsStr::new(name))) else {
        let stem = |path: &PathBuf| Some(path.file_stem()?.to_string_lossy().into_owned());
        return finish(One::Unknown(paths.iter().filter_map(stem).collect()), problems);
    };
    match document_at(path, &settings, environment, &problems, &mut Vec::new()) {
        Some(integration) => finish(One::Found(Box::new(settings), Box::new(integration)), problems),
        None => Err(problems.into_list()),
    }
}

/// Loads only the settings, for commands that need no integration.
///
/// # Errors
/// Every problem found.
pub fn load_settings(file: Option<&Path>, environment: &Environment) -> Result<Settings, Vec<Problem>> {
    let problems = Problems::default();
    let settings = read_settings(file, environment, &problems, &mut Vec::new());
    finish(settings, problems)
}

/// Loads one document by its path, for `map` on a file that is not deployed.
///
/// # Errors
/// Every problem found.
pub fn load_document(path: &Path, settings: &Settings, environment: &Environment) -> Result<Integration, Vec<Problem>> {
    let problems = Problems::default();
    let integration = document_at(path, settings, environment, &problems, &mut Vec::new());
    let Some(integration) = integration else { return Err(problems.into_list()) };
    finish(integration, problems)
}

fn finish<T>(loaded: T, problems: Problems) -> Result<T, Vec<Problem>> {
    if problems.count() == 0 { Ok(loaded) } else { Err(problems.into_list()) }
}

fn read_settings(
    file: Option<&Path>,
    environment: &Environment,
    problems: &Problems,
    warnings: &mut Vec<String>,
) -> Settings {
    let (tree, base) = settings_tree(file, environment, problems);
    settings::read(tree, &base, environment, problems, warnings)
}

/// Reads the settings file and applies the environment on top. Returns the tree, and the folder to which
/// paths are relative.
fn settings_tree(file: Option<&Path>, environment: &Environment, problems: &Problems) -> (Node, PathBuf) {
    let path = file.map_or_else(|| PathBuf::from(DEFAULT_FILE), Path::to_path_buf);
    let name = path.display().to_string();
    let empty = Node { value: NodeValue::Table(Vec::new()), place: Location::File(name.as_str().into()) };
    let tree = match read_bounded(&path) {
        Ok(text) => node::from_toml(&text, &name).unwrap_or_else(|(place, why)| {
            problems.add(&place, why);
            empty
        }),
        Err(error) if error.kind() == ErrorKind::NotFound && file.is_none() => empty,
        Err(error) => {
            problems.add(&empty.place, format!("cannot be read: {error}; check --config"));
            empty
        }
    };
    let base = path.parent().map(Path::to_path_buf).unwrap_or_default();
    (settings::overlay(tree, environment, problems), base)
}

fn load_directory(
    settings: &Settings,
    environment: &Environment,
    problems: &Problems,
    warnings: &mut Vec<String>,
) -> Vec<Integration> {
    let paths = documents(settings, problems, warnings);
    paths.iter().filter_map(|path| document_at(path, settings, environment, problems, warnings)).collect()
}

/// The documents in the directory of integrations, in the order of their names.
fn documents(settings: &Settings, problems: &Problems, warnings: &mut Vec<String>) -> Vec<PathBuf> {
    let directory = &settings.integrations;
    let shown = directory.display().to_string();
    let place = Location::File(quoted(&shown).into());
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => {
            let is_lost = directory == Path::new("integrations") && !Path::new(DEFAULT_FILE).exists();
            let remedy = if is_lost {
                "and there is no consent-gate.toml here: is this the worker's folder? Otherwise create the directory, or \
                 name the settings with --config"
            } else {
                "create the directory or set integrations.directory"
            };
            problems.add(&place, format!("integrations cannot be read: {error}; {remedy}"));
            return Vec::new();
        }
    };
    let found = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let (mut paths, others): (Vec<PathBuf>, Vec<PathBuf>) = found.partition(|path| is_document(path));
    paths.sort();
    warnings.extend(others.iter().filter(|path| is_nearly_document(path)).map(|path| {
        format!(
            "{}: left out, since its name does not end in .json; if it is an integration, rename it",
            quoted(&path.display().to_string())
        )
    }));
    if paths.is_empty() {
        problems.add(
            &place,
            "contains no integration; put one *.json per customer there, whose stem is the integration's name",
        );
    }
    paths
}

/// Whether a file is named `*.json` and does not begin with a dot.
fn is_document(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && path.extension() == Some(OsStr::new("json"))
}

/// Whether a file's name suggests that it is meant as a document: `acme.JSON`, `acme.jsn`, `acme.json.txt`.
fn is_nearly_document(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let end = name.rsplit_once('.').map_or("", |(_, end)| end);
    !name.starts_with('.') && (name.contains(".json") || suggest::distance(end, "json").is_some())
}

fn document_at(
    path: &Path,
    settings: &Settings,
    environment: &Environment,
    problems: &Problems,
    warnings: &mut Vec<String>,
) -> Option<Integration> {
    let file = path.display().to_string();
    let place = Location::File(file.as_str().into());
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name = Name::new(&stem).map_err(|why| problems.add(&place, why)).ok();
    let text = read_bounded(path).map_err(|error| problems.add(&place, unreadable(&error))).ok()?;
    let tree = node::from_json(&text, &file).map_err(|(place, why)| problems.add(&place, why)).ok()?;
    let context = document::DocumentContext {
        folder: path.parent().unwrap_or(Path::new("")),
        environment,
        settings,
        name: &stem,
    };
    let document = document::read(tree, &context, problems, warnings)?;
    Some(document.named(name?))
}

/// Explains why a document cannot be read; errors of the operating system name no remedy, so one is added.
fn unreadable(error: &std::io::Error) -> String {
    let remedy = error.raw_os_error().map_or("", |_| "; name a document that exists and that this user may read");
    format!("cannot be read: {error}{remedy}")
}

/// Reads a text file of at most `MAX_FILE` bytes.
pub(crate) fn read_bounded(path: &Path) -> std::io::Result<String> {
    let size = fs::metadata(path)?.len();
    if size > MAX_FILE {
        return Err(std::io::Error::other("larger than 4 MiB"));
    }
    let bytes = fs::read(path)?;
    let begins_utf16 = bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff");
    // Without a byte order mark, UTF-16 is recognized by the zero byte in each ASCII character.
    if begins_utf16 || bytes.iter().take(4).any(|byte| *byte == 0) {
        let why = "it is saved as UTF-16; save it as UTF-8 (in PowerShell: Out-File -Encoding utf8)";
        return Err(std::io::Error::other(why));
    }
    let text = String::from_utf8(bytes).map_err(|_| std::io::Error::other("it is not UTF-8; save it as UTF-8"))?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}
