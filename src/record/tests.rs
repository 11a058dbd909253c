use super::*;
use crate::filter::MAX_AHEAD;
use crate::gate::Outcome;
use crate::mapping::{Names, Selection};
use proptest::prelude::*;

const LATENESS: SignedDuration = SignedDuration::from_secs(135);
const YEAR: SignedDuration = SignedDuration::from_hours(365 * 24);

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn slot(property: &str) -> Slot {
    Slot::new(property, &format!("consents_purposes_{property}_enabled"))
}

fn mapped() -> Mapped {
    Mapped::new(["news", "partners", "other"].map(slot))
}

fn of(second: i64, event: &str, choices: Vec<(Slot, Choice)>) -> Offer {
    Offer { at: Some(at(second)), withdrawn_at: Some(at(second)), event: Some(event.into()), choices }
}

fn offer(second: i64, event: &str, choices: &[(&str, bool)]) -> Offer {
    of(second, event, choices.iter().map(|(id, on)| (slot(id), Choice::Switch(*on))).collect())
}

fn topics(second: i64, event: &str, ids: &[&str]) -> Offer {
    let ids = ids.iter().map(|id| (*id).into()).collect();
    of(second, event, vec![(slot("topics"), Choice::Selection(Selection { ids, names: Names::Grants }))])
}

/// One person's record, and what the tests do with it.
#[derive(Clone)]
struct Person {
    known: Option<Record>,
    mapped: Mapped,
    swept: Option<Timestamp>,
    ids: u64,
}

/// How a turn ended.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Erased,
    TooOld,
    Needless,
    /// The values that were sent, as texts, and whether a repair is due.
    Sent(Vec<(String, String)>, bool),
}

impl Person {
    fn new() -> Person {
        Person { known: None, mapped: mapped(), swept: None, ids: 100 }
    }

    fn around(&self, now: i64) -> Around<'_> {
        Around { now: at(now), execution_horizon: LATENESS, retention: YEAR, swept: self.swept, mapped: &self.mapped }
    }

    fn begin(&mut self, id: u64, offer: &Offer, is_repair: bool, now: i64) -> Begun {
        let mut known = self.known.take();
        let (begun, write) = begin(&mut known, Ask { id, offer, is_repair }, &self.around(now));
        self.known = known;
        assert!(write == Write::Durable || !matches!(begun, Begun::Send(_)), "noted before it is sent");
        begun
    }

    fn end(
        &mut self,
        id: u64,
        offer: &Offer,
        (is_repair, carried): (bool, &Values),
        sent: Sent,
        times: [i64; 2],
    ) -> Ended {
        self.end_and_write(id, offer, (is_repair, carried), sent, times).0
    }

    fn end_and_write(
        &mut self,
        id: u64,
        offer: &Offer,
        (is_repair, carried): (bool, &Values),
        sent: Sent,
        [begun, now]: [i64; 2],
    ) -> (Ended, Write) {
        let mut known = self.known.take();
        let request = Request { carried, begun: at(begun), sent, was_resent: false, first: id + 500, next: id + 700 };
        let ended = end(&mut known, Ask { id, offer, is_repair }, &request, &self.around(now));
        self.known = known;
        ended
    }

    /// One whole turn, or how it ended early.
    fn turn_of(&mut self, offer: &Offer, is_repair: bool, sent: Sent, now: i64) -> Turn {
        self.ids += 1;
        let id = self.ids;
        match self.begin(id, offer, is_repair, now) {
            Begun::Erased => Turn::Erased,
            Begun::TooOld => Turn::TooOld,
            Begun::Needless => Turn::Needless,
            Begun::Send(ToSend { newest, .. }) => {
                let ended = self.end(id, offer, (is_repair, &newest), sent, [now, now]);
                assert_eq!(ended.superseded, None);
                Turn::Sent(texts(&newest), ended.is_repair_due)
            }
        }
    }

    fn turn(&mut self, offer: &Offer, sent: Sent, now: i64) -> Turn {
        self.turn_of(offer, false, sent, now)
    }

    fn erase(&mut self, second: Option<i64>, message: u64, now: i64) -> bool {
        let erasure = Erasure { at: second.map(at), published: at(now), message };
        erase(&mut self.known, erasure, at(now), LATENESS).0
    }

    fn record(&self) -> &Record {
        self.known.as_ref().unwrap()
    }
}

fn texts(values: &Values) -> Vec<(String, String)> {
    values.iter().map(|(slot, said)| (slot.property().to_owned(), said.choice().to_string())).collect()
}

fn sends(values: &[(&str, &str)]) -> Turn {
    Turn::Sent(values.iter().map(|(property, text)| ((*property).to_owned(), (*text).to_owned())).collect(), false)
}

fn sends_and_repairs(values: &[(&str, &str)]) -> Turn {
    match sends(values) {
        Turn::Sent(values, _) => Turn::Sent(values, true),
        other => other,
    }
}

#[test]
fn a_late_retry_never_switches_on_what_was_switched_off() {
    let mut jane = Person::new();
    let (opt_in, opt_out) = (offer(0, "a", &[("news", true)]), offer(60, "b", &[("news", false)]));
    assert_eq!(jane.turn(&opt_in, Sent::Failed, 0), sends(&[("news", "true")]));
    assert_eq!(jane.turn(&opt_out, Sent::Accepted, 60), sends(&[("news", "false")]));
    assert_eq!(jane.turn(&opt_in, Sent::Accepted, 70), sends(&[("news", "false")]), "the retry carries today's truth");
    let Begun::Send(to_send) = jane.begin(9, &opt_in, false, 80) else { panic!("sent") };
    assert_eq!(to_send.outdated, 1);
    assert!(jane.record().has_accepted(&to_send.newest));
}

#[test]
fn what_may_be_executed_after_a_request_was_begun_spoils_it_however_late_its_answer_is_noted() {
    let grant = offer(0, "a", &[("news", true)]);
    let withdrawal = offer(60, "b", &[("news", false)]);
    for (begun, is_due) in [(134, true), (135, true), (136, false)] {
        for meanwhile in [None, Some(begun + 5)] {
            let mut jane = Person::new();
            jane.turn(&grant, Sent::Unknown, 0);
            let Begun::Send(ToSend { newest, .. }) = jane.begin(5_000, &withdrawal, false, begun) else {
                panic!("sent")
            };
            // Another event of the same person drops the notes that lapsed.
            if let Some(now) = meanwhile {
                jane.turn(&offer(70, "c", &[("other", true)]), Sent::Accepted, now);
            }
            let times = [begun, begun + 10];
            let ended = jane.end(5_000, &withdrawal, (false, &newest), Sent::Accepted, times);
            assert_eq!(ended.is_repair_due, is_due, "{begun} s, {meanwhile:?}");
            let repair = jane.turn_of(&withdrawal, true, Sent::Accepted, begun + 200);
            assert_eq!(repair, if is_due { sends(&[("news", "false")]) } else { Turn::Needless });
        }
    }
}

#[test]
fn an_old_event_still_counts_for_what_nobody_changed_since() {
    let mut jane = Person::new();
    jane.turn(&offer(60, "b", &[("news", false)]), Sent::Accepted, 60);
    let old = offer(0, "a", &[("news", true), ("partners", true)]);
    assert_eq!(jane.turn(&old, Sent::Accepted, 70), sends(&[("news", "false"), ("partners", "true")]));
}

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
                "partly" => drop(jane.turn(&partly, Sent::Accepted, step)),
                "since" => drop(jane.turn(&since, Sent::Accepted, step)),
                _ => drop(jane.erase(Some(40), 1, step)),
            }
        }
        assert_eq!(jane.turn(&since, Sent::Accepted, 200), sends(&[("topics", "y")]), "{order:?}");
    }
}

