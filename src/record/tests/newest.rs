//! Which values are the newest, and are sent.

use super::*;
use crate::gate::Outcome;

#[test]
fn a_late_retry_never_switches_on_what_was_switched_off() {
    let mut jane = Person::new();
    let (opt_in, opt_out) = (offer(0, "a", &[("news", true)]), offer(60, "b", &[("news", false)]));
    assert_eq!(jane.turn(&opt_in, Effect::Failed, 0), sends(&[("news", "true")]));
    assert_eq!(jane.turn(&opt_out, Effect::Accepted, 60), sends(&[("news", "false")]));
    assert_eq!(
        jane.turn(&opt_in, Effect::Accepted, 70),
        sends(&[("news", "false")]),
        "the retry carries today's truth"
    );
    let Begun::Send(to_send) = jane.begin(9, &opt_in, false, 80) else { panic!("sent") };
    assert_eq!(to_send.outdated, 1);
    assert!(jane.record().has_accepted(&to_send.newest));
}

#[test]
fn an_old_event_still_counts_for_what_nobody_changed_since() {
    let mut jane = Person::new();
    jane.turn(&offer(60, "b", &[("news", false)]), Effect::Accepted, 60);
    let old = offer(0, "a", &[("news", true), ("partners", true)]);
    assert_eq!(jane.turn(&old, Effect::Accepted, 70), sends(&[("news", "false"), ("partners", "true")]));
}

#[test]
fn ties_stay_with_the_withdrawal_then_the_greater_id() {
    let wins = |first: &Offer, second: &Offer| {
        let mut jane = Person::new();
        jane.turn(first, Effect::Accepted, 60);
        jane.turn(second, Effect::Accepted, 61)
    };
    let off = || sends(&[("news", "false")]);
    let (grant, withdrawal) = (offer(0, "z", &[("news", true)]), offer(0, "a", &[("news", false)]));
    assert_eq!([wins(&grant, &withdrawal), wins(&withdrawal, &grant)], [off(), off()]);
    let undated = Offer { at: None, withdrawn_at: None, ..offer(0, "z", &[("news", true)]) };
    assert_eq!([wins(&undated, &withdrawal), wins(&withdrawal, &undated)], [off(), off()]);
}

#[test]
fn an_update_that_does_not_tell_what_it_changed_makes_no_grant_newer() {
    let mut jane = Person::new();
    jane.turn(&offer(60, "b", &[("news", false), ("partners", true)]), Effect::Accepted, 60);
    // Created before, updated after.
    let update = Offer { withdrawn_at: Some(at(90)), ..offer(0, "a", &[("news", true), ("partners", false)]) };
    assert_eq!(jane.turn(&update, Effect::Accepted, 90), sends(&[("news", "false"), ("partners", "false")]));
}

#[test]
fn a_value_that_the_gate_refused_is_neither_lent_nor_replaced_by_an_older_one() {
    let mut jane = Person::new();
    let (old, refused) = (offer(0, "a", &[("news", true)]), offer(60, "b", &[("news", false)]));
    jane.turn(&refused, Effect::Refused, 60);
    assert_eq!(jane.turn(&old, Effect::Accepted, 61), sends(&[]), "left out");
    assert_eq!(jane.turn(&refused, Effect::Accepted, 70), sends(&[("news", "false")]), "its own event may try again");
    assert_eq!(jane.turn(&old, Effect::Accepted, 80), sends(&[("news", "false")]), "acceptance clears the mark");
}

#[test]
fn a_refusal_of_what_was_lent_marks_nothing() {
    let mut jane = Person::new();
    let (old, new) = (offer(0, "a", &[("news", true)]), offer(60, "b", &[("news", false)]));
    jane.turn(&new, Effect::Failed, 60);
    jane.turn(&old, Effect::of(Outcome::Refused, true), 70);
    assert_eq!(jane.turn(&old, Effect::Accepted, 80), sends(&[("news", "false")]));
}

#[test]
fn a_selection_is_merged_id_by_id() {
    let mut jane = Person::new();
    let (both, one, none) = (topics(0, "a", &["b", "a"]), topics(60, "b", &["a"]), topics(90, "c", &[]));
    assert_eq!(jane.turn(&one, Effect::Accepted, 60), sends(&[("topics", "a")]));
    assert_eq!(jane.turn(&both, Effect::Accepted, 61), sends(&[("topics", "a")]), "older");
    assert_eq!(jane.turn(&none, Effect::Accepted, 90), sends(&[("topics", "")]));
    assert_eq!(jane.turn(&both, Effect::Accepted, 91), sends(&[("topics", "")]));
    // Two of the same moment: what one of them does not name is a withdrawal, and stays.
    let tie = topics(90, "d", &["x"]);
    assert_eq!(jane.turn(&tie, Effect::Accepted, 92), sends(&[("topics", "")]));
    // Updated later than the last one, created before it: its grants are old, its withdrawals new.
    let update = Offer { at: Some(at(1)), ..topics(120, "e", &["b"]) };
    assert_eq!(jane.turn(&topics(100, "f", &["a", "b"]), Effect::Accepted, 100), sends(&[("topics", "a,b")]));
    assert_eq!(jane.turn(&update, Effect::Accepted, 120), sends(&[("topics", "b")]));
}
