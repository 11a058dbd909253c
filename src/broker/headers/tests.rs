use super::names::{
    ATTEMPTS, DEATH, DELIVERY_COUNT, FIRST_ATTEMPT, HISTORY, LAST_ANSWER, LAST_ERROR, NOT_BEFORE, PREFIX, REASON,
    REPAIR, REPORT_TO, is_count, is_impersonal, is_own,
};
use super::values::ROOM;
use super::*;
use crate::gate::Outcome;
use crate::verdict::history::{Attempt, History, MAX_ENTRIES};

fn attempt(ms: i64) -> Attempt {
    Attempt { at: Timestamp::UNIX_EPOCH, result: Outcome::Unavailable, status: Some(503), ms }
}

fn history() -> History {
    History::default().with(attempt(12), Some("down".to_owned()), Some("try later".to_owned()))
}

fn received(headers: FieldTable) -> BasicProperties {
    BasicProperties::default().with_headers(headers)
}

fn letter(headers: FieldTable) -> BasicProperties {
    for_publish(&received(headers), &history(), Some(("attempts_exhausted", Timestamp::UNIX_EPOCH)))
}

fn keys(properties: &BasicProperties) -> Vec<String> {
    properties.headers().iter().flat_map(FieldTable::inner).map(|(key, _)| key.to_string()).collect()
}

fn table(entries: Vec<(&str, AMQPValue)>) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in entries {
        table.insert(key.into(), value);
    }
    table
}

#[test]
fn what_the_broker_would_obey_again_does_not_travel_on() {
    let mut headers = FieldTable::default();
    for key in ["x-death", "x-first-death-queue", "x-last-death-reason", "x-delivery-count", "CC", "BCC"] {
        headers.insert(key.into(), AMQPValue::Boolean(true));
    }
    headers.insert("tenant".into(), AMQPValue::Boolean(true));
    let received = received(headers)
        .with_expiration("1000".into())
        .with_user_id("bus".into())
        .with_message_id("m-1".into())
        .with_delivery_mode(1);
    let properties = for_publish(&received, &history(), None);
    let foreign: Vec<String> = keys(&properties).into_iter().filter(|key| !key.starts_with(PREFIX)).collect();
    assert_eq!(foreign, ["tenant"]);
    assert_eq!(properties.expiration(), &None);
    assert_eq!(properties.user_id(), &None);
    assert_eq!(properties.message_id(), &Some("m-1".into()));
    assert_eq!(properties.delivery_mode(), &Some(2));
}

#[test]
fn our_own_headers_are_written_anew() {
    let properties = letter(table(vec![
        (ATTEMPTS, AMQPValue::LongString("many".into())),
        (NOT_BEFORE, AMQPValue::LongLongInt(1)),
        (REPORT_TO, AMQPValue::LongString("consent-gate.report.x".into())),
    ]));
    let table = properties.headers().clone().unwrap_or_default();
    assert_eq!(table.inner().get(ATTEMPTS), Some(&AMQPValue::LongLongInt(1)));
    assert!(!table.inner().contains_key(NOT_BEFORE));
    assert!(table.inner().contains_key(REPORT_TO));
}

#[test]
fn a_trace_is_passed_on_only_if_it_is_one() {
    let read = |text: &str| traceparent(&received(table(vec![(TRACEPARENT, AMQPValue::LongString(text.into()))])));
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    assert_eq!(read(trace).as_deref(), Some(trace));
    for wrong in ["", "jane@example.com", &trace.to_uppercase(), &trace[1..], &format!("{trace}-x")] {
        assert_eq!(read(wrong), None, "{wrong}");
    }
}

#[test]
fn a_history_is_read_as_it_was_written() {
    let mut history = history();
    for ms in 0..20 {
        history = history.with(attempt(ms), None, None);
    }
    assert_eq!((history.attempts, history.entries.len()), (21, MAX_ENTRIES));
    assert_eq!(history.entries.last(), Some(&attempt(19)));
    history.not_before = Some(Timestamp::UNIX_EPOCH);
    history.is_repair = true;
    assert_eq!(History::read(&for_publish(&BasicProperties::default(), &history, None)), history);
}