#[test]
fn a_grant_that_no_repair_could_take_back_is_taken_back_after_an_erasure() {
    let mut jane = Person::new();
    let late = LATENESS.as_secs();
    jane.turn(&offer(20, "a", &[("news", true), ("partners", true)]), Sent::Unknown, 30);
    let withdrawal = offer(100, "b", &[("partners", false)]);
    jane.turn(&withdrawal, Sent::Refused, 110);
    let again = offer(100, "c", &[("news", true)]);
    assert_eq!(jane.turn(&again, Sent::Accepted, 120), sends_and_repairs(&[("news", "true")]));
    // The repair cannot carry the withdrawal that was refused for good.
    assert_eq!(jane.turn_of(&again, true, Sent::Accepted, 120 + late), sends(&[("news", "true")]));
    jane.erase(None, 1, 2_000);
    assert_eq!(jane.turn(&withdrawal, Sent::Accepted, 3_000), sends(&[("partners", "false")]), "replayed");
}

#[test]
fn ties_stay_with_the_withdrawal_then_the_greater_id() {
    let wins = |first: &Offer, second: &Offer| {
        let mut jane = Person::new();
        jane.turn(first, Sent::Accepted, 60);
        jane.turn(second, Sent::Accepted, 61)
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
    jane.turn(&offer(60, "b", &[("news", false), ("partners", true)]), Sent::Accepted, 60);
    // Created before, updated after.
    let update = Offer { withdrawn_at: Some(at(90)), ..offer(0, "a", &[("news", true), ("partners", false)]) };
    assert_eq!(jane.turn(&update, Sent::Accepted, 90), sends(&[("news", "false"), ("partners", "false")]));
}

#[test]
fn a_value_that_the_gate_refused_is_neither_lent_nor_replaced_by_an_older_one() {
    let mut jane = Person::new();
    let (old, refused) = (offer(0, "a", &[("news", true)]), offer(60, "b", &[("news", false)]));
    jane.turn(&refused, Sent::Refused, 60);
    assert_eq!(jane.turn(&old, Sent::Accepted, 61), sends(&[]), "left out");
    assert_eq!(jane.turn(&refused, Sent::Accepted, 70), sends(&[("news", "false")]), "its own event may try again");
    assert_eq!(jane.turn(&old, Sent::Accepted, 80), sends(&[("news", "false")]), "acceptance clears the mark");
}

#[test]
fn a_refusal_of_what_was_lent_marks_nothing() {
    let mut jane = Person::new();
    let (old, new) = (offer(0, "a", &[("news", true)]), offer(60, "b", &[("news", false)]));
    jane.turn(&new, Sent::Failed, 60);
    jane.turn(&old, Sent::of(Outcome::Refused, true), 70);
    assert_eq!(jane.turn(&old, Sent::Accepted, 80), sends(&[("news", "false")]));
}

#[test]
fn a_request_that_may_still_be_executed_is_repaired() {
    let mut jane = Person::new();
    let (first, second, third) =
        (offer(0, "a", &[("news", true)]), offer(60, "b", &[("news", false)]), offer(70, "c", &[("other", true)]));
    jane.turn(&first, Sent::Unknown, 0);
    assert_eq!(jane.turn(&second, Sent::Accepted, 60), sends_and_repairs(&[("news", "false")]));
    assert_eq!(
        jane.turn(&third, Sent::Accepted, 70),
        sends_and_repairs(&[("other", "true")]),
        "the first repair may be lost"
    );
    assert_eq!(
        jane.turn_of(&second, true, Sent::Accepted, 100),
        sends_and_repairs(&[("news", "false")]),
        "that one came too early: another is due"
    );
    assert_eq!(
        jane.turn_of(&third, true, Sent::Accepted, 3_000),
        sends(&[("news", "false"), ("other", "true")]),
        "it waits for its repair, however long"
    );
    assert_eq!(jane.turn_of(&second, true, Sent::Accepted, 3_000), Turn::Needless);
}

#[test]
fn the_first_copy_of_a_request_that_left_twice_stays_in_doubt() {
    let (first, second) = (offer(0, "a", &[("news", true)]), offer(60, "b", &[("news", false)]));
    for sent in [Sent::Accepted, Sent::Refused, Sent::Failed] {
        let mut jane = Person::new();
        let Begun::Send(ToSend { newest: carried, .. }) = jane.begin(1, &first, false, 0) else { panic!("sent") };
        let request = Request { carried: &carried, begun: at(0), sent, was_resent: true, first: 7, next: 8 };
        let mut known = jane.known.take();
        let ask = Ask { id: 1, offer: &first, is_repair: false };
        let (ended, _) = end(&mut known, ask, &request, &jane.around(1));
        assert!(!ended.is_repair_due, "nothing newer could be spoiled");
        jane.known = known;
        assert_eq!(jane.turn(&second, Sent::Accepted, 60), sends_and_repairs(&[("news", "false")]));
    }
}

#[test]
fn no_repair_is_due_when_nothing_can_be_spoiled() {
    let first = offer(0, "a", &[("news", true)]);
    let after = |next: &Offer, now: i64| {
        let mut jane = Person::new();
        jane.turn(&first, Sent::Unknown, 0);
        matches!(jane.turn(next, Sent::Accepted, now), Turn::Sent(_, true))
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
    jane.turn(&offer(0, "a", &[("partners", true)]), Sent::Unknown, 0);
    for second in 1..100 {
        jane.turn(&offer(second, "b", &[("news", true)]), Sent::Unknown, 0);
    }
    for _ in 0..100 {
        jane.turn(&offer(99, "b", &[("news", true)]), Sent::Unknown, 0);
    }
    assert!(jane.record().doubts.len() <= 17, "{}", jane.record().doubts.len());
    let withdrawal = offer(200, "c", &[("partners", false)]);
    assert_eq!(jane.turn(&withdrawal, Sent::Accepted, 100), sends_and_repairs(&[("partners", "false")]));
}

#[test]
fn what_was_joined_is_repaired_for_each_property_and_for_as_long_as_its_repair_may_take() {
    let mut jane = Person::new();
    let names: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    jane.mapped = Mapped::new(names.iter().map(|name| slot(name)));
    for name in &names {
        jane.turn(&offer(0, "a", &[(name, true)]), Sent::Unknown, 0);
    }
    for name in &names {
        let withdrawal = offer(50, "b", &[(name, false)]);
        assert_eq!(jane.clone().turn(&withdrawal, Sent::Accepted, 50), sends_and_repairs(&[(name, "false")]));
    }
    let mut jane = Person { mapped: jane.mapped.clone(), ..Person::new() };
    jane.turn(&offer(0, "a", &[("0", true)]), Sent::Unknown, 0);
    let withdrawal = offer(50, "b", &[("0", false)]);
    assert_eq!(jane.turn(&withdrawal, Sent::Accepted, 1), sends_and_repairs(&[("0", "false")]));
    for name in &names[1..] {
        jane.turn(&offer(0, "a", &[(name, true)]), Sent::Unknown, 2);
    }
    let Turn::Sent(repair, _) = jane.turn_of(&withdrawal, true, Sent::Accepted, 1_000) else { panic!("needless") };
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
            doubt.sent = [(slot("news"), Arc::new(said))].into_iter().collect();
        }
        for n in 0..40 {
            jane.turn(&offer(0, "o", &[(&n.to_string(), true)]), Sent::Unknown, 2);
        }
        jane.known.as_mut().unwrap().values.remove(&slot("news"));
        let withdrawal = news(10, false);
        assert_eq!(jane.turn(&withdrawal, Sent::Accepted, 3), sends_and_repairs(&[("news", "false")]), "{first} first");
    }
}

#[test]
fn on_a_tie_a_grant_that_is_executed_late_spoils_the_withdrawal() {
    let mut jane = Person::new();
    jane.turn(&offer(50, "z", &[("news", true)]), Sent::Unknown, 50);
    let withdrawal = offer(50, "a", &[("news", false)]);
    assert_eq!(jane.turn(&withdrawal, Sent::Accepted, 51), sends_and_repairs(&[("news", "false")]));
}

