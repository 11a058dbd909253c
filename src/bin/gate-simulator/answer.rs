//! Answers: the vendor's envelope `{"IsSuccess", "Error", "Result"}`, and plain JSON beside it.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::outcome::Refusal;

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const SUCCESS: &[u8] = br#"{"IsSuccess":true,"Error":null,"Result":"triggered"}"#;

/// An answer that can be given more than once.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    /// The answer to an executed trigger.
    pub fn success() -> Self {
        Self::json(StatusCode::OK, Bytes::from_static(SUCCESS))
    }

    /// The answer to a refused request, with the status of its outcome.
    pub fn refusal(refusal: &Refusal) -> Self {
        let status = status(refusal.outcome.status());
        let answer = Self::envelope(status, false, Some(&refusal.error));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            return answer.with(ALLOW, HeaderValue::from_static("POST"));
        }
        answer
    }

    /// The answer of something that answers in the gate's place.
    pub fn stranger(who: &str) -> Result<Self, String> {
        let page = |status: u16, title: &str, text: &str| {
            let page = format!("<html><head><title>{title}</title></head><body>{text}</body></html>");
            Self::raw(self::status(status), page.into()).with(CONTENT_TYPE, HTML)
        };
        match who {
            "firewall" => Ok(page(200, "Request Rejected", "The requested URL was rejected.")),
            "challenge" => {
                let name = HeaderName::from_static("x-amzn-waf-action");
                Ok(Self::raw(StatusCode::ACCEPTED, Bytes::new()).with(name, HeaderValue::from_static("challenge")))
            }
            "login" => Ok(page(200, "Sign in", "<form method=post action=/login></form>")),
            "proxy" => Ok(page(413, "413 Request Entity Too Large", "<hr>nginx")),
            _ => Err(format!("in_place: `{who}` is none of firewall, challenge, login, proxy")),
        }
    }

    /// An envelope without a result.
    pub fn envelope(status: StatusCode, is_success: bool, error: Option<&str>) -> Self {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Envelope<'a> {
            is_success: bool,
            error: Option<&'a str>,
            result: (),
        }
        let envelope = Envelope { is_success, error, result: () };
        Self::of(status, &envelope)
    }

    /// A value of the simulator's own, as JSON.
    pub fn of(status: StatusCode, value: &impl Serialize) -> Self {
        // Serializing into memory cannot fail for the maps with text keys that come here.
        let body = serde_json::to_vec(value).unwrap_or_default();
        Self::json(status, body.into())
    }

    /// A body sent as it is, with no content type.
    pub fn raw(status: StatusCode, body: Bytes) -> Self {
        Self { status, headers: HeaderMap::new(), body }
    }

    fn json(status: StatusCode, body: Bytes) -> Self {
        let mut answer = Self::raw(status, body);
        answer.headers.insert(CONTENT_TYPE, JSON);
        answer
    }

    /// The same answer with one header set.
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    pub fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

/// A status by its number; a number that is not a status becomes 500.
fn status(number: u16) -> StatusCode {
    StatusCode::from_u16(number).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Outcome;
    use serde_json::{Value, json};

    fn body(answer: &Answer) -> Value {
        serde_json::from_slice(&answer.body).unwrap()
    }

    #[test]
    fn the_envelope_has_the_vendors_three_keys() {
        let success = json!({"IsSuccess": true, "Error": null, "Result": "triggered"});
        assert_eq!(body(&Answer::success()), success);
        let refusal = Answer::refusal(&Refusal::new(Outcome::UnknownGate, "no gate \"x\""));
        let expected = json!({"IsSuccess": false, "Error": "no gate \"x\"", "Result": null});
        assert_eq!(body(&refusal), expected);
        assert_eq!(refusal.status, StatusCode::NOT_FOUND);
    }
}
