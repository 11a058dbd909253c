//! Every sample, mapped, as golden files of the output of `consent-gate map`.

use super::harness::{Finished, Folder, fixture, golden, project, run};
use consent_gate::event;
use consent_gate::mapping::{Mapping, Mappings, Path, ValueSource};
use serde_json::{Value, json};
use std::fs;

#[test]
fn every_path_on_the_page_on_configuration_is_mapped_here() {
    let page = fs::read_to_string(project().join("docs/configuration.md")).unwrap();
    let section = page.split("\n## Mappings\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let quoted =
        section.lines().filter(|line| line.starts_with("| `")).flat_map(|line| line.split('`').skip(1).step_by(2));
    let known = document().to_string();
    let paths: Vec<&str> = quoted.filter(|word| word.starts_with("consents_")).collect();
    assert!(paths.len() >= 8, "{paths:?}");
    for path in paths {
        assert!(known.contains(&format!("\"{path}\"")), "{path}");
    }
}

/// A document with each form of mapping in `docs/configuration.md`.
fn document() -> Value {
    json!({
        "type_id": "selligent",
        "authentication": { "username": "api_user", "password": "access_key" },
        "properties": { "url": "selligent.example.com", "gate": "didomi" },
        "mappings": [
            { "id": "MAIL", "value": "organization_user_id" },
            { "id": "OPTIN_NEWS", "value": "consents_purposes_newsletter_enabled", "true": "Y", "false": "N" },
            { "id": "OPTIN_PARTNERS", "value": "consents_purposes_partners_enabled" },
            { "id": "OPTIN_SMS", "value": "consents_purposes_sms_offers_enabled" },
            { "id": "SMS_FREQUENCY", "value": "consents_purposes_sms_offers_values_frequency_value" },
            { "id": "TOPICS", "value": "consents_purposes_newsletter_values_topics_value" },
            { "id": "TOPIC_SPORT", "value": "consents_purposes_newsletter_values_topics_value_sport" },
            { "id": "TOPIC_MUSIC", "value": "consents_purposes_newsletter_values_topics_value_music" },
            { "id": "V1_EMAIL", "value": "consents_purposes_cookies_preferences_newsletter_channel_email_enabled" },
            { "id": "V1_SMS", "value": "consents_purposes_cookies_preferences_newsletter_channels_sms_enabled" },
            { "id": "CHANNEL_EMAIL", "value": "consents_channels_email_enabled" },
            { "id": "VENDOR_GOOGLE", "value": "consents_vendors_google_enabled" },
            { "id": "VENDOR_ADS", "value": "consents_vendors_acme-ads_enabled" },
            { "id": "VENDORS", "value": "consents_vendors_enabled" },
            { "id": "TCF", "value": "consents_tcfcs" },
            { "id": "WIDGET", "value": "metadata_widget_id" },
            { "id": "TIER", "value": "user_metadata_loyalty_tier" },
            { "id": "COUNTRY", "value": "country" },
            { "id": "REGULATION", "value": "regulation" },
            { "id": "EVENT", "value": "id" },
            { "id": "CREATED", "value": "created_at" },
            { "id": "CHANGED", "value": "created_at", "date_format": "%Y%m%d" },
            { "id": "SOURCE", "constant": "didomi" },
        ],
        "events": { "types": ["event.created", "event.updated", "user.updated"] },
    })
}

fn map(arguments: &[&str], document: &Value, event: &[u8]) -> Finished {
    let folder = Folder::new();
    let file = folder.write("acme.json", document.to_string());
    run(&folder, &[], &[&["map", "--integration", file.to_str().unwrap()], arguments].concat(), event)
}

/// The request's properties for an event, as JSON.
fn sent(document: &Value, event: &Value) -> Value {
    let mapped = map(&["--json"], document, event.to_string().as_bytes());
    assert_eq!(mapped.code, 0, "{}", mapped.err);
    let shown: Value = serde_json::from_str(&mapped.out).unwrap();
    assert_eq!(shown["verdict"]["outcome"], "sent", "{shown}");
    shown["request"]["body"]["GateInput"].clone()
}

#[test]
fn every_sample_is_mapped_as_documented() {
    let mut names: Vec<String> = std::fs::read_dir(project().join("tests/fixtures/events"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(names.len() >= 14);
    for name in names {
        let mapped = map(&["-"], &document(), &fixture(&name));
        let would_die = mapped.out.contains("would be dead_lettered");
        assert_eq!(mapped.code, i32::from(would_die), "{}", mapped.err);
        golden(&format!("map-{}.txt", name.split('.').next().unwrap()), &mapped.out);
    }
}

#[test]
fn map_tells_programs_the_same() {
    let mapped = map(&["--json"], &document(), &fixture("event-created-v2.json"));
    golden("map-json.json", &mapped.out);
    assert!(!mapped.out.contains("access_key"));
}

/// A minimal document with one mapping besides the identifier.
fn with_path(path: &str) -> Value {
    let mut document = document();
    document["mappings"] = json!([{ "id": "MAIL", "value": "organization_user_id" }, { "id": "X", "value": path }]);
    document
}

fn with_consents(consents: Value) -> Value {
    let mut event = super::harness::choice("jane@example.com", true);
    event["parameters"]["entity"]["consents"] = consents;
    event
}

#[test]
fn ids_that_contain_underscores_take_the_longest_match_that_is_present() {
    let both = json!({ "purposes": [
        { "id": "sms", "enabled": true, "offers_enabled": true, "values": { "offers": { "value": "a" } } },
        { "id": "sms_offers", "enabled": false },
    ] });
    let path = with_path("consents_purposes_sms_offers_enabled");
    assert_eq!(sent(&path, &with_consents(both))["X"], "0");
    let nested = json!({ "purposes": [{ "id": "a", "values": { "b_c": { "value": "x" }, "b": { "value": "y" } } }] });
    assert_eq!(sent(&with_path("consents_purposes_a_values_b_c_value"), &with_consents(nested))["X"], "x");
    let shorter = json!({ "purposes": [{ "id": "a_values" }, { "id": "a", "values": { "b": { "value": "y" } } }] });
    assert_eq!(sent(&with_path("consents_purposes_a_values_b_value"), &with_consents(shorter))["X"], "y");
}

#[test]
fn null_and_absent_are_left_out_and_an_emptied_selection_is_a_withdrawal() {
    for consents in [
        json!({ "purposes": [{ "id": "newsletter", "enabled": null }] }),
        json!({ "purposes": [] }),
        json!({ "purposes": null }),
        json!({}),
        json!(null),
    ] {
        let properties = sent(&with_path("consents_purposes_newsletter_enabled"), &with_consents(consents));
        assert_eq!(properties.as_object().unwrap().keys().collect::<Vec<_>>(), ["MAIL"]);
    }
    let empty = json!({ "purposes": [{ "id": "n", "values": { "t": { "value": "" } } }] });
    let mut document = with_path("consents_purposes_n_values_t_value");
    assert_eq!(sent(&document, &with_consents(empty.clone()))["X"], "");
    let mapping = |mapping: &&mut Value| mapping["id"] == "X";
    document["mappings"].as_array_mut().unwrap().iter_mut().find(mapping).unwrap()["none"] = json!("-");
    assert_eq!(sent(&document, &with_consents(empty))["X"], "-");
    let emptied = json!({ "vendors": { "enabled": [], "disabled": null } });
    assert_eq!(sent(&with_path("consents_vendors_enabled"), &with_consents(emptied.clone()))["X"], "");
    assert!(sent(&with_path("consents_vendors_disabled"), &with_consents(emptied)).get("X").is_none());
}

#[test]
fn vendors_are_named_by_their_id_and_a_withdrawal_counts() {
    let vendors = json!({ "vendors": {
        "enabled": ["google", "both"], "disabled": ["acme-ads", "both"], "enabled_li": ["li_vendor"], "disabled_li": [],
    } });
    for (path, expected) in [
        ("consents_vendors_google_enabled", json!("1")),
        ("consents_vendors_acme-ads_enabled", json!("0")),
        ("consents_vendors_both_enabled", json!("0")),
        ("consents_vendors_li_vendor_enabled_li", json!("1")),
        ("consents_vendors_unknown_enabled", Value::Null),
        ("consents_vendors_disabled", json!("acme-ads,both")),
    ] {
        assert_eq!(sent(&with_path(path), &with_consents(vendors.clone()))["X"], expected, "{path}");
    }
}

#[test]
fn flattened_lists_are_read_by_index_and_by_id() {
    for key in ["0", "newsletter"] {
        let id = if key == "0" { json!({ "entity__consents__purposes__0__id": "newsletter" }) } else { json!({}) };
        let mut event = json!({ "type": "event.created", "entity__id": "e", "entity__user__organization_user_id": "jane@example.com" });
        event[format!("entity__consents__purposes__{key}__enabled")] = json!(false);
        event.as_object_mut().unwrap().extend(id.as_object().unwrap().clone());
        assert_eq!(sent(&with_path("consents_purposes_newsletter_enabled"), &event)["X"], "0", "{key}");
    }
}

#[test]
fn nested_values_of_a_customers_own_fields_are_sent_as_escaped_text() {
    let mut event = super::harness::choice("jane@example.com", true);
    event["parameters"]["entity"]["user"]["metadata"] =
        json!({ "tags": ["a", "b"], "address": { "zip": "75" }, "age": 7, "vip": true });
    for (path, expected) in [
        ("user_metadata_tags", "a,b"),
        ("user_metadata_address", "{\"zip\":\"75\"}"),
        ("user_metadata_address_zip", "75"),
        ("user_metadata_age", "7"),
        ("user_metadata_vip", "1"),
        ("metadata_vip", "1"),
    ] {
        assert_eq!(sent(&with_path(path), &event)["X"], expected, "{path}");
    }
}

/// Paths into every part of an event that a mapping can name.
const DEEP_PATHS: [&str; 12] = [
    "consents_purposes_cookies_metadata_b_x_vendors",
    "consents_purposes_cookies_propagation_b_x_enabled",
    "consents_purposes_cookies_channel_email_enabled",
    "consents_purposes_cookies_preferences_weekly_channels_sms_enabled",
    "consents_purposes_cookies_values_topics_value_art",
    "metadata_b_x_enabled",
    "metadata_values_c",
    "user_metadata_values_c",
    "user_delegate_b_x_vendors",
    "user_source",
    "user_consents_vendors_enabled",
    "user_proofs_id",
];

/// Fields that a mapping does not read change neither its value nor the event's time.
#[test]
fn a_mapping_alone_finds_what_it_finds_beside_all_others() {
    let everywhere = json!({ "a": 1, "b": [{ "id": "x", "vendors": true, "enabled": false }], "values": { "c": "d" } });
    let purpose = json!({
        "id": "cookies", "enabled": true, "metadata": everywhere, "propagation": everywhere,
        "channels": [{ "id": "email", "enabled": false, "metadata": everywhere }],
        "values": { "topics": { "value": "sport,art" } },
        "preferences": [{ "id": "weekly", "enabled": true, "channels": [{ "id": "sms", "enabled": true }] }],
    });
    let full = json!({ "type": "event.created", "parameters": { "source": everywhere, "entity": {
        "id": "e", "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-02T00:00:00Z", "metadata": everywhere,
        "delegate": everywhere, "proofs_id": ["p"],
        "user": { "organization_user_id": "u", "metadata": everywhere, "delegate": everywhere, "source": "s" },
        "consents": { "purposes": [purpose], "channels": [{ "id": "email", "enabled": true }],
            "vendors": { "enabled": ["x"], "disabled": ["y"] } },
    } } });
    let mut updated = full.clone();
    updated["type"] = json!("event.updated");
    updated["parameters"]["new_entity"] = full["parameters"]["entity"].clone();
    updated["parameters"]["old_entity"] = full["parameters"]["entity"].clone();
    let mut revoked = updated.clone();
    revoked["parameters"]["new_entity"]["consents"]["vendors"]["disabled"] = json!([]);
    let mut bodies: Vec<Vec<u8>> = std::fs::read_dir(project().join("tests/fixtures/events"))
        .unwrap()
        .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
        .collect();
    bodies.extend([&full, &updated, &revoked].map(|event| event.to_string().into_bytes()));
    let document = document();
    let of_document = document["mappings"].as_array().unwrap().iter().filter_map(|mapping| mapping["value"].as_str());
    let paths = of_document.chain(DEEP_PATHS);
    let mut found = 0;
    for path in paths {
        let source = ValueSource::Path(Path::compile(path).unwrap());
        let mappings = Mappings::new(vec![Mapping::new("A", source)], 0);
        for body in &bodies {
            let (all, few) = (event::decode(body, &[]), event::decode(body, mappings.unread()));
            let (Ok(all), Ok(few)) = (&all, &few) else {
                assert_eq!(all.err(), few.err());
                continue;
            };
            let value = |event| mappings.properties(event, true).map(|properties| format!("{properties:?}"));
            assert_eq!(value(few), value(all), "{path} of {}", String::from_utf8_lossy(body));
            assert_eq!(few.changed_at(), all.changed_at());
            found += usize::from(value(all).is_ok_and(|value| value.contains("text: Ok")));
        }
    }
    assert!(found > 100, "{found} values");
    let narrow = Mappings::new(Vec::new(), 0);
    let changed_at = |event: &Value| {
        let body = event.to_string();
        event::decode(body.as_bytes(), narrow.unread()).unwrap().changed_at().unwrap().unwrap().to_string()
    };
    assert_eq!(changed_at(&updated), "2026-01-01T00:00:00Z");
    assert_eq!(changed_at(&revoked), "2026-01-02T00:00:00Z", "as Didomi applies it again");
}

#[test]
fn the_sample_event_maps_by_the_sample_document_and_times_are_shown_here_too() {
    let folder = Folder::new();
    let sample = |name: &str| std::fs::read_to_string(project().join(name)).unwrap();
    folder.write("integrations/acme.json", sample("integration.example.json"));
    let event = sample("event.example.json");
    // An hour ahead of UTC.
    for (zone, shown) in [("CET-1", "10:26:21Z (2026-11-20 11:26:21 +01:00 here)\n"), ("UTC", "10:26:21Z\n")] {
        let environment = [("ACME_GATE_KEY", "key"), ("TZ", zone)];
        let mapped = run(&folder, &environment, &["map", "--integration", "acme", "-"], event.as_bytes());
        assert!(mapped.code == 0 && mapped.out.contains("would be sent"), "{}{}", mapped.out, mapped.err);
        assert!(mapped.out.contains(shown), "{}", mapped.out);
        assert!(!mapped.out.contains("left out"), "it has what the document maps: {}", mapped.out);
    }
}

#[test]
fn a_changed_date_is_judged_as_an_instant() {
    let mut event = super::harness::choice("jane@example.com", true);
    event["parameters"]["entity"]["created_at"] = json!("2026-01-01T00:30:00+02:00");
    let mut document = with_path("created_at");
    document["mappings"][1]["date_format"] = json!("%Y-%m-%d");
    assert_eq!(sent(&document, &event)["X"], "2025-12-31");
}

#[test]
fn the_first_cause_in_the_documented_order_names_the_reason() {
    let mut document = document();
    document["events"] = json!({ "organization_id": "acme" });
    let code = |change: &dyn Fn(&mut Value)| {
        let mut event = super::harness::choice("jane@example.com", true);
        change(&mut event);
        let mapped = map(&["--json"], &document, event.to_string().as_bytes());
        let shown: Value = serde_json::from_str(&mapped.out).unwrap();
        shown["verdict"]["code"].as_str().unwrap().to_owned()
    };
    let entity = |event: &mut Value, key: &str, value: Value| event["parameters"]["entity"][key] = value;
    let future = (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1)).to_string();
    let nobody = json!({ "id": "device-1" });
    assert_eq!(code(&|_| {}), "");
    let pending = |event: &mut Value| {
        entity(event, "status", json!("pending_approval"));
        entity(event, "organization_id", json!("other"));
        event["regulation"] = json!("cpra");
    };
    assert_eq!(code(&pending), "pending");
    assert_eq!(
        code(&|e| (e["type"] = json!("user.deleted"), entity(e, "organization_id", json!("other"))).1),
        "other_organization"
    );
    assert_eq!(
        code(&|e| (e["regulation"] = json!("cpra"), entity(e, "organization_id", json!("other"))).1),
        "other_organization"
    );
    assert_eq!(code(&|e| (e["regulation"] = json!("cpra"), e["type"] = json!("user.updated")).1), "other_regulation");
    assert_eq!(code(&|e| (e["type"] = json!("policy.updated"), entity(e, "user", nobody.clone())).1), "unwanted_type");
    assert_eq!(
        code(&|e| (entity(e, "created_at", json!("yesterday")), entity(e, "user", nobody.clone())).1),
        "no_identifier"
    );
    assert_eq!(code(&|e| (entity(e, "created_at", json!(future)), entity(e, "id", json!(7))).1), "undecodable");
    assert_eq!(code(&|e| entity(e, "created_at", json!(future))), "future_dated");
}

#[test]
fn an_update_is_dated_by_what_it_changed() {
    let changed_at = |old: Value, new: Value| {
        let event = json!({ "type": "event.updated", "parameters": { "old_entity": old, "new_entity": new } });
        let mapped = map(&["--json"], &document(), event.to_string().as_bytes());
        let shown: Value = serde_json::from_str(&mapped.out).unwrap();
        shown["changed_at"].as_str().map(str::to_owned)
    };
    let entity = |status: &str, enabled: bool| {
        json!({
            "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-02T00:00:00Z", "status": status,
            "user": { "organization_user_id": "jane@example.com" },
            "consents": { "purposes": [{ "id": "newsletter", "enabled": enabled }] },
        })
    };
    let (created, updated) = (Some("2026-01-01T00:00:00Z".to_owned()), Some("2026-01-02T00:00:00Z".to_owned()));
    assert_eq!(changed_at(entity("confirmed", true), entity("confirmed", true)), created, "a proof was added");
    assert_eq!(changed_at(entity("confirmed", true), entity("confirmed", false)), updated, "a choice changed");
    assert_eq!(changed_at(entity("pending_approval", true), entity("confirmed", true)), updated, "it was confirmed");
    assert_eq!(changed_at(Value::Null, entity("confirmed", true)), updated, "nobody knows");
}

#[test]
fn what_is_not_needed_does_not_decide() {
    let mut event = super::harness::choice("jane@example.com", true);
    event["parameters"]["entity"]["updated_at"] = json!("");
    assert_eq!(sent(&with_path("country"), &event)["MAIL"], "jane@example.com", "an event.created has its created_at");
    let deleted = json!({ "type": "event.deleted", "parameters": { "entity": { "id": "e", "status": "gone" } } });
    let mapped = map(&["--json"], &document(), deleted.to_string().as_bytes());
    assert!(mapped.out.contains("event_deleted"), "{}", mapped.out);
}

#[test]
fn vendor_ids_that_are_numbers_are_ids() {
    let vendors = json!({ "vendors": { "enabled": [1, 755, "google"] } });
    assert_eq!(sent(&with_path("consents_vendors_755_enabled"), &with_consents(vendors.clone()))["X"], "1");
    assert_eq!(sent(&with_path("consents_vendors_enabled"), &with_consents(vendors))["X"], "1,755,google");
}

#[test]
fn big_numbers_keep_their_digits() {
    let mut event = super::harness::choice("jane@example.com", true);
    let text = event.to_string().replace("\"device-1\"", "\"d\",\"metadata\":{\"n\":123456789012345678901234567890}");
    event = serde_json::from_str(&text).unwrap();
    assert_eq!(sent(&with_path("user_metadata_n"), &event)["X"], "123456789012345678901234567890");
}

#[test]
fn a_flattened_parent_that_is_null_gives_way_to_its_children() {
    let event = json!({
        "type": "event.created", "entity__user__organization_user_id": "jane@example.com",
        "entity__consents": null, "entity__consents__purposes": [],
        "entity__consents__purposes__0__id": "newsletter", "entity__consents__purposes__0__enabled": true,
    });
    assert_eq!(sent(&with_path("consents_purposes_newsletter_enabled"), &event)["X"], "1");
}