#[test]
fn the_newest_event_that_was_missed_counts_in_whatever_order_they_came() {
    let (with, without) = (mapped(), Mapped::new([slot("other")]));
    let mut jane = Person::new();
    jane.mapped = without.clone();
    jane.turn(&offer(100, "a", &[("other", true)]), Sent::Accepted, 0);
    jane.turn(&offer(20, "b", &[("other", true)]), Sent::Accepted, 1);
    jane.mapped = with.beside(&[(without.own(), vec![slot("other")])].into());
    assert_eq!(jane.turn(&offer(50, "c", &[("news", true)]), Sent::Accepted, 2), sends(&[]));
}

#[test]
fn of_a_list_of_refusals_an_id_is_a_withdrawal_and_passes_an_erasure() {
    let refused = |second, ids: &[&str]| {
        let ids = ids.iter().map(|id| (*id).into()).collect();
        let choice = Choice::Selection(Selection { ids, names: Names::Refusals });
        of(second, "r", vec![(slot("vendors"), choice)])
    };
    let mut jane = Person { mapped: Mapped::new([slot("vendors")]), ..Person::new() };
    jane.turn(&refused(0, &[]), Sent::Accepted, 0);
    jane.erase(Some(60), 1, 60);
    assert_eq!(jane.clone().turn(&refused(50, &["v"]), Sent::Accepted, 61), sends(&[("vendors", "v")]));
    assert_eq!(jane.turn(&refused(50, &[]), Sent::Accepted, 61), Turn::Erased);
}

#[test]
fn what_was_joined_with_a_request_outlasts_its_answer() {
    for other in 0..20 {
        let mut jane = Person::new();
        jane.mapped =
            Mapped::new(["news".to_owned()].into_iter().chain((0..20).map(|n| n.to_string())).map(|id| slot(&id)));
        let withdrawal = offer(0, "a", &[("news", false)]);
        jane.turn(&withdrawal, Sent::Unknown, 0);
        // While the second request for the same event is under way, this many others are not answered.
        let Begun::Send(again) = jane.begin(5_000, &withdrawal, false, 50) else { panic!("sent") };
        for n in 0..other {
            jane.turn(&offer(n, "b", &[(&n.to_string(), true)]), Sent::Unknown, 51);
        }
        jane.end(5_000, &withdrawal, (false, &again.newest), Sent::Accepted, [50, 52]);
        let grant = offer(60, "c", &[("news", true)]);
        assert_eq!(jane.turn(&grant, Sent::Accepted, 60), sends_and_repairs(&[("news", "true")]), "beside {other}");
        let Turn::Sent(repair, _) = jane.turn_of(&grant, true, Sent::Accepted, 200) else { panic!("beside {other}") };
        assert!(repair.contains(&("news".to_owned(), "true".to_owned())), "beside {other}: {repair:?}");
    }
}

#[test]
fn an_erased_person_stays_erased_until_a_later_event() {
    let mut jane = Person::new();
    let before = offer(0, "a", &[("news", true)]);
    jane.turn(&before, Sent::Failed, 0);
    assert!(jane.erase(Some(10), 1, 10));
    let undated = Offer { at: None, withdrawn_at: None, ..before.clone() };
    for erased in [&before, &offer(10, "b", &[("news", true)]), &undated, &offer(5, "c", &[("news", false)])] {
        assert_eq!(jane.turn(erased, Sent::Accepted, 20), Turn::Erased);
    }
    jane.erase(Some(5), 2, 20);
    assert_eq!(
        jane.turn(&offer(10, "b", &[("news", true)]), Sent::Accepted, 20),
        Turn::Erased,
        "nothing is taken back"
    );
    assert_eq!(jane.turn(&offer(11, "d", &[("news", true)]), Sent::Accepted, 20), sends(&[("news", "true")]));
}

#[test]
fn an_erasure_that_comes_again_moves_nothing() {
    let mut jane = Person::new();
    jane.erase(None, 7, 10);
    jane.turn(&offer(20, "a", &[("news", true)]), Sent::Accepted, 20);
    jane.erase(None, 7, 700_000);
    assert_eq!(jane.record().erased(), Some(at(10)));
    assert_eq!(jane.turn(&offer(20, "a", &[("news", true)]), Sent::Accepted, 30), sends(&[("news", "true")]));
    jane.erase(None, 8, 40);
    assert_eq!(jane.record().erased(), Some(at(40)), "another one counts");
}

#[test]
fn a_withdrawal_of_what_the_gate_has_as_granted_passes_an_erasure_alone() {
    let grant = offer(0, "a", &[("news", true), ("other", true)]);
    let withdrawal = offer(5, "b", &[("news", false), ("partners", true), ("other", true)]);
    let mut jane = Person::new();
    jane.turn(&grant, Sent::Accepted, 0);
    // The withdrawal waits for its second attempt.
    jane.turn(&withdrawal, Sent::Failed, 5);
    jane.erase(Some(10), 1, 10);
    jane.erase(Some(12), 2, 12);
    assert_eq!(jane.record().values().count(), 0);
    let older = offer(-5, "0", &[("news", false)]);
    assert_eq!(jane.turn(&older, Sent::Accepted, 20), Turn::Erased, "older than the grant");
    assert_eq!(jane.turn(&withdrawal, Sent::Failed, 20), sends(&[("news", "false")]));
    assert_eq!(jane.turn(&withdrawal, Sent::Accepted, 9_000), sends(&[("news", "false")]), "whenever it comes");
    assert_eq!(jane.turn(&withdrawal, Sent::Accepted, 9_010), Turn::Erased, "once is enough");
    assert_eq!(jane.turn(&offer(9, "c", &[("other", false)]), Sent::Accepted, 9_020), sends(&[("other", "false")]));
}

#[test]
fn a_grant_that_may_be_at_the_gate_counts_as_accepted_when_its_person_is_erased() {
    for answered in [5, 500] {
        let mut jane = Person::new();
        jane.turn(&offer(0, "a", &[("news", true)]), Sent::Unknown, 0);
        jane.turn(&offer(1, "b", &[("other", true)]), Sent::Accepted, answered);
        jane.erase(Some(answered), 1, answered);
        let withdrawal = offer(2, "c", &[("news", false)]);
        assert!(matches!(jane.turn(&withdrawal, Sent::Accepted, 1_000), Turn::Sent(..)), "answered at {answered}");
    }
}

#[test]
fn a_grant_that_is_accepted_after_its_person_was_erased_can_still_be_taken_back() {
    let mut jane = Person::new();
    let grant = offer(0, "a", &[("news", true)]);
    let Begun::Send(ToSend { newest, .. }) = jane.begin(1, &grant, false, 0) else { panic!("sent") };
    jane.erase(Some(2), 1, 2);
    jane.end(1, &grant, (false, &newest), Sent::Accepted, [0, 3]);
    let withdrawal = offer(1, "b", &[("news", false)]);
    assert_eq!(jane.turn(&withdrawal, Sent::Accepted, 500), sends(&[("news", "false")]));
}

#[test]
fn no_erasure_ends_a_repair() {
    for erased in [-5, 10] {
        let mut jane = Person::new();
        jane.turn(&offer(0, "a", &[("news", true)]), Sent::Unknown, 0);
        let withdrawal = offer(5, "b", &[("news", false)]);
        assert_eq!(jane.turn(&withdrawal, Sent::Accepted, 5), sends_and_repairs(&[("news", "false")]));
        jane.erase(Some(erased), 1, 20);
        assert_eq!(jane.turn_of(&withdrawal, true, Sent::Accepted, 200), sends(&[("news", "false")]), "{erased}");
        assert_eq!(jane.turn_of(&withdrawal, true, Sent::Accepted, 400), Turn::Needless);
        if erased > 5 {
            assert!(jane.record().values.is_empty(), "nothing needs it any more");
        }
    }
}

#[test]
fn a_value_that_was_accepted_is_made_good_though_the_same_was_refused_later() {
    let mut jane = Person::new();
    jane.turn(&offer(0, "a", &[("news", true)]), Sent::Unknown, 0);
    let withdrawal = offer(5, "b", &[("news", false)]);
    assert_eq!(jane.turn(&withdrawal, Sent::Accepted, 5), sends_and_repairs(&[("news", "false")]));
    jane.turn(&offer(9, "c", &[("news", false)]), Sent::Refused, 9);
    assert_eq!(jane.turn_of(&withdrawal, true, Sent::Accepted, 200), sends(&[("news", "false")]));
}

