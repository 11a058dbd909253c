//! The command line: clap's types and nothing else.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Delivers Didomi consent events from RabbitMQ to Selligent, through a campaign's gate.
#[derive(Debug, Parser)]
#[command(
    name = "consent-gate",
    version,
    about,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true
)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.\n\n\
    Examples:\n  consent-gate check --connect\n  consent-gate map --integration acme event.json\n  consent-gate run")]
pub struct Cli {
    /// The settings; without it consent-gate.toml in the working directory, else defaults
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Write data as JSON, one object a line
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the worker until SIGTERM or Ctrl-C
    Run,
    /// Validate settings and integration documents, reporting every problem at once
    Check(CheckArgs),
    /// Make the exchange, queues and bindings, so that nothing is missed before the first start
    Declare,
    /// Show what an event would send to the gate, sending nothing
    Map(MapArgs),
    /// Trigger the real gate once, to prove the key and the gate's name
    Send(SendArgs),
    /// Exit 0 when the local worker is ready
    Healthcheck,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Also reach the broker and the gates' hosts, triggering nothing
    #[arg(long)]
    pub connect: bool,
}

/// Arguments of `map`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  consent-gate map --integration acme event.json\n  \
    cat event.json | consent-gate map --integration integrations/acme.json -")]
pub struct MapArgs {
    /// An integration's name, or the file of a document
    #[arg(long, value_name = "NAME|FILE")]
    pub integration: String,
    /// A file with one message, or - for standard input
    #[arg(value_name = "EVENT", default_value = "-")]
    pub event: PathBuf,
}

/// Arguments of `send`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  consent-gate send --integration acme test-event.json")]
pub struct SendArgs {
    /// An integration's name
    #[arg(long, value_name = "NAME")]
    pub integration: String,
    /// A file with one message, or - for standard input
    #[arg(value_name = "EVENT")]
    pub event: PathBuf,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}
