//! Every check of a trigger, in the vendor's order: who calls, then what is asked for.
//!
//! Two documents may share a user, even with different passwords: the signature must fit one of
//! them, and the gate says which. Of equal documents the first is taken.

use std::collections::BTreeMap;

use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap};

use crate::document::Integration;
use crate::outcome::{Outcome, Refusal};
use crate::signature::Authorization;
use crate::trigger::Trigger;

/// What a request says it is.
///
/// A refused request is described as far as it can be read, so that it can be shown and so that
/// quota faults can pick it out.
#[derive(Default)]
pub struct Claim {
    /// Its index among the integrations.
    pub integration: Option<usize>,
    pub identifier: Option<String>,
    pub properties: BTreeMap<String, String>,
    /// The trace that the request is a part of.
    pub traceparent: Option<String>,
}

/// Judges a POST to the gate's path: what it is, and why it cannot be executed, if it cannot.
/// `now` is in Unix seconds.
pub fn judge(
    integrations: &[Integration],
    headers: &HeaderMap,
    path_and_query: &str,
    body: &[u8],
    now: i64,
) -> (Claim, Result<(), Refusal>) {
    let trigger = Trigger::parse(body);
    let gate = trigger.as_ref().map_or("", |trigger| &trigger.gate);
    let call = Call { integrations, gate, path_and_query, now };
    let (place, authentication) = match authorization(headers) {
        Ok(authorization) => call.authenticate(&authorization),
        Err(refusal) => (None, Err(refusal)),
    };
    let integration = place.map(|place| &integrations[place]);
    let verdict =
        authentication.and_then(|()| check_content_type(headers)).and_then(|()| check_request(integration, &trigger));
    let properties = trigger.map(|trigger| trigger.input).unwrap_or_default();
    let claim = Claim {
        integration: place,
        identifier: integration.and_then(|found| properties.get(&found.identifier).cloned()),
        properties,
        traceparent: headers.get("traceparent").and_then(|trace| trace.to_str().ok()).map(str::to_owned),
    };
    (claim, verdict)
}

fn authorization(headers: &HeaderMap) -> Result<Authorization<'_>, Refusal> {
    let refused = |error: &str| Refusal::new(Outcome::BadAuthorization, error);
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or_else(|| refused("no Authorization header"))?;
    if values.next().is_some() {
        return Err(refused("more than one Authorization header"));
    }
    let text = std::str::from_utf8(value.as_bytes()).map_err(|_| refused("the Authorization header is not UTF-8"))?;
    Authorization::parse(text)
}

/// What has to be known to find out who calls.
struct Call<'a> {
    integrations: &'a [Integration],
    gate: &'a str,
    path_and_query: &'a str,
    now: i64,
}

impl Call<'_> {
    /// The integration that the request belongs to, as far as that can be known, and the verdict.
    fn authenticate(&self, authorization: &Authorization) -> (Option<usize>, Result<(), Refusal>) {
        let of_user = || {
            let all = self.integrations.iter().enumerate();
            all.filter(|(_, one)| one.username == authorization.user)
        };
        let of_gate = || of_user().filter(|(_, one)| one.gate == self.gate);
        let claimed = of_gate().chain(of_user()).map(|(place, _)| place).next();
        if claimed.is_none() {
            let error = format!("no API user `{}`", authorization.user);
            return (None, Err(Refusal::new(Outcome::UnknownUser, error)));
        }
        let signer =
            of_gate().chain(of_user()).find(|(_, one)| authorization.is_signed_by(&one.key, self.path_and_query));
        match signer {
            Some((place, _)) => (Some(place), authorization.check_time(self.now)),
            None => {
                let path = self.path_and_query;
                let error = format!("the signature is not that of a POST to {path} with this user's key");
                (claimed, Err(Refusal::new(Outcome::BadSignature, error)))
            }
        }
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = value.map(|value| value.split(';').next().unwrap_or(value).trim());
    if essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/json")) {
        return Ok(());
    }
    let error = "the content type must be application/json";
    Err(Refusal::new(Outcome::WrongContentType, error))
}

