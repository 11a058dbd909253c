use super::*;
use serde_json::{Value, json};

fn mapping(id: &str, path: &str) -> Mapping {
    Mapping::new(id, ValueSource::Path(Path::compile(path).unwrap()))
}

fn mappings() -> Mappings {
    let dated = Mapping { date_format: Some("%d.%m.%Y".to_owned()), ..mapping("SINCE", "created_at") };
    let none = Mapping { none: "-".into(), ..mapping("VENDORS", "consents_vendors_enabled") };
    let list = vec![
        mapping("NEWS", "consents_purposes_newsletter_enabled"),
        mapping("MAIL", "organization_user_id"),
        Mapping::new("FROM", ValueSource::Constant("didomi".into())),
        dated,
        none,
        mapping("NOTE", "user_metadata_note"),
    ];
    Mappings::new(list, 1)
}

/// The message of a consent event.
fn message(entity: Value) -> Vec<u8> {
    json!({ "type": "event.created", "parameters": { "entity": entity } }).to_string().into_bytes()
}

/// What is wrong on a path into these consents.
fn defect(path: &str, consents: Value) -> String {
    let body = message(json!({ "user": {}, "consents": consents }));
    let event = event::decode(&body[..], &[]).unwrap();
    Path::compile(path).unwrap().find(&event).unwrap_err().to_string()
}

fn event(user: Value, enabled: Value, vendors: Value) -> Vec<u8> {
    let entity = json!({
        "id": "e", "created_at": "2026-03-01T23:30:00-02:00", "user": user,
        "consents": { "purposes": [{ "id": "newsletter", "enabled": enabled }], "vendors": { "enabled": vendors } },
    });
    message(entity)
}

fn jane() -> Value {
    json!({ "organization_user_id": " jane@example.com", "metadata": { "note": "" } })
}

#[test]
fn each_property_has_its_text_its_choice_and_its_place_or_a_reason() {
    let body = event(jane(), json!(false), json!([]));
    let (event, mappings) = (event::decode(&body, &[]).unwrap(), mappings());
    let properties = mappings.properties(&event, true).unwrap();
    let told: Vec<(&str, Result<&str, LeftOut>, Option<String>)> = properties
        .iter()
        .map(|property| {
            let choice = property.choice.as_ref().map(ToString::to_string);
            (&**property.id, property.text.as_deref().map_err(|why| *why), choice)
        })
        .collect();
    let choice = |text: &str| Some(text.to_owned());
    assert_eq!(
        told,
        [
            ("NEWS", Ok("0"), choice("false")),
            ("MAIL", Ok(" jane@example.com"), None),
            ("FROM", Ok("didomi"), None),
            ("SINCE", Ok("02.03.2026"), choice("2026-03-01T23:30:00-02:00")),
            ("VENDORS", Ok("-"), choice("")),
            ("NOTE", Err(LeftOut::Empty), None),
        ]
    );
    let slots = properties.iter().map(|property| property.slot.map(Slot::path));
    assert_eq!(slots.flatten().count(), 5, "all but the constant");
    assert!(properties[0].place.as_deref().is_some_and(|place| place.contains("newsletter")));
    assert!(properties[2].place.is_none());
    let unexplained = mappings.properties(&event, false).unwrap();
    assert!(unexplained.iter().all(|property| property.place.is_none()));
}

#[test]
fn what_an_event_does_not_say_is_left_out_with_the_reason() {
    let left_out = |body: &[u8], index: usize| {
        let event = event::decode(body, &[]).unwrap();
        mappings().properties(&event, false).unwrap()[index].text.clone().unwrap_err()
    };
    let body = event(json!({ "organization_user_id": "j" }), json!(null), json!(null));
    assert_eq!((left_out(&body, 0), left_out(&body, 5)), (LeftOut::NoChoice, LeftOut::Absent));
    let told = [LeftOut::Absent, LeftOut::NoChoice, LeftOut::Empty].map(LeftOut::explain);
    for (told, part) in told.iter().zip(["does not name", "null", "empty"]) {
        assert!(told.contains(part), "{told}");
    }
}

#[test]
fn a_person_is_identified_by_one_mapping_whose_value_is_no_choice() {
    let mappings = mappings();
    assert_eq!((mappings.identifier_id(), mappings.identifier_path()), ("MAIL", "organization_user_id"));
    assert_eq!(mappings.identifier_slot().map(Slot::property), Some("MAIL"));
    let properties: Vec<&str> = mappings.slots().map(Slot::property).collect();
    assert_eq!(properties, ["NEWS", "SINCE", "VENDORS", "NOTE"]);
    assert_eq!(mappings.iter().count(), 6);
    let identifier = |user: Value| {
        let body = event(user, json!(true), json!([]));
        mappings.identifier(&event::decode(&body, &[]).unwrap())
    };
    assert_eq!(identifier(jane()).unwrap().as_deref(), Some(" jane@example.com"));
    for nobody in [json!({}), json!({ "organization_user_id": "  " }), json!({ "organization_user_id": null })] {
        assert_eq!(identifier(nobody), Ok(None));
    }
    assert!(identifier(json!({ "organization_user_id": 1.5 })).is_err());
    assert_eq!(identifier(json!({ "organization_user_id": 17 })).unwrap().as_deref(), Some("17"));
    let nobody = Mappings::new(Vec::new(), 0);
    assert_eq!((nobody.identifier_id(), nobody.identifier_path(), nobody.identifier_slot()), ("", "", None));
}

