use super::*;
use proptest::prelude::*;

const LATENESS: SignedDuration = SignedDuration::from_secs(135);

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn offer(second: i64, event: &str, choices: &[(&str, bool)]) -> Offer {
    Offer {
        at: Some(at(second)),
        event: Some(event.into()),
        choices: choices.iter().map(|(id, on)| ((*id).into(), Choice::Switch(*on))).collect(),
    }
}

fn merge(record: &mut Record, offer: &Offer) -> usize {
    record.merge(offer, at(1_000), &Mapped::default())
}

/// What is known of a property.
fn choice(record: &Record, property: &str) -> Option<bool> {
    record.values.get(property).map(|newest| newest.choice == Choice::Switch(true))
}

/// Merges, notes and answers: one whole turn without faults.
fn turn(record: &mut Record, id: u64, offer: &Offer, sent: Sent, now: i64) -> bool {
    record.merge(offer, at(now), &Mapped::default());
    let newest = record.newest(offer);
    record.about_to_send(id, newest, at(now), LATENESS);
    record.answered(id, offer, sent, at(now), LATENESS)
}

#[test]
fn a_late_retry_never_switches_on_what_was_switched_off() {
    let mut record = Record::default();
    let (opt_in, opt_out) = (offer(0, "a", &[("news", true)]), offer(60, "b", &[("news", false)]));
    assert_eq!(merge(&mut record, &opt_in), 0);
    assert_eq!(merge(&mut record, &opt_out), 0);
    assert_eq!(merge(&mut record, &opt_in), 1, "it is outdated");
    assert_eq!(record.newest(&opt_in)[&"news".into()].choice, Choice::Switch(false), "the retry carries today's truth");
}

#[test]
fn an_old_event_still_counts_for_what_nobody_changed_since() {
    let mut record = Record::default();
    merge(&mut record, &offer(60, "b", &[("news", false)]));
    merge(&mut record, &offer(0, "a", &[("news", true), ("partners", true)]));
    assert_eq!((choice(&record, "news"), choice(&record, "partners")), (Some(false), Some(true)));
}

#[test]
fn ties_stay_with_the_withdrawal_then_the_greater_id() {
    let wins = |first: &Offer, second: &Offer| {
        let mut record = Record::default();
        merge(&mut record, first);
        merge(&mut record, second);
        choice(&record, "news").unwrap()
    };
    let (grant, withdrawal) = (offer(0, "z", &[("news", true)]), offer(0, "a", &[("news", false)]));
    assert!(!wins(&grant, &withdrawal) && !wins(&withdrawal, &grant));
    let undated = Offer { at: None, ..offer(0, "z", &[("news", true)]) };
    assert!(!wins(&undated, &withdrawal) && !wins(&withdrawal, &undated));
}

#[test]
fn a_value_that_the_gate_refused_is_neither_lent_nor_replaced_by_an_older_one() {
    let mut record = Record::default();
    let (old, refused) = (offer(0, "a", &[("news", true)]), offer(60, "b", &[("news", false)]));
    turn(&mut record, 1, &refused, Sent::Refused, 60);
    merge(&mut record, &old);
    assert!(record.newest(&old).is_empty(), "left out");
    assert_eq!(record.newest(&refused)[&"news".into()].choice, Choice::Switch(false), "its own event may try again");
    turn(&mut record, 2, &refused, Sent::Accepted, 70);
    assert_eq!(record.newest(&old)[&"news".into()].choice, Choice::Switch(false), "acceptance clears the mark");
}

#[test]
fn a_refusal_of_what_was_lent_marks_nothing() {
    let mut record = Record::default();
    let (old, new) = (offer(0, "a", &[("news", true)]), offer(60, "b", &[("news", false)]));
    merge(&mut record, &new);
    turn(&mut record, 1, &old, Sent::Failed, 70);
    assert_eq!(record.newest(&old)[&"news".into()].choice, Choice::Switch(false));
}

