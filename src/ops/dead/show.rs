//! `dead show`: shows one letter in full.

use super::asking::Asking;
use super::filter::LetterFilter;
use super::letter::Letter;
use super::preview::Preview;
use super::{CommandContext, LockedLetters, size, when};
use crate::broker::headers::{self, Moved};
use crate::cli::{LetterSelection, ShowArgs};
use crate::observe::audit::AuditedAction;
use crate::ops::{Failure, print, table, usage};
use crate::plan::{EventSummary, Plan};
use crate::verdict::Processed;
use jiff::Timestamp;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Shown instead of a value that may be personal.
const HIDDEN: &str = "(hidden)";
/// Shown instead of a body that is neither text nor compressed text.
const BINARY: &str = "(not UTF-8; export has it)";

/// Shows the letters with this id. Usually it is one; a redelivered event can have died more than once.
///
/// # Errors
/// Problems of configuration or usage (exit code 2); there is no such letter, or the broker refuses or is gone (1).
pub async fn show(args: &ShowArgs, context: &CommandContext<'_>) -> Result<(), Failure> {
    let now = Timestamp::now();
    let by_event = LetterSelection { event_id: vec![args.id.clone()], ..LetterSelection::default() };
    let by_event = LetterFilter::new(&by_event, now).map_err(usage)?;
    let session = LockedLetters::open(&args.integration, args.pile.pile(), context).await?;
    let asking = Asking::new(&session.settings, &session.integration);
    asking.records().await;
    let id = args.id.to_lowercase();
    let (mut shown, mut ids) = (Vec::new(), BTreeSet::new());
    let all = session
        .browse(async |letter| {
            if letter.id() == id || by_event.matches(&letter) {
                let (planned, preview) = asking.preview(&letter, now).await?;
                let whole =
                    WholeLetter { letter: &letter, session: &session, planned, preview, reveal: args.reveal, now };
                ids.insert(letter.id());
                shown.push(if context.as_json { format!("{}\n", whole.json()) } else { whole.text() });
            }
            Ok(false)
        })
        .await?;
    if args.reveal && !shown.is_empty() {
        session.audit(AuditedAction::DeadShow, args.pile.pile(), &by_event, Some(shown.len() as u64)).await;
    }
    session.letters.close().await;
    if shown.is_empty() {
        return Err(Failure::Failed(absent(&args.id, all)));
    }
    if let Some(hint) = several(shown.len(), ids.len()) {
        super::talk(&hint);
    }
    print(&shown.join(if context.as_json { "" } else { "\n" }))
}

/// What to say if no letter has this id.
fn absent(id: &str, all: u32) -> String {
    let name = "name it by its event's id, or by the 12 digits that dead list shows";
    match all {
        0 => format!("no letter \"{id}\": the queue is empty"),
        all => format!("no letter \"{id}\" among {all}; {name}"),
    }
}

/// What to say if several letters have this id, so that they can be told apart.
fn several(letters: usize, ids: usize) -> Option<String> {
    let apart = match ids {
        1 => {
            "their bodies are the same, so they also share the letter's id; what differs is when they died, and headers"
        }
        _ => {
            "their bodies differ, and so do the letters' ids: dead show with one of those ids shows the letters with that body"
        }
    };
    (letters > 1).then(|| format!("{letters} letters fit this id: {apart}"))
}

/// Everything about one letter.
struct WholeLetter<'l, 'd> {
    letter: &'l Letter<'d>,
    session: &'l LockedLetters,
    planned: Result<Plan, Processed>,
    preview: Preview,
    reveal: bool,
    now: Timestamp,
}

impl WholeLetter<'_, '_> {
    /// The headers other than the broker's. A header's name can be personal, too.
    fn headers(&self) -> Vec<(String, String)> {
        let headers = self.letter.properties.headers().iter().flat_map(FieldTable::inner);
        // The history has a table of its own.
        let told =
            headers.filter(|(name, _)| !headers::is_brokers(name.as_str()) && name.as_str() != "consent-gate-history");
        let told = told.map(|(name, value)| {
            let is_known_reason = name.as_str() == "consent-gate-reason" && self.letter.reason.is_some();
            if self.reveal || headers::is_impersonal(name.as_str(), value) || is_known_reason {
                (name.to_string(), header_text(value))
            } else if headers::is_own(name.as_str()) {
                (name.to_string(), HIDDEN.to_owned())
            } else {
                (HIDDEN.to_owned(), HIDDEN.to_owned())
            }
        });
        told.collect()
    }

    /// The answer to the last attempt, if it was text.
    fn last_answer(&self) -> Option<&str> {
        let said = self.letter.history.last_answer.as_deref()?;
        Some(if self.reveal { said } else { HIDDEN })
    }