#[test]
fn every_defect_is_told_at_once() {
    let body = event(json!({ "organization_user_id": ["j"], "metadata": 7 }), json!("yes"), json!([]));
    let text = String::from_utf8(body).unwrap().replace("2026-03-01T23:30:00-02:00", "2026-03-01 or so");
    let event = event::decode(text.as_bytes(), &[]).unwrap();
    let defect = mappings().properties(&event, false).unwrap_err().to_string();
    for part in ["created_at", "a time with an offset"] {
        assert!(defect.contains(part), "{part} in {defect}");
    }
    assert!(defect.contains(';'), "more than one: {defect}");
}

#[test]
fn texts_are_the_mappings_own_and_never_empty_but_for_selections() {
    let text = |mapping: &Mapping, choice: Choice| mapping.text(&choice).map(|text| text.as_deref().map(str::to_owned));
    let yes_or_no = Mapping { texts: ("yes".into(), "".into()), ..mapping("A", "consents_purposes_a_enabled") };
    assert_eq!(text(&yes_or_no, Choice::Switch(true)), Ok(Some("yes".to_owned())));
    assert_eq!(text(&yes_or_no, Choice::Switch(false)), Ok(None), "an empty text could blank the field");
    let selected =
        |ids: &[&str]| Choice::Selection(SelectedIds::new(ids.iter().map(|id| Cow::Borrowed(*id)), Names::Grants));
    assert_eq!(text(&yes_or_no, selected(&["x", " y ", "", "x"])), Ok(Some("x,y".to_owned())));
    assert_eq!(text(&yes_or_no, selected(&[])), Ok(Some(String::new())));
    let dated = Mapping { date_format: Some("%Y%m%d".to_owned()), ..mapping("B", "created_at") };
    assert_eq!(text(&dated, Choice::Text("2026-03-01T00:30:00+02:00".into())), Ok(Some("20260228".to_owned())));
    assert_eq!(text(&dated, Choice::Text("".into())), Ok(None));
    assert!(text(&dated, Choice::Text("yesterday".into())).is_err());
    assert_eq!(format_time(Timestamp::UNIX_EPOCH, "%H:%M"), Some("00:00".to_owned()));
    assert_eq!(format_time(Timestamp::UNIX_EPOCH, "%!"), None);
}

#[test]
fn large_fields_that_no_mapping_names_are_not_read() {
    let unread = |path: &str| Mappings::new(vec![mapping("A", path)], 0).unread().to_vec();
    assert_eq!(unread("organization_user_id"), SELDOM_MAPPED);
    assert!(!unread("consents_vendors_enabled").contains(&"vendors"));
    assert!(unread("consents_vendors_enabled").contains(&"preferences"));
}

#[test]
fn only_a_switch_that_is_off_is_a_withdrawal_and_kinds_are_those_of_the_sources() {
    assert!(Choice::Switch(false).is_withdrawal());
    assert!(!Choice::Switch(true).is_withdrawal() && !Choice::Text("false".into()).is_withdrawal());
    assert_eq!(ValueSource::Constant("x".into()).kind(), PathKind::Constant);
    assert_eq!(mapping("A", "created_at").source.kind(), Path::compile("created_at").unwrap().kind());
    assert_ne!(mapping("A", "created_at").source.kind(), PathKind::Constant);
}