#[test]
fn a_request_that_may_still_be_executed_is_repaired() {
    let mut record = Record::default();
    let (first, second, third) =
        (offer(0, "a", &[("news", true)]), offer(60, "b", &[("news", false)]), offer(70, "c", &[("other", true)]));
    assert!(!turn(&mut record, 1, &first, Sent::Unknown, 0));
    assert!(turn(&mut record, 2, &second, Sent::Accepted, 60), "the first may come after it");
    assert!(turn(&mut record, 3, &third, Sent::Accepted, 70), "the first repair may be lost in a crash");
    let repair = record.repair(&second, at(3_000), LATENESS).expect("it waits for its repair, however long");
    assert_eq!(repair[&"news".into()].choice, Choice::Switch(false));
    record.repaired(at(100), &repair, LATENESS);
    assert!(record.repair(&second, at(3_000), LATENESS).is_some(), "that one came too early");
    record.repaired(at(3_000), &record.newest(&third), LATENESS);
    assert!(record.repair(&second, at(3_000), LATENESS).is_some(), "that one did not carry it");
    record.repaired(at(3_000), &repair, LATENESS);
    assert_eq!(record.repair(&second, at(3_000), LATENESS), None);
}

#[test]
fn the_first_copy_of_a_request_that_left_twice_stays_in_doubt() {
    let (first, second) = (offer(0, "a", &[("news", true)]), offer(60, "b", &[("news", false)]));
    for sent in [Sent::Accepted, Sent::Refused, Sent::Failed] {
        let mut record = Record::default();
        merge(&mut record, &first);
        record.about_to_send(1, record.newest(&first), at(0), LATENESS);
        record.sent_twice(1, 7);
        assert!(!record.answered(1, &first, sent, at(1), LATENESS), "nothing newer could be spoiled");
        assert!(turn(&mut record, 2, &second, Sent::Accepted, 60), "the first copy may come after it");
    }
}

#[test]
fn no_repair_is_due_when_nothing_can_be_spoiled() {
    let first = offer(0, "a", &[("news", true)]);
    let mut record = Record::default();
    turn(&mut record, 1, &first, Sent::Unknown, 0);
    assert!(!turn(&mut record, 2, &first, Sent::Accepted, 10), "the same values once more");
    let mut record = Record::default();
    turn(&mut record, 1, &first, Sent::Unknown, 0);
    let late = 1 + LATENESS.as_secs();
    assert!(
        !turn(&mut record, 2, &offer(60, "b", &[("news", false)]), Sent::Accepted, late),
        "too late to be executed"
    );
    let mut record = Record::default();
    turn(&mut record, 1, &first, Sent::Unknown, 0);
    assert!(!turn(&mut record, 2, &offer(60, "b", &[("other", false)]), Sent::Accepted, 60), "of something else");
}

#[test]
fn the_doubts_of_one_person_are_bounded() {
    let mut record = Record::default();
    for id in 0..100 {
        turn(&mut record, id, &offer(0, "a", &[("news", true)]), Sent::Unknown, 0);
    }
    assert_eq!(record.doubts.len(), MOST_DOUBTS);
}

#[test]
fn an_erased_person_stays_erased_until_a_later_event() {
    let mut record = Record::default();
    merge(&mut record, &offer(0, "a", &[("news", true)]));
    record.erase(at(10), at(10));
    assert_eq!(record.values.len(), 0);
    assert!(record.has_erased(Some(at(0))) && record.has_erased(Some(at(10))) && record.has_erased(None));
    assert!(!record.has_erased(Some(at(11))));
    record.erase(at(5), at(20));
    assert!(record.has_erased(Some(at(10))), "an older erasure takes nothing back");
}

#[test]
fn an_old_letter_does_not_set_a_new_mapping_against_a_newer_event() {
    let since = &Mapped::new(BTreeMap::from([("partners".into(), at(500))]));
    let mut record = Record::default();
    // Came before `partners` was mapped; whether it named it nobody knows any more.
    record.merge(&offer(60, "b", &[("news", false)]), at(60), &Mapped::default());
    let old = offer(0, "a", &[("news", true), ("partners", true)]);
    assert_eq!(record.merge(&old, at(600), since), 2);
    assert_eq!(choice(&record, "partners"), None);
    assert!(!record.newest(&old).contains_key("partners"), "left out");
    record.merge(&offer(700, "c", &[("partners", false)]), at(700), since);
    assert_eq!(choice(&record, "partners"), Some(false));
}

