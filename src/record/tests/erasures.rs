//! What an erasure leaves of a record.

use super::*;

#[test]
fn of_a_selection_an_erasure_takes_grants_away_and_makes_no_withdrawals_of_them() {
    // "y" is named before the erasure by an event whose withdrawals are later, and granted by another event since.
    let mut partly = topics(0, "b", &["y"]);
    partly.withdrawn_at = Some(at(80));
    let since = topics(60, "c", &["x", "y"]);
    for order in [
        ["partly", "since", "erasure"],
        ["since", "partly", "erasure"],
        ["partly", "erasure", "since"],
        ["since", "erasure", "partly"],
        ["erasure", "partly", "since"],
        ["erasure", "since", "partly"],
    ] {
        let mut jane = Person::new();
        for (step, what) in (100..).zip(order) {
            match what {
                "partly" => drop(jane.turn(&partly, Effect::Accepted, step)),
                "since" => drop(jane.turn(&since, Effect::Accepted, step)),
                _ => drop(jane.erase(Some(40), 1, step)),
            }
        }
        assert_eq!(jane.turn(&since, Effect::Accepted, 200), sends(&[("topics", "y")]), "{order:?}");
    }
}

#[test]
fn of_a_list_of_refusals_an_id_is_a_withdrawal_and_passes_an_erasure() {
    let refused = |second, ids: &[&str]| {
        let ids = ids.iter().map(|id| (*id).into()).collect();
        let choice = Choice::Selection(SelectedIds { ids, names: Names::Refusals });
        of(second, "r", vec![(slot("vendors"), choice)])
    };
    let mut jane = Person { mapped: Mapped::new([slot("vendors")]), ..Person::new() };
    jane.turn(&refused(0, &[]), Effect::Accepted, 0);
    jane.erase(Some(60), 1, 60);
    assert_eq!(jane.clone().turn(&refused(50, &["v"]), Effect::Accepted, 61), sends(&[("vendors", "v")]));
    assert_eq!(jane.turn(&refused(50, &[]), Effect::Accepted, 61), Turn::Erased);
}

#[test]
fn an_erased_person_stays_erased_until_a_later_event() {
    let mut jane = Person::new();
    let before = offer(0, "a", &[("news", true)]);
    jane.turn(&before, Effect::Failed, 0);
    assert!(jane.erase(Some(10), 1, 10));
    let undated = Offer { at: None, withdrawn_at: None, ..before.clone() };
    for erased in [&before, &offer(10, "b", &[("news", true)]), &undated, &offer(5, "c", &[("news", false)])] {
        assert_eq!(jane.turn(erased, Effect::Accepted, 20), Turn::Erased);
    }
    jane.erase(Some(5), 2, 20);
    assert_eq!(
        jane.turn(&offer(10, "b", &[("news", true)]), Effect::Accepted, 20),
        Turn::Erased,
        "nothing is taken back"
    );
    assert_eq!(jane.turn(&offer(11, "d", &[("news", true)]), Effect::Accepted, 20), sends(&[("news", "true")]));
}

#[test]
fn an_erasure_that_comes_again_moves_nothing() {
    let mut jane = Person::new();
    jane.erase(None, 7, 10);
    jane.turn(&offer(20, "a", &[("news", true)]), Effect::Accepted, 20);
    jane.erase(None, 7, 700_000);
    assert_eq!(jane.record().erased(), Some(at(10)));
    assert_eq!(jane.turn(&offer(20, "a", &[("news", true)]), Effect::Accepted, 30), sends(&[("news", "true")]));
    jane.erase(None, 8, 40);
    assert_eq!(jane.record().erased(), Some(at(40)), "another one counts");
}

#[test]
fn no_erasure_ends_a_repair() {
    for erased in [-5, 10] {
        let mut jane = Person::new();
        jane.turn(&offer(0, "a", &[("news", true)]), Effect::Unknown, 0);
        let withdrawal = offer(5, "b", &[("news", false)]);
        assert_eq!(jane.turn(&withdrawal, Effect::Accepted, 5), sends_and_repairs(&[("news", "false")]));
        jane.erase(Some(erased), 1, 20);
        assert_eq!(jane.turn_of(&withdrawal, true, Effect::Accepted, 200), sends(&[("news", "false")]), "{erased}");
        assert_eq!(jane.turn_of(&withdrawal, true, Effect::Accepted, 400), Turn::Needless);
        if erased > 5 {
            assert!(jane.record().values.is_empty(), "nothing needs it any more");
        }
    }
}

#[test]
fn an_event_without_anything_that_is_later_than_the_erasure_does_not_pass() {
    let mut jane = Person::new();
    jane.erase(Some(60), 1, 60);
    let updated = Offer { withdrawn_at: Some(at(70)), ..offer(50, "u", &[("news", true)]) };
    assert_eq!(jane.clone().turn(&updated, Effect::Accepted, 71), Turn::Erased, "its grant counts from before");
    assert_eq!(jane.clone().turn(&offer(50, "e", &[]), Effect::Accepted, 71), Turn::Erased);
    let nothing = Offer { choices: Vec::new(), ..updated };
    assert_eq!(jane.turn(&nothing, Effect::Accepted, 71), sends(&[]));
}