#[test]
fn a_path_shows_what_kind_of_value_it_leads_to() {
    let kind = |path: &str| Path::compile(path).unwrap().kind();
    for (path, expected) in [
        ("organization_user_id", PathKind::Text),
        ("created_at", PathKind::Time),
        ("regulation", PathKind::Text),
        ("user_metadata_note", PathKind::Any),
        ("metadata_source", PathKind::Any),
        ("consents_vendors_enabled", PathKind::Selection),
        ("consents_vendors_disabled_li", PathKind::Selection),
        ("consents_vendors_google_enabled", PathKind::Switch),
        ("consents_purposes_news_enabled", PathKind::Switch),
        ("consents_purposes_news_metadata_value", PathKind::Any),
        ("consents_purposes_news_preferences_topics_value", PathKind::Selection),
        ("consents_purposes_news_preferences_topics_value_sport", PathKind::Switch),
        ("consents_purposes_news_value_topics_value", PathKind::Any),
    ] {
        assert_eq!(kind(path), expected, "{path}");
    }
    let kinds = [PathKind::Time, PathKind::Text, PathKind::Switch, PathKind::Selection, PathKind::Constant];
    for one in kinds {
        assert!(PathKind::Any.may_be(one) && !one.may_be(PathKind::Any));
        assert_eq!(kinds.map(|other| one.may_be(other)), kinds.map(|other| one == other));
    }
    assert_eq!(
        kinds.map(|kind| kind.to_string()).join(", "),
        "a time, a text, true or false, a list of ids, a constant"
    );
    assert!(Path::compile("organization_user_id").unwrap().is_organization_user_id());
    assert!(!Path::compile("user_email").unwrap().is_organization_user_id());
}

#[test]
fn a_path_names_the_fields_that_it_leads_through() {
    let names = |path: &str, field: &str| Path::compile(path).unwrap().may_name(field);
    assert!(names("consents_vendors_enabled", "vendors") && !names("consents_vendors_enabled", "channels"));
    let through_channels = "consents_purposes_news_channel_email_enabled";
    assert!(names(through_channels, "channels") && !names(through_channels, "vendors"));
}

#[test]
fn metadata_are_the_events_own_before_those_of_its_user() {
    let text = |own: Value| {
        let user = json!({ "organization_user_id": "jane", "metadata": { "source": "app" } });
        let body = message(json!({ "id": "e", "user": user, "metadata": own, "consents": {} }));
        let event = event::decode(&body[..], &[]).unwrap();
        let found = Path::compile("metadata_source").unwrap().find(&event).unwrap().unwrap();
        found.choice().unwrap().unwrap().to_string()
    };
    assert_eq!([json!({ "source": "web" }), json!({}), Value::Null].map(text), ["web", "app", "app"]);
}

#[test]
fn a_value_becomes_the_choice_that_its_place_says() {
    let choice = |path: &str, purpose: Value, metadata: Value| {
        let user = json!({ "organization_user_id": "jane", "metadata": metadata });
        let consents = json!({ "purposes": [purpose], "vendors": { "enabled": [7, "x"] } });
        let body = message(json!({ "id": "e", "user": user, "consents": consents }));
        let event = event::decode(&body[..], &[]).unwrap();
        let found = Path::compile(path).unwrap().find(&event).unwrap().unwrap();
        found.choice().map(|choice| choice.map(|choice| format!("{choice:?}")))
    };
    let purpose = |path: &str, purpose: Value| choice(path, purpose, json!({}));
    let note = |value: Value| choice("user_metadata_note", json!({ "id": "a" }), json!({ "note": value }));
    let switch = |on| Ok(Some(format!("{:?}", Choice::Switch(on))));
    let text = |text: &str| Ok(Some(format!("{:?}", Choice::Text(text.into()))));
    let ids = |ids: &[&str]| {
        let selection = SelectedIds::new(ids.iter().map(|id| std::borrow::Cow::Borrowed(*id)), Names::Grants);
        Ok(Some(format!("{:?}", Choice::Selection(selection))))
    };
    let enabled = "consents_purposes_a_enabled";
    assert_eq!(purpose(enabled, json!({ "id": "a", "enabled": false })), switch(false));
    assert_eq!(purpose(enabled, json!({ "id": "a", "enabled": null })), Ok(None));
    assert!(purpose(enabled, json!({ "id": "a", "enabled": "false" })).is_err());
    let value = "consents_purposes_a_value";
    assert_eq!(purpose(value, json!({ "id": "a", "value": "x,y" })), ids(&["x", "y"]));
    assert!(purpose(value, json!({ "id": "a", "value": 3 })).is_err());
    // What is called like a field of a consent is one only among the consents, and not in their metadata.
    let within = "consents_purposes_a_metadata_value";
    assert_eq!(purpose(within, json!({ "id": "a", "metadata": { "value": "x,y" } })), text("x,y"));
    assert_eq!(choice("user_metadata_value", json!({ "id": "a" }), json!({ "value": "x,y" })), text("x,y"));
    assert_eq!(choice("consents_vendors_enabled", json!({ "id": "a" }), json!({})), ids(&["7", "x"]));
    assert_eq!(note(json!(["x", "y"])), text("x,y"));
    assert_eq!(note(json!(["x", 3])), text("[\"x\",3]"));
    assert_eq!(note(json!({ "x": 1 })), text("{\"x\":1}"));
}

