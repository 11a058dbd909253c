//! A message's body, compressed or not, up to the request or to why there is none. Errors show nothing of it that they
//! may not show.

#![no_main]

use consent_gate::config::{self, Environment};
use consent_gate::event::Body;
use consent_gate::integration::Integration;
use consent_gate::mapping::Choice;
use consent_gate::plan::{self, Plan};
use consent_gate::verdict::Processed;
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use std::path::Path;
use std::sync::LazyLock;

const NOW: Timestamp = Timestamp::constant(1_790_000_000, 0);

static INTEGRATION: LazyLock<Integration> = LazyLock::new(|| {
    let settings = config::load_settings(None, &Environment::new()).unwrap();
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/document.jsonc"));
    config::load_document(path, &settings, &Environment::new()).unwrap()
});

fuzz_target!(|bytes: &[u8]| {
    let encoding = bytes.starts_with(b"\x1f\x8b").then_some("gzip");
    let (_, planned) = plan::plan(Body { bytes, encoding }, &INTEGRATION, NOW);
    match planned {
        Ok(Plan::Trigger(send)) => {
            assert!(!send.identifier.trim().is_empty(), "a person without a name");
            let is_too_late = |at: Option<Timestamp>| at.is_some_and(|at| at.duration_since(NOW).as_secs() > 300);
            assert!(!is_too_late(send.offer.latest()), "dated ahead");
            let is_text = |choice: &Choice| matches!(choice, Choice::Text(text) if text.is_empty());
            assert!(!send.offer.choices.iter().any(|(_, choice)| is_text(choice)), "an empty text is no choice");
            let request = send.own_request(&INTEGRATION);
            serde_json::from_slice::<serde_json::Value>(request.body()).expect("the gate can read it");
        }
        Ok(Plan::Erase { identifier, at }) => {
            assert!(!identifier.trim().is_empty(), "a person without a name");
            assert!(at.is_none_or(|at| at.duration_since(NOW).as_secs() <= 300), "dated ahead");
        }
        Err(Processed::Defective(defect)) => {
            let told = defect.to_string();
            assert!(told.len() < 2_000 && !told.chars().any(char::is_control), "{told}");
        }
        Err(_) => {}
    }
});
