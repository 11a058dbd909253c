//! What the broker's queues show.

use super::Facts;
use crate::broker::vanished::Vanished;
use crate::observe::metrics::QUEUES;
use jiff::Timestamp;
use std::sync::atomic::Ordering;

impl Facts {
    /// The exchange was absent, and was declared and bound again.
    pub fn exchange_missing(&self) {
        self.metrics.exchange_missing.with_label_values(&[&self.integration]).inc();
        tracing::error!(
            integration = self.integration,
            "the exchange was missing, and so was the binding; both were declared again, but messages published meanwhile did not reach the queue"
        );
    }

    /// The broker no longer remembers the records, although it once did: their message left `.store`. What
    /// removed it may remove others, too.
    pub fn records_unknown(&self, now: Timestamp) {
        self.have_vanished(1, now);
        tracing::error!(
            integration = self.integration,
            "the broker no longer remembers these records: a policy removed the message from .store, or the queue or broker is new; it was recorded again, but whether these are an older copy could not be checked"
        );
    }

    fn have_vanished(&self, messages: u64, now: Timestamp) {
        self.metrics.letters_vanished.with_label_values(&[&self.integration]).inc_by(messages);
        self.seen.vanished.fetch_add(messages, Ordering::Relaxed);
        self.seen.vanished_at.store(now.as_second(), Ordering::Relaxed);
    }

    /// Messages are gone, and no command of this program took them.
    pub fn vanished(&self, gone: &Vanished, now: Timestamp) {
        let &Vanished { letters, unreadable } = gone;
        self.have_vanished(letters + unreadable, now);
        if letters > 0 {
            tracing::error!(
                integration = self.integration,
                letters,
                "dead letters left .dead or .aside without a command of this program: a policy of the broker deletes them (rabbitmqctl list_policies), or somebody removed them by other means"
            );
        }
        if unreadable > 0 {
            tracing::error!(
                integration = self.integration,
                messages = unreadable,
                "undelivered events left .unreadable: a policy of the broker deletes them (rabbitmqctl list_policies), or somebody moved or removed them; if nobody moved them, have them published again"
            );
        }
    }

    /// How many messages wait in one of the [`QUEUES`]. Warns whenever there are more of those that the broker
    /// itself moved away.
    pub fn depth(&self, queue: &str, messages: u32) {
        let waiting = QUEUES.iter().zip(&self.seen.waiting).filter(|(each, _)| **each == queue);
        for (_, waiting) in waiting {
            if waiting.swap(messages, Ordering::Relaxed) < messages {
                self.moved_by_the_broker(queue, messages);
            }
        }
    }

    fn moved_by_the_broker(&self, queue: &str, messages: u32) {
        let integration = self.integration.as_str();
        match queue {
            "aside" => tracing::warn!(
                integration,
                letters = messages,
                "the broker itself moved dead letters to .aside, because of a policy (rabbitmqctl list_policies): exclude the queues of consent-gate from it; dead list --aside shows them"
            ),
            "unreadable" => tracing::warn!(
                integration,
                messages,
                "the broker itself moved undelivered events to .unreadable: no client can read them, or their time to live ran out; docs/runbook.md, ConsentGateUnreadableMessages, says how to get them back"
            ),
            _ => {}
        }
    }
}