/// Two workers at once: the gate accepts an old grant although it accepted a withdrawal, and refuses the request that
/// would correct that.
fn overtaken() -> (Person, Offer) {
    let (old, new) = (offer(0, "a", &[("news", true)]), offer(5, "b", &[("news", false)]));
    let mut jane = Person::new();
    let Begun::Send(ToSend { newest, .. }) = jane.begin(1, &old, false, 6) else { panic!("sent") };
    jane.turn(&new, Sent::Accepted, 6);
    let ended = jane.end(1, &old, (false, &newest), Sent::Accepted, [6, 7]);
    let corrected = ended.superseded.expect("a newer one is known");
    jane.end(701, &old, (false, &corrected), Sent::Failed, [7, 8]);
    (jane, old)
}

#[test]
fn what_is_owed_to_the_gate_outlasts_an_erasure() {
    let (mut jane, old) = overtaken();
    jane.erase(Some(10), 1, 10);
    let lapsed = rules::lapse(jane.record(), at(1_000_000));
    jane.known = lapsed.or(jane.known);
    assert_eq!(jane.turn(&old, Sent::Unknown, 1_000_000), sends(&[("news", "false")]), "however late");
    let another = offer(1, "c", &[("other", true)]);
    assert_eq!(jane.turn(&another, Sent::Accepted, 1_000_010), sends(&[("news", "false")]), "with any of their events");
    assert_eq!(jane.turn(&old, Sent::Accepted, 1_000_020), Turn::Erased, "once is enough");
}

#[test]
fn what_is_owed_to_the_gate_goes_with_the_next_request() {
    let (mut jane, old) = overtaken();
    let another = offer(6, "c", &[("other", true)]);
    assert_eq!(jane.turn(&another, Sent::Accepted, 20), sends(&[("news", "false"), ("other", "true")]));
    assert_eq!(jane.turn(&offer(7, "d", &[("other", false)]), Sent::Accepted, 30), sends(&[("other", "false")]));
    assert_eq!(jane.turn(&old, Sent::Accepted, 40), sends(&[("news", "false")]), "its own event's turn");
}

#[test]
fn a_request_that_was_begun_before_makes_nothing_good() {
    let mut jane = Person::new();
    let (old, new) = (offer(0, "a", &[("news", true)]), offer(5, "b", &[("news", false)]));
    let Begun::Send(first) = jane.begin(1, &old, false, 6) else { panic!("sent") };
    let Begun::Send(second) = jane.begin(2, &new, false, 6) else { panic!("sent") };
    let ended = jane.end(1, &old, (false, &first.newest), Sent::Accepted, [6, 7]);
    jane.end(701, &old, (false, &ended.superseded.expect("a newer one is known")), Sent::Failed, [7, 7]);
    // The new one was executed before the old one, and its answer came after.
    jane.end(2, &new, (false, &second.newest), Sent::Accepted, [6, 8]);
    jane.erase(Some(10), 1, 10);
    assert_eq!(jane.turn(&old, Sent::Accepted, 20), sends(&[("news", "false")]));
    assert!(jane.record().values.is_empty(), "nothing needs it any more");
}

#[test]
fn a_grant_is_not_owed_once_its_person_was_erased() {
    let (old, new) = (offer(0, "a", &[("news", false)]), offer(5, "b", &[("news", true)]));
    let mut jane = Person::new();
    let Begun::Send(ToSend { newest, .. }) = jane.begin(1, &old, false, 6) else { panic!("sent") };
    jane.turn(&new, Sent::Accepted, 6);
    assert!(jane.end(1, &old, (false, &newest), Sent::Accepted, [6, 7]).superseded.is_some());
    jane.erase(Some(10), 1, 10);
    assert_eq!(jane.turn(&old, Sent::Accepted, 20), Turn::Erased);
    let lapsed = rules::lapse(jane.record(), at(100_000)).expect("something goes");
    assert!(lapsed.values.is_empty() && lapsed.owed.is_none());
}

#[test]
fn a_grant_that_was_never_answered_does_not_hide_the_withdrawal_that_the_gate_accepted_before() {
    let mut jane = Person::new();
    let grant = offer(0, "g", &[("news", true)]);
    jane.turn(&grant, Sent::Unknown, 0);
    let withdrawal = offer(20, "w", &[("news", false)]);
    assert_eq!(jane.turn(&withdrawal, Sent::Accepted, 51), sends_and_repairs(&[("news", "false")]));
    let newer = offer(100, "n", &[("news", true)]);
    jane.turn(&newer, Sent::Unknown, 100);
    // When the event comes again, its first request cannot be executed any more.
    jane.begin(9_000, &newer, false, 507);
    jane.erase(Some(136), 1, 508);
    assert_eq!(jane.begin(9_000, &newer, false, 509), Begun::Erased);
    assert_eq!(jane.clone().turn_of(&withdrawal, true, Sent::Accepted, 510), sends(&[("news", "false")]));
    // The newer grant may have been executed, so it can be taken back.
    let later = offer(120, "l", &[("news", false)]);
    assert_eq!(jane.turn(&later, Sent::Accepted, 511), sends_and_repairs(&[("news", "false")]));
}

#[test]
fn a_withdrawal_that_the_gate_did_not_accept_takes_no_grant_back() {
    let mut jane = Person::new();
    jane.turn(&offer(0, "g", &[("news", true)]), Sent::Unknown, 0);
    jane.turn(&offer(50, "w", &[("news", false)]), Sent::Failed, 50);
    jane.erase(Some(60), 1, 60);
    assert_eq!(
        jane.turn(&offer(55, "l", &[("news", false)]), Sent::Accepted, 61),
        sends_and_repairs(&[("news", "false")])
    );
}

#[test]
fn an_accepted_withdrawal_of_an_erased_person_passes_only_while_it_may_be_spoiled() {
    let withdrawal = offer(50, "w", &[("news", false)]);
    let mut spoiled = Person::new();
    spoiled.turn(&offer(0, "g", &[("news", true)]), Sent::Unknown, 0);
    let mut harmless = Person::new();
    harmless.turn(&withdrawal, Sent::Unknown, 49);
    for jane in [&mut spoiled, &mut harmless] {
        jane.turn(&withdrawal, Sent::Accepted, 50);
        jane.erase(Some(60), 1, 60);
    }
    let older = offer(30, "o", &[("news", false)]);
    assert_eq!(spoiled.clone().turn(&older, Sent::Accepted, 61), Turn::Erased, "the newer one is put back");
    assert_eq!(spoiled.turn(&withdrawal, Sent::Accepted, 61), sends_and_repairs(&[("news", "false")]));
    assert_eq!(harmless.turn(&withdrawal, Sent::Accepted, 61), Turn::Erased);
}

#[test]
fn an_event_without_anything_that_is_later_than_the_erasure_does_not_pass() {
    let mut jane = Person::new();
    jane.erase(Some(60), 1, 60);
    let updated = Offer { withdrawn_at: Some(at(70)), ..offer(50, "u", &[("news", true)]) };
    assert_eq!(jane.clone().turn(&updated, Sent::Accepted, 71), Turn::Erased, "its grant counts from before");
    assert_eq!(jane.clone().turn(&offer(50, "e", &[]), Sent::Accepted, 71), Turn::Erased);
    let nothing = Offer { choices: Vec::new(), ..updated };
    assert_eq!(jane.turn(&nothing, Sent::Accepted, 71), sends(&[]));
}

