//! Withdrawals of erased persons: which of them still reach the gate.

use super::*;

#[test]
fn a_grant_that_no_repair_could_take_back_is_taken_back_after_an_erasure() {
    let mut jane = Person::new();
    let late = LATENESS.as_secs();
    jane.turn(&offer(20, "a", &[("news", true), ("partners", true)]), Effect::Unknown, 30);
    let withdrawal = offer(100, "b", &[("partners", false)]);
    jane.turn(&withdrawal, Effect::Refused, 110);
    let again = offer(100, "c", &[("news", true)]);
    assert_eq!(jane.turn(&again, Effect::Accepted, 120), sends_and_repairs(&[("news", "true")]));
    // The repair cannot carry the withdrawal that was refused for good.
    assert_eq!(jane.turn_of(&again, true, Effect::Accepted, 120 + late), sends(&[("news", "true")]));
    jane.erase(None, 1, 2_000);
    assert_eq!(jane.turn(&withdrawal, Effect::Accepted, 3_000), sends(&[("partners", "false")]), "replayed");
}

#[test]
fn a_withdrawal_of_what_the_gate_has_as_granted_passes_an_erasure_alone() {
    let grant = offer(0, "a", &[("news", true), ("other", true)]);
    let withdrawal = offer(5, "b", &[("news", false), ("partners", true), ("other", true)]);
    let mut jane = Person::new();
    jane.turn(&grant, Effect::Accepted, 0);
    // The withdrawal waits for its second attempt.
    jane.turn(&withdrawal, Effect::Failed, 5);
    jane.erase(Some(10), 1, 10);
    jane.erase(Some(12), 2, 12);
    assert_eq!(jane.record().values().count(), 0);
    let older = offer(-5, "0", &[("news", false)]);
    assert_eq!(jane.turn(&older, Effect::Accepted, 20), Turn::Erased, "older than the grant");
    assert_eq!(jane.turn(&withdrawal, Effect::Failed, 20), sends(&[("news", "false")]));
    assert_eq!(jane.turn(&withdrawal, Effect::Accepted, 9_000), sends(&[("news", "false")]), "whenever it comes");
    assert_eq!(jane.turn(&withdrawal, Effect::Accepted, 9_010), Turn::Erased, "once is enough");
    assert_eq!(jane.turn(&offer(9, "c", &[("other", false)]), Effect::Accepted, 9_020), sends(&[("other", "false")]));
}

#[test]
fn a_grant_that_may_be_at_the_gate_counts_as_accepted_when_its_person_is_erased() {
    for answered in [5, 500] {
        let mut jane = Person::new();
        jane.turn(&offer(0, "a", &[("news", true)]), Effect::Unknown, 0);
        jane.turn(&offer(1, "b", &[("other", true)]), Effect::Accepted, answered);
        jane.erase(Some(answered), 1, answered);
        let withdrawal = offer(2, "c", &[("news", false)]);
        assert!(matches!(jane.turn(&withdrawal, Effect::Accepted, 1_000), Turn::Sent(..)), "answered at {answered}");
    }
}

#[test]
fn a_grant_that_is_accepted_after_its_person_was_erased_can_still_be_taken_back() {
    let mut jane = Person::new();
    let grant = offer(0, "a", &[("news", true)]);
    let Begun::Send(ToSend { newest, .. }) = jane.begin(1, &grant, false, 0) else { panic!("sent") };
    jane.erase(Some(2), 1, 2);
    jane.end(1, &grant, (false, &newest), Effect::Accepted, [0, 3]);
    let withdrawal = offer(1, "b", &[("news", false)]);
    assert_eq!(jane.turn(&withdrawal, Effect::Accepted, 500), sends(&[("news", "false")]));
}

