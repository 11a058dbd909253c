//! The format of a record on disk in the embedded store. Each event writes its person's record twice, so the
//! format is short and fast. An event is stored once, whatever it chose, and a value that a request carried
//! is stored as a reference if it is still the newest.

use super::value::{Chosen, Named};
use super::{Doubt, Mark, Newest, Owed, Record, Said, Values, Version};
use crate::mapping::{Choice, Names, Slot};
use jiff::Timestamp;
use litemap::LiteMap;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The first byte of every record. Another layout gets another number.
const LAYOUT: u8 = 4;

/// The initial capacity for a record, in bytes.
const USUAL_BYTES: usize = 512;

/// Seconds since 1970, and nanoseconds.
type Instant = (i64, i32);

/// An event, by its time and id.
type PackedEvent<'r> = (Option<Instant>, Option<&'r str>);

/// An index into the origins.
type EventIndex = usize;

#[derive(Serialize, Deserialize)]
struct PackedRecord<'r> {
    #[serde(borrow)]
    origins: Vec<PackedEvent<'r>>,
    values: Vec<(&'r str, PackedValue<'r>)>,
    doubts: Vec<PackedRequest<'r>>,
    owed: Option<Late<'r>>,
    newest_events: Vec<(u64, EventIndex)>,
    mark: Option<Erased<'r>>,
    merged: Option<Instant>,
}

#[derive(Serialize, Deserialize)]
struct PackedValue<'r> {
    #[serde(borrow)]
    said: What<'r>,
    is_refused: bool,
    accepted: Option<Instant>,
    before: Option<What<'r>>,
    unanswered: Option<EventIndex>,
}

#[derive(Serialize, Deserialize)]
enum What<'r> {
    Switch(bool, EventIndex),
    Text(&'r str, EventIndex),
    /// Whether its ids are refusals, the rest, and each id.
    Selection(bool, EventIndex, #[serde(borrow)] Vec<(&'r str, bool, EventIndex)>),
}

#[derive(Serialize, Deserialize)]
struct PackedRequest<'r> {
    id: u64,
    at: Instant,
    #[serde(borrow)]
    sent: Vec<Sent<'r>>,
    is_parked: bool,
}

#[derive(Serialize, Deserialize)]
struct Late<'r> {
    at: Instant,
    #[serde(borrow)]
    sent: Vec<Sent<'r>>,
}

#[derive(Serialize, Deserialize)]
enum Sent<'r> {
    /// An index into the values.
    Newest(usize),
    Other(&'r str, #[serde(borrow)] What<'r>),
}

#[derive(Serialize, Deserialize)]
struct Erased<'r> {
    at: Instant,
    #[serde(borrow)]
    granted: Vec<(&'r str, EventIndex)>,
    messages: Vec<(u64, Instant)>,
}

/// The bytes are not a record. The error quotes nothing of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

/// Encodes a record.
///
/// # Errors
/// It cannot be encoded; no such record is known.
pub fn pack(record: &Record) -> Result<Vec<u8>, Damaged> {
    let mut origins = Origins::default();
    let mut values = Vec::with_capacity(record.values.len());
    for (slot, Newest { said, is_refused, accepted, before, unanswered }) in &record.values {
        let (said, before) = (what(said, &mut origins), before.as_ref().map(|before| what(before, &mut origins)));
        let (is_refused, accepted) = (*is_refused, accepted.map(instant));
        let unanswered = unanswered.as_deref().map(|version| origins.which(version));
        values.push((slot.as_text(), PackedValue { said, is_refused, accepted, before, unanswered }));
    }
    let mut doubts = Vec::with_capacity(record.doubts.len());
    for (id, Doubt { at, carried: sent, is_parked }) in &record.doubts {
        let sent = carried(sent, record, &mut origins);
        doubts.push(PackedRequest { id: *id, at: instant(*at), sent, is_parked: *is_parked });
    }
    let owed = record.owed.as_ref();
    let owed =
        owed.map(|Owed { at, carried: sent }| Late { at: instant(*at), sent: carried(sent, record, &mut origins) });
    let newest_events = record.newest_events.iter().map(|(set, version)| (*set, origins.which(version))).collect();
    let mark = record.mark.as_ref().map(|Mark { at, granted, messages }| Erased {
        at: instant(*at),
        granted: granted.iter().map(|(property, version)| (&**property, origins.which(version))).collect(),
        messages: messages.iter().map(|(message, at)| (*message, instant(*at))).collect(),
    });
    let merged = record.merged.map(instant);
    let packed = PackedRecord { origins: origins.0, values, doubts, owed, newest_events, mark, merged };
    postcard::to_extend(&(LAYOUT, packed), Vec::with_capacity(USUAL_BYTES)).map_err(|_| Damaged)
}