#[test]
fn of_grants_that_were_never_answered_the_newest_counts_and_none_that_is_older_than_what_was_accepted() {
    let news = |second, event: &str, on| offer(second, event, &[("news", on)]);
    let passes =
        |jane: &Person, second| jane.clone().turn(&news(second, "later", false), Sent::Failed, 100_003) != Turn::Erased;
    // Accepted later than the grant.
    let mut taken_back = Person::new();
    taken_back.turn(&news(0, "g", true), Sent::Unknown, 0);
    taken_back.turn(&news(20, "w", false), Sent::Accepted, 20);
    taken_back.turn(&news(30, "n", true), Sent::Failed, 100_000);
    taken_back.erase(Some(40), 1, 100_002);
    assert!(!passes(&taken_back, 35), "nothing is granted");
    let mut two = Person::new();
    two.turn(&news(0, "g", true), Sent::Unknown, 0);
    two.turn(&news(30, "n", true), Sent::Unknown, 1);
    two.turn(&news(30, "n", true), Sent::Failed, 1_000);
    let mut overtaken = two.clone();
    two.erase(Some(40), 1, 1_002);
    assert_eq!([10, 35].map(|second| passes(&two, second)), [false, true]);
    // A withdrawal that the gate did not accept changes nothing of that.
    overtaken.turn(&news(50, "w", false), Sent::Failed, 1_001);
    overtaken.erase(Some(60), 1, 1_002);
    assert!(passes(&overtaken, 55));
}

#[test]
fn an_erasure_of_something_older_does_not_forget_a_grant_that_was_never_answered() {
    let mut jane = Person::new();
    jane.turn(&offer(80, "g", &[("news", true)]), Sent::Unknown, 43);
    let withdrawal = Offer { at: Some(at(40)), ..offer(80, "w", &[("news", false)]) };
    assert_eq!(jane.turn(&withdrawal, Sent::Refused, 166), sends(&[("news", "false")]));
    let lapsed = rules::lapse(&Record { mark: None, ..jane.record().clone() }, at(100_000));
    assert_eq!(lapsed, None, "nothing was erased");
    // The grant's request cannot be executed any more.
    jane.erase(Some(66), 1, 186);
    let mut later = jane.clone();
    jane.erase(Some(196), 2, 196);
    assert_eq!(jane.turn(&withdrawal, Sent::Accepted, 838), sends(&[("news", "false")]));
    later.known = rules::lapse(later.record(), at(100_000)).or(later.known);
    later.erase(Some(196), 2, 100_001);
    assert_eq!(later.turn(&withdrawal, Sent::Accepted, 100_002), sends(&[("news", "false")]));
}

#[test]
fn an_older_grant_that_failed_is_not_at_the_gate() {
    let mut jane = Person::new();
    let grant = offer(0, "g", &[("news", true)]);
    let Begun::Send(ToSend { newest, .. }) = jane.begin(9_000, &grant, false, 0) else { panic!("sent") };
    jane.turn(&offer(20, "w", &[("news", false)]), Sent::Failed, 1);
    jane.end(9_000, &grant, (false, &newest), Sent::Failed, [0, 2]);
    jane.erase(Some(30), 1, 3);
    assert_eq!(jane.turn(&offer(25, "l", &[("news", false)]), Sent::Accepted, 4), Turn::Erased);
}

#[test]
fn of_a_selection_only_what_is_later_stays_after_an_erasure_unless_a_note_needs_it() {
    let ids = vec!["x".into()];
    let choice = Choice::Selection(Selection { ids, names: Names::Grants });
    let updated = Offer { at: Some(at(10)), withdrawn_at: Some(at(50)), ..of(0, "u", vec![(slot("topics"), choice)]) };
    let shown = |jane: &Person| jane.record().values[&slot("topics")].said.choice().to_string();
    let mut jane = Person { mapped: Mapped::new([slot("topics")]), ..Person::new() };
    let mut doubtful = jane.clone();
    jane.turn(&updated, Sent::Accepted, 60);
    let whole = jane.clone();
    jane.erase(Some(20), 1, 61);
    assert_eq!((shown(&whole).as_str(), shown(&jane).as_str()), ("x", ""));
    assert!(jane.record().values[&slot("topics")].accepted.is_none(), "the gate has another one");
    doubtful.turn(&updated, Sent::Unknown, 59);
    doubtful.turn(&updated, Sent::Accepted, 60);
    doubtful.erase(Some(20), 1, 61);
    assert_eq!(shown(&doubtful), "x");
    let mut later = Person { mapped: Mapped::new([slot("topics")]), ..Person::new() };
    later.turn(&topics(50, "b", &["y"]), Sent::Accepted, 60);
    later.erase(Some(20), 1, 61);
    assert!(later.record().values[&slot("topics")].accepted.is_some(), "nothing of it was erased");
    later.erase(Some(50), 2, 62);
    assert!(later.record().values.is_empty(), "all of it, at the same instant");
}

#[test]
fn a_later_withdrawal_of_an_erased_person_passes_while_what_was_accepted_may_be_spoiled() {
    let mut jane = Person::new();
    let grant = offer(0, "g", &[("news", true)]);
    jane.turn(&grant, Sent::Unknown, 0);
    jane.turn(&grant, Sent::Accepted, 15);
    jane.erase(Some(103), 1, 43);
    let withdrawal = offer(60, "w", &[("news", false)]);
    // The repair is lost with the worker, and the gate refuses the withdrawal when it comes again.
    assert_eq!(jane.turn(&withdrawal, Sent::Accepted, 100), sends_and_repairs(&[("news", "false")]));
    assert_eq!(jane.turn(&withdrawal, Sent::Refused, 101), sends(&[("news", "false")]));
    let later = offer(100, "later", &[("news", false)]);
    assert_eq!(jane.turn(&later, Sent::Accepted, 102), sends_and_repairs(&[("news", "false")]));
    assert_eq!(jane.turn(&offer(100, "l", &[("partners", false)]), Sent::Accepted, 103), Turn::Erased);
    assert_eq!(jane.turn(&offer(101, "grant", &[("news", true)]), Sent::Accepted, 103), Turn::Erased);
}

#[test]
fn a_request_that_was_overtaken_sends_no_grant_of_who_was_erased_meanwhile() {
    let (withdrawal, grant) = (offer(0, "w", &[("news", false)]), offer(5, "g", &[("news", true)]));
    let overtaken = |erased: Option<i64>| {
        let mut jane = Person::new();
        let Begun::Send(ToSend { newest, .. }) = jane.begin(9_000, &withdrawal, false, 6) else { panic!("sent") };
        // Its note keeps what was erased.
        jane.begin(9_001, &withdrawal, false, 6);
        jane.turn(&grant, Sent::Accepted, 6);
        if erased.is_some() {
            jane.erase(erased, 1, 7);
        }
        jane.end(9_000, &withdrawal, (false, &newest), Sent::Accepted, [6, 8]).superseded
    };
    assert_eq!(texts(&overtaken(None).unwrap()), [("news".to_owned(), "true".to_owned())]);
    assert_eq!(overtaken(Some(10)), None);
}

#[test]
fn what_is_owed_stays_owed_until_it_was_carried_by_a_later_request() {
    let (jane, _) = overtaken();
    let other = offer(20, "c", &[("other", true)]);
    // Begun before what is owed was accepted, and carrying it: whichever came last nobody knows.
    let carried: Values = [(slot("news"), Arc::clone(&jane.record().values[&slot("news")].said))].into_iter().collect();
    for (begun, is_owed) in [(6, true), (7, false)] {
        let mut jane = jane.clone();
        jane.end(9_000, &other, (false, &carried), Sent::Accepted, [begun, 9]);
        assert_eq!(jane.record().owed.is_some(), is_owed, "begun at {begun}");
    }
    let mut jane = jane.clone();
    jane.end(9_000, &other, (false, &Values::new()), Sent::Accepted, [8, 9]);
    assert!(jane.record().owed.is_some(), "not carried");
}

#[test]
fn what_an_erasure_kept_for_a_repair_goes_once_nothing_can_be_late() {
    let mut jane = Person::new();
    jane.turn(&offer(0, "a", &[("news", true)]), Sent::Unknown, 0);
    jane.turn(&offer(1, "b", &[("news", false)]), Sent::Failed, 1);
    jane.erase(Some(10), 1, 10);
    assert_eq!(jane.record().values.len(), 1);
    let lapsed = rules::lapse(jane.record(), at(100_000)).expect("something goes");
    assert!(lapsed.values.is_empty() && lapsed.doubts.is_empty());
    assert_eq!(rules::lapse(&lapsed, at(100_000)), None);
}

