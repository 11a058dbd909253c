//! A record as it is on disk or in the database, whatever became of it; and the rules applied to it.

#![no_main]

use consent_gate::mapping::{Choice, Slot};
use consent_gate::record::{self, Around, Ask, Erasure, Mapped, Offer, Record, codec};
use jiff::{SignedDuration, Timestamp};
use libfuzzer_sys::fuzz_target;

const NOW: Timestamp = Timestamp::constant(1_790_000_000, 0);
const EXECUTION_HORIZON: SignedDuration = SignedDuration::from_secs(135);

fuzz_target!(|bytes: &[u8]| {
    if let Ok(record) = codec::unpack(bytes) {
        led_through(record);
    }
    if let Ok(record) = serde_json::from_slice::<Record>(bytes) {
        led_through(record);
    }
});

/// Whatever a record says, the rules decide on it, and what they leave can be stored.
fn led_through(record: Record) {
    kept(&record);
    let slot = Slot::new("NEWS", "consents_purposes_newsletter_enabled");
    let mapped = Mapped::new([slot.clone()]);
    let around = Around {
        now: NOW,
        execution_horizon: EXECUTION_HORIZON,
        retention: SignedDuration::MAX,
        swept: None,
        mapped: &mapped,
    };
    let offer = Offer {
        at: Some(NOW),
        withdrawn_at: Some(NOW),
        event: Some("e".into()),
        choices: vec![(slot, Choice::Switch(false))],
    };
    let mut known = Some(record);
    for is_repair in [true, false] {
        record::begin(&mut known, Ask { id: 7, offer: &offer, is_repair }, &around);
    }
    record::erase(&mut known, Erasure { at: None, published: NOW, message: 9 }, NOW, EXECUTION_HORIZON);
    kept(&known.expect("a mark stays"));
}

fn kept(record: &Record) {
    let packed = codec::pack(record).expect("it can be packed");
    assert_eq!(codec::unpack(&packed).as_ref(), Ok(record));
    let json = serde_json::to_vec(record).expect("it can be written");
    assert_eq!(&serde_json::from_slice::<Record>(&json).expect("it can be read"), record);
}
