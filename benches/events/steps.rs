//! The steps of one event that happen in this process alone.

use consent_gate::config::{self, Environment, Problem};
use consent_gate::event;
use consent_gate::gate::signature::Signer;
use consent_gate::integration::Integration;
use consent_gate::plan::{self, Plan};
use consent_gate::record::{self, Around, Ask, Mapped, Record, codec};
use jiff::{SignedDuration, Timestamp};
use std::cell::Cell;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

const EVENT: &[u8] = include_bytes!("../../tests/fixtures/events/event-created-v2.json");

/// One step, to be run any number of times.
pub struct Step {
    pub name: &'static str,
    pub run: Box<dyn Fn()>,
}

fn step<T>(name: &'static str, run: impl Fn() -> T + 'static) -> Step {
    Step { name, run: Box::new(move || drop(black_box(run()))) }
}

fn integration() -> anyhow::Result<Integration> {
    let told = |problems: Vec<Problem>| anyhow::anyhow!("{problems:?}");
    let settings = config::load_settings(None, &Environment::new()).map_err(told)?;
    config::load_document(Path::new("benches/events/acme.json"), &settings, &Environment::new()).map_err(told)
}

/// Every step, in the order in which an event takes them; the first one is for comparison.
///
/// # Errors
/// The fixtures are not what they were.
pub fn all() -> anyhow::Result<Vec<Step>> {
    let integration = Arc::new(integration()?);
    let now: Timestamp = "2026-11-25T12:00:00Z".parse()?;
    let decoded = event::decode(EVENT, &[]).map_err(|defect| anyhow::anyhow!("{defect}"))?;
    let (_, Ok(Plan::Trigger(send))) = plan::plan(EVENT, &integration, now) else {
        anyhow::bail!("the event of the benchmark asks for no request");
    };

    let mapped = Mapped::new(integration.mappings.slots().cloned());
    let offer = Arc::clone(&send.offer);
    let merge = move || {
        let (execution_horizon, retention) = (SignedDuration::from_secs(135), SignedDuration::MAX);
        let around = Around { now, execution_horizon, retention, swept: None, mapped: &mapped };
        let mut record = None;
        record::begin(&mut record, Ask { id: 1, offer: &offer, is_repair: false }, &around);
        record.unwrap_or_default()
    };
    let record = merge();
    let json = serde_json::to_vec(&record)?;
    let packed = codec::pack(&record).map_err(|damaged| anyhow::anyhow!("{damaged:?}"))?;
    let (for_json, for_pack) = (record.clone(), record);

    let (signer, second) = (Signer::default(), Cell::new(1_700_000_000));
    let [for_decode, for_map, for_plan, for_sign] = [(); 4].map(|()| Arc::clone(&integration));
    Ok(vec![
        step("decode by serde_json::Value", || serde_json::from_slice::<serde_json::Value>(black_box(EVENT))),
        step("decode everything", || event::decode(black_box(EVENT), &[])),
        step("decode", move || event::decode(black_box(EVENT), for_decode.mappings.unread()).is_ok()),
        step("map", move || drop(for_map.mappings.properties(black_box(&decoded), false))),
        step("plan", move || plan::plan(black_box(EVENT), &for_plan, now).1.is_ok()),
        // Another second each time: within one second, a signature is made once.
        step("sign", move || signer.authorization(&for_sign.endpoint, second.replace(second.get() + 1))),
        step("request", move || black_box(&send).own_request(&integration)),
        step("record: unpack", move || codec::unpack(black_box(&packed))),
        step("record: merge", merge),
        step("record: pack", move || codec::pack(black_box(&for_pack))),
        step("record: read JSON", move || serde_json::from_slice::<Record>(black_box(&json))),
        step("record: write JSON", move || serde_json::to_vec(black_box(&for_json))),
    ])
}
