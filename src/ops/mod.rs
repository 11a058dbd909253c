//! The commands other than `run`: each shows what it will touch, does it, and says what was done.
//!
//! Data goes to standard output, messages for the operator to standard error.

mod audit;
pub mod check;
pub mod copy;
pub mod dead;
pub mod declare;
mod finding;
pub mod forget;
pub mod healthcheck;
pub mod map;
pub mod person;
pub mod send;
pub mod shell;
pub mod store;
mod worker;

use crate::broker;
use crate::config::{self, Environment, One, Problem, Settings};
use crate::integration::Integration;
use crate::record;
use crate::text::suggest::did_you_mean;
use crate::text::{remedy, shown};
use crate::verdict::history::History;
use crate::verdict::{self, Processed};
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};
use std::borrow::Cow;
use std::fmt;
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use terminal_size::Width;

/// How much of an event a command reads, in bytes: enough to find out that the event is too large.
const MAX_EVENT: u64 = 2 * crate::event::MAX_BODY as u64;

/// Between columns.
const GAP: &str = "  ";

/// Why a command did not do its work; the variant determines the exit code.
#[derive(Debug)]
pub enum Failure {
    /// Exit code 2: every problem of configuration.
    Configuration(Vec<Problem>),
    /// Exit code 2: the command line asks for something that is not there.
    Usage(String),
    /// Exit code 1.
    Failed(String),
}

impl Failure {
    /// What is wrong, as a part of a longer text.
    fn why(&self) -> Cow<'_, str> {
        match self {
            Failure::Configuration(_) => Cow::Owned(self.to_string()),
            Failure::Usage(why) | Failure::Failed(why) => Cow::Borrowed(why),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Configuration(problems) => {
                let line = |problem: &Problem| format!("error: {}", shown::value(&problem.to_string()));
                f.write_str(&problems.iter().map(line).collect::<Vec<_>>().join("\n"))
            }
            Failure::Usage(why) | Failure::Failed(why) => write!(f, "error: {}", shown::output(why)),
        }
    }
}

impl From<Vec<Problem>> for Failure {
    fn from(problems: Vec<Problem>) -> Failure {
        Failure::Configuration(problems)
    }
}

impl From<record::Failed> for Failure {
    fn from(failed: record::Failed) -> Failure {
        Failure::Failed(shown::value(&remedy::told(&failed.to_string())).into_owned())
    }
}

impl From<broker::Error> for Failure {
    fn from(error: broker::Error) -> Failure {
        Failure::Failed(shown::value(&error.to_string()).into_owned())
    }
}

/// Asks the operator for confirmation. Without a terminal nobody can be asked, which is an error.
fn agreed(question: &str, danger: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage(format!("{danger}, and there is no terminal to ask for confirmation; add --yes")));
    }
    // Only a message: a closed standard error changes nothing.
    let _ = io::stderr().write_all(format!("{} [y/N] ", shown::output(question)).as_bytes());
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    Ok(read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// "1 letter", "2 letters".
fn counted(count: impl fmt::Display + PartialEq + From<u8>, what: &str) -> String {
    let plural = if count == 1.into() { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// The progress of a command, shown only on a terminal.
struct Progress {
    verb: &'static str,
    what: &'static str,
    of: u64,
    is_shown: bool,
}

impl Progress {
    fn new(verb: &'static str, what: &'static str, of: impl Into<u64>) -> Progress {
        Progress { verb, what, of: of.into(), is_shown: io::stderr().is_terminal() }
    }

    fn at(&mut self, done: impl Into<u64>) {
        if self.is_shown {
            let _ = write!(io::stderr(), "\r{} {} of {} {} ", self.verb, done.into(), self.of, self.what);
        }
    }

    fn end(&mut self) {
        if self.is_shown {
            let _ = write!(io::stderr(), "\r{:60}\r", "");
        }
    }
}

/// A time in UTC, as in files and logs, followed by the local time unless that is UTC, too.
fn time(at: Timestamp) -> String {
    let here = at.to_zoned_datetime(TimeZone::system());
    let is_other = here.offset() != Offset::UTC;
    let here = if is_other { format!(" ({} here)", here.strftime("%Y-%m-%d %H:%M:%S %:z")) } else { String::new() };
    format!("{at}{here}")
}

/// How many columns the terminal has that data goes to; `None` if data does not go to a terminal.
fn terminal_width() -> Option<usize> {
    terminal_size::terminal_size_of(io::stdout()).map(|(Width(columns), _)| columns.into())
}

/// Columns, each as wide as its widest cell; a column whose cells are all empty is left out.
#[derive(Default)]
struct Columns {
    widths: Vec<usize>,
    head: Vec<String>,
}

impl Columns {
    /// Makes room for a row.
    fn widen(&mut self, row: &[String]) {
        self.widths.resize(self.widths.len().max(row.len()), 0);
        for (width, cell) in self.widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }

    /// Gives each column its name, except the empty columns.
    fn headed(mut self, names: &[&str]) -> Columns {
        let name = |(width, name): (&usize, &&str)| if *width == 0 { String::new() } else { (*name).to_owned() };
        self.head = self.widths.iter().zip(names).map(name).collect();
        let head = self.head.clone();
        self.widen(&head);
        self
    }

    /// Shortens the widest of the columns that may be shortened, again and again and none below its narrowest
    /// width, until a line fits or nothing is left to shorten.
    fn fit(&mut self, room: usize, narrowest: &[Option<usize>]) {
        let shown = self.widths.iter().filter(|width| **width > 0);
        let needed = shown.map(|width| width + GAP.len()).sum::<usize>().saturating_sub(GAP.len());
        for _ in room..needed {
            let may = self.widths.iter_mut().zip(narrowest).filter(|(width, least)| least.is_some_and(|l| **width > l));
            let Some((widest, _)) = may.max_by_key(|(width, _)| **width) else { return };
            *widest -= 1;
        }
    }

    fn head(&self) -> String {
        self.line(&self.head)
    }

    fn line(&self, row: &[String]) -> String {
        let cells = row.iter().zip(&self.widths).filter(|(_, width)| **width > 0);
        let cells: Vec<String> = cells.map(|(cell, width)| format!("{:width$}", shortened(cell, *width))).collect();
        format!("{}\n", cells.join(GAP).trim_end())
    }
}

/// A cell, cut to a width.
fn shortened(cell: &str, width: usize) -> Cow<'_, str> {
    if cell.chars().count() <= width {
        return Cow::Borrowed(cell);
    }
    Cow::Owned(cell.chars().take(width.saturating_sub(1)).chain(['…']).collect())
}

/// Rows in columns; the first row is the head.
fn table(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| shown::value(cell).into_owned()).collect()).collect();
    let mut columns = Columns::default();
    for row in &rows {
        columns.widen(row);
    }
    rows.iter().map(|row| columns.line(row)).collect()
}