#[test]
fn a_history_that_cannot_be_meant_counts_as_never_written() {
    let read = |value| History::read(&received(table(vec![(ATTEMPTS, value)]))).attempts;
    assert_eq!(read(AMQPValue::ShortShortUInt(3)), 3);
    assert_eq!(read(AMQPValue::LongInt(3)), 3);
    assert_eq!(read(AMQPValue::LongInt(-3)), 0);
    assert_eq!(read(AMQPValue::LongLongInt(i64::MAX)), u32::MAX);
    for value in [AMQPValue::LongString("3".into()), AMQPValue::Void, AMQPValue::Double(3.0)] {
        assert_eq!(read(value), 0);
    }
    let entries = vec![
        AMQPValue::LongString("503".into()),
        AMQPValue::FieldTable(table(vec![("result", AMQPValue::LongString("jane@example.com".into()))])),
    ];
    let forged = History::read(&received(table(vec![
        (NOT_BEFORE, AMQPValue::LongLongInt(i64::MAX)),
        (FIRST_ATTEMPT, AMQPValue::Boolean(true)),
        (LAST_ERROR, AMQPValue::LongString("x".repeat(10_000).into())),
        (HISTORY, AMQPValue::FieldArray(entries.into())),
    ])));
    let last_error = Some("x".repeat(MAX_CHARS));
    assert_eq!(forged, History { last_error, ..History::default() });
}

#[test]
fn the_history_gives_way_before_the_frame_grows_too_large() {
    let keys = keys(&letter(table(vec![("big", AMQPValue::LongString("x".repeat(MAX_HEADERS - 210).into()))])));
    assert!(keys.contains(&REASON.to_owned()) && keys.contains(&ATTEMPTS.to_owned()), "{keys:?}");
    assert!(!keys.contains(&HISTORY.to_owned()), "{keys:?}");
}

#[test]
fn a_replayed_letter_begins_anew_and_is_watched() {
    let letter = letter(table(vec![("tenant", AMQPValue::Boolean(true))]));
    assert_eq!((reason(&letter), report_to(&letter)), (Some("attempts_exhausted"), None));
    assert_eq!(died(&letter, &History::default()), Some(Timestamp::UNIX_EPOCH));
    let replayed = for_replay(&letter, "consent-gate.report.1");
    assert_eq!(keys(&replayed), [ATTEMPTS, FIRST_DIED, REPORT_TO, "tenant"]);
    let again = for_publish(&replayed, &history(), Some(("crashed", Timestamp::MAX)));
    assert_eq!(died(&again, &History::default()), Timestamp::from_millisecond(Timestamp::MAX.as_millisecond()).ok());
    assert_eq!(first_died(&again), Some(Timestamp::UNIX_EPOCH));
    assert_eq!(report_to(&replayed), Some("consent-gate.report.1"));
    assert_eq!(report_to(&for_replay(&letter, "consent-gate.acme.dead")), None);
    assert_eq!(keys(&for_return(&letter)), keys(&letter));
}

#[test]
fn huge_headers_of_a_publisher_are_kept_and_ours_left_out() {
    let headers = |size: usize| table(vec![("big", AMQPValue::LongString("x".repeat(size).into()))]);
    assert_eq!(keys(&letter(headers(2 * MAX_HEADERS))), ["big"]);
    assert!(History::none(&received(headers(MAX_HEADERS - ROOM))).is_uncountable);
    assert!(!History::none(&received(headers(MAX_HEADERS - 2 * ROOM))).is_uncountable);
}

