//! What a letter would do today (pure): how the worker would decide on it as a fresh event, as far as that can be
//! known without asking the gate.

use crate::integration::Integration;
use crate::ops::verdict_of;
use crate::plan::{self, Plan};
use crate::record::{self, Around, Ask, Begun, Mapped, Record, Recorded, ToSend};
use crate::verdict::{Processed, Skip};
use jiff::{SignedDuration, Timestamp};
use std::fmt;

/// What would become of a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Preview {
    /// It would be sent, and may change the profile.
    Send,
    /// It would be sent with values that the gate accepted already: newer choices, or its own.
    NothingNew,
    /// It would be sent without the properties whose newest value nobody can know.
    LeftOut,
    /// It would be skipped, for this reason.
    Skipped(&'static str),
    /// It would be a dead letter again at once, for this reason.
    Invalid(&'static str),
}

impl Preview {
    /// Its word in the output for programs.
    pub fn word(self) -> &'static str {
        match self {
            Preview::Send => "send",
            Preview::NothingNew => "nothing_new",
            Preview::LeftOut => "left_out",
            Preview::Skipped(_) => "skipped",
            Preview::Invalid(_) => "still_invalid",
        }
    }

    /// Whether a replay leaves it where it is.
    pub fn stays(self) -> bool {
        matches!(self, Preview::Invalid(_))
    }

    /// The reason's code, if there is one.
    pub fn code(self) -> Option<&'static str> {
        match self {
            Preview::Send | Preview::NothingNew | Preview::LeftOut => None,
            Preview::Skipped(code) | Preview::Invalid(code) => Some(code),
        }
    }
}

impl fmt::Display for Preview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Preview::Send => f.write_str("send"),
            Preview::NothingNew => f.write_str("nothing new"),
            Preview::LeftOut => f.write_str("in part (what it says of some properties may be outdated)"),
            Preview::Skipped(code) => write!(f, "skipped ({code})"),
            Preview::Invalid(code) => write!(f, "still invalid ({code})"),
        }
    }
}

/// What is known of the person.
#[derive(Clone, Debug)]
pub enum KnownOfPerson {
    /// The records were not asked, or none are kept.
    Untold,
    Told(Box<Recorded>),
}

/// What would become of a letter with this plan and this record of its person. Without records the plan alone
/// decides.
pub fn would(
    plan: &Result<Plan, Processed>,
    known: &KnownOfPerson,
    integration: &Integration,
    retention: SignedDuration,
    now: Timestamp,
) -> Preview {
    let ended = |processed: &Processed| match verdict_of(processed, integration) {
        ("skipped", code) => Preview::Skipped(code),
        (_, code) => Preview::Invalid(code),
    };
    let plan = match plan {
        Ok(Plan::Trigger(plan)) => plan,
        Ok(Plan::Erase { .. }) => return Preview::Skipped(Skip::UserDeleted.code()),
        Err(processed) => return ended(processed),
    };
    let KnownOfPerson::Told(recorded) = known else { return Preview::Send };
    match begun(plan, recorded, integration, retention, now) {
        Err(Processed::NeedlessRepair) => Preview::NothingNew,
        Err(processed) => ended(&processed),
        Ok((to_send, _)) if !to_send.unknown.is_empty() => Preview::LeftOut,
        Ok((to_send, Some(record))) if record.has_accepted(&to_send.newest) => Preview::NothingNew,
        Ok(_) => Preview::Send,
    }
}

