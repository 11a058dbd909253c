//! `[retry]`: the schedule of retries.

use super::not_zero;
use crate::config::fields::{Fields, parse_duration};
use crate::config::node;
use crate::schedule::{OnOutage, Retry};
use std::time::Duration;

/// Where to report an impossible schedule: as close as possible to what is written.
pub(in crate::config) fn place_of_schedule(retry: &Fields<'_>) -> node::Location {
    retry.place_of("delays").or_else(|| retry.place_of("window")).unwrap_or_else(|| retry.place().clone())
}

/// `[retry]`, or `overrides.retry` of a document on top of it. Whether it fits together with the timeout is
/// checked by [`Schedule::new`](crate::schedule::Schedule::new).
pub(in crate::config) fn retry(mut fields: Fields<'_>, defaults: &Retry) -> Retry {
    let on_outage = fields.word("on_outage", &["dead-letter", "hold"]).map(|at| match at.value {
        "hold" => OnOutage::Hold,
        _ => OnOutage::DeadLetter,
    });
    let retry = Retry {
        on_outage: on_outage.unwrap_or(defaults.on_outage),
        window: not_zero(&mut fields, "window").unwrap_or(defaults.window),
        delays: delays(&mut fields).unwrap_or_else(|| defaults.delays.clone()),
    };
    fields.finish();
    retry
}

fn delays(fields: &mut Fields<'_>) -> Option<Vec<Duration>> {
    let written = fields.texts_like("delays", "[\"10s\", \"30s\"]")?;
    let mut delays = Vec::with_capacity(written.value.len());
    for delay in &written.value {
        match parse_duration(delay) {
            Ok(delay) => delays.push(delay),
            Err(why) => fields.problems().add(&written.place, format!("{}: {why}", fields.name("delays"))),
        }
    }
    (delays.len() == written.value.len()).then_some(delays)
}