    /// What the mapping makes of it, property by property.
    fn properties(&self) -> Vec<(String, String)> {
        let Some(event) = self.letter.event() else { return Vec::new() };
        let properties = self.session.integration.mappings.properties(event, true).unwrap_or_default();
        let told = properties.into_iter().map(|property| {
            let value = match &property.text {
                Ok(text) if self.reveal => text.to_string(),
                Ok(_) => HIDDEN.to_owned(),
                Err(why) => format!("left out: {}", why.explain()),
            };
            (property.id.to_string(), value)
        });
        told.collect()
    }

    fn body(&self) -> String {
        let text = if self.reveal { self.letter.whole().text() } else { Some(HIDDEN.to_owned()) };
        text.unwrap_or_else(|| BINARY.to_owned())
    }

    /// Why nothing would be sent, as far as that names only fields and types.
    fn detail(&self) -> Option<String> {
        self.planned.as_ref().err().and_then(Processed::error)
    }

    fn json(&self) -> Value {
        let WholeLetter { letter, .. } = self;
        let summary = letter.event().map(EventSummary::of).unwrap_or_default();
        let attempts: Vec<Value> = letter.history.entries.iter().map(|attempt| {
            json!({ "at": attempt.at, "result": attempt.result.label(), "status": attempt.status, "ms": attempt.ms })
        }).collect();
        let headers: Value = self.headers().into_iter().map(|(name, value)| (name, json!(value))).collect();
        let properties: Value = self.properties().into_iter().map(|(name, value)| (name, json!(value))).collect();
        json!({
            "letter": letter.id(), "reason": letter.reason.map(crate::verdict::DeadReason::code), "died_at": letter.died,
            "bytes": letter.body.len(), "type": summary.kind, "event_id": summary.id, "changed_at": summary.changed_at,
            "returns": headers::returns(letter.properties),
            "moved": headers::moved(letter.properties).map(|Moved { reason, queue }| json!({ "reason": reason, "from": queue })),
            "attempts": letter.history.attempts, "last_error": letter.history.last_error,
            "last_answer": self.last_answer(), "history": attempts,
            "headers": headers, "properties": properties,
            "today": { "outlook": self.preview.word(), "code": self.preview.code(), "detail": self.detail() },
            "body": self.reveal.then(|| self.body()),
        })
    }

    fn text(&self) -> String {
        let WholeLetter { letter, now, .. } = self;
        let time = |at: Option<Timestamp>| at.map_or_else(|| "unknown".to_owned(), |at| when(at, *now));
        let summary = letter.event().map(EventSummary::of).unwrap_or_default();
        let detail = self.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
        let mut rows = vec![
            row("letter", &format!("{}, {}", letter.id(), size(letter.body.len() as u64))),
            row("reason", letter.reason_code()),
            row("died", &time(letter.died)),
            row(
                "event",
                &format!(
                    "{} {}",
                    summary.kind.unwrap_or("(cannot be read)"),
                    summary.id.as_deref().unwrap_or("(no id)")
                ),
            ),
            row("changed", &time(summary.changed_at)),
            row("attempts", &letter.history.attempts.to_string()),
            row("last error", letter.history.last_error.as_deref().unwrap_or("none")),
            row("last answer", self.last_answer().unwrap_or("none")),
            row("today", &format!("{}{detail}", self.preview)),
        ];
        rows.extend(headers::moved(letter.properties).map(|moved| row("moved", &format!("by the broker: {moved}"))));
        rows.extend(self.headers().into_iter().map(|(name, value)| row("header", &format!("{name}: {value}"))));
        rows.extend(self.properties().into_iter().map(|(name, value)| row("property", &format!("{name}: {value}"))));
        rows.push(row("body", &self.body()));
        table(&rows) + &self.history()
    }

    fn history(&self) -> String {
        let entries = &self.letter.history.entries;
        if entries.is_empty() {
            return String::new();
        }
        let head = ["attempt", "result", "status", "took"].map(str::to_owned).to_vec();
        let rows = entries.iter().map(|attempt| {
            let status = attempt.status.map_or_else(|| "-".to_owned(), |status| status.to_string());
            vec![when(attempt.at, self.now), attempt.result.label().to_owned(), status, format!("{} ms", attempt.ms)]
        });
        format!("\n{}", table(&[head].into_iter().chain(rows).collect::<Vec<_>>()))
    }
}

fn row(name: &str, value: &str) -> Vec<String> {
    vec![name.to_owned(), value.to_owned()]
}

/// A header's value for people.
fn header_text(value: &AMQPValue) -> String {
    match value {
        AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
        AMQPValue::ShortString(text) => text.to_string(),
        AMQPValue::LongLongInt(number) => number.to_string(),
        other => super::value::encode(other).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_queue_is_said_to_be_empty() {
        assert_eq!(absent("zzz", 0), "no letter \"zzz\": the queue is empty");
        assert!(absent("zzz", 3).starts_with("no letter \"zzz\" among 3; name it by"));
        assert_eq!(several(1, 1), None);
        assert_ne!(several(2, 1), several(2, 2));
    }
}
