//! `dead list`: counts first, then a row for each letter, oldest first.
//!
//! Only a small summary of each letter is kept, so a million of them can be listed in bounded memory.

use super::filter::LetterFilter;
use super::letter::Letter;
use super::{CommandContext, LockedLetters, letters, size, talk, when};
use crate::broker::headers::{self, Moved};
use crate::cli::ListArgs;
use crate::event::TYPES;
use crate::observe::audit::AuditedAction;
use crate::ops::{Columns, Failure, print, terminal_width, usage};
use crate::plan::EventSummary;
use crate::text::shown;
use crate::verdict::DeadReason;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// From this many returns of a letter on, the operator gets a hint.
const MANY_RETURNS: i64 = 10;
/// How many rows are written at once.
const BATCH: usize = 1_000;
/// The columns. Two are shown only if one of their cells is filled: the person, if revealed, and why the broker
/// moved a letter.
const HEAD: [&str; 11] =
    ["died", "letter", "reason", "status", "attempts", "size", "type", "event", "person", "moved", "why"];
/// How far each may be shortened if the terminal is narrower than the table; what names a letter, an event or a
/// person never is.
const NARROWEST: [Option<usize>; 11] =
    [Some(17), None, Some(8), None, None, None, Some(8), None, None, Some(8), Some(12)];
/// The most different explanations that are kept; there are few, unless somebody forges them.
const MOST_WHYS: usize = 4_096;
/// Stands for every further explanation.
const UNKEPT: &str = "(see dead show)";

/// Lists letters.
///
/// # Errors
/// Problems of configuration or usage (exit code 2); the broker refuses or is gone (1).
pub async fn list(args: &ListArgs, context: &CommandContext<'_>) -> Result<(), Failure> {
    let now = Timestamp::now();
    let filter = LetterFilter::new(&args.selection, now).map_err(usage)?;
    let session = LockedLetters::open(&args.integration, args.pile.pile(), context).await?;
    let mut found = Matches::default();
    let all = session
        .browse(async |letter| {
            found.most_returns = found.most_returns.max(headers::returns(letter.properties));
            if filter.matches(&letter) {
                found.add(&letter, !args.group, args.reveal);
            }
            Ok(false)
        })
        .await?;
    if args.reveal && !args.group {
        let persons = found.rows.iter().filter(|row| row.person.is_some()).count();
        session.audit(AuditedAction::DeadList, args.pile.pile(), &filter, Some(persons as u64)).await;
    }
    session.letters.close().await;
    if let Some(hint) = hint(found.most_returns) {
        talk(&hint);
    }
    found.rows.sort_by_key(|row| row.died_ms);
    found.rows.truncate(filter.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)));
    found.print(all, now, context.as_json)
}

/// What to say about letters that were returned often. Only the broker knows its policies, so the hint can only
/// say what the count may mean.
fn hint(most_returns: i64) -> Option<String> {
    let meaning = "each read by a command adds one, and so does any other client that returns it. These queues allow a thousand \
        million, but a policy with a lower delivery-limit may be at work: at its limit a letter goes from .dead to \
        .aside (dead list --aside), and from there it is deleted. AMQP does not show policies; check \
        rabbitmqctl list_policies";
    (most_returns >= MANY_RETURNS).then(|| format!("a letter was returned {most_returns} times: {meaning}"))
}

/// What is kept of the letters that match.
#[derive(Default)]
struct Matches {
    reasons: BTreeMap<&'static str, u32>,
    /// How many letters the broker moved here, by reason and former queue.
    moved: Vec<(Moved, u32)>,
    matching: u32,
    rows: Vec<LetterRow>,
    whys: Whys,
    /// Of all letters, whether they match or not.
    most_returns: i64,
}

/// The summary of one letter, kept small.
struct LetterRow {
    /// [`i64::MIN`] if nobody knows.
    died_ms: i64,
    /// 12 hex digits.
    id: u64,
    /// A UUID.
    event: Option<[u8; 16]>,
    person: Option<Arc<str>>,
    size: u32,
    attempts: u32,
    status: Option<u16>,
    reason: Option<DeadReason>,
    /// An index into [`TYPES`]; the one after the last stands for a type that Didomi does not document.
    kind: Option<u8>,
    /// Why and from where the broker moved it: an index into [`Matches::moved`].
    moved: Option<u8>,
    /// What its last error says: an index into [`Whys`].
    why: Option<u16>,
}

