//! Requests that may still be executed, and their repairs.

use super::*;

#[test]
fn what_may_be_executed_after_a_request_was_begun_spoils_it_however_late_its_answer_is_noted() {
    let grant = offer(0, "a", &[("news", true)]);
    let withdrawal = offer(60, "b", &[("news", false)]);
    for (begun, is_due) in [(134, true), (135, true), (136, false)] {
        for meanwhile in [None, Some(begun + 5)] {
            let mut jane = Person::new();
            jane.turn(&grant, Effect::Unknown, 0);
            let Begun::Send(ToSend { newest, .. }) = jane.begin(5_000, &withdrawal, false, begun) else {
                panic!("sent")
            };
            // Another event of the same person drops the notes that lapsed.
            if let Some(now) = meanwhile {
                jane.turn(&offer(70, "c", &[("other", true)]), Effect::Accepted, now);
            }
            let times = [begun, begun + 10];
            let ended = jane.end(5_000, &withdrawal, (false, &newest), Effect::Accepted, times);
            assert_eq!(ended.is_repair_due, is_due, "{begun} s, {meanwhile:?}");
            let repair = jane.turn_of(&withdrawal, true, Effect::Accepted, begun + 200);
            assert_eq!(repair, if is_due { sends(&[("news", "false")]) } else { Turn::Needless });
        }
    }
}

#[test]
fn a_request_that_may_still_be_executed_is_repaired() {
    let mut jane = Person::new();
    let (first, second, third) =
        (offer(0, "a", &[("news", true)]), offer(60, "b", &[("news", false)]), offer(70, "c", &[("other", true)]));
    jane.turn(&first, Effect::Unknown, 0);
    assert_eq!(jane.turn(&second, Effect::Accepted, 60), sends_and_repairs(&[("news", "false")]));
    assert_eq!(
        jane.turn(&third, Effect::Accepted, 70),
        sends_and_repairs(&[("other", "true")]),
        "the first repair may be lost"
    );
    assert_eq!(
        jane.turn_of(&second, true, Effect::Accepted, 100),
        sends_and_repairs(&[("news", "false")]),
        "that one came too early: another is due"
    );
    assert_eq!(
        jane.turn_of(&third, true, Effect::Accepted, 3_000),
        sends(&[("news", "false"), ("other", "true")]),
        "it waits for its repair, however long"
    );
    assert_eq!(jane.turn_of(&second, true, Effect::Accepted, 3_000), Turn::Needless);
}

#[test]
fn the_first_copy_of_a_request_that_left_twice_stays_in_doubt() {
    let (first, second) = (offer(0, "a", &[("news", true)]), offer(60, "b", &[("news", false)]));
    for sent in [Effect::Accepted, Effect::Refused, Effect::Failed] {
        let mut jane = Person::new();
        let Begun::Send(ToSend { newest: carried, .. }) = jane.begin(1, &first, false, 0) else { panic!("sent") };
        let request =
            SentRequest { carried: &carried, begun: at(0), effect: sent, was_resent: true, first: 7, next: 8 };
        let mut known = jane.known.take();
        let ask = Ask { id: 1, offer: &first, is_repair: false };
        let (ended, _) = end(&mut known, ask, &request, &jane.around(1));
        assert!(!ended.is_repair_due, "nothing newer could be spoiled");
        jane.known = known;
        assert_eq!(jane.turn(&second, Effect::Accepted, 60), sends_and_repairs(&[("news", "false")]));
    }
}

#[test]
fn no_repair_is_due_when_nothing_can_be_spoiled() {
    let first = offer(0, "a", &[("news", true)]);
    let after = |next: &Offer, now: i64| {
        let mut jane = Person::new();
        jane.turn(&first, Effect::Unknown, 0);
        matches!(jane.turn(next, Effect::Accepted, now), Turn::Sent(_, true))
    };
    assert!(!after(&first, 10), "the same values once more");
    let withdrawal = offer(60, "b", &[("news", false)]);
    assert!(!after(&withdrawal, 1 + LATENESS.as_secs()), "too late to be executed");
    assert!(!after(&offer(60, "b", &[("other", false)]), 60), "of something else");
    assert!(after(&withdrawal, 60), "or this proves nothing");
}

