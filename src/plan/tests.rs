use super::*;
use crate::gate::{Endpoint, Limits, Mode};
use crate::integration::Name;
use crate::integration::filter::Filter;
use crate::mapping::{Choice, Mapping, Mappings, Names, Path, SelectedIds, Slot, ValueSource};
use crate::schedule::{OnOutage, Schedule};
use serde_json::{Value, json};

const PATHS: [(&str, &str); 4] = [
    ("MAIL", "organization_user_id"),
    ("NEWS", "consents_purposes_newsletter_enabled"),
    ("TOPICS", "consents_purposes_newsletter_values_topics_value"),
    ("COUNTRY", "user_country"),
];

fn integration() -> Integration {
    let path = |(id, path): (&str, &str)| Mapping::new(id, ValueSource::Path(Path::compile(path).unwrap()));
    let constant = Mapping::new("FROM", ValueSource::Constant("didomi".into()));
    let list = PATHS.into_iter().map(path).chain([constant]).collect();
    Integration {
        name: Name::new("acme").unwrap(),
        records: Name::new("acme").unwrap(),
        endpoint: Endpoint::new("http://gate".to_owned(), Mode::Sync, "u".to_owned(), "k".into(), "g".to_owned()),
        mappings: Mappings::new(list, 0),
        filter: Filter { organization_id: Some("acme".to_owned()), ..Filter::default() },
        binding_keys: None,
        limits: Limits::default(),
        schedule: Schedule::default(),
        on_outage: OnOutage::default(),
    }
}

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

const ID: &str = "0A1b2c3d-0000-4000-8000-00000000000f";

fn event(purpose: Value) -> Value {
    json!({ "type": "event.created", "parameters": { "entity": {
        "id": ID, "organization_id": "acme", "created_at": "2026-03-01T10:00:00Z", "status": "confirmed",
        "regulation": "gdpr", "user": { "organization_user_id": "jane@example.com", "country": "FR" },
        "consents": { "purposes": [purpose] },
    } } })
}

fn erasure(user: Value) -> Value {
    json!({ "type": "user.deleted", "parameters": { "entity": user } })
}

fn planned(event: &Value) -> (EventSummary, Result<Plan, Processed>) {
    plan(event.to_string().as_bytes(), &integration(), now())
}

fn sent(event: &Value) -> PlannedRequest {
    match planned(event).1 {
        Ok(Plan::Trigger(send)) => send,
        other => panic!("{other:?}"),
    }
}

fn names(request: &GateRequest) -> Vec<&str> {
    request.names().collect()
}

#[test]
fn an_event_is_a_request_with_what_it_says_and_what_it_offers() {
    let event = event(json!({ "id": "newsletter", "enabled": true, "values": { "topics": { "value": "sport,art" } } }));
    let send = sent(&event);
    assert_eq!(&*send.identifier, "jane@example.com");
    let own: Vec<(&str, &str)> = send.own.iter().map(|(id, text)| (&**id, &**text)).collect();
    let expected =
        [("MAIL", "jane@example.com"), ("NEWS", "1"), ("TOPICS", "sport,art"), ("COUNTRY", "FR"), ("FROM", "didomi")];
    assert_eq!(own, expected);
    assert!(send.has_value("TOPICS") && !send.has_value("SMS"));
    assert!(!sent(&self::event(json!({ "id": "other", "enabled": true }))).has_value("NEWS"));
    let offered: Vec<String> = send.offer.choices.iter().map(|(slot, choice)| format!("{slot}: {choice}")).collect();
    assert_eq!(
        offered,
        [
            "NEWS from consents_purposes_newsletter_enabled: true",
            "TOPICS from consents_purposes_newsletter_values_topics_value: sport,art",
            "COUNTRY from user_country: FR"
        ]
    );
    assert_eq!((send.offer.at, send.offer.event.as_deref()), (Some("2026-03-01T10:00:00Z".parse().unwrap()), Some(ID)));
    assert_eq!(names(&send.own_request(&integration())), expected.map(|(id, _)| id));
}

