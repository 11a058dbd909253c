//! The settings, whoever wrote them.

#![no_main]

use consent_gate::config::{self, Environment};
use consent_gate_fuzz::{file, shows_no_secret};
use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use std::sync::LazyLock;

static FILE: LazyLock<PathBuf> = LazyLock::new(|| file("consent-gate.toml"));

fuzz_target!(|text: &[u8]| {
    std::fs::write(&*FILE, text).unwrap();
    shows_no_secret(config::load_settings(Some(&FILE), &Environment::new()));
});