/// What a fresh event would send, with the record after it; or what would become of the event if it sends nothing.
/// Works on a copy of the record: nothing is written.
pub(in crate::ops) fn begun(
    plan: &plan::PlannedRequest,
    recorded: &Recorded,
    integration: &Integration,
    retention: SignedDuration,
    now: Timestamp,
) -> Result<(ToSend, Option<Record>), Processed> {
    let Recorded { record, swept, mapped: others } = recorded;
    let mapped = Mapped::new(integration.mappings.slots().cloned()).beside(others);
    let (execution_horizon, swept) = (record::execution_horizon(integration), *swept);
    let around = Around { now, execution_horizon, retention, swept, mapped: &mapped };
    let ask = Ask { id: 0, offer: &plan.offer, is_repair: false };
    let mut record = record.clone();
    match record::begin(&mut record, ask, &around).0 {
        Begun::Send(to_send) => Ok((to_send, record)),
        Begun::Erased => Err(Processed::NotWanted(Skip::Erased)),
        Begun::TooOld => Err(Processed::OlderThanRetention),
        Begun::Needless => Err(Processed::NeedlessRepair),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::{Endpoint, Limits, Mode};
    use crate::integration::Name;
    use crate::mapping::{Choice, Mapping, Mappings, Path, ValueSource};
    use crate::plan::plan;
    use crate::record::{Effect, Erasure, Offer, SentRequest};
    use crate::schedule::{OnOutage, Schedule};
    use serde_json::json;

    const DAY: SignedDuration = SignedDuration::from_hours(24);

    fn integration() -> Integration {
        let mapping = |id: &str, path| Mapping::new(id, ValueSource::Path(Path::compile(path).unwrap()));
        let list =
            vec![mapping("MAIL", "organization_user_id"), mapping("NEWS", "consents_purposes_newsletter_enabled")];
        Integration {
            name: Name::new("acme").unwrap(),
            records: Name::new("acme").unwrap(),
            endpoint: Endpoint::new(String::new(), Mode::Sync, String::new(), "key".into(), "gate".to_owned()),
            mappings: Mappings::new(list, 0),
            filter: crate::integration::filter::Filter::default(),
            binding_keys: None,
            limits: Limits::default(),
            schedule: Schedule::default(),
            on_outage: OnOutage::default(),
        }
    }

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + 60 * minute).unwrap()
    }

    fn event(minute: i64, news: bool) -> Vec<u8> {
        let entity = json!({
            "id": "e", "created_at": at(minute).to_string(), "user": { "organization_user_id": "jane" },
            "consents": { "purposes": [{ "id": "newsletter", "enabled": news }] },
        });
        json!({ "type": "event.created", "parameters": { "entity": entity } }).to_string().into_bytes()
    }

    fn preview(body: &[u8], known: KnownOfPerson) -> Preview {
        let integration = integration();
        let (_, plan) = plan(body, &integration, at(100));
        would(&plan, &known, &integration, DAY, at(100))
    }

    fn told(record: Option<Record>) -> KnownOfPerson {
        KnownOfPerson::Told(Box::new(Recorded { record, ..Recorded::default() }))
    }

    /// What is recorded after a choice that the gate accepted, or did not.
    fn record(minute: i64, news: bool, is_accepted: bool) -> KnownOfPerson {
        let integration = integration();
        let mapped = Mapped::new(integration.mappings.slots().cloned());
        let (execution_horizon, retention) = (SignedDuration::ZERO, SignedDuration::MAX);
        let around = Around { now: at(minute), execution_horizon, retention, swept: None, mapped: &mapped };
        let slot = mapped.slots().next().unwrap().clone();
        let (at, choices) = (Some(at(minute)), vec![(slot, Choice::Switch(news))]);
        let offer = Offer { at, withdrawn_at: at, event: Some("e".into()), choices };
        let ask = Ask { id: 1, offer: &offer, is_repair: false };
        let mut record = None;
        let Begun::Send(to_send) = record::begin(&mut record, ask, &around).0 else { panic!("not sent") };
        let effect = if is_accepted { Effect::Accepted } else { Effect::Failed };
        let (carried, begun) = (&to_send.newest, around.now);
        let request = SentRequest { carried, begun, effect, was_resent: false, first: 2, next: 3 };
        record::end(&mut record, ask, &request, &around);
        told(record)
    }

    #[test]
    fn only_what_the_gate_did_not_accept_would_change_the_profile() {
        assert_eq!(preview(&event(1, true), KnownOfPerson::Untold), Preview::Send);
        assert_eq!(preview(&event(1, true), told(None)), Preview::Send);
        assert_eq!(preview(&event(1, true), record(2, false, true)), Preview::NothingNew);
        assert_eq!(preview(&event(1, true), record(1, true, true)), Preview::NothingNew);
        assert_eq!(preview(&event(1, true), record(1, true, false)), Preview::Send, "it was never accepted");
        assert_eq!(preview(&event(1, true), record(2, false, false)), Preview::Send, "it carries the newer one along");
        assert_eq!(preview(&event(3, true), record(2, false, true)), Preview::Send);
    }

    #[test]
    fn what_cannot_be_sent_says_why() {
        assert_eq!(preview(b"{", KnownOfPerson::Untold), Preview::Invalid("undecodable"));
        assert_eq!(preview(&event(1_000, true), KnownOfPerson::Untold), Preview::Invalid("future_dated"));
        assert_eq!(preview(&event(-2_000, true), told(None)), Preview::Invalid("older_than_retention"));
        assert_eq!(preview(&event(-2_000, true), record(2, false, true)), Preview::NothingNew);
        let mut erased = None;
        let erasure = Erasure { at: Some(at(5)), published: at(5), message: 0 };
        record::erase(&mut erased, erasure, at(5), SignedDuration::ZERO);
        assert_eq!(preview(&event(1, true), told(erased)), Preview::Skipped("erased"));
        let forgotten = Recorded { swept: Some(at(5)), ..Recorded::default() };
        let forgotten = KnownOfPerson::Told(Box::new(forgotten));
        assert_eq!(preview(&event(1, true), forgotten), Preview::Invalid("older_than_retention"));
        let pending =
            String::from_utf8(event(1, true)).unwrap().replace("\"id\":\"e\"", "\"status\":\"pending_approval\"");
        assert_eq!(preview(pending.as_bytes(), KnownOfPerson::Untold), Preview::Skipped("pending"));
    }
}
