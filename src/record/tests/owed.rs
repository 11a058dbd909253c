//! What is owed to the gate, because it accepted an older value last.

use super::*;

/// Two workers at once: the gate accepts an old grant although it accepted a withdrawal, and refuses the request that
/// would correct that.
fn overtaken() -> (Person, Offer) {
    let (old, new) = (offer(0, "a", &[("news", true)]), offer(5, "b", &[("news", false)]));
    let mut jane = Person::new();
    let Begun::Send(ToSend { newest, .. }) = jane.begin(1, &old, false, 6) else { panic!("sent") };
    jane.turn(&new, Effect::Accepted, 6);
    let ended = jane.end(1, &old, (false, &newest), Effect::Accepted, [6, 7]);
    let corrected = ended.superseded.expect("a newer one is known");
    jane.end(701, &old, (false, &corrected), Effect::Failed, [7, 8]);
    (jane, old)
}

#[test]
fn what_is_owed_to_the_gate_outlasts_an_erasure() {
    let (mut jane, old) = overtaken();
    jane.erase(Some(10), 1, 10);
    let lapsed = rules::lapse(jane.record(), at(1_000_000));
    jane.known = lapsed.or(jane.known);
    assert_eq!(jane.turn(&old, Effect::Unknown, 1_000_000), sends(&[("news", "false")]), "however late");
    let another = offer(1, "c", &[("other", true)]);
    assert_eq!(
        jane.turn(&another, Effect::Accepted, 1_000_010),
        sends(&[("news", "false")]),
        "with any of their events"
    );
    assert_eq!(jane.turn(&old, Effect::Accepted, 1_000_020), Turn::Erased, "once is enough");
}

#[test]
fn what_is_owed_to_the_gate_goes_with_the_next_request() {
    let (mut jane, old) = overtaken();
    let another = offer(6, "c", &[("other", true)]);
    assert_eq!(jane.turn(&another, Effect::Accepted, 20), sends(&[("news", "false"), ("other", "true")]));
    assert_eq!(jane.turn(&offer(7, "d", &[("other", false)]), Effect::Accepted, 30), sends(&[("other", "false")]));
    assert_eq!(jane.turn(&old, Effect::Accepted, 40), sends(&[("news", "false")]), "its own event's turn");
}

#[test]
fn a_request_that_was_begun_before_makes_nothing_good() {
    let mut jane = Person::new();
    let (old, new) = (offer(0, "a", &[("news", true)]), offer(5, "b", &[("news", false)]));
    let Begun::Send(first) = jane.begin(1, &old, false, 6) else { panic!("sent") };
    let Begun::Send(second) = jane.begin(2, &new, false, 6) else { panic!("sent") };
    let ended = jane.end(1, &old, (false, &first.newest), Effect::Accepted, [6, 7]);
    jane.end(701, &old, (false, &ended.superseded.expect("a newer one is known")), Effect::Failed, [7, 7]);
    // The new one was executed before the old one, and its answer came after.
    jane.end(2, &new, (false, &second.newest), Effect::Accepted, [6, 8]);
    jane.erase(Some(10), 1, 10);
    assert_eq!(jane.turn(&old, Effect::Accepted, 20), sends(&[("news", "false")]));
    assert!(jane.record().values.is_empty(), "nothing needs it any more");
}

#[test]
fn a_grant_is_not_owed_once_its_person_was_erased() {
    let (old, new) = (offer(0, "a", &[("news", false)]), offer(5, "b", &[("news", true)]));
    let mut jane = Person::new();
    let Begun::Send(ToSend { newest, .. }) = jane.begin(1, &old, false, 6) else { panic!("sent") };
    jane.turn(&new, Effect::Accepted, 6);
    assert!(jane.end(1, &old, (false, &newest), Effect::Accepted, [6, 7]).superseded.is_some());
    jane.erase(Some(10), 1, 10);
    assert_eq!(jane.turn(&old, Effect::Accepted, 20), Turn::Erased);
    let lapsed = rules::lapse(jane.record(), at(100_000)).expect("something goes");
    assert!(lapsed.values.is_empty() && lapsed.owed.is_none());
}

#[test]
fn what_is_owed_stays_owed_until_it_was_carried_by_a_later_request() {
    let (jane, _) = overtaken();
    let other = offer(20, "c", &[("other", true)]);
    // Begun before what is owed was accepted, and carrying it: whichever came last nobody knows.
    let carried: Values = [(slot("news"), Arc::clone(&jane.record().values[&slot("news")].said))].into_iter().collect();
    for (begun, is_owed) in [(6, true), (7, false)] {
        let mut jane = jane.clone();
        jane.end(9_000, &other, (false, &carried), Effect::Accepted, [begun, 9]);
        assert_eq!(jane.record().owed.is_some(), is_owed, "begun at {begun}");
    }
    let mut jane = jane.clone();
    jane.end(9_000, &other, (false, &Values::new()), Effect::Accepted, [8, 9]);
    assert!(jane.record().owed.is_some(), "not carried");
}

#[test]
fn what_was_refused_is_sent_again_at_its_own_turn_whatever_is_owed() {
    let (older, newer) = (offer(20, "a", &[("news", false)]), offer(100, "b", &[("news", true)]));
    let mut jane = Person::new();
    let Begun::Send(ToSend { newest: carried, .. }) = jane.begin(1, &older, false, 100) else { panic!("sent") };
    jane.turn(&newer, Effect::Unknown, 100);
    // Accepted after the newer one was merged: nobody can know in which order, so the newest is owed.
    let ended = jane.end(1, &older, (false, &carried), Effect::Accepted, [100, 100]);
    assert!(ended.superseded.is_some());
    for _ in 0..2 {
        assert_eq!(jane.turn(&newer, Effect::Refused, 101), sends(&[("news", "true")]));
    }
}