#[test]
fn a_grant_that_was_never_answered_does_not_hide_the_withdrawal_that_the_gate_accepted_before() {
    let mut jane = Person::new();
    let grant = offer(0, "g", &[("news", true)]);
    jane.turn(&grant, Effect::Unknown, 0);
    let withdrawal = offer(20, "w", &[("news", false)]);
    assert_eq!(jane.turn(&withdrawal, Effect::Accepted, 51), sends_and_repairs(&[("news", "false")]));
    let newer = offer(100, "n", &[("news", true)]);
    jane.turn(&newer, Effect::Unknown, 100);
    // When the event comes again, its first request cannot be executed any more.
    jane.begin(9_000, &newer, false, 507);
    jane.erase(Some(136), 1, 508);
    assert_eq!(jane.begin(9_000, &newer, false, 509), Begun::Erased);
    assert_eq!(jane.clone().turn_of(&withdrawal, true, Effect::Accepted, 510), sends(&[("news", "false")]));
    // The newer grant may have been executed, so it can be taken back.
    let later = offer(120, "l", &[("news", false)]);
    assert_eq!(jane.turn(&later, Effect::Accepted, 511), sends_and_repairs(&[("news", "false")]));
}

#[test]
fn a_withdrawal_that_the_gate_did_not_accept_takes_no_grant_back() {
    let mut jane = Person::new();
    jane.turn(&offer(0, "g", &[("news", true)]), Effect::Unknown, 0);
    jane.turn(&offer(50, "w", &[("news", false)]), Effect::Failed, 50);
    jane.erase(Some(60), 1, 60);
    assert_eq!(
        jane.turn(&offer(55, "l", &[("news", false)]), Effect::Accepted, 61),
        sends_and_repairs(&[("news", "false")])
    );
}

#[test]
fn an_accepted_withdrawal_of_an_erased_person_passes_only_while_it_may_be_spoiled() {
    let withdrawal = offer(50, "w", &[("news", false)]);
    let mut spoiled = Person::new();
    spoiled.turn(&offer(0, "g", &[("news", true)]), Effect::Unknown, 0);
    let mut harmless = Person::new();
    harmless.turn(&withdrawal, Effect::Unknown, 49);
    for jane in [&mut spoiled, &mut harmless] {
        jane.turn(&withdrawal, Effect::Accepted, 50);
        jane.erase(Some(60), 1, 60);
    }
    let older = offer(30, "o", &[("news", false)]);
    assert_eq!(spoiled.clone().turn(&older, Effect::Accepted, 61), Turn::Erased, "the newer one is put back");
    assert_eq!(spoiled.turn(&withdrawal, Effect::Accepted, 61), sends_and_repairs(&[("news", "false")]));
    assert_eq!(harmless.turn(&withdrawal, Effect::Accepted, 61), Turn::Erased);
}

#[test]
fn of_grants_that_were_never_answered_the_newest_counts_and_none_that_is_older_than_what_was_accepted() {
    let news = |second, event: &str, on| offer(second, event, &[("news", on)]);
    let passes = |jane: &Person, second| {
        jane.clone().turn(&news(second, "later", false), Effect::Failed, 100_003) != Turn::Erased
    };
    // Accepted later than the grant.
    let mut taken_back = Person::new();
    taken_back.turn(&news(0, "g", true), Effect::Unknown, 0);
    taken_back.turn(&news(20, "w", false), Effect::Accepted, 20);
    taken_back.turn(&news(30, "n", true), Effect::Failed, 100_000);
    taken_back.erase(Some(40), 1, 100_002);
    assert!(!passes(&taken_back, 35), "nothing is granted");
    let mut two = Person::new();
    two.turn(&news(0, "g", true), Effect::Unknown, 0);
    two.turn(&news(30, "n", true), Effect::Unknown, 1);
    two.turn(&news(30, "n", true), Effect::Failed, 1_000);
    let mut overtaken = two.clone();
    two.erase(Some(40), 1, 1_002);
    assert_eq!([10, 35].map(|second| passes(&two, second)), [false, true]);
    // A withdrawal that the gate did not accept changes nothing of that.
    overtaken.turn(&news(50, "w", false), Effect::Failed, 1_001);
    overtaken.erase(Some(60), 1, 1_002);
    assert!(passes(&overtaken, 55));
}

