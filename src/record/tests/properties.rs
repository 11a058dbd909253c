//! What is true of any record, after anything that can happen to it.

use super::*;
use proptest::prelude::*;

/// Records after anything that can happen to them.
fn records() -> impl Strategy<Value = Record> {
    let turn = (0_usize..12, 0_usize..4, 0_i64..300, 0_u8..3, any::<bool>());
    proptest::collection::vec(turn, 1..12).prop_map(|turns| {
        let mut jane = Person::new();
        for (index, (what, sent, now, property, on)) in turns.into_iter().enumerate() {
            let sent = [Effect::Accepted, Effect::Refused, Effect::Failed, Effect::Unknown][sent];
            let second = now - 100;
            match what {
                0 => drop(jane.erase((index % 2 == 0).then_some(second), index as u64, now)),
                1 => drop(jane.turn(&topics(second, "s", &["a", "b"][..usize::from(property).min(2)]), sent, now)),
                2 => {
                    let text = Choice::Text(property.to_string().into());
                    let undated = Offer { at: None, withdrawn_at: None, ..of(0, "u", vec![(slot("text"), text)]) };
                    jane.turn(&Offer { event: None, ..undated }, sent, now);
                }
                3 => jane.mapped = Mapped::new([slot(&property.to_string())]),
                4 => {
                    let id = index as u64 + 900;
                    jane.begin(id, &offer(second, "w", &[("news", on)]), false, now);
                }
                _ => drop(jane.turn(
                    &offer(second, &index.to_string(), &[(["news", "partners", "other"][usize::from(property)], on)]),
                    sent,
                    now,
                )),
            }
        }
        jane.known.unwrap_or_default()
    })
}

fn offers() -> impl Strategy<Value = Vec<Offer>> {
    let one = (
        proptest::option::of(0_i64..4),
        proptest::option::of("[a-c]"),
        proptest::collection::vec((0_u8..3, any::<bool>()), 0..3),
    );
    let one = one.prop_map(|(second, event, choices)| Offer {
        at: second.map(at),
        withdrawn_at: second.map(at),
        event: event.map(Arc::from),
        choices: choices.into_iter().map(|(id, on)| (slot(&id.to_string()), Choice::Switch(on))).collect(),
    });
    proptest::collection::vec(one, 0..8)
}

fn merged<'o>(offers: impl IntoIterator<Item = &'o Offer>) -> Vec<(Slot, Arc<Said>)> {
    let mut jane = Person::new();
    for offer in offers {
        jane.turn(offer, Effect::Failed, 1_000);
    }
    jane.known.iter().flat_map(Record::values).map(|(slot, newest)| (slot.clone(), Arc::clone(&newest.said))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_and_number_of_deliveries_gives_one_record(
        (offers, shuffled) in offers().prop_flat_map(|offers| (Just(offers.clone()), Just(offers).prop_shuffle())),
        again in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let twice = again.iter().filter(|_| !offers.is_empty()).map(|index| index.get(&offers));
        prop_assert_eq!(merged(&offers), merged(shuffled.iter().chain(twice)));
    }

    #[test]
    fn a_record_stays_what_it_is_on_the_disk_and_in_a_database(record in records()) {
        let bytes = codec::pack(&record).unwrap();
        prop_assert_eq!(&codec::unpack(&bytes).unwrap(), &record);
        let text = serde_json::to_string(&record).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Record>(&text).unwrap(), &record);
        for damaged in [&bytes[1..], &bytes[..bytes.len() - 1], &[&bytes[..], &[0]].concat(), text.as_bytes(), b""] {
            prop_assert_eq!(codec::unpack(damaged), Err(codec::Damaged));
        }
    }

    #[test]
    fn no_bytes_end_the_process(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = codec::unpack(&bytes);
        let _ = codec::unpack(&[&[2], &bytes[..]].concat());
    }

    #[test]
    fn the_newest_of_each_property_stays(offers in offers()) {
        for (slot, said) in merged(&offers) {
            for offer in &offers {
                for (_, choice) in offer.choices.iter().filter(|(id, _)| *id == slot) {
                    prop_assert!(said.covers(&Said::offered(choice, offer)));
                }
            }
        }
    }
}
