//! What those targets share that read files.

use consent_gate::config::Problem;
use std::fmt::Debug;
use std::path::PathBuf;

/// A file of this process's own; its name is a part of what is read.
pub fn file(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("consent-gate-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder.join(name)
}

/// Checks that neither what was read nor an error about it shows a secret, and that no error has a control character.
pub fn shows_no_secret(read: Result<impl Debug, Vec<Problem>>) {
    match read {
        Ok(read) => assert!(!format!("{read:?}").contains("s3cr3t"), "a secret is shown"),
        Err(problems) => {
            assert!(!problems.is_empty(), "refused without a word");
            for problem in problems {
                let told = problem.to_string();
                assert!(!told.contains("s3cr3t"), "a secret is told: {told}");
                assert!(!told.chars().any(char::is_control), "{told:?}");
            }
        }
    }
}