#[test]
fn a_selection_is_merged_id_by_id() {
    let mut jane = Person::new();
    let (both, one, none) = (topics(0, "a", &["b", "a"]), topics(60, "b", &["a"]), topics(90, "c", &[]));
    assert_eq!(jane.turn(&one, Sent::Accepted, 60), sends(&[("topics", "a")]));
    assert_eq!(jane.turn(&both, Sent::Accepted, 61), sends(&[("topics", "a")]), "older");
    assert_eq!(jane.turn(&none, Sent::Accepted, 90), sends(&[("topics", "")]));
    assert_eq!(jane.turn(&both, Sent::Accepted, 91), sends(&[("topics", "")]));
    // Two of the same moment: what one of them does not name is a withdrawal, and stays.
    let tie = topics(90, "d", &["x"]);
    assert_eq!(jane.turn(&tie, Sent::Accepted, 92), sends(&[("topics", "")]));
    // Updated later than the last one, created before it: its grants are old, its withdrawals new.
    let update = Offer { at: Some(at(1)), ..topics(120, "e", &["b"]) };
    assert_eq!(jane.turn(&topics(100, "f", &["a", "b"]), Sent::Accepted, 100), sends(&[("topics", "a,b")]));
    assert_eq!(jane.turn(&update, Sent::Accepted, 120), sends(&[("topics", "b")]));
}

#[test]
fn an_emptied_selection_passes_an_erasure_and_names_nothing() {
    let mut jane = Person::new();
    jane.turn(&topics(0, "a", &["a", "b"]), Sent::Accepted, 0);
    jane.erase(Some(10), 1, 10);
    assert_eq!(jane.turn(&topics(5, "b", &["b"]), Sent::Accepted, 20), sends(&[("topics", "")]));
    assert_eq!(jane.turn(&topics(6, "c", &["b"]), Sent::Accepted, 20), Turn::Erased);
}

#[test]
fn an_old_letter_does_not_set_a_new_mapping_against_a_newer_event() {
    let before = Mapped::new([slot("news")]);
    let mut after = Mapped::new([slot("news"), slot("partners")]);
    after.learn(before.own(), [slot("news")]);
    let mut jane = Person { mapped: before, ..Person::new() };
    // Nobody knows any more whether it named partners.
    let newer = offer(60, "b", &[("news", false)]);
    jane.turn(&newer, Sent::Accepted, 60);
    jane.mapped = after;
    let old = offer(0, "a", &[("news", true), ("partners", true)]);
    let Begun::Send(to_send) = jane.begin(9, &old, false, 600) else { panic!("sent") };
    assert_eq!(texts(&to_send.newest), [("news".to_owned(), "false".to_owned())]);
    assert_eq!(to_send.unknown, [slot("partners")]);
    let replayed = offer(60, "b", &[("news", false), ("partners", false)]);
    assert_eq!(jane.turn(&replayed, Sent::Accepted, 610), sends(&[("news", "false"), ("partners", "false")]));
    assert_eq!(jane.turn(&old, Sent::Accepted, 620), sends(&[("news", "false"), ("partners", "false")]));
}

#[test]
fn a_mended_mapping_begins_with_what_is_known_under_its_own_path() {
    let (wrong, right) =
        (Slot::new("news", "consents_purposes_a_enabled"), Slot::new("news", "consents_purposes_b_enabled"));
    let (before, after) = (Mapped::new([wrong.clone()]), Mapped::new([right.clone()]));
    let says = |second, event: &str, slot: &Slot, on| of(second, event, vec![(slot.clone(), Choice::Switch(on))]);
    let mut jane = Person { mapped: before.clone(), ..Person::new() };
    jane.turn(&says(0, "a", &wrong, true), Sent::Accepted, 0);
    jane.mapped = after.clone();
    jane.mapped.learn(before.own(), [wrong.clone()]);
    assert_eq!(jane.turn(&says(0, "a", &right, false), Sent::Accepted, 10), sends(&[("news", "false")]), "replayed");
    assert_eq!(jane.turn(&says(-9, "0", &right, true), Sent::Accepted, 11), sends(&[("news", "false")]), "older");
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
    jane.turn(&says(0, "a", &former, true), Sent::Unknown, 0);
    jane.mapped = after.clone();
    jane.mapped.learn(before.own(), [former.clone()]);
    let withdrawal = says(50, "b", &mended, false);
    assert_eq!(jane.turn(&withdrawal, Sent::Accepted, 50), sends_and_repairs(&[("news", "false")]));
    // A worker that has the former document notes nothing of what this event says under the mended path.
    let (own, theirs) = (jane.mapped.clone(), Mapped::new([former]));
    jane.mapped = theirs;
    jane.turn(&of(60, "c", Vec::new()), Sent::Accepted, 60);
    jane.mapped = own;
    assert_eq!(jane.turn_of(&withdrawal, true, Sent::Accepted, 3_000), sends(&[("news", "false")]));
    assert_eq!(jane.turn(&withdrawal, Sent::Accepted, 3_001), sends(&[]), "for itself it stays unknown");
}

#[test]
fn a_withdrawal_of_what_the_gate_may_have_as_granted_is_sent_though_somebody_may_have_said_something_newer() {
    let (with, without) = (mapped(), Mapped::new([slot("other")]));
    let mut granted = Person::new();
    granted.mapped = without.clone();
    granted.turn(&offer(100, "newer", &[("other", true)]), Sent::Accepted, 0);
    granted.mapped = with.clone().beside(&[(without.own(), vec![slot("other")])].into());
    let withdrawal = offer(30, "w", &[("news", false)]);
    assert_eq!(granted.clone().turn(&withdrawal, Sent::Accepted, 5), sends(&[]), "nothing is granted");
    // A grant that was merged before the newer event came is known.
    let grant = |sent| {
        let mut jane = Person::new();
        jane.turn(&offer(20, "g", &[("news", true)]), sent, 0);
        jane.mapped = without.clone();
        jane.turn(&offer(100, "newer", &[("other", true)]), Sent::Accepted, 1);
        jane.mapped = with.clone().beside(&[(without.own(), vec![slot("other")])].into());
        jane
    };
    for sent in [Sent::Accepted, Sent::Unknown] {
        let mut jane = grant(sent);
        let Turn::Sent(values, _) = jane.turn(&withdrawal, Sent::Failed, 5) else { panic!("sent") };
        assert_eq!(values, [("news".to_owned(), "false".to_owned())], "{sent:?}");
        let Turn::Sent(values, _) = jane.turn(&withdrawal, Sent::Accepted, 15) else { panic!("sent") };
        assert_eq!(values, [("news".to_owned(), "false".to_owned())], "{sent:?}, and again");
        // A grant is not, and the withdrawal is put back where the older grant may be executed late.
        let left_out = if sent == Sent::Unknown { sends_and_repairs(&[]) } else { sends(&[]) };
        assert_eq!(jane.turn(&offer(40, "later", &[("news", true)]), Sent::Accepted, 200), left_out);
    }
    // The same value from another path is no reason against it, another value is.
    let former = Mapped::new([Slot::new("news", "a")]);
    for (on, sent) in [(false, sends(&[("news", "false")])), (true, sends(&[]))] {
        let mut jane = grant(Sent::Accepted);
        let with = jane.mapped.clone();
        jane.mapped = former.clone();
        jane.turn(&of(50, "other path", vec![(Slot::new("news", "a"), Choice::Switch(on))]), Sent::Failed, 3);
        jane.mapped = with.clone();
        jane.mapped.learn(former.own(), [Slot::new("news", "a")]);
        assert_eq!(jane.turn(&withdrawal, Sent::Accepted, 5), sent, "{on}");
    }
    let mut jane = grant(Sent::Accepted);
    jane.erase(Some(25), 1, 3);
    assert_eq!(jane.turn(&withdrawal, Sent::Accepted, 5), sends(&[("news", "false")]), "also of who was erased");
    assert_eq!(grant(Sent::Failed).turn(&withdrawal, Sent::Accepted, 5), sends(&[]), "it was not executed");
}