#[test]
fn an_erasure_of_something_older_does_not_forget_a_grant_that_was_never_answered() {
    let mut jane = Person::new();
    jane.turn(&offer(80, "g", &[("news", true)]), Effect::Unknown, 43);
    let withdrawal = Offer { at: Some(at(40)), ..offer(80, "w", &[("news", false)]) };
    assert_eq!(jane.turn(&withdrawal, Effect::Refused, 166), sends(&[("news", "false")]));
    let lapsed = rules::lapse(&Record { mark: None, ..jane.record().clone() }, at(100_000));
    assert_eq!(lapsed, None, "nothing was erased");
    // The grant's request cannot be executed any more.
    jane.erase(Some(66), 1, 186);
    let mut later = jane.clone();
    jane.erase(Some(196), 2, 196);
    assert_eq!(jane.turn(&withdrawal, Effect::Accepted, 838), sends(&[("news", "false")]));
    later.known = rules::lapse(later.record(), at(100_000)).or(later.known);
    later.erase(Some(196), 2, 100_001);
    assert_eq!(later.turn(&withdrawal, Effect::Accepted, 100_002), sends(&[("news", "false")]));
}

#[test]
fn an_older_grant_that_failed_is_not_at_the_gate() {
    let mut jane = Person::new();
    let grant = offer(0, "g", &[("news", true)]);
    let Begun::Send(ToSend { newest, .. }) = jane.begin(9_000, &grant, false, 0) else { panic!("sent") };
    jane.turn(&offer(20, "w", &[("news", false)]), Effect::Failed, 1);
    jane.end(9_000, &grant, (false, &newest), Effect::Failed, [0, 2]);
    jane.erase(Some(30), 1, 3);
    assert_eq!(jane.turn(&offer(25, "l", &[("news", false)]), Effect::Accepted, 4), Turn::Erased);
}

#[test]
fn a_later_withdrawal_of_an_erased_person_passes_while_what_was_accepted_may_be_spoiled() {
    let mut jane = Person::new();
    let grant = offer(0, "g", &[("news", true)]);
    jane.turn(&grant, Effect::Unknown, 0);
    jane.turn(&grant, Effect::Accepted, 15);
    jane.erase(Some(103), 1, 43);
    let withdrawal = offer(60, "w", &[("news", false)]);
    // The repair is lost with the worker, and the gate refuses the withdrawal when it comes again.
    assert_eq!(jane.turn(&withdrawal, Effect::Accepted, 100), sends_and_repairs(&[("news", "false")]));
    assert_eq!(jane.turn(&withdrawal, Effect::Refused, 101), sends(&[("news", "false")]));
    let later = offer(100, "later", &[("news", false)]);
    assert_eq!(jane.turn(&later, Effect::Accepted, 102), sends_and_repairs(&[("news", "false")]));
    assert_eq!(jane.turn(&offer(100, "l", &[("partners", false)]), Effect::Accepted, 103), Turn::Erased);
    assert_eq!(jane.turn(&offer(101, "grant", &[("news", true)]), Effect::Accepted, 103), Turn::Erased);
}

#[test]
fn a_request_that_was_overtaken_sends_no_grant_of_who_was_erased_meanwhile() {
    let (withdrawal, grant) = (offer(0, "w", &[("news", false)]), offer(5, "g", &[("news", true)]));
    let overtaken = |erased: Option<i64>| {
        let mut jane = Person::new();
        let Begun::Send(ToSend { newest, .. }) = jane.begin(9_000, &withdrawal, false, 6) else { panic!("sent") };
        // Its note keeps what was erased.
        jane.begin(9_001, &withdrawal, false, 6);
        jane.turn(&grant, Effect::Accepted, 6);
        if erased.is_some() {
            jane.erase(erased, 1, 7);
        }
        jane.end(9_000, &withdrawal, (false, &newest), Effect::Accepted, [6, 8]).superseded
    };
    assert_eq!(texts(&overtaken(None).unwrap()), [("news".to_owned(), "true".to_owned())]);
    assert_eq!(overtaken(Some(10)), None);
}

#[test]
fn a_withdrawal_is_made_good_though_its_person_was_erased_before_the_older_grants_answer() {
    let (grant, withdrawal) = (offer(60, "a", &[("news", true)]), offer(100, "b", &[("news", false)]));
    let mut jane = Person::new();
    let Begun::Send(ToSend { newest: late, .. }) = jane.begin(1, &grant, false, 503) else { panic!("sent") };
    assert_eq!(jane.turn(&withdrawal, Effect::Accepted, 503), sends_and_repairs(&[("news", "false")]));
    jane.erase(Some(151), 1, 504);
    let ended = jane.end(1, &grant, (false, &late), Effect::Accepted, [503, 504]);
    assert_eq!(texts(&ended.superseded.expect("sent once more")), [("news".to_owned(), "false".to_owned())]);
}
