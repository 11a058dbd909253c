//! `dead list`: counts first, then a row for each letter, oldest first.
//!
//! Only a small summary of each letter is kept, so a million of them list in bounded memory.

use super::filter::Filter;
use super::letter::Letter;
use super::{Place, Session, letters, size, talk, when};
use crate::broker::headers::{self, Moved};
use crate::cli::ListArgs;
use crate::event::TYPES;
use crate::ops::{Failure, log_access, print, usage};
use crate::plan::Brief;
use crate::shown;
use crate::verdict::Death;
use jiff::Timestamp;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

/// So many returns of a letter deserve a word.
const MANY_RETURNS: i64 = 10;
/// Rows that are written at once.
const BATCH: usize = 1_000;
const HEAD: &str = "died                                  letter        reason                     status  attempts  size      type           event";

/// Lists letters.
///
/// # Errors
/// Problems of configuration or usage (exit code 2); the broker refuses or is gone (1).
pub async fn list(args: &ListArgs, place: &Place<'_>) -> Result<(), Failure> {
    let now = Timestamp::now();
    let filter = Filter::new(&args.selection, now).map_err(usage)?;
    let session = Session::open(&args.integration, args.pile.pile(), place).await?;
    let mut found = Found::default();
    let all = session
        .browse(async |letter| {
            found.most_returns = found.most_returns.max(headers::returns(letter.properties));
            if filter.matches(&letter) {
                found.add(&letter, !args.group, args.reveal);
            }
            Ok(false)
        })
        .await?;
    session.letters.close().await;
    if let Some(hint) = hint(found.most_returns) {
        talk(&hint);
    }
    if args.reveal && !args.group {
        let persons = found.rows.iter().filter(|row| row.person.is_some()).count();
        log_access(&session.settings, "dead list --reveal", &session.integration.name, persons as u64);
    }
    found.rows.sort_by_key(|row| row.died_ms);
    found.rows.truncate(filter.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)));
    found.print(all, now, place.as_json)
}

/// What to say of letters that were returned often. Nobody but the broker knows policies, so it can
/// only be said what the count may mean.
fn hint(most_returns: i64) -> Option<String> {
    let meaning = "each look of a command adds one, and so does whoever else returns it. These queues allow a thousand \
        million, but a policy with a lower delivery-limit may be at work: at its limit a letter goes from .dead to \
        .aside (dead list --aside), and from there it is deleted. AMQP does not show policies; look at \
        rabbitmqctl list_policies";
    (most_returns >= MANY_RETURNS).then(|| format!("a letter was returned {most_returns} times: {meaning}"))
}

/// What is kept of the letters that match.
#[derive(Default)]
struct Found {
    reasons: BTreeMap<&'static str, u32>,
    /// How many letters the broker moved here, by why and from where.
    moved: Vec<(Moved, u32)>,
    matching: u32,
    rows: Vec<Row>,
    /// Of all letters, whether they match or not.
    most_returns: i64,
}

/// One letter, small.
struct Row {
    /// The lowest where nobody knows.
    died_ms: i64,
    /// 12 hex digits.
    id: u64,
    /// A UUID.
    event: Option<[u8; 16]>,
    person: Option<Arc<str>>,
    size: u32,
    attempts: u32,
    status: Option<u16>,
    reason: Option<Death>,
    /// An index into [`TYPES`]; one more is a type that Didomi does not document.
    kind: Option<u8>,
    /// Why and from where the broker moved it: an index into [`Found::moved`].
    moved: Option<u8>,
}

impl Found {
    fn add(&mut self, letter: &Letter<'_>, is_row: bool, reveal: bool) {
        self.matching += 1;
        *self.reasons.entry(letter.reason_code()).or_default() += 1;
        let moved = headers::moved(letter.properties).and_then(|moved| self.count(moved));
        if is_row {
            self.rows.push(Row { moved, ..Row::of(letter, reveal) });
        }
    }

    /// Counts one that was moved, and says where in the list of those; there are few, unless somebody
    /// forges them.
    fn count(&mut self, moved: Moved) -> Option<u8> {
        let known = self.moved.iter().position(|(known, _)| *known == moved);
        let index = known.unwrap_or(self.moved.len());
        let short = u8::try_from(index).ok()?;
        if known.is_none() {
            self.moved.push((moved, 0));
        }
        if let Some((_, count)) = self.moved.get_mut(index) {
            *count += 1;
        }
        Some(short)
    }

    fn moved(&self, row: &Row) -> Option<&Moved> {
        Some(&self.moved.get(usize::from(row.moved?))?.0)
    }

    fn print(&self, all: u32, now: Timestamp, as_json: bool) -> Result<(), Failure> {
        if as_json {
            let mut counts = json!({ "letters": all, "matching": self.matching, "reasons": self.reasons });
            if !self.moved.is_empty() {
                let moved = |(moved, count): &(Moved, u32)| json!({ "reason": moved.reason, "from": moved.queue, "letters": count });
                counts["moved"] = self.moved.iter().map(moved).collect();
            }
            print(&format!("{counts}\n"))?;
        } else {
            print(&self.counts(all))?;
        }
        for batch in self.rows.chunks(BATCH) {
            let line = |row: &Row| {
                let moved = self.moved(row);
                if as_json { row.json(moved) } else { row.text(moved, now) }
            };
            print(&batch.iter().map(line).collect::<String>())?;
        }
        Ok(())
    }