#[test]
fn of_a_selection_only_what_is_later_stays_after_an_erasure_unless_a_note_needs_it() {
    let ids = vec!["x".into()];
    let choice = Choice::Selection(SelectedIds { ids, names: Names::Grants });
    let updated = Offer { at: Some(at(10)), withdrawn_at: Some(at(50)), ..of(0, "u", vec![(slot("topics"), choice)]) };
    let shown = |jane: &Person| jane.record().values[&slot("topics")].said.choice().to_string();
    let mut jane = Person { mapped: Mapped::new([slot("topics")]), ..Person::new() };
    let mut doubtful = jane.clone();
    jane.turn(&updated, Effect::Accepted, 60);
    let whole = jane.clone();
    jane.erase(Some(20), 1, 61);
    assert_eq!((shown(&whole).as_str(), shown(&jane).as_str()), ("x", ""));
    assert!(jane.record().values[&slot("topics")].accepted.is_none(), "the gate has another one");
    doubtful.turn(&updated, Effect::Unknown, 59);
    doubtful.turn(&updated, Effect::Accepted, 60);
    doubtful.erase(Some(20), 1, 61);
    assert_eq!(shown(&doubtful), "x");
    let mut later = Person { mapped: Mapped::new([slot("topics")]), ..Person::new() };
    later.turn(&topics(50, "b", &["y"]), Effect::Accepted, 60);
    later.erase(Some(20), 1, 61);
    assert!(later.record().values[&slot("topics")].accepted.is_some(), "nothing of it was erased");
    later.erase(Some(50), 2, 62);
    assert!(later.record().values.is_empty(), "all of it, at the same instant");
}

#[test]
fn what_an_erasure_kept_for_a_repair_goes_once_nothing_can_be_late() {
    let mut jane = Person::new();
    jane.turn(&offer(0, "a", &[("news", true)]), Effect::Unknown, 0);
    jane.turn(&offer(1, "b", &[("news", false)]), Effect::Failed, 1);
    jane.erase(Some(10), 1, 10);
    assert_eq!(jane.record().values.len(), 1);
    let lapsed = rules::lapse(jane.record(), at(100_000)).expect("something goes");
    assert!(lapsed.values.is_empty() && lapsed.doubts.is_empty());
    assert_eq!(rules::lapse(&lapsed, at(100_000)), None);
}

#[test]
fn an_emptied_selection_passes_an_erasure_and_names_nothing() {
    let mut jane = Person::new();
    jane.turn(&topics(0, "a", &["a", "b"]), Effect::Accepted, 0);
    jane.erase(Some(10), 1, 10);
    assert_eq!(jane.turn(&topics(5, "b", &["b"]), Effect::Accepted, 20), sends(&[("topics", "")]));
    assert_eq!(jane.turn(&topics(6, "c", &["b"]), Effect::Accepted, 20), Turn::Erased);
}

#[test]
fn the_event_that_granted_a_selection_takes_nothing_back_when_it_comes_again_after_an_erasure() {
    let granting = topics(0, "a", &["a", "b"]);
    let mut jane = Person::new();
    jane.turn(&granting, Effect::Accepted, 0);
    jane.erase(Some(10), 1, 10);
    assert_eq!(jane.turn(&granting, Effect::Accepted, 20), Turn::Erased);
    // Its withdrawals may be those of an update, which are later than its grants.
    let updated = Offer { withdrawn_at: Some(at(5)), ..topics(0, "a", &["b"]) };
    assert_eq!(jane.clone().turn(&updated, Effect::Accepted, 20), sends(&[("topics", "")]));
    // Under a corrected mapping, it may have granted nothing.
    assert_eq!(jane.turn(&topics(0, "a", &[]), Effect::Accepted, 20), sends(&[("topics", "")]));
}

#[test]
fn a_record_shows_what_it_knows_and_nothing_that_was_erased() {
    assert!(Record::default().is_empty() && Record::default().is_older_than(YEAR, at(0)));
    let mut jane = Person::new();
    let both = offer(0, "a", &[("news", true), ("other", true)]);
    jane.turn(&both, Effect::Unknown, 10);
    let Begun::Send(ToSend { newest, .. }) = jane.clone().begin(9_000, &both, false, 11) else { panic!("sent") };
    assert!(!jane.record().has_accepted(&newest));
    jane.turn(&offer(0, "a", &[("news", true)]), Effect::Accepted, 12);
    assert!(!jane.record().has_accepted(&newest), "not all of them");
    jane.turn(&both, Effect::Accepted, 13);
    assert!(jane.record().has_accepted(&newest) && jane.record().has_accepted(&Values::new()));
    assert_eq!((jane.record().merged(), jane.record().erased()), (Some(at(13)), None));
    let retention = SignedDuration::from_secs(100);
    let is_older = |now| jane.record().is_older_than(retention, at(now));
    assert_eq!([13, 113, 114].map(is_older), [false, false, true]);
    let shown = |jane: &Person| -> Vec<String> {
        jane.record().values().map(|(slot, newest)| format!("{} {}", slot.property(), newest.said.choice())).collect()
    };
    assert_eq!(shown(&jane), ["news true", "other true"]);
    // Its first request may still be executed, so what it would spoil is kept, and not shown.
    jane.turn(&offer(50, "b", &[("news", false)]), Effect::Accepted, 50);
    jane.erase(Some(0), 1, 51);
    assert_eq!(jane.record().erased(), Some(at(0)));
    assert_eq!(shown(&jane), ["news false"]);
    assert!(jane.record().values.len() > 1, "kept");
    jane.erase(Some(50), 2, 52);
    assert_eq!(shown(&jane), [""; 0]);
    assert!(!jane.record().values.is_empty() && !jane.record().is_empty(), "kept, and marked");
}
