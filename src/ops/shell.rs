//! `completions` and `man`: a shell's completions and the manual pages for the command line.

use super::{Failure, print_as_it_is};
use crate::cli::Cli;
use clap::CommandFactory;
use clap_complete::Shell;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// Writes a shell's completion script.
///
/// # Errors
/// Standard output cannot be written (exit code 1).
pub fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "consent-gate", &mut script);
    print_as_it_is(&String::from_utf8_lossy(&script))
}

/// Writes the manual pages, one for each command, into a directory.
///
/// # Errors
/// Something else is in the directory's place (exit code 2), or it cannot be created or written (1).
pub fn man(directory: &Path) -> Result<(), Failure> {
    let written = fs::create_dir_all(directory).and_then(|()| clap_mangen::generate_to(Cli::command(), directory));
    written.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists | ErrorKind::NotADirectory => Failure::Usage(format!(
            "cannot write to {}: it is or lies below a file; name a directory",
            directory.display()
        )),
        _ => Failure::Failed(format!(
            "cannot write to {}: {error}; name a directory that you may write",
            directory.display()
        )),
    })
}