#[test]
fn doubts_beyond_the_bound_are_joined_and_none_is_dropped() {
    let mut jane = Person::new();
    // The first of a hundred carries a value that no other carries.
    jane.turn(&offer(0, "a", &[("partners", true)]), Effect::Unknown, 0);
    for second in 1..100 {
        jane.turn(&offer(second, "b", &[("news", true)]), Effect::Unknown, 0);
    }
    for _ in 0..100 {
        jane.turn(&offer(99, "b", &[("news", true)]), Effect::Unknown, 0);
    }
    assert!(jane.record().doubts.len() <= 17, "{}", jane.record().doubts.len());
    let withdrawal = offer(200, "c", &[("partners", false)]);
    assert_eq!(jane.turn(&withdrawal, Effect::Accepted, 100), sends_and_repairs(&[("partners", "false")]));
}

#[test]
fn what_was_joined_is_repaired_for_each_property_and_for_as_long_as_its_repair_may_take() {
    let mut jane = Person::new();
    let names: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    jane.mapped = Mapped::new(names.iter().map(|name| slot(name)));
    for name in &names {
        jane.turn(&offer(0, "a", &[(name, true)]), Effect::Unknown, 0);
    }
    for name in &names {
        let withdrawal = offer(50, "b", &[(name, false)]);
        assert_eq!(jane.clone().turn(&withdrawal, Effect::Accepted, 50), sends_and_repairs(&[(name, "false")]));
    }
    let mut jane = Person { mapped: jane.mapped.clone(), ..Person::new() };
    jane.turn(&offer(0, "a", &[("0", true)]), Effect::Unknown, 0);
    let withdrawal = offer(50, "b", &[("0", false)]);
    assert_eq!(jane.turn(&withdrawal, Effect::Accepted, 1), sends_and_repairs(&[("0", "false")]));
    for name in &names[1..] {
        jane.turn(&offer(0, "a", &[(name, true)]), Effect::Unknown, 2);
    }
    let Turn::Sent(repair, _) = jane.turn_of(&withdrawal, true, Effect::Accepted, 1_000) else { panic!("needless") };
    assert!(repair.contains(&("0".to_owned(), "false".to_owned())), "{repair:?}");
}

#[test]
fn of_what_was_joined_the_older_value_stays() {
    let news = |second, on| offer(second, "n", &[("news", on)]);
    for (first, second) in [(0, 30), (30, 0)] {
        let mut jane = Person::new();
        jane.mapped = Mapped::new((0..40).map(|n| n.to_string()).chain(["news".to_owned()]).map(|id| slot(&id)));
        // Noted by two workers before either knew of the other: what they carry differs.
        for (id, at_second) in [(5_000, first), (5_001, second)] {
            jane.begin(id, &news(at_second, true), false, 1);
            let said = Said::offered(&Choice::Switch(true), &news(at_second, true));
            let doubt = jane.known.as_mut().unwrap().doubts.get_mut(&id).unwrap();
            doubt.carried = [(slot("news"), Arc::new(said))].into_iter().collect();
        }
        for n in 0..40 {
            jane.turn(&offer(0, "o", &[(&n.to_string(), true)]), Effect::Unknown, 2);
        }
        jane.known.as_mut().unwrap().values.remove(&slot("news"));
        let withdrawal = news(10, false);
        assert_eq!(
            jane.turn(&withdrawal, Effect::Accepted, 3),
            sends_and_repairs(&[("news", "false")]),
            "{first} first"
        );
    }
}

#[test]
fn on_a_tie_a_grant_that_is_executed_late_spoils_the_withdrawal() {
    let mut jane = Person::new();
    jane.turn(&offer(50, "z", &[("news", true)]), Effect::Unknown, 50);
    let withdrawal = offer(50, "a", &[("news", false)]);
    assert_eq!(jane.turn(&withdrawal, Effect::Accepted, 51), sends_and_repairs(&[("news", "false")]));
}

#[test]
fn what_was_joined_with_a_request_outlasts_its_answer() {
    for other in 0..20 {
        let mut jane = Person::new();
        jane.mapped =
            Mapped::new(["news".to_owned()].into_iter().chain((0..20).map(|n| n.to_string())).map(|id| slot(&id)));
        let withdrawal = offer(0, "a", &[("news", false)]);
        jane.turn(&withdrawal, Effect::Unknown, 0);
        // While the second request for the same event is under way, this many others are not answered.
        let Begun::Send(again) = jane.begin(5_000, &withdrawal, false, 50) else { panic!("sent") };
        for n in 0..other {
            jane.turn(&offer(n, "b", &[(&n.to_string(), true)]), Effect::Unknown, 51);
        }
        jane.end(5_000, &withdrawal, (false, &again.newest), Effect::Accepted, [50, 52]);
        let grant = offer(60, "c", &[("news", true)]);
        assert_eq!(jane.turn(&grant, Effect::Accepted, 60), sends_and_repairs(&[("news", "true")]), "beside {other}");
        let Turn::Sent(repair, _) = jane.turn_of(&grant, true, Effect::Accepted, 200) else { panic!("beside {other}") };
        assert!(repair.contains(&("news".to_owned(), "true".to_owned())), "beside {other}: {repair:?}");
    }
}

