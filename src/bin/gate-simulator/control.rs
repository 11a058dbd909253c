//! The simulator's own paths: `/profiles`, `/requests` and `/faults`.
//!
//! They need no credentials and are not counted as requests. An identifier or a name in them is
//! percent-encoded; `+` stands for itself. Mistakes are answered with `{"error": …}`.

use std::sync::atomic::Ordering;

use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, Request, StatusCode};
use serde_json::{Value, json};

use crate::answer::Answer;
use crate::body;
use crate::rule::Rule;
use crate::simulator::Simulator;

/// Whether a path is one of the simulator's own.
pub fn owns(path: &str) -> bool {
    matches!(path, "/profiles" | "/requests" | "/faults") || path.starts_with("/profiles/")
}

/// Shows or changes what the simulator remembers.
pub async fn answer(simulator: &Simulator, request: Request<Incoming>) -> Answer {
    let uri = request.uri().clone();
    let answer = match (request.method(), uri.path()) {
        (&Method::GET, "/profiles") => show_profiles(simulator, uri.query()),
        (&Method::DELETE, "/profiles") => {
            simulator.memory().profiles.clear();
            Ok(done())
        }
        (&Method::GET, "/requests") => show_requests(simulator, uri.query()),
        (&Method::DELETE, "/requests") => {
            simulator.memory().requests.reset();
            simulator.in_flight.reset();
            Ok(done())
        }
        (&Method::GET, "/faults") => Ok(show_faults(simulator)),
        (&Method::PUT, "/faults") => put_faults(simulator, request.into_body()).await,
        (&Method::DELETE, "/faults") => {
            simulator.faults().replace(Vec::new());
            Ok(done())
        }
        (method, path) => match path.strip_prefix("/profiles/") {
            Some(identifier) if method == Method::GET => find_profile(simulator, identifier, uri.query()),
            _ => Ok(wrong_method(path)),
        },
    };
    answer.unwrap_or_else(|error| mistake(StatusCode::BAD_REQUEST, &error))
}

fn show_profiles(simulator: &Simulator, query: Option<&str>) -> Result<Answer, String> {
    let only = integration(simulator, query)?;
    let memory = simulator.memory();
    Ok(Answer::of(StatusCode::OK, &memory.profiles.show(only)))
}

fn find_profile(simulator: &Simulator, identifier: &str, query: Option<&str>) -> Result<Answer, String> {
    let only = integration(simulator, query)?;
    let identifier = percent_decoded(identifier)?;
    let memory = simulator.memory();
    let found = memory.profiles.find(only, &identifier);
    let status = if found.is_empty() { StatusCode::NOT_FOUND } else { StatusCode::OK };
    Ok(Answer::of(status, &found))
}

fn show_requests(simulator: &Simulator, query: Option<&str>) -> Result<Answer, String> {
    let limit = match parameter(query, "limit")? {
        Some(limit) => limit.parse().map_err(|_| "limit: must be a whole number".to_owned())?,
        None => usize::MAX,
    };
    let mut shown = simulator.memory().requests.show(limit);
    let (now, max) = simulator.in_flight.read();
    let waiting = simulator.waiting.load(Ordering::Relaxed);
    shown.extend([
        ("in_flight".to_owned(), now.into()),
        ("max_in_flight".to_owned(), max.into()),
        ("waiting_to_execute".to_owned(), waiting.into()),
    ]);
    Ok(Answer::of(StatusCode::OK, &shown))
}

fn show_faults(simulator: &Simulator) -> Answer {
    Answer::of(StatusCode::OK, &simulator.faults().show())
}

/// Replaces all rules, or none of them when one is wrong.
async fn put_faults(simulator: &Simulator, body: Incoming) -> Result<Answer, String> {
    let body = body::read(body).await.map_err(|refusal| refusal.error)?;
    let written: Value = serde_json::from_slice(&body).map_err(|error| format!("not JSON: {error}"))?;
    let written = match written {
        Value::Array(rules) => rules,
        rule => vec![rule],
    };
    let names = simulator.integrations.iter();
    let names: Vec<String> = names.map(|one| one.name.clone()).collect();
    let mut rules = Vec::new();
    let mut problems = Vec::new();
    for (place, rule) in written.into_iter().enumerate() {
        match Rule::parse(rule, &names) {
            Ok(rule) => rules.push(rule),
            Err(problem) => problems.push(format!("rule {}: {problem}", place + 1)),
        }
    }
    if !problems.is_empty() {
        return Err(problems.join("; "));
    }
    simulator.faults().replace(rules);
    Ok(show_faults(simulator))
}

fn done() -> Answer {
    Answer::raw(StatusCode::NO_CONTENT, hyper::body::Bytes::new())
}

fn mistake(status: StatusCode, error: &str) -> Answer {
    Answer::of(status, &json!({ "error": error }))
}

fn wrong_method(path: &str) -> Answer {
    let allowed = match path {
        "/faults" => "GET, PUT, DELETE",
        "/profiles" | "/requests" => "GET, DELETE",
        _ => "GET",
    };
    let error = format!("{path} takes {allowed}");
    mistake(StatusCode::METHOD_NOT_ALLOWED, &error).with(ALLOW, HeaderValue::from_static(allowed))
}

/// The index of the integration that the query names.
fn integration(simulator: &Simulator, query: Option<&str>) -> Result<Option<usize>, String> {
    let Some(name) = parameter(query, "integration")? else {
        return Ok(None);
    };
    let place = simulator.integrations.iter().position(|one| one.name == name);
    place.map(Some).ok_or_else(|| format!("integration: there is no `{name}`"))
}

/// The value of the one parameter that a path takes; any other is a mistake.
fn parameter(query: Option<&str>, name: &str) -> Result<Option<String>, String> {
    let mut found = None;
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some((key, value)) if key == name => found = Some(percent_decoded(value)?),
            _ => return Err(format!("{pair}: this path takes {name}=… only")),
        }
    }
    Ok(found)
}

fn percent_decoded(text: &str) -> Result<String, String> {
    let wrong = || format!("{text}: wrong percent-encoding");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(2).ok_or_else(wrong)?;
        let digit = |place: usize| char::from(digits[place]).to_digit(16);
        let byte = digit(0).zip(digit(1)).map(|(high, low)| high << 4 | low);
        bytes.push(byte.and_then(|byte| u8::try_from(byte).ok()).ok_or_else(wrong)?);
        rest = tail;
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_encoding_is_undone() {
        assert_eq!(percent_decoded("jane%40a.b%2F%C3%A9+x/y").unwrap(), "jane@a.b/é+x/y");
        for wrong in ["%", "%4", "%zz", "%+1", "a%ff"] {
            assert!(percent_decoded(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_the_known_parameter_is_taken() {
        assert_eq!(parameter(Some("limit=5"), "limit").unwrap().as_deref(), Some("5"));
        assert_eq!(parameter(None, "limit").unwrap(), None);
        assert!(parameter(Some("limits=5"), "limit").is_err());
        assert!(parameter(Some("limit"), "limit").is_err());
    }

    #[test]
    fn the_paths_of_its_own_are_few() {
        for path in ["/profiles", "/profiles/", "/profiles/a/b", "/requests", "/faults"] {
            assert!(owns(path), "{path}");
        }
        for path in ["/", "/profile", "/requests/1", "/restapi/api/sync/campaigns/triggerbyjson"] {
            assert!(!owns(path), "{path}");
        }
    }
}
