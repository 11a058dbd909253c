//! Which events an integration takes (pure).

use crate::event::{Defect, Event, EventKind, Status};
use crate::verdict::Skip;
use jiff::{SignedDuration, Timestamp};

/// How far ahead of the clock an event may be dated.
pub const MAX_AHEAD: SignedDuration = SignedDuration::from_mins(5);

/// Which events an integration takes; all others are skipped for a named reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Types from [`crate::event::TYPES`].
    pub types: Vec<String>,
    pub regulations: Vec<String>,
    /// The only organization taken; `None` for any.
    pub organization_id: Option<String>,
}

impl Default for Filter {
    fn default() -> Filter {
        Filter {
            types: vec!["event.created".to_owned(), "event.updated".to_owned()],
            regulations: vec![crate::event::DEFAULT_REGULATION.to_owned()],
            organization_id: None,
        }
    }
}

/// Why this integration does not take an event; `None` if it does.
///
/// # Errors
/// A field that decides this has a wrong type.
pub fn not_wanted(event: &Event, filter: &Filter) -> Result<Option<Skip>, Defect> {
    // An unknown status is no reason to keep an event that would be skipped anyway.
    let status = event.status();
    if status == Ok(Status::Pending) {
        return Ok(Some(Skip::Pending));
    }
    if event.kind() == EventKind::EventDeleted {
        return Ok(Some(Skip::EventDeleted));
    }
    if let Some(wanted) = &filter.organization_id
        && event.organization_id()? != Some(wanted)
    {
        return Ok(Some(Skip::OtherOrganization));
    }
    let regulation = event.regulation()?;
    if !filter.regulations.iter().any(|wanted| wanted.eq_ignore_ascii_case(regulation)) {
        return Ok(Some(Skip::OtherRegulation));
    }
    if !filter.types.iter().any(|wanted| wanted == event.kind().name()) {
        return Ok(Some(Skip::UnwantedType));
    }
    status.map(|_| None)
}

/// Whether an event is dated too far ahead of the clock to be believed.
#[must_use]
pub fn is_future_dated(changed_at: Option<Timestamp>, now: Timestamp) -> bool {
    changed_at.is_some_and(|at| at.duration_since(now) > MAX_AHEAD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn skip(kind: &str, status: &str, organization: Value, regulation: &str, filter: &Filter) -> Option<Skip> {
        let entity = json!({
            "id": "e", "status": status, "regulation": regulation, "organization_id": organization, "consents": {},
        });
        let body = json!({ "type": kind, "parameters": { "entity": entity } }).to_string().into_bytes();
        not_wanted(&crate::event::decode(&body[..], &[]).unwrap(), filter).unwrap()
    }

    #[test]
    fn each_reason_for_a_skip_is_told() {
        let (usual, acme) =
            (Filter::default(), Filter { organization_id: Some("acme".to_owned()), ..Filter::default() });
        let created = |status, organization: &str, regulation, filter| {
            skip("event.created", status, json!(organization), regulation, filter)
        };
        assert_eq!(created("confirmed", "acme", "GDPR", &acme), None);
        assert_eq!(created("confirmed", "other", "gdpr", &usual), None);
        assert_eq!(created("confirmed", "other", "gdpr", &acme), Some(Skip::OtherOrganization));
        assert_eq!(skip("event.created", "confirmed", Value::Null, "gdpr", &acme), Some(Skip::OtherOrganization));
        assert_eq!(created("confirmed", "acme", "cpra", &acme), Some(Skip::OtherRegulation));
        assert_eq!(created("pending_approval", "other", "gdpr", &acme), Some(Skip::Pending));
        assert_eq!(skip("event.deleted", "confirmed", json!("acme"), "gdpr", &acme), Some(Skip::EventDeleted));
        assert_eq!(skip("user.updated", "confirmed", json!("acme"), "gdpr", &acme), Some(Skip::UnwantedType));
    }

    #[test]
    fn five_minutes_ahead_is_believed() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let ahead = |seconds| is_future_dated(Some(now + SignedDuration::from_secs(seconds)), now);
        assert_eq!([-1, 0, 300, 301].map(ahead), [false, false, false, true]);
        assert!(!is_future_dated(None, now));
    }
}
