//! What is known about one property (pure): the newest choice, or for a selection the newest choice of each
//! id.
//!
//! Versions are totally ordered and contain no time of arrival, so joining is commutative, associative and
//! idempotent: the same events give the same value in any order and any number of deliveries.

use super::Offer;
use crate::mapping::{Choice, Names, SelectedIds};
use jiff::Timestamp;
use litemap::LiteMap;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::sync::Arc;

/// When something was said, and by which event. An undated event is older than every dated one.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    #[serde(rename = "t", default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    pub event: Option<Arc<str>>,
}

/// What events said about one property.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Said {
    #[serde(rename = "c")]
    One(Choice, Version),
    #[serde(rename = "s")]
    Selection(Chosen),
}

/// A selection: an id that an event names in its list is a choice for it, and an id that it does not name is
/// a choice against it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    #[serde(rename = "n")]
    pub(super) names: Names,
    /// The version of every id that is not in `ids`: not named.
    #[serde(rename = "r")]
    pub(super) rest: Version,
    /// Ids that are not named, with the same version as `rest`, are left out.
    #[serde(rename = "i", serialize_with = "crate::text::json::object")]
    pub(super) ids: LiteMap<Arc<str>, Named>,
}

/// What is known about one id of a selection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Named {
    #[serde(rename = "o")]
    pub is_named: bool,
    #[serde(flatten)]
    pub version: Version,
}

impl Said {
    /// What an event says about one property.
    #[must_use]
    pub fn offered(choice: &Choice, offer: &Offer) -> Said {
        let Choice::Selection(SelectedIds { ids, names }) = choice else {
            return Said::One(choice.clone(), offer.version(choice.is_withdrawal()));
        };
        let is_withdrawal = *names == Names::Refusals;
        let named = |id: &Arc<str>| (Arc::clone(id), Named { is_named: true, version: offer.version(is_withdrawal) });
        let (ids, rest) = (ids.iter().map(named).collect(), offer.version(!is_withdrawal));
        Said::Selection(Chosen { names: *names, rest, ids })
    }

    /// Merges what another event said: the newer one stays. On a tie a withdrawal stays, then the greater
    /// event id, then the greater value.
    pub fn join(&mut self, other: &Said) {
        match (&mut *self, other) {
            (Said::Selection(own), Said::Selection(other)) => own.join(other),
            (own, other) if own.order().cmp(&other.order()) == Ordering::Less => *own = other.clone(),
            _ => {}
        }
    }

    /// The same, merged with another.
    #[must_use]
    pub fn joined(&self, other: &Said) -> Said {
        let mut joined = self.clone();
        joined.join(other);
        joined
    }

    /// A total order, except for two selections, which are merged id by id.
    fn order(&self) -> (Option<Timestamp>, bool, Option<&str>, Option<&Choice>) {
        match self {
            Said::One(choice, Version { at, event }) => (*at, choice.is_withdrawal(), event.as_deref(), Some(choice)),
            Said::Selection(chosen) => {
                let latest = chosen.latest();
                (latest.at, true, latest.event.as_deref(), None)
            }
        }
    }

    /// Whether nothing in `other` is newer than this.
    #[must_use]
    pub fn covers(&self, other: &Said) -> bool {
        if let (Said::One(..), Said::One(..)) = (self, other) {
            return self.order() >= other.order();
        }
        self.joined(other) == *self
    }

    /// The newest version in it.
    #[must_use]
    pub fn latest(&self) -> &Version {
        match self {
            Said::One(_, version) => version,
            Said::Selection(chosen) => chosen.latest(),
        }
    }

    /// Whether something that an event said at that version, and that was not recorded, may be newer. On a
    /// tie a withdrawal stays.
    #[must_use]
    pub fn may_be_outdated_by(&self, missed: &Version) -> bool {
        let latest = self.latest();
        let is_tie = latest.at == missed.at && latest.event != missed.event;
        latest.at < missed.at || is_tie && !matches!(self, Said::One(choice, _) if choice.is_withdrawal())
    }