#[test]
fn the_records_newest_values_are_sent_and_what_they_do_not_name_of_its_choices_is_left_out() {
    let integration = integration();
    let event = event(json!({ "id": "newsletter", "enabled": true, "values": { "topics": { "value": "sport,art" } } }));
    let send = sent(&event);
    let slot = |index: usize| Slot::new(PATHS[index].0, PATHS[index].1);
    let texts = |newest: Vec<(Slot, Said)>| {
        let newest: Values = newest.into_iter().map(|(slot, said)| (slot, Arc::new(said))).collect();
        let request = send.request(&integration, &newest);
        let body: Value = serde_json::from_slice(request.body()).unwrap();
        body.to_string()
    };
    let own = |index: usize| Said::offered(&send.offer.choices[index].1, &send.offer);
    let later = Offer { at: Some(now()), withdrawn_at: Some(now()), event: None, choices: Vec::new() };
    let withdrawn = Said::offered(&Choice::Switch(false), &later);
    let turned = SelectedIds { ids: vec!["art".into(), "sport".into()], names: Names::Grants };
    let turned = Said::offered(&Choice::Selection(turned), &later);
    let all = texts(vec![(slot(1), withdrawn), (slot(2), own(1)), (slot(3), own(2))]);
    for part in ["\"NEWS\":\"0\"", "\"TOPICS\":\"sport,art\"", "\"MAIL\":\"jane@example.com\"", "\"FROM\":\"didomi\""] {
        assert!(all.contains(part), "{part} in {all}");
    }
    let other = texts(vec![(slot(2), turned)]);
    assert!(other.contains("\"TOPICS\":\"art,sport\""), "as the record has it: {other}");
    assert!(!other.contains("NEWS") && !other.contains("COUNTRY") && other.contains("MAIL"), "{other}");
}

#[test]
fn what_is_not_for_the_gate_says_why() {
    let newsletter = || event(json!({ "id": "newsletter", "enabled": true }));
    let with = |pointer: &str, value: Value| {
        let mut event = newsletter();
        *event.pointer_mut(pointer).unwrap() = value;
        planned(&event).1.unwrap_err()
    };
    let skipped = [
        ("/parameters/entity/organization_id", json!("other"), Skip::OtherOrganization),
        ("/parameters/entity/regulation", json!("cpra"), Skip::OtherRegulation),
        ("/parameters/entity/user/organization_user_id", json!(null), Skip::NoIdentifier),
        ("/parameters/entity/user/organization_user_id", json!("  "), Skip::NoIdentifier),
        ("/type", json!("event.deleted"), Skip::EventDeleted),
    ];
    for (pointer, value, skip) in skipped {
        assert!(matches!(with(pointer, value), Processed::NotWanted(found) if found == skip), "{pointer}");
    }
    assert!(matches!(with("/parameters/entity/created_at", json!("2026-03-01T12:11:00Z")), Processed::FutureDated));
    assert!(matches!(with("/parameters/entity/created_at", json!("soon")), Processed::Defective(_)));
    assert!(matches!(with("/parameters/entity/consents/purposes", json!("none")), Processed::Defective(_)));
}

#[test]
fn a_body_of_up_to_one_mebibyte_is_read() {
    let event = event(json!({ "id": "newsletter", "enabled": true })).to_string();
    let padded = |size: usize| format!("{event}{}", " ".repeat(size - event.len())).into_bytes();
    assert!(plan(padded(MAX_BODY).as_slice(), &integration(), now()).1.is_ok());
    let larger = padded(MAX_BODY + 1);
    assert!(matches!(plan(larger.as_slice(), &integration(), now()).1, Err(Processed::TooLarge(_))));
}