#[test]
fn a_repair_leaves_alone_what_nothing_may_spoil_and_something_newer_may_have_changed() {
    let (with, without) = (mapped(), Mapped::new([slot("other")]));
    let mut jane = Person::new();
    let both = offer(0, "a", &[("news", false), ("other", true)]);
    jane.turn(&both, Sent::Unknown, 0);
    jane.turn(&both, Sent::Accepted, 1);
    let withdrawal = offer(50, "b", &[("other", false)]);
    assert_eq!(jane.turn(&withdrawal, Sent::Accepted, 50), sends_and_repairs(&[("other", "false")]));
    // A worker that does not map "news" notes nothing of what this event says about it.
    jane.mapped = without.clone();
    jane.turn(&offer(60, "c", &[]), Sent::Accepted, 60);
    jane.mapped = with;
    jane.mapped.learn(without.own(), [slot("other")]);
    assert_eq!(jane.turn_of(&withdrawal, true, Sent::Accepted, 3_000), sends(&[("other", "false")]));
}

#[test]
fn a_withdrawal_that_the_gate_accepted_is_put_back_though_it_refused_what_came_later() {
    let (first, withdrawal) = (offer(0, "a", &[("news", true)]), offer(50, "b", &[("news", false)]));
    let later = offer(60, "c", &[("news", true)]);
    let mut jane = Person::new();
    jane.turn(&first, Sent::Unknown, 0);
    assert_eq!(jane.turn(&withdrawal, Sent::Accepted, 50), sends_and_repairs(&[("news", "false")]));
    jane.turn(&later, Sent::Refused, 60);
    // The first request was executed late, and the later grant never.
    assert_eq!(jane.turn_of(&withdrawal, true, Sent::Accepted, 3_000), sends(&[("news", "false")]));
    assert_eq!(jane.turn(&later, Sent::Accepted, 3_001), sends(&[("news", "true")]), "a replay of it is its own turn");
}

#[test]
fn a_withdrawal_that_the_gate_accepted_is_put_back_though_nobody_can_know_whether_a_later_grant_is_the_newest() {
    let (with, without) = (mapped(), Mapped::new([slot("other")]));
    let withdrawal = offer(50, "b", &[("news", false)]);
    let mut jane = Person::new();
    jane.turn(&offer(0, "a", &[("news", true)]), Sent::Unknown, 0);
    assert_eq!(jane.turn(&withdrawal, Sent::Accepted, 50), sends_and_repairs(&[("news", "false")]));
    // A worker that does not map "news" notes nothing of what this event says about it.
    jane.mapped = without.clone();
    jane.turn(&offer(60, "c", &[]), Sent::Accepted, 60);
    jane.mapped = with;
    jane.mapped.learn(without.own(), [slot("other")]);
    assert_eq!(jane.turn(&offer(60, "d", &[("news", true)]), Sent::Accepted, 61), sends_and_repairs(&[]));
    for erased in [false, true] {
        let mut jane = jane.clone();
        if erased {
            jane.erase(Some(60), 1, 62);
        }
        assert_eq!(jane.turn_of(&withdrawal, true, Sent::Accepted, 3_000), sends(&[("news", "false")]), "{erased}");
    }
}

#[test]
fn what_was_refused_is_sent_again_at_its_own_turn_whatever_is_owed() {
    let (older, newer) = (offer(20, "a", &[("news", false)]), offer(100, "b", &[("news", true)]));
    let mut jane = Person::new();
    let Begun::Send(ToSend { newest: carried, .. }) = jane.begin(1, &older, false, 100) else { panic!("sent") };
    jane.turn(&newer, Sent::Unknown, 100);
    // Accepted after the newer one was merged: nobody can know in which order, so the newest is owed.
    let ended = jane.end(1, &older, (false, &carried), Sent::Accepted, [100, 100]);
    assert!(ended.superseded.is_some());
    for _ in 0..2 {
        assert_eq!(jane.turn(&newer, Sent::Refused, 101), sends(&[("news", "true")]));
    }
}

#[test]
fn what_is_accepted_late_beside_a_value_that_was_refused_before_is_repaired() {
    let (older, newer) = (offer(20, "a", &[("news", false)]), offer(50, "b", &[("news", true)]));
    let mut jane = Person::new();
    let Begun::Send(ToSend { newest: late, .. }) = jane.begin(1, &older, false, 50) else { panic!("sent") };
    jane.turn(&newer, Sent::Refused, 51);
    // Sent again by an operator while the older request is still under way: nobody can know which one came last.
    let Begun::Send(ToSend { newest: again, .. }) = jane.begin(2, &newer, false, 52) else { panic!("sent") };
    assert_eq!(jane.end(1, &older, (false, &late), Sent::Accepted, [50, 60]), Ended::default());
    assert!(jane.end(2, &newer, (false, &again), Sent::Accepted, [52, 61]).is_repair_due);
    assert_eq!(jane.turn_of(&newer, true, Sent::Accepted, 3_000), sends(&[("news", "true")]));
    assert_eq!(jane.turn_of(&newer, true, Sent::Accepted, 3_001), Turn::Needless);
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
    assert_eq!(jane.end(1, &older, (false, &late), Sent::Accepted, [100, 103]), Ended::default());
    jane.mapped = own;
    assert!(jane.end(2, &newer, (false, &newest), Sent::Accepted, [101, 103]).is_repair_due);
    assert_eq!(jane.turn_of(&newer, true, Sent::Accepted, 3_000), sends(&[("news", "false")]));
}

#[test]
fn a_withdrawal_is_made_good_though_its_person_was_erased_before_the_older_grants_answer() {
    let (grant, withdrawal) = (offer(60, "a", &[("news", true)]), offer(100, "b", &[("news", false)]));
    let mut jane = Person::new();
    let Begun::Send(ToSend { newest: late, .. }) = jane.begin(1, &grant, false, 503) else { panic!("sent") };
    assert_eq!(jane.turn(&withdrawal, Sent::Accepted, 503), sends_and_repairs(&[("news", "false")]));
    jane.erase(Some(151), 1, 504);
    let ended = jane.end(1, &grant, (false, &late), Sent::Accepted, [503, 504]);
    assert_eq!(texts(&ended.superseded.expect("sent once more")), [("news".to_owned(), "false".to_owned())]);
}

#[test]
fn a_mapping_that_comes_back_knows_what_it_missed() {
    let (with, without) = (mapped(), Mapped::new([slot("news")]));
    let mut jane = Person::new();
    jane.turn(&offer(0, "a", &[("partners", true)]), Sent::Accepted, 0);
    jane.mapped = without.clone();
    jane.turn(&offer(60, "b", &[("news", true)]), Sent::Accepted, 60);
    jane.mapped = with;
    jane.mapped.learn(without.own(), [slot("news")]);
    let Begun::Send(to_send) = jane.begin(9, &offer(0, "a", &[("partners", true)]), false, 70) else { panic!("sent") };
    assert_eq!(to_send.unknown, [slot("partners")], "the event of 60 may have taken it back");
    assert_eq!(jane.turn(&offer(80, "c", &[("partners", true)]), Sent::Accepted, 80), sends(&[("partners", "true")]));
}

