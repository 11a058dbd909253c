//! How a turn begins and ends: what is too old, what an answer proves, and what must be durable.

use super::*;
use crate::gate::Outcome;
use crate::integration::filter::MAX_AHEAD;

#[test]
fn nobody_waits_for_an_answers_note_unless_a_crash_must_not_take_it() {
    let (grant, withdrawal) = (offer(0, "a", &[("news", true)]), offer(50, "b", &[("news", false)]));
    let write = |jane: &Person, offer: &Offer, is_repair: bool, effect: Effect, now: i64| {
        let mut jane = jane.clone();
        let Begun::Send(ToSend { newest, .. }) = jane.begin(9_000, offer, is_repair, now) else { panic!("sent") };
        jane.end_and_write(9_000, offer, (is_repair, &newest), effect, [now, now]).1
    };
    let nobody = Person::new();
    let writes = [Effect::Accepted, Effect::Refused, Effect::Failed, Effect::Unknown]
        .map(|sent| write(&nobody, &grant, false, sent, 0));
    assert_eq!(writes, [Write::Later, Write::Durable, Write::Later, Write::Nothing]);
    let mut doubtful = Person::new();
    doubtful.turn(&grant, Effect::Unknown, 0);
    assert_eq!(write(&doubtful, &withdrawal, false, Effect::Accepted, 60), Write::Durable, "a repair is due");
    doubtful.turn(&withdrawal, Effect::Accepted, 60);
    assert_eq!(write(&doubtful, &withdrawal, true, Effect::Accepted, 200), Write::Durable, "a repair was made");
    assert_eq!(write(&doubtful, &withdrawal, true, Effect::Failed, 200), Write::Durable);
    let mut erased = Person::new();
    erased.turn(&grant, Effect::Accepted, 0);
    erased.erase(Some(60), 1, 60);
    assert_eq!(write(&erased, &withdrawal, false, Effect::Accepted, 70), Write::Durable, "nothing is granted any more");
    // Something newer came while it was under way.
    let mut moved = Person::new();
    let Begun::Send(ToSend { newest, .. }) = moved.begin(9_000, &grant, false, 0) else { panic!("sent") };
    moved.turn(&withdrawal, Effect::Failed, 1);
    let (ended, write) = moved.end_and_write(9_000, &grant, (false, &newest), Effect::Accepted, [0, 2]);
    assert_eq!((texts(&ended.superseded.unwrap()), write), (vec![("news".into(), "false".into())], Write::Durable));
}

#[test]
fn an_answer_proves_what_it_proves_and_nothing_of_others_values() {
    for outcome in Outcome::ALL.iter().copied() {
        let [alone, with_others] = [false, true].map(|carries_others| Effect::of(outcome, carries_others));
        let expected = match outcome {
            Outcome::Accepted => Effect::Accepted,
            Outcome::Refused => Effect::Refused,
            Outcome::Rejected | Outcome::Throttled | Outcome::Misconfigured => Effect::Failed,
            Outcome::Unavailable | Outcome::UnexpectedStatus | Outcome::NotTheGate => Effect::Unknown,
        };
        assert_eq!(alone, expected, "{outcome:?}");
        assert_eq!(with_others, if expected == Effect::Refused { Effect::Failed } else { expected }, "{outcome:?}");
    }
}

#[test]
fn an_event_is_too_old_beyond_the_retention_or_the_sweep_unless_its_person_is_on_record() {
    let mut jane = Person::new();
    let seconds = YEAR.as_secs();
    let turn =
        |jane: &Person, second| jane.clone().turn(&offer(second, "a", &[("news", true)]), Effect::Accepted, seconds);
    assert_eq!(turn(&jane, 0), sends(&[("news", "true")]), "just as old as the retention");
    assert_eq!(turn(&jane, -1), Turn::TooOld);
    jane.swept = Some(at(100));
    assert_eq!([turn(&jane, 100), turn(&jane, 101)], [Turn::TooOld, sends(&[("news", "true")])]);
    jane.turn(&offer(200, "b", &[("other", true)]), Effect::Accepted, seconds);
    assert_eq!(turn(&jane, -1), sends(&[("news", "true")]), "on record");
    assert_eq!(forgotten_until(YEAR, at(seconds)), at(0) + MAX_AHEAD);
    assert_eq!(forgotten_until(SignedDuration::MAX, at(0)), Timestamp::MIN + MAX_AHEAD);
}

#[test]
fn what_was_swept_stays_known_as_a_time() {
    let mut jane = Person { swept: Some(at(100)), ..Person::new() };
    let undated = Offer { at: None, withdrawn_at: None, ..offer(0, "z", &[("news", true)]) };
    for old in [&offer(100, "a", &[("news", true)]), &undated] {
        assert_eq!(jane.turn(old, Effect::Accepted, 200), Turn::TooOld);
    }
    assert_eq!(jane.turn(&offer(101, "b", &[("news", true)]), Effect::Accepted, 200), sends(&[("news", "true")]));
    assert_eq!(jane.turn(&undated, Effect::Accepted, 200), sends(&[("news", "true")]), "on record: it is just older");
    let mut john = Person::new();
    assert_eq!(john.turn(&undated, Effect::Accepted, 200), sends(&[("news", "true")]), "nothing was ever forgotten");
    let old = offer(-400 * 86_400, "c", &[("news", true)]);
    assert_eq!(Person::new().turn(&old, Effect::Accepted, 200), Turn::TooOld);
}

#[test]
fn what_waited_is_looked_at_again_under_the_same_note() {
    let mut jane = Person::new();
    let grant = offer(0, "a", &[("news", true)]);
    jane.begin(1, &grant, false, 0);
    jane.turn(&offer(5, "b", &[("news", false)]), Effect::Failed, 5);
    let Begun::Send(again) = jane.begin(1, &grant, false, 20) else { panic!("sent") };
    assert_eq!(texts(&again.newest), [("news".to_owned(), "false".to_owned())], "nothing outdated");
    assert_eq!(jane.record().doubts.len(), 1);
    jane.erase(Some(10), 1, 25);
    assert_eq!(jane.begin(1, &grant, false, 30), Begun::Erased, "nothing erased");
    assert_eq!(jane.record().doubts.len(), 0);
}