#[test]
fn an_erasure_is_carried_out_or_a_defect_and_only_of_the_own_organization() {
    let user = json!({ "id": ID, "organization_id": "acme", "organization_user_id": "jane@example.com", "updated_at": "2026-03-01T11:00:00Z" });
    let with = |key: &str, value: Value| {
        let mut user = user.clone();
        user[key] = value;
        planned(&erasure(user)).1
    };
    let Ok(Plan::Erase { identifier, at }) = planned(&erasure(user.clone())).1 else { panic!("an erasure") };
    assert_eq!((&*identifier, at), ("jane@example.com", Some("2026-03-01T11:00:00Z".parse().unwrap())));
    let own = planned(&erasure(user.clone())).1.unwrap().own_request(&integration());
    assert!(matches!(own, Err(Processed::NotWanted(Skip::UserDeleted))));
    assert!(matches!(with("organization_id", json!("other")), Err(Processed::NotWanted(Skip::OtherOrganization))));
    assert!(matches!(with("updated_at", json!("2026-03-01T12:11:00Z")), Err(Processed::FutureDated)));
    assert!(matches!(with("updated_at", json!("yesterday")), Err(Processed::Defective(_))));
    for identifier in [json!(null), json!(["a"]), json!(1.5)] {
        assert!(matches!(with("organization_user_id", identifier), Err(Processed::Defective(_))));
    }
    let mut anybodys = integration();
    anybodys.filter.organization_id = None;
    let mut user = user.clone();
    user["organization_id"] = json!("other");
    assert!(matches!(plan(erasure(user).to_string().as_bytes(), &anybodys, now()).1, Ok(Plan::Erase { .. })));
}

#[test]
fn a_summary_names_an_event_by_its_uuid_and_nobody() {
    let of = |event: &Value| planned(event).0;
    let mut consent = event(json!({ "id": "newsletter", "enabled": true }));
    let changed_at = Some("2026-03-01T10:00:00Z".parse().unwrap());
    let expected = EventSummary { kind: Some("event.created"), id: Some(ID.to_owned()), changed_at };
    assert_eq!(of(&consent), expected);
    let user = json!({ "id": ID, "organization_user_id": "jane@example.com", "updated_at": "2026-03-01T10:00:00Z" });
    assert_eq!(of(&erasure(user)).id, None, "of a user's message it is the person's");
    for id in [&ID[1..], "0A1b2c3d_0000-4000-8000-00000000000f", "0A1b2c3d-0000-4000-8000-00000000000g", "jane"] {
        consent["parameters"]["entity"]["id"] = json!(id);
        assert_eq!(of(&consent).id, None, "{id}");
    }
    let dashes = "-".repeat(36);
    consent["parameters"]["entity"]["id"] = json!(dashes);
    assert_eq!(of(&consent).id, None);
}

#[test]
fn a_time_of_publication_is_one_since_2019_and_not_ahead() {
    let seconds = |text: &str| text.parse::<Timestamp>().unwrap().as_second().cast_unsigned();
    assert_eq!(published(seconds("2026-03-01T11:00:00Z"), now()), Some("2026-03-01T11:00:00Z".parse().unwrap()));
    assert_eq!(published(seconds("2026-03-01T12:00:00Z"), now()), Some(now()));
    assert_eq!(published(seconds("2019-01-01T00:00:00Z"), now()), Some(EARLIEST_PUBLISHED));
    for seconds in [0, seconds("2018-12-31T23:59:59Z"), seconds("2026-03-01T12:00:01Z"), u64::MAX] {
        assert_eq!(published(seconds, now()), None, "{seconds}");
    }
}

#[test]
fn a_request_may_be_executed_until_the_longest_delay_after_its_timeout() {
    let integration = integration();
    let latest = integration.schedule.longest() + integration.limits.timeout + std::time::Duration::from_secs(5);
    assert_eq!(crate::record::execution_horizon(&integration), latest.try_into().unwrap());
}