#[test]
fn what_came_after_a_new_mapping_does_not_hide_what_came_before() {
    let since = &Mapped::new(BTreeMap::from([("partners".into(), at(500))]));
    let (old, later) = (offer(100, "a", &[("partners", true)]), offer(600, "b", &[("news", false)]));
    for order in [[&old, &later], [&later, &old]] {
        let mut record = Record::default();
        // Older than both, and merged before the mapping appeared.
        record.merge(&offer(50, "0", &[("news", true)]), at(60), &Mapped::default());
        for (offer, now) in order.into_iter().zip([700, 710]) {
            record.merge(offer, at(now), since);
        }
        assert_eq!(choice(&record, "partners"), Some(true), "in any order");
    }
}

#[test]
fn a_record_is_kept_whole() {
    let mut record = Record::default();
    turn(&mut record, 1, &offer(0, "a", &[("news", true)]), Sent::Unknown, 0);
    turn(&mut record, 2, &offer(1, "b", &[("other", false)]), Sent::Refused, 1);
    record.merge(
        &Offer { at: None, event: None, choices: vec![("t".into(), Choice::Text("x".into()))] },
        at(2),
        &Mapped::default(),
    );
    record.erase(at(-5), at(3));
    turn(&mut record, 3, &offer(4, "c", &[("news", true)]), Sent::Unknown, 4);
    let text = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    let bytes = compact::pack(&record).unwrap();
    assert_eq!(compact::unpack(&bytes), Ok(record));
    for damaged in [&bytes[1..], &bytes[..bytes.len() - 1], &[&bytes[..], &[0]].concat(), text.as_bytes(), b""] {
        assert_eq!(compact::unpack(damaged), Err(compact::Damaged));
    }
}

fn offers() -> impl Strategy<Value = Vec<Offer>> {
    let one = (
        proptest::option::of(0_i64..4),
        proptest::option::of("[a-c]"),
        proptest::collection::vec((0_u8..3, any::<bool>()), 0..3),
    );
    let one = one.prop_map(|(second, event, choices)| Offer {
        at: second.map(at),
        event: event.map(Arc::from),
        choices: choices.into_iter().map(|(id, on)| (id.to_string().into(), Choice::Switch(on))).collect(),
    });
    proptest::collection::vec(one, 0..8)
}

fn merged<'o>(offers: impl IntoIterator<Item = &'o Offer>) -> Record {
    let mut record = Record::default();
    for offer in offers {
        merge(&mut record, offer);
    }
    record
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
    fn it_stays_what_it_is_on_the_disk(
        turns in proptest::collection::vec((offers(), 0_usize..4, 0_i64..300), 0..8),
        erased in proptest::option::of(0_i64..4),
    ) {
        let mut record = Record::default();
        for (id, (offers, sent, now)) in (0..).zip(turns) {
            let sent = [Sent::Accepted, Sent::Refused, Sent::Failed, Sent::Unknown][sent];
            for offer in &offers {
                turn(&mut record, id, offer, sent, now);
            }
            let bytes = compact::pack(&record).unwrap();
            prop_assert_eq!(compact::unpack(&bytes), Ok(record.clone()));
        }
        if let Some(second) = erased {
            record.erase(at(second), at(1_000));
        }
        let bytes = compact::pack(&record).unwrap();
        prop_assert_eq!(compact::unpack(&bytes), Ok(record));
    }

    #[test]
    fn no_bytes_end_the_process(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = compact::unpack(&bytes);
        let _ = compact::unpack(&[&[1], &bytes[..]].concat());
    }

    #[test]
    fn the_newest_of_each_property_stays(offers in offers()) {
        let record = merged(&offers);
        for (property, newest) in &record.values {
            for offer in &offers {
                for (_, choice) in offer.choices.iter().filter(|(id, _)| id == property) {
                    let offered = Newest::offered(choice, offer);
                    prop_assert!(newest.compare(&offered) != Ordering::Less);
                }
            }
        }
    }
}