    /// Whether it is exactly what this event said, with nothing from another.
    #[must_use]
    pub fn is_of(&self, offer: &Offer) -> bool {
        match self {
            Said::One(choice, version) => *version == offer.version(choice.is_withdrawal()),
            Said::Selection(Chosen { names, rest, ids }) => {
                let is_withdrawal = *names == Names::Refusals;
                let named = offer.version(is_withdrawal);
                *rest == offer.version(!is_withdrawal) && ids.values().all(|id| id.is_named && id.version == named)
            }
        }
    }

    /// Since when a contact with this value is opted in; `None` if it is not.
    #[must_use]
    pub fn grant(&self) -> Option<&Version> {
        match self {
            Said::One(Choice::Switch(true), version) => Some(version),
            Said::One(..) => None,
            Said::Selection(chosen) => match chosen.names {
                Names::Grants => chosen.named().map(|(_, named)| &named.version).max(),
                Names::Refusals => Some(&chosen.rest),
            },
        }
    }

    /// The value as a choice, to be sent or shown.
    #[must_use]
    pub fn choice(&self) -> Choice {
        match self {
            Said::One(choice, _) => choice.clone(),
            Said::Selection(chosen) => {
                let ids = chosen.named().map(|(id, _)| Arc::clone(id)).collect();
                Choice::Selection(SelectedIds { ids, names: chosen.names })
            }
        }
    }

    /// Removes what was said up to an instant; `None` if nothing remains. If the grant of an id is removed
    /// while the others stay withdrawn by a later event, that event did not withdraw this id: nothing is
    /// known about it since the erasure.
    #[must_use]
    pub(super) fn after(&self, erased: Timestamp) -> Option<Said> {
        let is_left = |version: &Version| version.at > Some(erased);
        match self {
            said if !is_left(said.latest()) => None,
            Said::One(..) => Some(self.clone()),
            Said::Selection(chosen) => {
                let mut left = chosen.clone();
                let is_grants = chosen.names == Names::Grants;
                if is_left(&chosen.rest) {
                    for (_, named) in left.ids.iter_mut().filter(|(_, named)| is_grants && !is_left(&named.version)) {
                        *named = Named { is_named: false, version: Version { at: Some(erased), event: None } };
                    }
                } else {
                    left.ids.retain(|_, named| is_left(&named.version));
                }
                Some(Said::Selection(left))
            }
        }
    }
}

impl Chosen {
    fn named(&self) -> impl Iterator<Item = (&Arc<str>, &Named)> {
        self.ids.iter().filter(|(_, named)| named.is_named)
    }

    fn latest(&self) -> &Version {
        self.ids.values().map(|named| &named.version).fold(&self.rest, |latest, version| latest.max(version))
    }

    /// What is known about one id.
    fn of(&self, id: &Arc<str>) -> Named {
        self.ids.get(id).cloned().unwrap_or_else(|| Named { is_named: false, version: self.rest.clone() })
    }

    fn join(&mut self, other: &Chosen) {
        let is_withdrawal = |named: &Named| named.is_named == (self.names == Names::Refusals);
        let newer = |one: Named, other: Named| {
            let order = |named: &Named| (named.version.at, is_withdrawal(named), named.version.event.clone());
            if order(&one) < order(&other) { other } else { one }
        };
        let all = self.ids.keys().chain(other.ids.keys());
        let mut ids: LiteMap<Arc<str>, Named> =
            all.map(|id| (Arc::clone(id), newer(self.of(id), other.of(id)))).collect();
        let rest = self.rest.clone().max(other.rest.clone());
        ids.retain(|_, named| named.is_named || named.version != rest);
        *self = Chosen { names: self.names, rest, ids };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An event's selection: the times of its grants and of its withdrawals, its id, and the ids in its list.
    type Said4 = (Option<i64>, Option<i64>, u8, Vec<u8>);

    fn said((at, withdrawn_at, event, ids): &Said4, names: Names) -> Said {
        let second = |second: &i64| Timestamp::from_second(1_700_000_000 + second).unwrap();
        let offer = Offer {
            at: at.as_ref().map(second),
            withdrawn_at: withdrawn_at.as_ref().map(second),
            event: Some(event.to_string().into()),
            choices: Vec::new(),
        };
        let ids = ids.iter().map(|id| id.to_string().into()).collect();
        Said::offered(&Choice::Selection(SelectedIds { ids, names }), &offer)
    }

    fn joined<'s>(all: impl IntoIterator<Item = &'s Said>) -> Option<Said> {
        let mut all = all.into_iter();
        let first = all.next()?.clone();
        Some(all.fold(first, |mut known, said| {
            known.join(said);
            known
        }))
    }