#[test]
fn sets_of_mappings_are_bounded_and_what_was_missed_is_not_forgotten() {
    let mut jane = Person::new();
    for second in 0..100 {
        jane.mapped = Mapped::new([slot(&format!("p{second}"))]);
        jane.turn(&offer(second, "a", &[]), Sent::Accepted, second);
    }
    assert_eq!(jane.record().heard.len(), 16);
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
fn a_record_shows_what_it_knows_and_nothing_that_was_erased() {
    assert!(Record::default().is_empty() && Record::default().is_older_than(YEAR, at(0)));
    let mut jane = Person::new();
    let both = offer(0, "a", &[("news", true), ("other", true)]);
    jane.turn(&both, Sent::Unknown, 10);
    let Begun::Send(ToSend { newest, .. }) = jane.clone().begin(9_000, &both, false, 11) else { panic!("sent") };
    assert!(!jane.record().has_accepted(&newest));
    jane.turn(&offer(0, "a", &[("news", true)]), Sent::Accepted, 12);
    assert!(!jane.record().has_accepted(&newest), "not all of them");
    jane.turn(&both, Sent::Accepted, 13);
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
    jane.turn(&offer(50, "b", &[("news", false)]), Sent::Accepted, 50);
    jane.erase(Some(0), 1, 51);
    assert_eq!(jane.record().erased(), Some(at(0)));
    assert_eq!(shown(&jane), ["news false"]);
    assert!(jane.record().values.len() > 1, "kept");
    jane.erase(Some(50), 2, 52);
    assert_eq!(shown(&jane), [""; 0]);
    assert!(!jane.record().values.is_empty() && !jane.record().is_empty(), "kept, and marked");
}

#[test]
fn nobody_waits_for_an_answers_note_unless_a_crash_must_not_take_it() {
    let (grant, withdrawal) = (offer(0, "a", &[("news", true)]), offer(50, "b", &[("news", false)]));
    let write = |jane: &Person, offer: &Offer, is_repair: bool, sent: Sent, now: i64| {
        let mut jane = jane.clone();
        let Begun::Send(ToSend { newest, .. }) = jane.begin(9_000, offer, is_repair, now) else { panic!("sent") };
        jane.end_and_write(9_000, offer, (is_repair, &newest), sent, [now, now]).1
    };
    let nobody = Person::new();
    let writes =
        [Sent::Accepted, Sent::Refused, Sent::Failed, Sent::Unknown].map(|sent| write(&nobody, &grant, false, sent, 0));
    assert_eq!(writes, [Write::Later, Write::Durable, Write::Later, Write::Nothing]);
    let mut doubtful = Person::new();
    doubtful.turn(&grant, Sent::Unknown, 0);
    assert_eq!(write(&doubtful, &withdrawal, false, Sent::Accepted, 60), Write::Durable, "a repair is due");
    doubtful.turn(&withdrawal, Sent::Accepted, 60);
    assert_eq!(write(&doubtful, &withdrawal, true, Sent::Accepted, 200), Write::Durable, "a repair was made");
    assert_eq!(write(&doubtful, &withdrawal, true, Sent::Failed, 200), Write::Durable);
    let mut erased = Person::new();
    erased.turn(&grant, Sent::Accepted, 0);
    erased.erase(Some(60), 1, 60);
    assert_eq!(write(&erased, &withdrawal, false, Sent::Accepted, 70), Write::Durable, "nothing is granted any more");
    // Something newer came while it was under way.
    let mut moved = Person::new();
    let Begun::Send(ToSend { newest, .. }) = moved.begin(9_000, &grant, false, 0) else { panic!("sent") };
    moved.turn(&withdrawal, Sent::Failed, 1);
    let (ended, write) = moved.end_and_write(9_000, &grant, (false, &newest), Sent::Accepted, [0, 2]);
    assert_eq!((texts(&ended.superseded.unwrap()), write), (vec![("news".into(), "false".into())], Write::Durable));
}

#[test]
fn an_answer_proves_what_it_proves_and_nothing_of_others_values() {
    for outcome in Outcome::ALL.iter().copied() {
        let [alone, with_others] = [false, true].map(|carries_others| Sent::of(outcome, carries_others));
        let expected = match outcome {
            Outcome::Accepted => Sent::Accepted,
            Outcome::Refused => Sent::Refused,
            Outcome::Rejected | Outcome::Throttled | Outcome::Misconfigured => Sent::Failed,
            Outcome::Unavailable | Outcome::UnexpectedStatus | Outcome::NotTheGate => Sent::Unknown,
        };
        assert_eq!(alone, expected, "{outcome:?}");
        assert_eq!(with_others, if expected == Sent::Refused { Sent::Failed } else { expected }, "{outcome:?}");
    }
}

#[test]
fn an_event_is_too_old_beyond_the_retention_or_the_sweep_unless_its_person_is_on_record() {
    let mut jane = Person::new();
    let seconds = YEAR.as_secs();
    let turn =
        |jane: &Person, second| jane.clone().turn(&offer(second, "a", &[("news", true)]), Sent::Accepted, seconds);
    assert_eq!(turn(&jane, 0), sends(&[("news", "true")]), "just as old as the retention");
    assert_eq!(turn(&jane, -1), Turn::TooOld);
    jane.swept = Some(at(100));
    assert_eq!([turn(&jane, 100), turn(&jane, 101)], [Turn::TooOld, sends(&[("news", "true")])]);
    jane.turn(&offer(200, "b", &[("other", true)]), Sent::Accepted, seconds);
    assert_eq!(turn(&jane, -1), sends(&[("news", "true")]), "on record");
    assert_eq!(forgotten_until(YEAR, at(seconds)), at(0) + MAX_AHEAD);
    assert_eq!(forgotten_until(SignedDuration::MAX, at(0)), Timestamp::MIN + MAX_AHEAD);
}

#[test]
fn a_set_of_mappings_that_is_not_known_is_asked_for() {
    let (with, without) = (mapped(), Mapped::new([slot("other")]));
    let mut jane = Person::new();
    jane.mapped = without.clone();
    jane.turn(&offer(100, "a", &[("other", true)]), Sent::Accepted, 0);
    assert_eq!((without.unknown(jane.record()), with.unknown(jane.record())), (None, Some(without.own())));
    assert_eq!(with.beside(&[(without.own(), vec![slot("other")])].into()).unknown(jane.record()), None);
}

#[test]
fn what_was_swept_stays_known_as_a_time() {
    let mut jane = Person { swept: Some(at(100)), ..Person::new() };
    let undated = Offer { at: None, withdrawn_at: None, ..offer(0, "z", &[("news", true)]) };
    for old in [&offer(100, "a", &[("news", true)]), &undated] {
        assert_eq!(jane.turn(old, Sent::Accepted, 200), Turn::TooOld);
    }
    assert_eq!(jane.turn(&offer(101, "b", &[("news", true)]), Sent::Accepted, 200), sends(&[("news", "true")]));
    assert_eq!(jane.turn(&undated, Sent::Accepted, 200), sends(&[("news", "true")]), "on record: it is just older");
    let mut john = Person::new();
    assert_eq!(john.turn(&undated, Sent::Accepted, 200), sends(&[("news", "true")]), "nothing was ever forgotten");
    let old = offer(-400 * 86_400, "c", &[("news", true)]);
    assert_eq!(Person::new().turn(&old, Sent::Accepted, 200), Turn::TooOld);
}

#[test]
fn what_waited_is_looked_at_again_under_the_same_note() {
    let mut jane = Person::new();
    let grant = offer(0, "a", &[("news", true)]);
    jane.begin(1, &grant, false, 0);
    jane.turn(&offer(5, "b", &[("news", false)]), Sent::Failed, 5);
    let Begun::Send(again) = jane.begin(1, &grant, false, 20) else { panic!("sent") };
    assert_eq!(texts(&again.newest), [("news".to_owned(), "false".to_owned())], "nothing outdated");
    assert_eq!(jane.record().doubts.len(), 1);
    jane.erase(Some(10), 1, 25);
    assert_eq!(jane.begin(1, &grant, false, 30), Begun::Erased, "nothing erased");
    assert_eq!(jane.record().doubts.len(), 0);
}

/// Records after anything that can happen to them.
fn records() -> impl Strategy<Value = Record> {
    let turn = (0_usize..12, 0_usize..4, 0_i64..300, 0_u8..3, any::<bool>());
    proptest::collection::vec(turn, 1..12).prop_map(|turns| {
        let mut jane = Person::new();
        for (index, (what, sent, now, property, on)) in turns.into_iter().enumerate() {
            let sent = [Sent::Accepted, Sent::Refused, Sent::Failed, Sent::Unknown][sent];
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
        jane.turn(offer, Sent::Failed, 1_000);
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
