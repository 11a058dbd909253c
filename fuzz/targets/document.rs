//! An integration document, as whoever wrote it.

#![no_main]

use consent_gate::config::{self, Environment, Settings};
use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use std::sync::LazyLock;

static SETTINGS: LazyLock<Settings> = LazyLock::new(|| config::load_settings(None, &Environment::new()).unwrap());
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("consent-gate-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder.join("acme.json")
});

fuzz_target!(|text: &[u8]| {
    std::fs::write(&*FILE, text).unwrap();
    match config::load_document(&FILE, &SETTINGS, &Environment::new()) {
        Ok(integration) => assert!(!format!("{integration:?}").contains("s3cr3t"), "a secret is shown"),
        Err(problems) => {
            assert!(!problems.is_empty(), "refused without a word");
            for problem in problems {
                let told = problem.to_string();
                assert!(!told.contains("s3cr3t"), "a secret is told: {told}");
                assert!(!told.chars().any(char::is_control), "{told:?}");
            }
        }
    }
});