    /// The expected result, computed differently: for one id alone, the newest of all events.
    fn of_one(all: &[Said4], id: u8, names: Names) -> bool {
        let is_withdrawal = |named: bool| named == (names == Names::Refusals);
        let order = |(at, withdrawn_at, event, ids): &Said4| {
            let is_it = ids.contains(&id);
            (if is_withdrawal(is_it) { *withdrawn_at } else { *at }, is_withdrawal(is_it), event.to_string(), is_it)
        };
        all.iter().map(order).max().is_some_and(|(_, _, _, named)| named)
    }

    #[test]
    fn a_selection_is_of_an_event_only_if_nothing_in_it_is_of_another() {
        for names in [Names::Grants, Names::Refusals] {
            let offer = |event: &str, at: i64, withdrawn_at: i64| Offer {
                at: Some(Timestamp::from_second(at).unwrap()),
                withdrawn_at: Some(Timestamp::from_second(withdrawn_at).unwrap()),
                event: Some(event.into()),
                choices: Vec::new(),
            };
            let names_one = |id: &str| Choice::Selection(SelectedIds { ids: vec![id.into()], names });
            let own = offer("a", 10, 20);
            let said = Said::offered(&names_one("x"), &own);
            assert!(said.is_of(&own));
            for other in [offer("b", 30, 5), offer("b", 5, 30)] {
                assert!(!said.is_of(&other));
                let joined = said.joined(&Said::offered(&names_one("y"), &other));
                assert!(!joined.is_of(&own) && !joined.is_of(&other), "{names:?} {other:?}");
            }
        }
    }

    #[test]
    fn what_was_said_at_the_very_instant_of_an_erasure_is_erased() {
        let second = |second: i64| Timestamp::from_second(1_700_000_000 + second).unwrap();
        for (erased, left) in [(4, vec!["1", "2"]), (5, vec!["2"]), (6, vec!["2"])] {
            let mut known = said(&(Some(5), Some(0), 1, vec![1]), Names::Grants);
            known.join(&said(&(Some(7), Some(1), 2, vec![2]), Names::Grants));
            let Choice::Selection(SelectedIds { ids, .. }) = known.after(second(erased)).unwrap().choice() else {
                panic!("no selection")
            };
            assert_eq!(ids.iter().map(|id| &**id).collect::<Vec<_>>(), left, "{erased}");
        }
        let switch = Said::One(Choice::Switch(false), Version { at: Some(second(5)), event: None });
        assert_eq!([4, 5, 6].map(|erased| switch.after(second(erased)).is_some()), [true, false, false]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_selection_is_a_set_of_choices(
            mut all in proptest::collection::vec(
                (proptest::option::of(0_i64..4), proptest::option::of(0_i64..4), 0_u8..9, proptest::collection::vec(0_u8..4, 0..4)),
                1..6,
            ),
            again in proptest::collection::vec(any::<prop::sample::Index>(), 0..4),
            refusals in any::<bool>(),
        ) {
            // Each event id occurs once.
            all.sort_by_key(|(_, _, event, _)| *event);
            all.dedup_by_key(|(_, _, event, _)| *event);
            let names = if refusals { Names::Refusals } else { Names::Grants };
            let saids: Vec<Said> = all.iter().map(|event| said(event, names)).collect();
            let known = joined(&saids).unwrap();
            let backwards = joined(saids.iter().rev().chain(again.iter().map(|index| index.get(&saids)))).unwrap();
            prop_assert_eq!(&known, &backwards);
            for said in &saids {
                prop_assert!(known.covers(said));
            }
            let Choice::Selection(SelectedIds { ids, .. }) = known.choice() else { panic!("no selection") };
            for id in 0..5 {
                prop_assert_eq!(ids.contains(&id.to_string().into()), of_one(&all, id, names), "{}", id);
            }
        }
    }
}
