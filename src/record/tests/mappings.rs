//! Mappings that change, and workers with different documents.

use super::*;

#[test]
fn the_newest_event_that_was_missed_counts_in_whatever_order_they_came() {
    let without = Mapped::new([slot("other")]);
    let mut jane = Person::new();
    jane.turn_elsewhere(&without, &offer(100, "a", &[("other", true)]), Effect::Accepted, 0);
    jane.turn_elsewhere(&without, &offer(20, "b", &[("other", true)]), Effect::Accepted, 1);
    assert_eq!(jane.turn(&offer(50, "c", &[("news", true)]), Effect::Accepted, 2), sends(&[]));
}

#[test]
fn an_old_letter_does_not_set_a_new_mapping_against_a_newer_event() {
    let before = Mapped::new([slot("news")]);
    let mut after = Mapped::new([slot("news"), slot("partners")]);
    after.learn(before.own(), [slot("news")]);
    let mut jane = Person { mapped: before, ..Person::new() };
    // Nobody knows any more whether it named partners.
    let newer = offer(60, "b", &[("news", false)]);
    jane.turn(&newer, Effect::Accepted, 60);
    jane.mapped = after;
    let old = offer(0, "a", &[("news", true), ("partners", true)]);
    let Begun::Send(to_send) = jane.begin(9, &old, false, 600) else { panic!("sent") };
    assert_eq!(texts(&to_send.newest), [("news".to_owned(), "false".to_owned())]);
    assert_eq!(to_send.unknown, [slot("partners")]);
    let replayed = offer(60, "b", &[("news", false), ("partners", false)]);
    assert_eq!(jane.turn(&replayed, Effect::Accepted, 610), sends(&[("news", "false"), ("partners", "false")]));
    assert_eq!(jane.turn(&old, Effect::Accepted, 620), sends(&[("news", "false"), ("partners", "false")]));
}

#[test]
fn a_mended_mapping_begins_with_what_is_known_under_its_own_path() {
    let (wrong, right) =
        (Slot::new("news", "consents_purposes_a_enabled"), Slot::new("news", "consents_purposes_b_enabled"));
    let (before, after) = (Mapped::new([wrong.clone()]), Mapped::new([right.clone()]));
    let says = |second, event: &str, slot: &Slot, on| of(second, event, vec![(slot.clone(), Choice::Switch(on))]);
    let mut jane = Person { mapped: before.clone(), ..Person::new() };
    jane.turn(&says(0, "a", &wrong, true), Effect::Accepted, 0);
    jane.mapped = after.clone();
    jane.mapped.learn(before.own(), [wrong.clone()]);
    assert_eq!(jane.turn(&says(0, "a", &right, false), Effect::Accepted, 10), sends(&[("news", "false")]), "replayed");
    assert_eq!(jane.turn(&says(-9, "0", &right, true), Effect::Accepted, 11), sends(&[("news", "false")]), "older");
    // Another worker still has the wrong document: its older letter does not win over anything.
    jane.mapped = before;
    jane.mapped.learn(after.own(), [right]);
    let Begun::Send(to_send) = jane.begin(9, &says(-5, "1", &wrong, true), false, 12) else { panic!("sent") };
    assert_eq!(texts(&to_send.newest), [("news".to_owned(), "true".to_owned())], "its own newest under its path");
}

