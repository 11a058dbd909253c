//! The command line: clap's types and nothing else.

mod dead;

pub use dead::{Dead, DiscardArgs, ExportArgs, ImportArgs, LetterSelection, ListArgs, ReplayArgs, ShowArgs};

use clap::{ArgGroup, Args, Parser, Subcommand};
use clap_complete::Shell;
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
#[command(after_help = "Exit codes: 0 done, 1 failed or refused, 2 wrong usage or configuration.\n\n\
    Examples:\n  consent-gate check --connect\n  consent-gate map --integration acme event.json\n  consent-gate run")]
pub struct Cli {
    /// The settings; without it consent-gate.toml in the working directory, else defaults
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Write data as JSON, one object a line
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: CliCommand,
}

/// What to do.
#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one of it in a process")]
pub enum CliCommand {
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
    /// List, show, replay, discard, export or import dead letters
    #[command(subcommand)]
    Dead(Dead),
    /// Show what is recorded of a person, or forget it
    #[command(subcommand)]
    Person(PersonCommand),
    /// Show the records and what the broker knows of them, take them elsewhere, or let it take others
    #[command(subcommand)]
    Store(StoreCommand),
    /// Exit 0 when the local worker is ready
    Healthcheck,
    /// Write a completion script for a shell to standard output
    #[command(after_help = "Example:\n  consent-gate completions bash > /etc/bash_completion.d/consent-gate")]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the manual pages, one for each command, into a directory
    #[command(after_help = "Example:\n  consent-gate man /usr/local/share/man/man1")]
    Man {
        /// Made if it is absent
        #[arg(value_name = "DIRECTORY")]
        directory: PathBuf,
    },
}

/// What to do with a person's record.
#[derive(Debug, Subcommand)]
pub enum PersonCommand {
    /// Show each value on record: since when, by which event, when the gate accepted it
    #[command(after_help = "Example:\n  consent-gate person show --integration acme jane@example.com --reveal")]
    Show(PersonShowArgs),
    /// Erase a person's record and dead letters, and skip older events of theirs from now on
    #[command(after_help = "Examples:\n  consent-gate person forget --integration acme jane@example.com\n  \
        consent-gate person forget --integration acme --from persons.txt --yes")]
    Forget(PersonForgetArgs),
}

/// Arguments of `person show`.
#[derive(Debug, Args)]
pub struct PersonShowArgs {
    /// An integration's name
    #[arg(long, value_name = "NAME")]
    pub integration: String,
    /// The person's identifier, as in the events
    #[arg(value_name = "IDENTIFIER")]
    pub identifier: String,
    /// Show the values, too; that leaves a line in the log
    #[arg(long)]
    pub reveal: bool,
}

/// Arguments of `person forget`.
#[derive(Debug, Args)]
pub struct PersonForgetArgs {
    /// An integration's name
    #[arg(long, value_name = "NAME")]
    pub integration: String,
    /// The person's identifier, as in the events
    #[arg(value_name = "IDENTIFIER", required_unless_present = "from", conflicts_with = "from")]
    pub identifier: Option<String>,
    /// Everybody in this file instead, an identifier a line; - for standard input
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

/// What to do with the records as a whole.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Show which records these are, and whether the broker knows them
    Show,
    /// Let the broker take these records as the right ones, though it knows others or newer ones
    #[command(after_help = "Example:\n  consent-gate store adopt --integration acme")]
    Adopt(StoreAdoptArgs),
    /// Take the records from another place to the one that the settings name, while no worker runs
    #[command(after_help = "Example:\n  consent-gate store copy --from /var/lib/consent-gate/records")]
    Copy(StoreCopyArgs),
}

/// Arguments of `store copy`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("former").required(true).args(["from", "from_file"]))]
pub struct StoreCopyArgs {
    /// The former place: a directory, or the URL of a database
    #[arg(long, value_name = "STORE")]
    pub from: Option<String>,
    /// A file that names the former place, which may be an address with a password
    #[arg(long, value_name = "FILE")]
    pub from_file: Option<PathBuf>,
    /// An integration of the former records that no worker serves any more; may be repeated
    #[arg(long, value_name = "NAME")]
    pub removed: Vec<String>,
}

/// Arguments of `store adopt`.
#[derive(Debug, Args)]
pub struct StoreAdoptArgs {
    /// Only for this integration
    #[arg(long, value_name = "NAME")]
    pub integration: Option<String>,
    /// Take them though they are empty and the broker knows others: what those knew is lost
    #[arg(long)]
    pub lose_records: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Also reach the broker, the records, the gates' hosts and the worker here, and count dead letters; triggers nothing
    #[arg(long)]
    pub connect: bool,
}

/// Arguments of `map`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  consent-gate map --integration acme event.json\n  \
    cat event.json | consent-gate map --integration integrations/acme.json -")]
pub struct MapArgs {
    /// An integration's name, or the file of a document that need not be in the directory yet
    #[arg(long, value_name = "NAME|FILE")]
    pub integration: String,
    /// A file with one message, or - for standard input
    #[arg(value_name = "EVENT", default_value = "-")]
    pub event: PathBuf,
    /// Look at what is recorded of the person, as the worker would: newer values go in the event's place
    #[arg(long)]
    pub recorded: bool,
}

/// Arguments of `send`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  consent-gate send --integration acme test-event.json\n  \
    consent-gate send --integration drafts/acme.json test-event.json")]
pub struct SendArgs {
    /// An integration's name, or the file of a document that need not be in the directory yet
    #[arg(long, value_name = "NAME|FILE")]
    pub integration: String,
    /// A file with one message, or - for standard input
    #[arg(value_name = "EVENT")]
    pub event: PathBuf,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}