    fn counts(&self, all: u32) -> String {
        if all == 0 {
            return "no dead letters\n".to_owned();
        }
        if self.matching == 0 {
            return format!("{}, none of which matches\n", letters(all));
        }
        let mut text = format!("{}, {} of which match\n", letters(all), self.matching);
        for (reason, count) in &self.reasons {
            text.push_str(&format!("{count:>9}  {reason}\n"));
        }
        for (moved, count) in &self.moved {
            text.push_str(&format!("{count:>9}  moved by the broker: {moved}\n"));
        }
        if !self.rows.is_empty() {
            text.push_str(&format!("\n{HEAD}\n"));
        }
        text
    }
}

impl Row {
    fn of(letter: &Letter<'_>, reveal: bool) -> Row {
        let brief = letter.event().map(Brief::of);
        let index = |name: &str| TYPES.iter().position(|kind| *kind == name).unwrap_or(TYPES.len());
        let kind = brief.as_ref().and_then(|brief| brief.kind).map(index);
        Row {
            died_ms: letter.died.map_or(i64::MIN, Timestamp::as_millisecond),
            id: u64::from_str_radix(&letter.id(), 16).unwrap_or_default(),
            event: brief.and_then(|brief| uuid(&brief.id?)),
            person: if reveal { letter.identifier() } else { None },
            size: u32::try_from(letter.body.len()).unwrap_or(u32::MAX),
            attempts: letter.history.attempts,
            status: letter.status(),
            reason: letter.reason,
            kind: kind.and_then(|kind| u8::try_from(kind).ok()),
            moved: None,
        }
    }

    fn died(&self) -> Option<Timestamp> {
        Timestamp::from_millisecond(self.died_ms).ok().filter(|_| self.died_ms != i64::MIN)
    }

    fn kind(&self) -> Option<&'static str> {
        self.kind.map(|kind| TYPES.get(usize::from(kind)).copied().unwrap_or("other"))
    }

    fn event(&self) -> Option<String> {
        let digits = format!("{:032x}", u128::from_be_bytes(self.event?));
        let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| digits.get(part).unwrap_or_default());
        Some(parts.join("-"))
    }

    fn json(&self, moved: Option<&Moved>) -> String {
        let mut line = json!({
            "letter": format!("{:012x}", self.id),
            "died_at": self.died(),
            "reason": self.reason.map(Death::code),
            "status": self.status,
            "attempts": self.attempts,
            "bytes": self.size,
            "type": self.kind(),
            "event_id": self.event(),
        });
        if let Some(person) = &self.person {
            line["identifier"] = json!(person);
        }
        if let Some(Moved { reason, queue }) = moved {
            line["moved"] = json!({ "reason": reason, "from": queue });
        }
        format!("{line}\n")
    }

    fn text(&self, moved: Option<&Moved>, now: Timestamp) -> String {
        let died = self.died().map_or_else(|| "unknown".to_owned(), |at| when(at, now));
        let line = format!(
            "{died:36}  {:012x}  {:25}  {:6}  {:8}  {:8}  {:13}  {}  {}  {}",
            self.id,
            self.reason.map_or("none", Death::code),
            self.status.map_or_else(|| "-".to_owned(), |status| status.to_string()),
            self.attempts,
            size(self.size.into()),
            self.kind().unwrap_or("unreadable"),
            self.event().unwrap_or_else(|| "-".to_owned()),
            shown::value(self.person.as_deref().unwrap_or_default()),
            shown::value(moved.map(|moved| moved.reason.as_str()).unwrap_or_default()),
        );
        format!("{}\n", line.trim_end())
    }
}

/// The bytes of a UUID.
fn uuid(text: &str) -> Option<[u8; 16]> {
    u128::from_str_radix(&text.replace('-', ""), 16).ok().map(u128::to_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_moved_is_counted_by_reason_and_queue_however_many_there_are() {
        let mut found = Found::default();
        let moved = |n: usize| Moved { reason: "expired".to_owned(), queue: n.to_string() };
        assert_eq!([found.count(moved(1)), found.count(moved(2)), found.count(moved(1))], [Some(0), Some(1), Some(0)]);
        assert_eq!(found.moved, [(moved(1), 2), (moved(2), 1)]);
        assert_eq!((3..1_000).filter_map(|n| found.count(moved(n))).max(), Some(255));
        assert_eq!(found.moved.len(), 256);
    }

    #[test]
    fn many_returns_are_told_and_few_are_not() {
        assert_eq!(hint(9), None);
        let told = hint(12).unwrap();
        assert!(told.starts_with("a letter was returned 12 times") && told.contains("list_policies"), "{told}");
    }

    #[test]
    fn a_row_is_small_and_keeps_its_ids() {
        assert!(size_of::<Row>() <= 72, "{}", size_of::<Row>());
        let row = Row {
            died_ms: i64::MIN,
            id: 0xabc,
            event: uuid("00000000-0000-4000-8000-00000000000A"),
            person: None,
            size: 1,
            attempts: 0,
            status: None,
            reason: None,
            kind: Some(6),
            moved: None,
        };
        let line: serde_json::Value = serde_json::from_str(&row.json(None)).unwrap();
        assert_eq!(line["letter"], "000000000abc");
        assert_eq!(line["event_id"], "00000000-0000-4000-8000-00000000000a");
        assert_eq!((&line["type"], &line["died_at"]), (&json!("other"), &json!(null)));
    }
}
