//! A record as the embedded store has it on the disk: each event writes its person's twice, so it is
//! short and quickly made. An event is named once, whatever it chose, and what a request carried is
//! named by its property where that is still the newest.

use super::{Choice, Doubt, Newest, Record, Values};
use jiff::Timestamp;
use litemap::LiteMap;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What every record begins with. Another layout gets another number.
const LAYOUT: u8 = 1;

/// Room for so many bytes is made at once.
const USUAL_BYTES: usize = 256;

/// Seconds since 1970, and nanoseconds.
type Instant = (i64, i32);

/// An event, by its time and id.
type Origin<'r> = (Option<Instant>, Option<&'r str>);

#[derive(Serialize, Deserialize)]
struct Packed<'r> {
    #[serde(borrow)]
    origins: Vec<Origin<'r>>,
    values: Vec<(&'r str, Value<'r>)>,
    doubts: Vec<Request<'r>>,
    newest: Option<Instant>,
    newest_before_mapping: Option<Instant>,
    erased: Option<Instant>,
    merged: Option<Instant>,
}

#[derive(Serialize, Deserialize)]
struct Value<'r> {
    #[serde(borrow)]
    said: Said<'r>,
    /// Which of the origins.
    origin: usize,
    is_refused: bool,
    accepted: Option<Instant>,
}

#[derive(Serialize, Deserialize)]
enum Said<'r> {
    Switch(bool),
    Text(&'r str),
}

#[derive(Serialize, Deserialize)]
struct Request<'r> {
    id: u64,
    at: Instant,
    #[serde(borrow)]
    sent: Vec<Sent<'r>>,
    is_parked: bool,
}

#[derive(Serialize, Deserialize)]
enum Sent<'r> {
    /// Which of the values.
    Newest(usize),
    Other(&'r str, #[serde(borrow)] Value<'r>),
}

/// Why bytes are no record: nothing of what they say is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

/// A record as bytes.
///
/// # Errors
/// It cannot be written, which no record is known for.
pub fn pack(record: &Record) -> Result<Vec<u8>, Damaged> {
    let mut origins = Vec::new();
    let values = record.values.iter().map(|(id, newest)| (&**id, value(newest, &mut origins))).collect();
    let mut doubts = Vec::with_capacity(record.doubts.len());
    for (id, Doubt { at, sent, is_parked }) in &record.doubts {
        let sent = sent.iter().map(|(property, carried)| {
            let known = record.values.iter().position(|(id, newest)| id == property && newest == carried);
            known.map_or_else(|| Sent::Other(property, value(carried, &mut origins)), Sent::Newest)
        });
        doubts.push(Request { id: *id, at: instant(*at), sent: sent.collect(), is_parked: *is_parked });
    }
    let [newest, newest_before_mapping, erased, merged] =
        [record.newest, record.newest_before_mapping, record.erased, record.merged].map(|at| at.map(instant));
    let packed = Packed { origins, values, doubts, newest, newest_before_mapping, erased, merged };
    postcard::to_extend(&(LAYOUT, packed), Vec::with_capacity(USUAL_BYTES)).map_err(|_| Damaged)
}

/// The record that bytes are.
///
/// # Errors
/// They are none of this layout.
pub fn unpack(bytes: &[u8]) -> Result<Record, Damaged> {
    let packed = bytes.strip_prefix(&[LAYOUT]).ok_or(Damaged)?;
    let (packed, []) = postcard::take_from_bytes::<Packed<'_>>(packed).map_err(|_| Damaged)? else {
        return Err(Damaged);
    };
    let mut origins = Vec::with_capacity(packed.origins.len());
    for (at, event) in packed.origins {
        origins.push((known(at)?, event.map(Arc::from)));
    }
    let mut values = Values::with_capacity(packed.values.len());
    for (property, value) in packed.values {
        values.insert(Arc::from(property), Arc::new(newest(value, &origins)?));
    }
    let mut doubts = LiteMap::with_capacity(packed.doubts.len());
    for Request { id, at, sent, is_parked } in packed.doubts {
        let mut carried = Values::with_capacity(sent.len());
        for sent in sent {
            let (property, value) = match sent {
                Sent::Newest(index) => {
                    let (property, newest) = values.get_indexed(index).ok_or(Damaged)?;
                    (Arc::clone(property), Arc::clone(newest))
                }
                Sent::Other(property, value) => (Arc::from(property), Arc::new(newest(value, &origins)?)),
            };
            carried.insert(property, value);
        }
        doubts.insert(id, Doubt { at: timestamp(at)?, sent: carried, is_parked });
    }
    Ok(Record {
        values,
        newest: known(packed.newest)?,
        newest_before_mapping: known(packed.newest_before_mapping)?,
        erased: known(packed.erased)?,
        doubts,
        merged: known(packed.merged)?,
    })
}

fn value<'r>(newest: &'r Newest, origins: &mut Vec<Origin<'r>>) -> Value<'r> {
    let own = (newest.at.map(instant), newest.event.as_deref());
    let origin = origins.iter().position(|known| *known == own).unwrap_or_else(|| {
        origins.push(own);
        origins.len() - 1
    });
    let said = match &newest.choice {
        Choice::Switch(on) => Said::Switch(*on),
        Choice::Text(text) => Said::Text(text),
    };
    Value { said, origin, is_refused: newest.is_refused, accepted: newest.accepted.map(instant) }
}

fn newest(value: Value<'_>, origins: &[(Option<Timestamp>, Option<Arc<str>>)]) -> Result<Newest, Damaged> {
    let (at, event) = origins.get(value.origin).cloned().ok_or(Damaged)?;
    let choice = match value.said {
        Said::Switch(on) => Choice::Switch(on),
        Said::Text(text) => Choice::Text(text.into()),
    };
    Ok(Newest { choice, at, event, is_refused: value.is_refused, accepted: known(value.accepted)? })
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
