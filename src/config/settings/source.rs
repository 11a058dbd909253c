//! `[source]`: where the events come from.

use crate::broker::topology::EventSource;
use crate::config::binding::{self, KeyDoubt};
use crate::config::fields::{At, Fields};

pub(super) fn source(mut fields: Fields<'_>) -> EventSource {
    let place = fields.place().clone();
    let exchange = fields.filled("exchange").filter(|at| fits_amqp(&fields, "exchange", at, &at.value));
    let queue = fields.filled("queue").filter(|at| fits_amqp(&fields, "queue", at, &at.value));
    let binding_keys = binding_keys(&mut fields);
    if let Some(queue) = queue.as_ref().filter(|queue| queue.value.starts_with("consent-gate.")) {
        fields.problems().add(
            &queue.place,
            "source.queue names one of the worker's own queues, which would loop; name another queue",
        );
    }
    let problems = fields.problems();
    fields.finish();
    match (queue, exchange) {
        (Some(queue), None) => {
            if let Some(keys) = binding_keys {
                problems.add(&keys.place, "source.binding_keys binds to an exchange; remove it beside source.queue");
            }
            EventSource::Queue(queue.value)
        }
        (Some(_), Some(_)) => {
            problems.add(&place, "source.exchange and source.queue are both written; keep one");
            EventSource::default()
        }
        (None, exchange) => {
            let binding_keys = binding_keys.map_or_else(|| vec!["#".to_owned()], |at| at.value);
            if binding_keys.is_empty() {
                problems
                    .add(&place, "source.binding_keys is empty, so nothing would arrive; write [\"#\"] for everything");
            }
            EventSource::Exchange { name: exchange.map_or_else(|| "consents".to_owned(), |at| at.value), binding_keys }
        }
    }
}

/// Checks that a name has at most 255 bytes, AMQP's limit.
fn fits_amqp<T>(fields: &Fields<'_>, key: &str, at: &At<T>, name: &str) -> bool {
    let fits = name.len() <= 255;
    if !fits {
        fields
            .problems()
            .add(&at.place, format!("{} is longer than 255 bytes, which AMQP does not allow", fields.name(key)));
    }
    fits
}

/// A list of binding keys, each of which was checked.
pub(in crate::config) fn binding_keys(fields: &mut Fields<'_>) -> Option<At<Vec<String>>> {
    let keys = fields.texts("binding_keys")?;
    let mut fit = true;
    for key in &keys.value {
        fit &= fits_amqp(fields, "binding_keys", &keys, key);
        let told = |why| format!("{}: {why}", fields.name("binding_keys"));
        match binding::doubt(key) {
            Some(KeyDoubt::Never(why)) => {
                fields.problems().add(&keys.place, told(why));
                fit = false;
            }
            Some(KeyDoubt::Hardly(why)) => fields.problems().warn(&keys.place, told(why)),
            None => {}
        }
    }
    fit.then_some(keys)
}