/// The explanations in the letters of why they died. Each text is kept once, with the number of its letters.
#[derive(Default)]
struct Whys {
    list: Vec<Why>,
    index: HashMap<(&'static str, Arc<str>), u16>,
}

struct Why {
    reason: &'static str,
    text: Arc<str>,
    letters: u32,
}

impl Whys {
    /// Counts a letter with this explanation, and returns the explanation's index in the list.
    fn count(&mut self, reason: &'static str, text: &str) -> u16 {
        let text: Arc<str> = if self.list.len() < MOST_WHYS { text.into() } else { self.known(reason, text) };
        let next = u16::try_from(self.list.len()).unwrap_or(u16::MAX);
        let index = *self.index.entry((reason, Arc::clone(&text))).or_insert(next);
        if index == next {
            self.list.push(Why { reason, text, letters: 0 });
        }
        if let Some(why) = self.list.get_mut(usize::from(index)) {
            why.letters += 1;
        }
        index
    }

    /// The text itself if it is kept already, else [`UNKEPT`].
    fn known(&self, reason: &'static str, text: &str) -> Arc<str> {
        let text: Arc<str> = text.into();
        if self.index.contains_key(&(reason, Arc::clone(&text))) { text } else { UNKEPT.into() }
    }

    fn of(&self, row: &LetterRow) -> Option<&str> {
        Some(&self.list.get(usize::from(row.why?))?.text)
    }

    /// The explanations of a reason, the most frequent first.
    fn under(&self, reason: &str) -> Vec<&Why> {
        let mut whys: Vec<&Why> = self.list.iter().filter(|why| why.reason == reason).collect();
        whys.sort_by_key(|why| std::cmp::Reverse(why.letters));
        whys
    }
}

impl Matches {
    fn add(&mut self, letter: &Letter<'_>, is_row: bool, reveal: bool) {
        self.matching += 1;
        *self.reasons.entry(letter.reason_code()).or_default() += 1;
        let moved = headers::moved(letter.properties).and_then(|moved| self.count(moved));
        let why = letter.history.last_error.as_deref().map(|text| self.whys.count(letter.reason_code(), text));
        if is_row {
            self.rows.push(LetterRow { moved, why, ..LetterRow::of(letter, reveal) });
        }
    }

    /// Counts a letter that the broker moved, and returns the move's index in the list; there are few different
    /// moves, unless somebody forges them.
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

    fn moved(&self, row: &LetterRow) -> Option<&Moved> {
        Some(&self.moved.get(usize::from(row.moved?))?.0)
    }

    fn print(&self, all: u32, now: Timestamp, as_json: bool) -> Result<(), Failure> {
        print(&if as_json { format!("{}\n", self.counts_json(all)) } else { self.counts(all) })?;
        let columns = if as_json { Columns::default() } else { self.columns(now) };
        if !as_json && !self.rows.is_empty() {
            print(&format!("\n{}", columns.head()))?;
        }
        for batch in self.rows.chunks(BATCH) {
            let line = |row: &LetterRow| {
                let (moved, why) = (self.moved(row), self.whys.of(row));
                if as_json { row.json(moved, why) } else { columns.line(&row.cells(moved, why, now)) }
            };
            print(&batch.iter().map(line).collect::<String>())?;
        }
        Ok(())
    }

    /// As wide as the rows need and the terminal allows, with a head if there are rows.
    fn columns(&self, now: Timestamp) -> Columns {
        let mut columns = Columns::default();
        for row in &self.rows {
            columns.widen(&row.cells(self.moved(row), self.whys.of(row), now));
        }
        let mut columns = columns.headed(&HEAD);
        if let Some(room) = terminal_width() {
            columns.fit(room, &NARROWEST);
        }
        columns
    }

    fn counts_json(&self, all: u32) -> Value {
        let mut counts = json!({ "letters": all, "matching": self.matching, "reasons": self.reasons });
        if !self.moved.is_empty() {
            let moved = |(moved, count): &(Moved, u32)| json!({ "reason": moved.reason, "from": moved.queue, "letters": count });
            counts["moved"] = self.moved.iter().map(moved).collect();
        }
        counts
    }