/// Decodes a record.
///
/// # Errors
/// The bytes are not a record of this layout.
pub fn unpack(bytes: &[u8]) -> Result<Record, Damaged> {
    let packed = bytes.strip_prefix(&[LAYOUT]).ok_or(Damaged)?;
    let (packed, []) = postcard::take_from_bytes::<PackedRecord<'_>>(packed).map_err(|_| Damaged)? else {
        return Err(Damaged);
    };
    let mut versions = Versions(Vec::with_capacity(packed.origins.len()));
    for (at, event) in packed.origins {
        versions.0.push(Version { at: known(at)?, event: event.map(Arc::from) });
    }
    let mut values = LiteMap::with_capacity(packed.values.len());
    for (slot, PackedValue { said, is_refused, accepted, before, unanswered }) in packed.values {
        let (said, accepted) = (Arc::new(versions.said(said)?), known(accepted)?);
        let before = before.map(|before| versions.said(before)).transpose()?.map(Arc::new);
        let unanswered = unanswered.map(|which| versions.get(which)).transpose()?.map(Box::new);
        values.insert(Slot::from_text(slot), Newest { said, is_refused, accepted, before, unanswered });
    }
    let mut doubts = LiteMap::with_capacity(packed.doubts.len());
    for PackedRequest { id, at, sent, is_parked } in packed.doubts {
        doubts.insert(id, Doubt { at: timestamp(at)?, carried: versions.carried(sent, &values)?, is_parked });
    }
    let owed =
        packed.owed.map(|Late { at, sent }| Ok(Owed { at: timestamp(at)?, carried: versions.carried(sent, &values)? }));
    let owed = owed.transpose()?;
    let newest_events = packed.newest_events.into_iter().map(|(set, which)| Ok((set, versions.get(which)?)));
    let newest_events = newest_events.collect::<Result<LiteMap<u64, Version>, Damaged>>()?;
    let mark = packed.mark.map(|mark| versions.mark(mark)).transpose()?;
    Ok(Record { values, newest_events, mark, doubts, owed, merged: known(packed.merged)? })
}

/// The events that a record refers to, each once.
#[derive(Default)]
struct Origins<'r>(Vec<PackedEvent<'r>>);

impl<'r> Origins<'r> {
    fn which(&mut self, version: &'r Version) -> EventIndex {
        let own = (version.at.map(instant), version.event.as_deref());
        self.0.iter().position(|known| *known == own).unwrap_or_else(|| {
            self.0.push(own);
            self.0.len() - 1
        })
    }
}

/// The values that a request carried.
fn carried<'r>(sent: &'r Values, record: &'r Record, origins: &mut Origins<'r>) -> Vec<Sent<'r>> {
    let sent = sent.iter().map(|(slot, carried)| {
        let is_it = |(known, newest): (&Slot, &Newest)| known == slot && newest.said == *carried;
        let known = record.values.iter().position(is_it);
        known.map_or_else(|| Sent::Other(slot.as_text(), what(carried, origins)), Sent::Newest)
    });
    sent.collect()
}

fn what<'r>(said: &'r Said, origins: &mut Origins<'r>) -> What<'r> {
    match said {
        Said::One(Choice::Switch(on), version) => What::Switch(*on, origins.which(version)),
        Said::One(Choice::Text(text), version) => What::Text(text, origins.which(version)),
        // Selections are never recorded as a whole.
        Said::One(Choice::Selection(_), version) => What::Text("", origins.which(version)),
        Said::Selection(Chosen { names, rest, ids }) => {
            let rest = origins.which(rest);
            let ids = ids.iter().map(|(id, named)| (&**id, named.is_named, origins.which(&named.version))).collect();
            What::Selection(*names == Names::Refusals, rest, ids)
        }
    }
}

/// The same events, decoded.
struct Versions(Vec<Version>);

impl Versions {
    fn get(&self, which: EventIndex) -> Result<Version, Damaged> {
        self.0.get(which).cloned().ok_or(Damaged)
    }

    fn said(&self, what: What<'_>) -> Result<Said, Damaged> {
        Ok(match what {
            What::Switch(on, which) => Said::One(Choice::Switch(on), self.get(which)?),
            What::Text(text, which) => Said::One(Choice::Text(text.into()), self.get(which)?),
            What::Selection(is_of_refusals, rest, named) => {
                let mut ids = LiteMap::with_capacity(named.len());
                for (id, is_named, which) in named {
                    ids.insert(Arc::from(id), Named { is_named, version: self.get(which)? });
                }
                let rest = self.get(rest)?;
                Said::Selection(Chosen {
                    names: if is_of_refusals { Names::Refusals } else { Names::Grants },
                    rest,
                    ids,
                })
            }
        })
    }

    fn carried(&self, sent: Vec<Sent<'_>>, values: &LiteMap<Slot, Newest>) -> Result<Values, Damaged> {
        let mut carried = Values::with_capacity(sent.len());
        for sent in sent {
            let (slot, said) = match sent {
                Sent::Newest(index) => {
                    let (slot, newest) = values.get_indexed(index).ok_or(Damaged)?;
                    (slot.clone(), Arc::clone(&newest.said))
                }
                Sent::Other(slot, said) => (Slot::from_text(slot), Arc::new(self.said(said)?)),
            };
            carried.insert(slot, said);
        }
        Ok(carried)
    }

    fn mark(&self, Erased { at, granted, messages }: Erased<'_>) -> Result<Mark, Damaged> {
        let granted = granted.into_iter().map(|(property, which)| Ok((Arc::from(property), self.get(which)?)));
        let messages = messages.into_iter().map(|(message, at)| Ok((message, timestamp(at)?)));
        Ok(Mark {
            at: timestamp(at)?,
            granted: granted.collect::<Result<LiteMap<Arc<str>, Version>, Damaged>>()?,
            messages: messages.collect::<Result<Vec<(u64, Timestamp)>, Damaged>>()?,
        })
    }
}

fn instant(at: Timestamp) -> Instant {
    (at.as_second(), at.subsec_nanosecond())
}

fn known(at: Option<Instant>) -> Result<Option<Timestamp>, Damaged> {
    at.map(timestamp).transpose()
}

fn timestamp((seconds, nanoseconds): Instant) -> Result<Timestamp, Damaged> {
    Timestamp::new(seconds, nanoseconds).map_err(|_| Damaged)
}