#[test]
fn a_value_that_was_accepted_is_made_good_though_the_same_was_refused_later() {
    let mut jane = Person::new();
    jane.turn(&offer(0, "a", &[("news", true)]), Effect::Unknown, 0);
    let withdrawal = offer(5, "b", &[("news", false)]);
    assert_eq!(jane.turn(&withdrawal, Effect::Accepted, 5), sends_and_repairs(&[("news", "false")]));
    jane.turn(&offer(9, "c", &[("news", false)]), Effect::Refused, 9);
    assert_eq!(jane.turn_of(&withdrawal, true, Effect::Accepted, 200), sends(&[("news", "false")]));
}

#[test]
fn a_withdrawal_that_the_gate_accepted_is_put_back_though_nobody_can_know_whether_a_later_grant_is_the_newest() {
    let withdrawal = offer(50, "b", &[("news", false)]);
    let mut jane = Person::new();
    jane.turn(&offer(0, "a", &[("news", true)]), Effect::Unknown, 0);
    assert_eq!(jane.turn(&withdrawal, Effect::Accepted, 50), sends_and_repairs(&[("news", "false")]));
    // A worker that does not map "news" notes nothing of what this event says about it.
    jane.turn_elsewhere(&Mapped::new([slot("other")]), &offer(60, "c", &[]), Effect::Accepted, 60);
    assert_eq!(jane.turn(&offer(60, "d", &[("news", true)]), Effect::Accepted, 61), sends_and_repairs(&[]));
    for erased in [false, true] {
        let mut jane = jane.clone();
        if erased {
            jane.erase(Some(60), 1, 62);
        }
        assert_eq!(jane.turn_of(&withdrawal, true, Effect::Accepted, 3_000), sends(&[("news", "false")]), "{erased}");
    }
}

#[test]
fn a_withdrawal_that_the_gate_accepted_is_put_back_though_it_refused_what_came_later() {
    let (first, withdrawal) = (offer(0, "a", &[("news", true)]), offer(50, "b", &[("news", false)]));
    let later = offer(60, "c", &[("news", true)]);
    let mut jane = Person::new();
    jane.turn(&first, Effect::Unknown, 0);
    assert_eq!(jane.turn(&withdrawal, Effect::Accepted, 50), sends_and_repairs(&[("news", "false")]));
    jane.turn(&later, Effect::Refused, 60);
    // The first request was executed late, and the later grant never.
    assert_eq!(jane.turn_of(&withdrawal, true, Effect::Accepted, 3_000), sends(&[("news", "false")]));
    assert_eq!(
        jane.turn(&later, Effect::Accepted, 3_001),
        sends(&[("news", "true")]),
        "a replay of it is its own turn"
    );
}

#[test]
fn what_is_accepted_late_beside_a_value_that_was_refused_before_is_repaired() {
    let (older, newer) = (offer(20, "a", &[("news", false)]), offer(50, "b", &[("news", true)]));
    let mut jane = Person::new();
    let Begun::Send(ToSend { newest: late, .. }) = jane.begin(1, &older, false, 50) else { panic!("sent") };
    jane.turn(&newer, Effect::Refused, 51);
    // Sent again by an operator while the older request is still under way: nobody can know which one came last.
    let Begun::Send(ToSend { newest: again, .. }) = jane.begin(2, &newer, false, 52) else { panic!("sent") };
    assert_eq!(jane.end(1, &older, (false, &late), Effect::Accepted, [50, 60]), TurnEnd::default());
    assert!(jane.end(2, &newer, (false, &again), Effect::Accepted, [52, 61]).is_repair_due);
    assert_eq!(jane.turn_of(&newer, true, Effect::Accepted, 3_000), sends(&[("news", "true")]));
    assert_eq!(jane.turn_of(&newer, true, Effect::Accepted, 3_001), Turn::Needless);
}