#[test]
fn a_damaged_text_is_a_defect_where_a_mapping_reads_it() {
    for (path, body) in [
        ("user_metadata_note", r#"{"user":{"metadata":{"note":{"x":"\ud800"}}},"consents":{}}"#),
        ("user_metadata_note", r#"{"user":{"metadata":{"note":"\ud800"}},"consents":{}}"#),
        ("consents_vendors_enabled", r#"{"user":{},"consents":{"vendors":{"enabled":["\ud800"]}}}"#),
    ] {
        let event = event::decode(body.as_bytes(), &[]).unwrap();
        assert!(Path::compile(path).unwrap().find(&event).unwrap().unwrap().choice().is_err(), "{body}");
    }
}

#[test]
fn a_path_is_followed_by_the_names_and_ids_that_are_there() {
    let body = json!({
        "id": "e", "user": { "country": "FR" },
        "consents": { "purposes": [
            { "id": "a", "enabled": true, "channels": [{ "id": "mail", "enabled": false }],
              "preferences": [{ "id": "topics", "value": "sport, news" }] },
            { "id": "a_b", "enabled": false },
            { "id": "c", "channel": [{ "id": "mail", "enabled": true }], "channels": [] },
        ] },
    });
    let body = body.to_string().into_bytes();
    let event = event::decode(&body[..], &[]).unwrap();
    let told = |path: &str| {
        let found = Path::compile(path).unwrap().find(&event).unwrap()?;
        Some((found.place(), found.choice().unwrap().unwrap().to_string()))
    };
    let at = |place: &str, choice: &str| Some((place.to_owned(), choice.to_owned()));
    let purposes = "consents_purposes";
    assert_eq!(told(&format!("{purposes}_a_enabled")), at("consents.purposes.a.enabled", "true"));
    assert_eq!(told(&format!("{purposes}_a_b_enabled")), at("consents.purposes.a_b.enabled", "false"));
    for spelled in ["channel", "channels"] {
        let path = format!("{purposes}_a_{spelled}_mail_enabled");
        assert_eq!(told(&path), at("consents.purposes.a.channels.mail.enabled", "false"));
    }
    let own = at("consents.purposes.c.channel.mail.enabled", "true");
    assert_eq!(told(&format!("{purposes}_c_channel_mail_enabled")), own, "a field that is spelled like the path");
    for (topic, is_chosen) in [("sport", "true"), ("news", "true"), ("sports", "false")] {
        let path = format!("{purposes}_a_preferences_topics_value_{topic}");
        assert_eq!(told(&path), at("consents.purposes.a.preferences.topics.value", is_chosen));
    }
    assert_eq!(told(&format!("{purposes}_d_enabled")), None);
    assert_eq!(told("country"), at("user.country", "FR"));
    assert_eq!(told("id"), at("id", "e"));
}

#[test]
fn an_element_of_a_list_without_a_readable_id_is_told_by_its_kind() {
    for (element, found) in [
        (json!({ "enabled": true }), "one without an id"),
        (json!({ "id": null, "enabled": true }), "one without an id"),
        (json!({ "id": 7, "enabled": true }), "a number"),
        (json!("a"), "a string"),
    ] {
        let defect = defect("consents_purposes_a_enabled", json!({ "purposes": [element] }));
        assert!(defect.contains("consents.purposes[0]") && defect.contains(found), "{defect}");
    }
}

#[test]
fn a_slot_is_the_same_after_it_was_written_to_a_store() {
    let slot = Slot::new("NEWS", "consents_purposes_a_enabled");
    let read = Slot::from_text(slot.as_text());
    assert_eq!((read.property(), read.path()), ("NEWS", "consents_purposes_a_enabled"));
    assert_eq!(read, slot);
}

#[test]
fn a_vendor_is_switched_by_the_list_that_names_it() {
    let body = message(json!({ "user": {}, "consents": { "vendors": {
        "enabled": ["google", "both", 755, "last"], "disabled": ["first", "criteo", "both", 28],
        "enabled_li": ["google"], "disabled_li": null,
    } } }));
    let event = event::decode(&body[..], &[]).unwrap();
    let told = |vendor: &str| {
        let found = Path::compile(&format!("consents_vendors_{vendor}")).unwrap().find(&event).unwrap()?;
        found.choice().unwrap()
    };
    for on in ["google", "google_enabled", "google_enabled_li", "755", "last_enabled"] {
        assert_eq!(told(on), Some(Choice::Switch(true)), "{on}");
    }
    for off in ["criteo", "first_enabled", "28_enabled", "both", "both_enabled"] {
        assert_eq!(told(off), Some(Choice::Switch(false)), "{off}");
    }
    for absent in ["other", "criteo_enabled_li", "75", "7550_enabled", "enabled_other"] {
        assert_eq!(told(absent), None, "{absent}");
    }
    for list in [json!([true]), json!("google")] {
        let defect = defect("consents_vendors_google", json!({ "vendors": { "disabled": list } }));
        assert!(defect.contains("consents.vendors.disabled"), "{defect}");
    }
}