#[test]
fn what_the_gate_accepted_is_repaired_though_somebody_may_have_said_something_newer() {
    let (former, mended) = (Slot::new("news", "a"), Slot::new("news", "b"));
    let (before, after) = (Mapped::new([former.clone()]), Mapped::new([mended.clone()]));
    let says = |second, event: &str, slot: &Slot, on| of(second, event, vec![(slot.clone(), Choice::Switch(on))]);
    let mut jane = Person { mapped: before.clone(), ..Person::new() };
    jane.turn(&says(0, "a", &former, true), Effect::Unknown, 0);
    jane.mapped = after.clone();
    jane.mapped.learn(before.own(), [former.clone()]);
    let withdrawal = says(50, "b", &mended, false);
    assert_eq!(jane.turn(&withdrawal, Effect::Accepted, 50), sends_and_repairs(&[("news", "false")]));
    // A worker that has the former document notes nothing of what this event says under the mended path.
    jane.turn_elsewhere(&before, &of(60, "c", Vec::new()), Effect::Accepted, 60);
    assert_eq!(jane.turn_of(&withdrawal, true, Effect::Accepted, 3_000), sends(&[("news", "false")]));
    assert_eq!(jane.turn(&withdrawal, Effect::Accepted, 3_001), sends(&[]), "for itself it stays unknown");
}

#[test]
fn a_withdrawal_of_what_the_gate_may_have_as_granted_is_sent_though_somebody_may_have_said_something_newer() {
    let without = Mapped::new([slot("other")]);
    let mut granted = Person::new();
    granted.turn_elsewhere(&without, &offer(100, "newer", &[("other", true)]), Effect::Accepted, 0);
    let withdrawal = offer(30, "w", &[("news", false)]);
    assert_eq!(granted.clone().turn(&withdrawal, Effect::Accepted, 5), sends(&[]), "nothing is granted");
    // A grant that was merged before the newer event came is known.
    let grant = |sent| {
        let mut jane = Person::new();
        jane.turn(&offer(20, "g", &[("news", true)]), sent, 0);
        jane.turn_elsewhere(&without, &offer(100, "newer", &[("other", true)]), Effect::Accepted, 1);
        jane
    };
    for sent in [Effect::Accepted, Effect::Unknown] {
        let mut jane = grant(sent);
        let Turn::Sent(values, _) = jane.turn(&withdrawal, Effect::Failed, 5) else { panic!("sent") };
        assert_eq!(values, [("news".to_owned(), "false".to_owned())], "{sent:?}");
        let Turn::Sent(values, _) = jane.turn(&withdrawal, Effect::Accepted, 15) else { panic!("sent") };
        assert_eq!(values, [("news".to_owned(), "false".to_owned())], "{sent:?}, and again");
        // A grant is not, and the withdrawal is put back where the older grant may be executed late.
        let left_out = if sent == Effect::Unknown { sends_and_repairs(&[]) } else { sends(&[]) };
        assert_eq!(jane.turn(&offer(40, "later", &[("news", true)]), Effect::Accepted, 200), left_out);
    }
    // The same value from another path is no reason against it, another value is.
    let former = Mapped::new([Slot::new("news", "a")]);
    for (on, sent) in [(false, sends(&[("news", "false")])), (true, sends(&[]))] {
        let mut jane = grant(Effect::Accepted);
        let other_path = of(50, "other path", vec![(Slot::new("news", "a"), Choice::Switch(on))]);
        jane.turn_elsewhere(&former, &other_path, Effect::Failed, 3);
        assert_eq!(jane.turn(&withdrawal, Effect::Accepted, 5), sent, "{on}");
    }
    let mut jane = grant(Effect::Accepted);
    jane.erase(Some(25), 1, 3);
    assert_eq!(jane.turn(&withdrawal, Effect::Accepted, 5), sends(&[("news", "false")]), "also of who was erased");
    assert_eq!(grant(Effect::Failed).turn(&withdrawal, Effect::Accepted, 5), sends(&[]), "it was not executed");
}

#[test]
fn a_repair_leaves_alone_what_nothing_may_spoil_and_something_newer_may_have_changed() {
    let mut jane = Person::new();
    let both = offer(0, "a", &[("news", false), ("other", true)]);
    jane.turn(&both, Effect::Unknown, 0);
    jane.turn(&both, Effect::Accepted, 1);
    let withdrawal = offer(50, "b", &[("other", false)]);
    assert_eq!(jane.turn(&withdrawal, Effect::Accepted, 50), sends_and_repairs(&[("other", "false")]));
    // A worker that does not map "news" notes nothing of what this event says about it.
    jane.turn_elsewhere(&Mapped::new([slot("other")]), &offer(60, "c", &[]), Effect::Accepted, 60);
    assert_eq!(jane.turn_of(&withdrawal, true, Effect::Accepted, 3_000), sends(&[("other", "false")]));
}

