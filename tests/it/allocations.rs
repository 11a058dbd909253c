//! How often each step of an event allocates memory: a count that does not depend on the machine, and that a
//! careless change raises.

#[path = "../../benches/events/steps.rs"]
mod steps;

/// The most allocations of each step, as measured when it was last changed.
const AT_MOST: [(&str, u64); 12] = [
    ("decode by serde_json::Value", 112),
    ("decode everything", 25),
    ("decode", 16),
    ("map", 12),
    ("plan", 35),
    ("sign", 8),
    ("request", 4),
    ("record: unpack", 24),
    ("record: merge", 10),
    ("record: pack", 9),
    ("record: read JSON", 92),
    ("record: write JSON", 5),
];

#[test]
fn no_step_asks_for_memory_more_often_than_it_did() {
    let steps = steps::all().unwrap();
    let counted = steps.iter().map(|step| {
        (step.run)(); // warm-up: allocations that happen only once
        (step.name, allocation_counter::measure(|| (step.run)()).count_total)
    });
    let counted: Vec<(&str, u64)> = counted.collect();
    let within = counted.len() == AT_MOST.len()
        && counted.iter().zip(AT_MOST).all(|(now, most)| now.0 == most.0 && now.1 <= most.1);
    assert!(within, "measured: {counted:#?}\nallowed: {AT_MOST:#?}");
}
