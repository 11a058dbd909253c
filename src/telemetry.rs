//! Logs: one line per fact, on standard error.
//!
//! What may be logged: names from the configuration, codes, counts, durations, the event's type,
//! and the fingerprint of a body. Never a body, a header's value, an identifier, a property's
//! value, or a text from the gate. Libraries log nothing: at their finer levels they print frames
//! and headers, so what they know is in our own errors instead. A panic's message is withheld for
//! the same reason; its place in the code is enough to find it.

use std::io::IsTerminal;
use tracing::Level as TracingLevel;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The settings of `[log]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
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

/// Starts logging for the whole process.
pub fn start(settings: Settings) {
    let json = match settings.format {
        Format::Auto => !std::io::stderr().is_terminal(),
        Format::Json => true,
        Format::Text => false,
    };
    let only_ours = Targets::new()
        .with_target("consent_gate", LevelFilter::from_level(settings.level.0))
        .with_default(LevelFilter::OFF);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let layer = if json {
        lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
    } else {
        lines.with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()).boxed()
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