#[test]
fn what_is_accepted_late_under_a_former_document_is_repaired_under_the_mended_one() {
    let (former, mended) = (Slot::new("news", "a"), Slot::new("news", "b"));
    let (before, after) = (Mapped::new([former.clone()]), Mapped::new([mended.clone()]));
    let says = |second, event: &str, slot: &Slot, on| of(second, event, vec![(slot.clone(), Choice::Switch(on))]);
    let (older, newer) = (says(40, "a", &former, true), says(80, "b", &mended, false));
    let mut jane = Person { mapped: before.clone(), ..Person::new() };
    let Begun::Send(ToSend { newest: late, .. }) = jane.begin(1, &older, false, 100) else { panic!("sent") };
    jane.mapped = after.clone();
    jane.mapped.learn(before.own(), [former.clone()]);
    let own = jane.mapped.clone();
    let Begun::Send(ToSend { newest, .. }) = jane.begin(2, &newer, false, 101) else { panic!("sent") };
    // Both are accepted, and the worker with the former document is the first to note it.
    jane.mapped = before;
    jane.mapped.learn(after.own(), [mended]);
    assert_eq!(jane.end(1, &older, (false, &late), Effect::Accepted, [100, 103]), TurnEnd::default());
    jane.mapped = own;
    assert!(jane.end(2, &newer, (false, &newest), Effect::Accepted, [101, 103]).is_repair_due);
    assert_eq!(jane.turn_of(&newer, true, Effect::Accepted, 3_000), sends(&[("news", "false")]));
}

#[test]
fn a_mapping_that_comes_back_knows_what_it_missed() {
    let mut jane = Person::new();
    jane.turn(&offer(0, "a", &[("partners", true)]), Effect::Accepted, 0);
    jane.turn_elsewhere(&Mapped::new([slot("news")]), &offer(60, "b", &[("news", true)]), Effect::Accepted, 60);
    let Begun::Send(to_send) = jane.begin(9, &offer(0, "a", &[("partners", true)]), false, 70) else { panic!("sent") };
    assert_eq!(to_send.unknown, [slot("partners")], "the event of 60 may have taken it back");
    assert_eq!(jane.turn(&offer(80, "c", &[("partners", true)]), Effect::Accepted, 80), sends(&[("partners", "true")]));
}

#[test]
fn sets_of_mappings_are_bounded_and_what_was_missed_is_not_forgotten() {
    let mut jane = Person::new();
    for second in 0..100 {
        jane.mapped = Mapped::new([slot(&format!("p{second}"))]);
        jane.turn(&offer(second, "a", &[]), Effect::Accepted, second);
    }
    assert_eq!(jane.record().newest_events.len(), 16);
    jane.mapped = mapped();
    for set in jane.record().sets().collect::<Vec<_>>() {
        jane.mapped.learn(set, [slot("news")]);
    }
    jane.mapped.learn(0, []);
    let old = offer(50, "b", &[("news", true)]);
    let Begun::Send(to_send) = jane.begin(9, &old, false, 200) else { panic!("sent") };
    assert_eq!(to_send.unknown, [slot("news")]);
}

#[test]
fn a_set_of_mappings_that_is_not_known_is_asked_for() {
    let (with, without) = (mapped(), Mapped::new([slot("other")]));
    let mut jane = Person::new();
    jane.mapped = without.clone();
    jane.turn(&offer(100, "a", &[("other", true)]), Effect::Accepted, 0);
    assert_eq!((without.unknown(jane.record()), with.unknown(jane.record())), (None, Some(without.own())));
    assert_eq!(with.beside(&[(without.own(), vec![slot("other")])].into()).unknown(jane.record()), None);
}