/// Writes data to standard output, and escapes everything that a terminal would obey. A broken pipe is not an
/// error.
fn print(text: &str) -> Result<(), Failure> {
    print_as_it_is(&shown::output(text))
}

/// The same without escaping, for text that is entirely our own.
fn print_as_it_is(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Failed(format!("cannot write: {error}")))
        }
        _ => Ok(()),
    }
}

/// Everything that is wrong with a command line, at once.
fn usage(problems: Vec<String>) -> Failure {
    Failure::Usage(problems.join("\nerror: "))
}

/// Writes a message for the operator to standard error.
fn talk(text: &str) {
    // Only a message: a closed standard error changes nothing.
    let _ = io::stderr().write_all(format!("{}\n", shown::output(text)).as_bytes());
}

/// Reads one message from a file or, for `-`, from standard input.
fn read_event(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    let is_stdin = path == Path::new("-");
    let read = if is_stdin {
        if io::stdin().is_terminal() {
            talk("type or paste the event, then Ctrl-D; or name a file");
        }
        io::stdin().lock().take(MAX_EVENT).read_to_end(&mut body)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_EVENT).read_to_end(&mut body))
    };
    match read {
        Ok(0) if is_stdin => Err(Failure::Usage("no event on standard input; name a file, or pipe one in".to_owned())),
        Ok(_) => Ok(body),
        Err(error) => Err(Failure::Usage(format!(
            "event {} cannot be read: {error}; name a file, or - for standard input",
            path.display()
        ))),
    }
}

/// Outcome and code of the verdict that the worker would reach on a fresh event.
fn verdict_of(processed: &Processed, integration: &Integration) -> (&'static str, &'static str) {
    let verdict = verdict::decide(processed, &History::default(), &integration.schedule, Timestamp::now());
    // Only an event that a worker would try again has no outcome yet.
    (verdict.outcome().unwrap_or("retried"), verdict.code())
}

/// How long records are kept.
fn retention(settings: &Settings) -> SignedDuration {
    SignedDuration::try_from(settings.records.retention).unwrap_or(SignedDuration::MAX)
}

/// Finds an integration by its name, or loads it from its file.
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
    match config::load_one(name, config, environment)? {
        One::Found(settings, integration) => Ok((*settings, *integration)),
        One::Unknown(names) => Err(unknown(name, names.iter().map(String::as_str))),
    }
}

/// Refuses an identifier that is empty, as an empty shell variable is.
fn is_somebody(identifier: &str) -> Result<(), Failure> {
    if identifier.trim().is_empty() {
        return Err(Failure::Usage("the identifier is empty; name the person as the events do".to_owned()));
    }
    Ok(())
}

/// Finds an integration by name.
fn named<'i>(integrations: &'i [Integration], name: &str) -> Result<&'i Integration, Failure> {
    let names = integrations.iter().map(|integration| integration.name.as_str());
    integrations.iter().find(|integration| integration.name.as_str() == name).ok_or_else(|| unknown(name, names))
}

/// The failure when no integration has a name.
fn unknown<'n>(name: &str, names: impl Iterator<Item = &'n str> + Clone) -> Failure {
    let meant = did_you_mean(name, names.clone());
    let known = names.collect::<Vec<_>>().join(", ");
    Failure::Usage(format!("no integration \"{name}\"; known: {known}{meant}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(room: usize) -> [String; 2] {
        let rows = [["2026-11-27 15:11:00", "4f2d8c90ab17", "an answer that goes on"], ["x", "y", "z"]];
        let rows = rows.map(|row| row.map(str::to_owned));
        let mut columns = Columns::default();
        for row in &rows {
            columns.widen(row);
        }
        columns.fit(room, &[Some(6), None, Some(4)]);
        rows.map(|row| columns.line(&row))
    }

    #[test]
    fn only_what_is_no_id_is_shortened_the_widest_first_and_only_as_far_as_needed() {
        let whole = "2026-11-27 15:11:00  4f2d8c90ab17  an answer that goes on\n";
        assert_eq!(lines(57)[0], whole);
        assert_eq!(lines(1_000)[0], whole);
        assert_eq!(lines(56)[0], "2026-11-27 15:11:00  4f2d8c90ab17  an answer that goes …\n");
        assert_eq!(lines(40)[0], "2026-11-27 …  4f2d8c90ab17  an answer t…\n");
        assert_eq!(lines(40)[1], "x             y             z\n");
        assert_eq!(lines(3)[0], "2026-…  4f2d8c90ab17  an …\n");
    }
}
