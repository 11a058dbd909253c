//! Faults of the machine, simulated by a library that is loaded into a worker.

use super::project;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The library, compiled once for each run of the tests with the compiler that Rust links with.
pub fn library() -> &'static str {
    static LIBRARY: OnceLock<String> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let library: PathBuf = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.so", super::unique()));
        let compiled = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()))
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .arg(&library)
            .arg(project().join("tests/fixtures/faults.c"))
            .args(["-ldl", "-lpthread"])
            .output()
            .expect("cc, with which Rust links");
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        library.to_str().unwrap().to_owned()
    })
}