#[test]
fn what_the_broker_says_about_a_message_is_read() {
    let death = |reason: &str, queue: &str| {
        let told = |text: &str| AMQPValue::LongString(text.into());
        AMQPValue::FieldTable(table(vec![("reason", told(reason)), ("queue", told(queue))]))
    };
    let deaths = AMQPValue::FieldArray(vec![death("expired", "first"), death("rejected", "second")].into());
    let headers = table(vec![(DEATH, deaths), (DELIVERY_COUNT, AMQPValue::LongLongInt(3))]);
    let properties = received(headers).with_content_encoding("gzip".into());
    assert_eq!(moved(&properties).unwrap().to_string(), "expired, from first");
    assert_eq!(returns(&properties), 3);
    assert_eq!(encoding(&properties), Some("gzip"));
    let silent = BasicProperties::default();
    assert_eq!((moved(&silent), returns(&silent), encoding(&silent)), (None, 0, None));
}

#[test]
fn only_what_is_the_workers_own_and_about_nobody_is_shown() {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let queue = format!("{}x", crate::broker::report::PREFIX);
    for (name, value, is_impersonal_too) in [
        (ATTEMPTS, AMQPValue::LongLongInt(1), true),
        (ATTEMPTS, text("jane@example.com"), false),
        (REPAIR, AMQPValue::Boolean(true), true),
        (REPAIR, text("jane@example.com"), false),
        (LAST_ERROR, text("status 503"), true),
        (LAST_ERROR, AMQPValue::LongLongInt(4_915_112_345_678), false),
        (REPORT_TO, text(&queue), true),
        (REPORT_TO, text("jane@example.com"), false),
        (LAST_ANSWER, text("no such contact: jane@example.com"), false),
        (REASON, text("jane@example.com"), false),
    ] {
        assert!(is_own(name), "{name}");
        assert_eq!(is_impersonal(name, &value), is_impersonal_too, "{name} {value:?}");
    }
    for name in ["consent-gate-other", "tenant", DELIVERY_COUNT] {
        assert!(!is_own(name) && !is_impersonal(name, &AMQPValue::LongLongInt(1)), "{name}");
    }
}

#[test]
fn what_was_answered_travels_with_a_retry() {
    let read = History::read(&for_publish(&received(FieldTable::default()), &history(), None));
    assert_eq!(read.last_answer.as_deref(), Some("try later"));
    assert_eq!(read, history());
}

#[test]
fn what_changes_with_each_look_is_a_count() {
    let counts = [DELIVERY_COUNT, "x-acquired-count", DEATH, "x-delivery", ATTEMPTS, "tenant"].map(is_count);
    assert_eq!(counts, [true, true, false, false, false, false]);
}

#[test]
fn room_is_counted_to_the_byte() {
    let filled = |bytes: usize| table(vec![("tenant", AMQPValue::LongString("x".repeat(bytes).into()))]);
    let own = History { attempts: 1, ..History::default() };
    let first = for_publish(&BasicProperties::default(), &own, None).headers().as_ref().map_or(0, table_size);
    // What a table of one header takes without its value; the 4 bytes of a table's length are counted in both.
    let exact = MAX_HEADERS - (first - 4) - table_size(&filled(0));
    for (bytes, is_counted) in [(exact - 1, true), (exact, true), (exact + 1, false)] {
        let published = for_publish(&received(filled(bytes)), &own, None);
        assert_eq!(keys(&published).contains(&ATTEMPTS.to_owned()), is_counted, "{bytes}");
    }
    let room = MAX_HEADERS - ROOM - table_size(&filled(0));
    for (bytes, is_uncountable) in [(room, false), (room + 1, true)] {
        assert_eq!(History::none(&received(filled(bytes))).is_uncountable, is_uncountable, "{bytes}");
    }
    // What is not passed on takes no room.
    let told = AMQPValue::LongString("x".repeat(MAX_HEADERS).into());
    assert!(!History::none(&received(table(vec![(DEATH, told)]))).is_uncountable);
}
