//! `completions` and `man`: what a shell and `man` know of the command line.

use super::{Failure, print};
use crate::cli::Cli;
use clap::CommandFactory;
use clap_complete::Shell;

/// Writes a shell's completion script.
///
/// # Errors
/// Standard output cannot be written (exit code 1).
pub fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "consent-gate", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Writes the manual page.
///
/// # Errors
/// Standard output cannot be written (exit code 1).
pub fn man() -> Result<(), Failure> {
    let mut page = Vec::new();
    let rendered = clap_mangen::Man::new(Cli::command()).render(&mut page);
    rendered.map_err(|error| Failure::Failed(format!("cannot render: {error}")))?;
    print(&String::from_utf8_lossy(&page))
}
