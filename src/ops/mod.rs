//! The commands beside `run`: each shows what it will touch, does it, and says what was done.
//!
//! Data goes to standard output, talk to standard error.

pub mod check;
pub mod declare;
pub mod healthcheck;
pub mod map;
pub mod send;

use crate::config::{self, Environment, Problem, Settings};
use crate::integration::Integration;
use std::fmt;
use std::io::{self, Read, Write};
use std::path::Path;

/// The largest event that a command reads: enough to show that it is too large.
const MAX_EVENT: u64 = 2 * crate::verdict::MAX_BODY as u64;

/// Why a command did not do its work; its variants are the exit codes.
#[derive(Debug)]
pub enum Failure {
    /// Exit code 2: every problem of configuration.
    Configuration(Vec<Problem>),
    /// Exit code 2: the command line asks for something that is not there.
    Usage(String),
    /// Exit code 1.
    Failed(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Configuration(problems) => {
                let lines: Vec<String> = problems.iter().map(|problem| format!("error: {problem}")).collect();
                f.write_str(&lines.join("\n"))
            }
            Failure::Usage(why) | Failure::Failed(why) => write!(f, "error: {why}"),
        }
    }
}

impl From<Vec<Problem>> for Failure {
    fn from(problems: Vec<Problem>) -> Failure {
        Failure::Configuration(problems)
    }
}

/// Writes data to standard output. A reader that went away is no failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Failed(format!("cannot write: {error}")))
        }
        _ => Ok(()),
    }
}

/// Reads one message from a file or, for `-`, from standard input.
fn read_event(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    let read = if path == Path::new("-") {
        io::stdin().lock().take(MAX_EVENT).read_to_end(&mut body)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_EVENT).read_to_end(&mut body))
    };
    match read {
        Ok(_) => Ok(body),
        Err(error) => Err(Failure::Usage(format!(
            "event {} cannot be read: {error}; name a file, or - for standard input",
            path.display()
        ))),
    }
}

/// Finds an integration by name, or loads one by its file.
fn integration(
    name: &str,
    config: Option<&Path>,
    environment: &Environment,
) -> Result<(Settings, Integration), Failure> {
    if name.contains('/') || name.ends_with(".json") {
        let settings = config::load_settings(config, environment)?;
        let integration = config::load_document(Path::new(name), &settings, environment)?;
        return Ok((settings, integration));
    }
    let loaded = config::load(config, environment)?;
    let names: Vec<String> = loaded.integrations.iter().map(|integration| integration.name.to_string()).collect();
    let found = loaded.integrations.into_iter().find(|integration| integration.name.as_str() == name);
    match found {
        Some(integration) => Ok((loaded.settings, integration)),
        None => Err(Failure::Usage(format!("no integration \"{name}\"; there are {}", names.join(", ")))),
    }
}
