//! An integration document, whoever wrote it.

#![no_main]

use consent_gate::config::{self, Environment, Settings};
use consent_gate_fuzz::{file, shows_no_secret};
use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use std::sync::LazyLock;

static SETTINGS: LazyLock<Settings> = LazyLock::new(|| config::load_settings(None, &Environment::new()).unwrap());
static FILE: LazyLock<PathBuf> = LazyLock::new(|| file("acme.json"));

fuzz_target!(|text: &[u8]| {
    std::fs::write(&*FILE, text).unwrap();
    shows_no_secret(config::load_document(&FILE, &SETTINGS, &Environment::new()));
});
