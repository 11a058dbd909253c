//! The command line of `dead`.

use crate::broker::letters::Pile;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub enum Dead {
    /// List dead letters, oldest first, or count them by reason
    #[command(after_help = "Examples:\n  consent-gate dead list --integration acme\n  \
        consent-gate dead list --integration acme --group\n  \
        consent-gate dead list --integration acme --reason refused --since 2h --limit 20\n  \
        consent-gate dead list --integration acme --aside")]
    List(ListArgs),
    /// Show one letter whole: its reason, its history, and what it would do today
    #[command(after_help = "Examples:\n  consent-gate dead show --integration acme 4f2d8c90ab17\n  \
        consent-gate dead show --integration acme 00000000-0000-4000-8000-000000000001 --reveal")]
    Show(ShowArgs),
    /// Give letters new attempts: a few first, then more and more, watching what becomes of them
    #[command(after_help = "Examples:\n  consent-gate dead replay --integration acme --dry-run\n  \
        consent-gate dead replay --integration acme --reason attempts_exhausted --rate 200/s --wait\n  \
        consent-gate dead replay --integration acme --aside")]
    Replay(ReplayArgs),
    /// Remove letters for good, keeping a copy in a file
    #[command(after_help = "Examples:\n  consent-gate dead discard --integration acme --older-than 30d\n  \
        consent-gate dead discard --integration acme --reason undecodable --to broken.jsonl")]
    Discard(DiscardArgs),
    /// Copy letters to a file that import takes, removing none
    #[command(after_help = "Examples:\n  consent-gate dead export --integration acme --to letters.jsonl\n  \
        consent-gate dead export --integration acme --to - | gzip > letters.jsonl.gz")]
    Export(ExportArgs),
    /// Put the letters of an export back, leaving out those that are there already
    #[command(after_help = "Example:\n  consent-gate dead import --integration acme letters.jsonl")]
    Import(ImportArgs),
}

/// Which letters; without any of them all.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Which letters (all, unless narrowed)")]
pub struct LetterSelection {
    /// Died for this reason; "none" for those that name none; may be repeated
    #[arg(long, value_name = "CODE")]
    pub reason: Vec<String>,
    /// The last answer had this HTTP status; "none" for no answer; may be repeated
    #[arg(long, value_name = "STATUS")]
    pub status: Vec<String>,
    /// Died at or after this: an RFC 3339 time, or so long ago, such as 2h
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Died before this: an RFC 3339 time, or so long ago
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Died longer ago than this, such as 30d
    #[arg(long, value_name = "DURATION")]
    pub older_than: Option<String>,
    /// Holds an event of this type, such as event.created; may be repeated
    #[arg(long = "type", value_name = "TYPE")]
    pub kind: Vec<String>,
    /// Holds the event with this id; may be repeated
    #[arg(long, value_name = "ID")]
    pub event_id: Vec<String>,
    /// Is about this person, as the events name them; may be repeated
    #[arg(long, value_name = "IDENTIFIER")]
    pub identifier: Vec<String>,
    /// So many attempts were made: 5, 1..3 or 3..
    #[arg(long, value_name = "COUNT")]
    pub attempts: Option<String>,
    /// At most so many
    #[arg(long, value_name = "COUNT")]
    pub limit: Option<String>,
}

/// Which queue of letters.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct PileChoice {
    /// The letters that the broker itself put aside, as somebody's policy told it
    #[arg(long)]
    pub aside: bool,
}

impl PileChoice {
    /// The same as commands know it.
    #[must_use]
    pub fn pile(self) -> Pile {
        if self.aside { Pile::Aside } else { Pile::Dead }
    }
}

/// Arguments of `dead list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// An integration's name
    #[arg(long, value_name = "NAME")]
    pub integration: String,
    #[command(flatten)]
    pub pile: PileChoice,
    /// Only count, by reason
    #[arg(long)]
    pub group: bool,
    /// Show who each letter is about; that leaves a line in the log
    #[arg(long)]
    pub reveal: bool,
    #[command(flatten)]
    pub selection: LetterSelection,
}

/// Arguments of `dead show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// An integration's name
    #[arg(long, value_name = "NAME")]
    pub integration: String,
    #[command(flatten)]
    pub pile: PileChoice,
    /// The event's id, or the letter's as list shows it
    #[arg(value_name = "ID")]
    pub id: String,
    /// Show body and values, too; that leaves a line in the log
    #[arg(long)]
    pub reveal: bool,
}

/// Arguments of `dead replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// An integration's name
    #[arg(long, value_name = "NAME")]
    pub integration: String,
    #[command(flatten)]
    pub pile: PileChoice,
    /// Only say for every letter what would happen today
    #[arg(long)]
    pub dry_run: bool,
    /// How many letters go first; the others follow when these were tried; 0 for none
    #[arg(long, value_name = "COUNT", default_value = "10")]
    pub canary: String,
    /// How long the canary's first attempts may take, and later any silence
    #[arg(long, value_name = "DURATION", default_value = "60s")]
    pub deadline: String,
    /// How many letters go in a second or a minute, at most
    #[arg(long, value_name = "RATE", default_value = "50/s")]
    pub rate: String,
    /// Stop when more of the first attempts fail than this
    #[arg(long, value_name = "SHARE", default_value = "20%")]
    pub abort_above: String,
    /// Wait for the last verdict; exit code 1 when letters died again
    #[arg(long)]
    pub wait: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    #[command(flatten)]
    pub selection: LetterSelection,
}

/// Arguments of `dead discard`.
#[derive(Debug, Args)]
pub struct DiscardArgs {
    /// An integration's name
    #[arg(long, value_name = "NAME")]
    pub integration: String,
    #[command(flatten)]
    pub pile: PileChoice,
    /// Where the copy goes, - for standard output; without it dead-NAME-TIME.jsonl, in the state
    /// directory of the service or image, else in the working directory
    #[arg(long, value_name = "FILE", conflicts_with = "no_export")]
    pub to: Option<PathBuf>,
    /// Keep no copy
    #[arg(long)]
    pub no_export: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    #[command(flatten)]
    pub selection: LetterSelection,
}

/// Arguments of `dead export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// An integration's name
    #[arg(long, value_name = "NAME")]
    pub integration: String,
    #[command(flatten)]
    pub pile: PileChoice,
    /// A file that does not exist yet, or - for standard output
    #[arg(long, value_name = "FILE")]
    pub to: PathBuf,
    #[command(flatten)]
    pub selection: LetterSelection,
}

/// Arguments of `dead import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// An integration's name
    #[arg(long, value_name = "NAME")]
    pub integration: String,
    /// A file that export or discard wrote
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}