fn check_request(integration: Option<&Integration>, trigger: &Result<Trigger, String>) -> Result<(), Refusal> {
    let trigger = trigger.as_ref().map_err(|error| Refusal::new(Outcome::Malformed, error))?;
    let integration = integration.filter(|integration| integration.gate == trigger.gate).ok_or_else(|| {
        let error = format!("no gate `{}` for this user", trigger.gate);
        Refusal::new(Outcome::UnknownGate, error)
    })?;
    let mut names = trigger.input.keys();
    if let Some(name) = names.find(|name| !integration.properties.contains(*name)) {
        let error = format!("the gate has no input `{name}`");
        return Err(Refusal::new(Outcome::UnknownProperty, error));
    }
    let name = &integration.identifier;
    let identifier = trigger.input.get(name).map_or("", |text| text.trim());
    if identifier.is_empty() {
        let error = format!("`{name}` identifies the profile and must not be empty");
        return Err(Refusal::new(Outcome::NoIdentifier, error));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::Key;
    use hyper::header::HeaderValue;
    use ring::hmac;

    const PATH: &str = "/restapi/api/sync/campaigns/triggerbyjson";
    const BODY: &str = r#"{"Gate":"didomi","GateInput":{"MAIL":"jane@example.com"}}"#;
    const NOW: i64 = 1_700_000_000;

    fn integration(gate: &str, password: &str) -> Integration {
        Integration {
            name: gate.to_owned(),
            username: "api_user".to_owned(),
            key: Key::new(password),
            gate: gate.to_owned(),
            identifier: "MAIL".to_owned(),
            properties: ["MAIL", "OPTIN"].map(str::to_owned).into(),
        }
    }

    fn headers(password: &str) -> HeaderMap {
        let key = hmac::Key::new(hmac::HMAC_SHA256, password.as_bytes());
        let tag = hmac::sign(&key, format!("{NOW}-POST-{PATH}").as_bytes());
        let hex: String = tag.as_ref().iter().map(|b| format!("{b:02X}")).collect();
        let authorization = format!("hmac api_user:{hex}:{NOW}");
        HeaderMap::from_iter([
            (AUTHORIZATION, authorization.parse().unwrap()),
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        ])
    }

    fn outcome(headers: &HeaderMap, body: &str, now: i64) -> Outcome {
        let integrations = [integration("didomi", "access_key")];
        let (_, verdict) = judge(&integrations, headers, PATH, body.as_bytes(), now);
        verdict.map_or_else(|refusal| refusal.outcome, |()| Outcome::Accepted)
    }

    #[test]
    fn the_published_vector_passes_every_check() {
        let vector = "hmac api_user:20750D66BCE9A7259C98872656FC32298575B4C500786CC3A7F4A958CDCBE6B7:1700000000";
        let mut headers = headers("another");
        headers.insert(AUTHORIZATION, HeaderValue::from_static(vector));
        let integrations = [integration("didomi", "access_key")];
        let (claim, verdict) = judge(&integrations, &headers, PATH, BODY.as_bytes(), NOW);
        assert_eq!(verdict, Ok(()));
        assert_eq!(claim.integration, Some(0));
        assert_eq!(claim.identifier.as_deref(), Some("jane@example.com"));
    }

    #[test]
    fn the_caller_is_judged_before_the_request() {
        let body = "not json";
        let mut absent = headers("access_key");
        absent.remove(AUTHORIZATION);
        assert_eq!(outcome(&absent, body, NOW), Outcome::BadAuthorization);
        let mut double = headers("access_key");
        double.append(AUTHORIZATION, double[AUTHORIZATION].clone());
        assert_eq!(outcome(&double, body, NOW), Outcome::BadAuthorization);
        let wrong = headers("another");
        assert_eq!(outcome(&wrong, body, NOW), Outcome::BadSignature);
        let right = headers("access_key");
        assert_eq!(outcome(&right, body, NOW + 301), Outcome::BadTimestamp);
        assert_eq!(outcome(&right, body, NOW), Outcome::Malformed);
        let mut stranger = headers("access_key");
        let text = stranger[AUTHORIZATION].to_str().unwrap().replace("api_user", "someone");
        stranger.insert(AUTHORIZATION, text.parse().unwrap());
        assert_eq!(outcome(&stranger, body, NOW), Outcome::UnknownUser);
    }

    #[test]
    fn the_content_type_may_have_parameters_but_must_be_json() {
        let mut headers = headers("access_key");
        for (value, expected) in [
            ("application/json; charset=utf-8", Outcome::Accepted),
            ("Application/JSON ;charset=utf-8", Outcome::Accepted),
            ("text/json", Outcome::WrongContentType),
            ("application/json-patch+json", Outcome::WrongContentType),
            ("", Outcome::WrongContentType),
        ] {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(value));
            assert_eq!(outcome(&headers, BODY, NOW), expected, "{value}");
        }
        headers.remove(CONTENT_TYPE);
        assert_eq!(outcome(&headers, BODY, NOW), Outcome::WrongContentType);
    }

    #[test]
    fn gate_properties_and_identifier_must_be_those_of_the_document() {
        let headers = headers("access_key");
        for (body, expected) in [
            (r#"{"Gate":"Didomi","GateInput":{"MAIL":"a"}}"#, Outcome::UnknownGate),
            (r#"{"Gate":"didomi","GateInput":{"MAIL":"a","mail":"b"}}"#, Outcome::UnknownProperty),
            (r#"{"Gate":"didomi","GateInput":{"OPTIN":"1"}}"#, Outcome::NoIdentifier),
            (r#"{"Gate":"didomi","GateInput":{"MAIL":""}}"#, Outcome::NoIdentifier),
            (r#"{"Gate":"didomi","GateInput":{"MAIL":" "}}"#, Outcome::NoIdentifier),
            (r#"{"Gate":"didomi","GateInput":{}}"#, Outcome::NoIdentifier),
            (r#"{"Gate":"didomi","GateInput":{"MAIL":"a","OPTIN":""}}"#, Outcome::Accepted),
        ] {
            assert_eq!(outcome(&headers, body, NOW), expected, "{body}");
        }
    }

    #[test]
    fn documents_of_one_user_are_told_apart_by_gate_and_password() {
        let integrations =
            [integration("didomi", "first"), integration("news", "first"), integration("didomi", "second")];
        let place = |password: &str, gate: &str| {
            let body = BODY.replace("didomi", gate);
            let headers = headers(password);
            let (claim, verdict) = judge(&integrations, &headers, PATH, body.as_bytes(), NOW);
            (claim.integration, verdict.err().map(|refusal| refusal.outcome))
        };
        assert_eq!(place("first", "didomi"), (Some(0), None));
        assert_eq!(place("first", "news"), (Some(1), None));
        assert_eq!(place("second", "didomi"), (Some(2), None));
        assert_eq!(place("second", "news"), (Some(2), Some(Outcome::UnknownGate)));
        assert_eq!(place("third", "news"), (Some(1), Some(Outcome::BadSignature)));
    }
}
