//! Checks across settings and integrations.

use super::Settings;
use crate::broker::topology::EventSource;
use crate::config::node;
use crate::config::problems::Problems;
use crate::gate::Mode;
use crate::integration::{Integration, Name};
use std::collections::BTreeMap;

/// Checks what can only be checked once everything is read.
pub(in crate::config) fn check_together(
    settings: &Settings,
    integrations: &[Integration],
    problems: &Problems,
    warnings: &mut Vec<String>,
) {
    if let EventSource::Queue(queue) = &settings.source
        && integrations.len() > 1
    {
        let place = node::Location::File("source.queue".into());
        let why = format!(
            "\"{queue}\" can feed exactly one integration, but there are {}; use source.exchange",
            integrations.len()
        );
        problems.add(&place, why);
    }
    let mut recorded: BTreeMap<&Name, &Integration> = BTreeMap::new();
    let mut fed: BTreeMap<(&str, &str, &str), &Integration> = BTreeMap::new();
    for integration in integrations {
        let endpoint = &integration.endpoint;
        if let Some(other) = recorded.insert(&integration.records, integration) {
            let (one, two, records) = (&other.name, &integration.name, &integration.records);
            let why = format!("{one} and {two} both keep their records as {records}; each needs a name of its own");
            problems.add(&node::Location::File("records".into()), why);
        }
        if endpoint.mode() == Mode::Async {
            warnings.push(format!(
                "{}: mode async: Selligent may execute triggers in another order than they were sent",
                integration.name
            ));
        }
        if integration.filter.regulations.len() > 1 {
            warnings.push(format!(
                "{}: takes more than one regulation: the newest choice of any of them wins",
                integration.name
            ));
        }
        for mapping in
            integration.mappings.iter().filter(|mapping| *mapping.id != *integration.mappings.identifier_id())
        {
            let key = (endpoint.base(), endpoint.gate(), &*mapping.id);
            if let Some(other) = fed.insert(key, integration) {
                warnings.push(format!(
                    "{} and {} both feed {} through gate {}: neither knows what the other sent",
                    other.name,
                    integration.name,
                    mapping.id,
                    endpoint.gate()
                ));
            }
        }
    }
}
