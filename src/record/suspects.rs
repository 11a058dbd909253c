//! What is noted of messages that may kill the process.

use super::Failed;
use super::keys::Key;
use super::store::Store;
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;

/// A suspect that did not come back for so long was settled elsewhere, or removed.
pub(super) const FORGOTTEN_AFTER: SignedDuration = SignedDuration::from_hours(30 * 24);

/// A note of a suspect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// At how many deaths it was being handled, its holder's own left out.
    pub deaths: u32,
    /// The process that handles it, or did when it died.
    pub holder: Option<String>,
    /// When its holder last said that it lives.
    pub at: Timestamp,
}

/// What is known of a suspect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It was being handled at so many deaths.
    Deaths(u32),
    /// Another process that may be alive is handling it: it was handed to this one because a connection
    /// was lost, or that process has just died.
    HeldElsewhere,
}

impl Note {
    /// What a note says to the process `own`; `is_alive` tells whether its holder, if that is another
    /// one, may still live.
    #[must_use]
    pub fn known(note: Option<&Note>, own: &str, is_alive: impl FnOnce(&Note) -> bool) -> Known {
        match note {
            None => Known::Deaths(0),
            Some(note) => match &note.holder {
                Some(holder) if holder != own && is_alive(note) => Known::HeldElsewhere,
                Some(holder) if holder != own => Known::Deaths(note.deaths.saturating_add(1)),
                _ => Known::Deaths(note.deaths),
            },
        }
    }

    /// Whether its message will not come back.
    pub(super) fn is_old(&self, now: Timestamp) -> bool {
        now.duration_since(self.at) > FORGOTTEN_AFTER
    }

    /// As the embedded store keeps it.
    pub(super) fn to_text(&self) -> String {
        let Note { deaths, holder, at } = self;
        format!("{deaths} {} {}", at.as_second(), holder.as_deref().unwrap_or("-"))
    }

    /// The opposite of [`Note::to_text`]; what cannot be read was never noted.
    pub(super) fn from_text(text: &str) -> Option<Note> {
        let mut words = text.split(' ');
        let deaths = words.next()?.parse().ok()?;
        let at = Timestamp::from_second(words.next()?.parse().ok()?).ok()?;
        let holder = words.next().filter(|holder| *holder != "-").map(str::to_owned);
        Some(Note { deaths, holder, at })
    }
}

/// A message that may kill the process, and what is known of it.
#[derive(Debug)]
pub struct Suspect {
    pub(super) store: Arc<Store>,
    pub(super) key: Key,
    pub(super) own: Arc<str>,
    pub known: Known,
}

/// A suspect that is being handled: noted durably, so that the death of this process is noticed.
#[derive(Debug)]
pub struct Noted {
    store: Arc<Store>,
    key: Key,
    deaths: u32,
}

impl Suspect {
    /// At how many deaths it was being handled, as far as is known.
    #[must_use]
    pub fn deaths(&self) -> u32 {
        match self.known {
            Known::Deaths(deaths) => deaths,
            Known::HeldElsewhere => 0,
        }
    }

    /// Notes that this process handles it from now on.
    ///
    /// # Errors
    /// The store failed: it must not be handled.
    pub async fn note(self, now: Timestamp) -> Result<Noted, Failed> {
        let deaths = self.deaths();
        let Suspect { store, key, own, .. } = self;
        store.note_suspect(key, &Note { deaths, holder: Some(own.as_ref().to_owned()), at: now }).await?;
        store.count_suspects(1);
        Ok(Noted { store, key, deaths })
    }
}

impl Noted {
    /// It was handled and this process lives. What is settled is forgotten; what is not settled comes
    /// back, and the deaths at which it was are remembered.
    ///
    /// # Errors
    /// The store failed: it still counts as being handled.
    pub async fn passed(self, is_settled: bool, now: Timestamp) -> Result<(), Failed> {
        let Noted { store, key, deaths } = &self;
        if is_settled || *deaths == 0 {
            return store.forget_suspect(*key).await;
        }
        store.note_suspect(*key, &Note { deaths: *deaths, holder: None, at: now }).await
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.store.count_suspects(-1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(deaths: u32, holder: Option<&str>) -> Note {
        Note { deaths, holder: holder.map(str::to_owned), at: Timestamp::UNIX_EPOCH }
    }

    #[test]
    fn only_a_holder_that_died_adds_a_death() {
        let known = |note: &Note, is_alive: bool| Note::known(Some(note), "me", |_| is_alive);
        assert_eq!(Note::known(None, "me", |_| true), Known::Deaths(0));
        assert_eq!(known(&note(1, None), false), Known::Deaths(1));
        assert_eq!(known(&note(1, Some("me")), false), Known::Deaths(1), "only its connection was lost");
        assert_eq!(known(&note(1, Some("other")), false), Known::Deaths(2));
        assert_eq!(known(&note(1, Some("other")), true), Known::HeldElsewhere);
        assert_eq!(known(&note(u32::MAX, Some("other")), false), Known::Deaths(u32::MAX));
    }

    #[test]
    fn a_note_is_read_as_it_was_written_and_damage_says_nothing() {
        for note in [note(0, Some("1a")), note(2, None)] {
            assert_eq!(Note::from_text(&note.to_text()), Some(note));
        }
        for text in ["", "x", "1", "1 x", "-1 0 a"] {
            assert_eq!(Note::from_text(text), None);
        }
    }
}
