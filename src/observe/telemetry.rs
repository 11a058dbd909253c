//! Logs: one line per fact, on standard error.
//!
//! What may be logged: names from the configuration, codes, counts, durations, the event's type, and the
//! fingerprint of a body. Never a body, a header's value, an identifier, a property's value, or a text from the
//! gate. Audit entries are written at every level. Libraries log nothing: at their finer levels they print frames
//! and headers, so what they know is in our own errors instead. A panic's message is withheld for the same
//! reason; its place in the code is enough to find it.
//!
//! A command writes its lines itself. The worker hands them to a thread: the reader of its standard error may stop
//! reading, and a single thread serves all events, health and metrics. Lines for which there is no room are
//! dropped and counted.

use crate::observe::audit;
use crate::text::shown;
use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use tracing::Level as TracingLevel;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The most lines that wait for a slow reader: the failure of everything that a hundred integrations have in hand,
/// in some MB of memory.
const MOST_WAITING: usize = 8 * 1024;
/// The longest that waiting lines hold up the end of the process.
const FLUSH: Duration = Duration::from_secs(2);

/// The settings of `[log]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogSettings {
    pub format: Format,
    pub level: Level,
}

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Text on a terminal, else JSON.
    #[default]
    Auto,
    Text,
    Json,
}

impl Format {
    /// The words of the configuration.
    pub const WORDS: [&'static str; 3] = ["auto", "text", "json"];

    /// The format of one of [`Format::WORDS`].
    #[must_use]
    pub fn of(word: &str) -> Format {
        match word {
            "text" => Format::Text,
            "json" => Format::Json,
            _ => Format::Auto,
        }
    }
}

/// How much is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(TracingLevel);

impl Default for Level {
    fn default() -> Level {
        Level(TracingLevel::INFO)
    }
}

impl Level {
    /// The words of the configuration.
    pub const WORDS: [&'static str; 5] = ["error", "warn", "info", "debug", "trace"];

    /// The level of one of [`Level::WORDS`].
    #[must_use]
    pub fn of(word: &str) -> Level {
        Level(word.parse().unwrap_or(TracingLevel::INFO))
    }
}

/// Starts logging for the whole process. Each line is written before its caller goes on.
pub fn start(settings: LogSettings) {
    start_with(settings, io::stderr);
}

/// Starts logging for the whole process. Lines are written by a thread, and no caller waits for it.
#[must_use]
pub fn start_detached(settings: LogSettings) -> LogLines {
    let unwritten = Arc::new(AtomicU64::new(0));
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(MOST_WAITING)
        .thread_name("log")
        .finish(StandardError(Arc::clone(&unwritten)));
    start_with(settings, writer.clone());
    LogLines { writer, guard, unwritten }
}

/// The worker's lines on their way to standard error.
#[derive(Debug)]
pub struct LogLines {
    writer: NonBlocking,
    guard: WorkerGuard,
    unwritten: Arc<AtomicU64>,
}

impl LogLines {
    /// Counts the lines that were dropped since the start: there was no room, or nobody reads
    /// standard error any more.
    pub fn dropped(&self) -> impl Fn() -> u64 + Send + Sync + use<> {
        let (full, unwritten): (ErrorCounter, _) = (self.writer.error_counter(), Arc::clone(&self.unwritten));
        move || full.dropped_lines() as u64 + unwritten.load(Ordering::Relaxed)
    }

    /// Writes the lines that wait and then `last_words`, unless nobody reads them within two seconds.
    pub fn finish(self, last_words: &str) {
        let LogLines { mut writer, guard, .. } = self;
        let last_words = last_words.to_owned();
        let (done, flushed) = mpsc::channel::<()>();
        let flush = move || {
            // The writer counts what it drops, and never fails.
            let _ = writer.write_all(last_words.as_bytes());
            drop(guard);
            drop(done);
        };
        // On a thread of its own: when the guard gives up, it says so on standard output, which may be as full as
        // standard error.
        if thread::Builder::new().name("last lines".to_owned()).spawn(flush).is_ok() {
            let _ = flushed.recv_timeout(FLUSH);
        }
    }
}

/// Standard error. Failed writes are counted: the thread that writes lines has nobody to report them to.
struct StandardError(Arc<AtomicU64>);

impl Write for StandardError {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if io::stderr().write_all(line).is_err() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A writer that escapes everything in a line that a terminal would obey. So lines have no colours either: nobody
/// could tell those from a forgery.
#[derive(Clone, Debug)]
struct Clean<W>(W);

impl<'w, W: MakeWriter<'w>> MakeWriter<'w> for Clean<W> {
    type Writer = Clean<W::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        Clean(self.0.make_writer())
    }
}

impl<W: Write> Write for Clean<W> {
    /// Each call is one whole line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let (text, end) = text.strip_suffix('\n').map_or((&*text, ""), |text| (text, "\n"));
        match shown::value(text) {
            Cow::Borrowed(_) => self.0.write_all(line)?,
            Cow::Owned(clean) => self.0.write_all((clean + end).as_bytes())?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn start_with<W>(settings: LogSettings, writer: W)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let json = match settings.format {
        Format::Auto => !io::stderr().is_terminal(),
        Format::Json => true,
        Format::Text => false,
    };
    let only_ours = Targets::new()
        .with_target("consent_gate", LevelFilter::from_level(settings.level.0))
        .with_target(audit::TARGET, LevelFilter::INFO)
        .with_default(LevelFilter::OFF);
    let lines = tracing_subscriber::fmt::layer().with_writer(Clean(writer)).with_target(false);
    let layer = if json {
        lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
    } else {
        lines.with_ansi(false).boxed()
    };
    tracing_subscriber::registry().with(layer.with_filter(only_ours)).init();
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|place| format!("{}:{}", place.file(), place.line()));
        tracing::error!(
            place = place.unwrap_or_default(),
            "panicked; its message is withheld, it could hold personal data"
        );
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_holds_nothing_that_a_terminal_would_obey() {
        let mut lines = Clean(Vec::new());
        for line in ["WARN error=\u{1b}[2J\u{202e}\nforged\n", "INFO Zo\u{eb}\n"] {
            lines.write_all(line.as_bytes()).unwrap();
        }
        let written = String::from_utf8(lines.0).unwrap();
        assert_eq!(written, "WARN error=\\u001b[2J\\u202e\\u000aforged\nINFO Zo\u{eb}\n");
    }
}