    fn counts(&self, all: u32) -> String {
        if all == 0 {
            return "no dead letters\n".to_owned();
        }
        if self.matching == 0 {
            return format!("{}, none of which matches\n", letters(all));
        }
        let verb = if self.matching == 1 { "matches" } else { "match" };
        let mut text = format!("{}, {} of which {verb}\n", letters(all), self.matching);
        for (reason, count) in &self.reasons {
            text.push_str(&format!("{count:>9}  {reason}\n"));
            // Each row shows its own explanation.
            for why in self.whys.under(reason).iter().filter(|_| self.rows.is_empty()) {
                text.push_str(&format!("{:>18}  {}\n", why.letters, shown::value(&why.text)));
            }
        }
        for (moved, count) in &self.moved {
            text.push_str(&format!("{count:>9}  moved by the broker: {moved}\n"));
        }
        text
    }
}

impl LetterRow {
    fn of(letter: &Letter<'_>, reveal: bool) -> LetterRow {
        let summary = letter.event().map(EventSummary::of);
        let index = |name: &str| TYPES.iter().position(|kind| *kind == name).unwrap_or(TYPES.len());
        let kind = summary.as_ref().and_then(|summary| summary.kind).map(index);
        LetterRow {
            died_ms: letter.died.map_or(i64::MIN, Timestamp::as_millisecond),
            id: u64::from_str_radix(&letter.id(), 16).unwrap_or_default(),
            event: summary.and_then(|summary| uuid(&summary.id?)),
            person: if reveal { letter.identifier() } else { None },
            size: u32::try_from(letter.body.len()).unwrap_or(u32::MAX),
            attempts: letter.history.attempts,
            status: letter.status(),
            reason: letter.reason,
            kind: kind.and_then(|kind| u8::try_from(kind).ok()),
            moved: None,
            why: None,
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

    fn json(&self, moved: Option<&Moved>, why: Option<&str>) -> String {
        let mut line = json!({
            "letter": format!("{:012x}", self.id),
            "died_at": self.died(),
            "reason": self.reason.map(DeadReason::code),
            "status": self.status,
            "attempts": self.attempts,
            "bytes": self.size,
            "type": self.kind(),
            "event_id": self.event(),
            "why": why,
        });
        if let Some(person) = &self.person {
            line["identifier"] = json!(person);
        }
        if let Some(Moved { reason, queue }) = moved {
            line["moved"] = json!({ "reason": reason, "from": queue });
        }
        format!("{line}\n")
    }

    fn cells(&self, moved: Option<&Moved>, why: Option<&str>, now: Timestamp) -> [String; HEAD.len()] {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        [
            self.died().map_or_else(|| "unknown".to_owned(), |at| when(at, now)),
            format!("{:012x}", self.id),
            self.reason.map_or("none", DeadReason::code).to_owned(),
            or_dash(self.status.map(|status| status.to_string())),
            self.attempts.to_string(),
            size(self.size.into()),
            or_dash(self.kind().map(str::to_owned)),
            or_dash(self.event()),
            self.person.as_deref().unwrap_or_default().to_owned(),
            moved.map(|moved| moved.reason.clone()).unwrap_or_default(),
            why.unwrap_or("-").to_owned(),
        ]
        .map(|cell| shown::value(&cell).into_owned())
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
        let mut found = Matches::default();
        let moved = |n: usize| Moved { reason: "expired".to_owned(), queue: n.to_string() };
        assert_eq!([found.count(moved(1)), found.count(moved(2)), found.count(moved(1))], [Some(0), Some(1), Some(0)]);
        assert_eq!(found.moved, [(moved(1), 2), (moved(2), 1)]);
        assert_eq!((3..1_000).filter_map(|n| found.count(moved(n))).max(), Some(255));
        assert_eq!(found.moved.len(), 256);
    }

    #[test]
    fn explanations_are_kept_once_and_only_so_many() {
        let mut whys = Whys::default();
        assert_eq!([whys.count("refused", "a"), whys.count("refused", "b"), whys.count("refused", "a")], [0, 1, 0]);
        assert_eq!(whys.count("undecodable", "a"), 2);
        let told: Vec<(&str, u32)> = whys.under("refused").iter().map(|why| (&*why.text, why.letters)).collect();
        assert_eq!(told, [("a", 2), ("b", 1)]);
        let last = (0..10_000).map(|n| whys.count("refused", &n.to_string())).max();
        assert_eq!((last.map(usize::from), whys.list.len()), (Some(MOST_WHYS), MOST_WHYS + 1));
        assert_eq!((whys.count("refused", "a"), &*whys.list[MOST_WHYS].text), (0, UNKEPT));
    }

    #[test]
    fn many_returns_are_told_and_few_are_not() {
        assert_eq!(hint(9), None);
        let told = hint(12).unwrap();
        assert!(told.starts_with("a letter was returned 12 times") && told.contains("list_policies"), "{told}");
    }

    #[test]
    fn a_row_is_small_and_keeps_its_ids() {
        assert!(size_of::<LetterRow>() <= 72, "{}", size_of::<LetterRow>());
        let row = LetterRow {
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
            why: None,
        };
        let line: serde_json::Value = serde_json::from_str(&row.json(None, None)).unwrap();
        assert_eq!(line["letter"], "000000000abc");
        assert_eq!(line["event_id"], "00000000-0000-4000-8000-00000000000a");
        assert_eq!((&line["type"], &line["died_at"]), (&json!("other"), &json!(null)));
    }
}
