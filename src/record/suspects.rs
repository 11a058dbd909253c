//! Notes about messages that may kill the process.

use jiff::{SignedDuration, Timestamp};

/// A suspect that did not come back for this long was settled elsewhere, or removed.
pub(super) const FORGOTTEN_AFTER: SignedDuration = SignedDuration::from_hours(30 * 24);

/// A note of a suspect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The number of deaths at which it was being handled, not counting its holder's.
    pub deaths: u32,
    /// The process that is handling it, or was when it died.
    pub holder: Option<String>,
    /// When its holder last reported that it is alive.
    pub at: Timestamp,
}

/// What is known about a suspect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuspectState {
    /// It was being handled at this many deaths.
    Deaths(u32),
    /// Another process, which may be alive, is handling it. It was delivered to this one because a connection
    /// was lost, or because that process has just died.
    HeldElsewhere,
}

impl Note {
    /// What a note means to the process `own`; `is_alive` tells whether its holder, if that is another
    /// process, may still be alive.
    #[must_use]
    pub fn known(note: Option<&Note>, own: &str, is_alive: impl FnOnce(&Note) -> bool) -> SuspectState {
        match note {
            None => SuspectState::Deaths(0),
            Some(note) => match &note.holder {
                Some(holder) if holder != own && is_alive(note) => SuspectState::HeldElsewhere,
                Some(holder) if holder != own => SuspectState::Deaths(note.deaths.saturating_add(1)),
                _ => SuspectState::Deaths(note.deaths),
            },
        }
    }

    /// Whether it is so old that its message will not come back.
    pub(super) fn is_old(&self, now: Timestamp) -> bool {
        now.duration_since(self.at) > FORGOTTEN_AFTER
    }

    /// The format in the embedded store.
    pub(super) fn to_text(&self) -> String {
        let Note { deaths, holder, at } = self;
        format!("{deaths} {} {}", at.as_second(), holder.as_deref().unwrap_or("-"))
    }

    /// The inverse of [`Note::to_text`]; an unreadable note counts as absent.
    pub(super) fn from_text(text: &str) -> Option<Note> {
        let mut words = text.split(' ');
        let deaths = words.next()?.parse().ok()?;
        let at = Timestamp::from_second(words.next()?.parse().ok()?).ok()?;
        let holder = words.next().filter(|holder| *holder != "-").map(str::to_owned);
        Some(Note { deaths, holder, at })
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
        assert_eq!(Note::known(None, "me", |_| true), SuspectState::Deaths(0));
        assert_eq!(known(&note(1, None), false), SuspectState::Deaths(1));
        assert_eq!(known(&note(1, Some("me")), false), SuspectState::Deaths(1), "only its connection was lost");
        assert_eq!(known(&note(1, Some("other")), false), SuspectState::Deaths(2));
        assert_eq!(known(&note(1, Some("other")), true), SuspectState::HeldElsewhere);
        assert_eq!(known(&note(u32::MAX, Some("other")), false), SuspectState::Deaths(u32::MAX));
    }

    #[test]
    fn a_note_is_old_after_a_month() {
        let month = 30 * 24 * 60 * 60;
        let is_old = |second| note(1, None).is_old(Timestamp::from_second(second).unwrap());
        assert_eq!([0, month, month + 1].map(is_old), [false, false, true]);
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
