//! The profiles that triggers made, in memory.
//!
//! A profile belongs to one integration and one identifier as it was sent. Each executed trigger
//! merges its properties over the profile's, so that what stays is what was executed last.

use std::collections::BTreeMap;

use serde::Serialize;

/// Property names and their values.
pub type Properties = BTreeMap<String, String>;

/// What the gate knows of one person.
#[derive(Debug, Default, Serialize)]
pub struct Profile {
    properties: Properties,
    /// How many triggers were executed for this profile.
    triggers: u64,
}

/// All profiles, by integration and then by identifier.
pub struct Profiles {
    by_integration: Vec<(String, BTreeMap<String, Profile>)>,
}

impl Profiles {
    pub fn new(names: impl Iterator<Item = String>) -> Self {
        Self { by_integration: names.map(|name| (name, BTreeMap::new())).collect() }
    }

    /// Executes a trigger: creates the profile or merges into it.
    pub fn upsert(&mut self, integration: usize, identifier: &str, properties: &Properties) {
        let (_, profiles) = &mut self.by_integration[integration];
        if !profiles.contains_key(identifier) {
            profiles.insert(identifier.to_owned(), Profile::default());
        }
        let Some(profile) = profiles.get_mut(identifier) else {
            return;
        };
        for (name, value) in properties {
            match profile.properties.get_mut(name) {
                Some(old) => old.clone_from(value),
                None => {
                    profile.properties.insert(name.clone(), value.clone());
                }
            }
        }
        profile.triggers += 1;
    }

    pub fn clear(&mut self) {
        for (_, profiles) in &mut self.by_integration {
            profiles.clear();
        }
    }

    /// `{integration: {identifier: {property: value}}}`, of one integration or of all.
    pub fn show(&self, only: Option<usize>) -> BTreeMap<&str, BTreeMap<&str, &Properties>> {
        self.chosen(only)
            .map(|(name, profiles)| {
                let shown = profiles.iter().map(|(identifier, profile)| (identifier.as_str(), &profile.properties));
                (name.as_str(), shown.collect())
            })
            .collect()
    }

    /// `{integration: {properties, triggers}}` for the integrations that know the identifier.
    pub fn find(&self, only: Option<usize>, identifier: &str) -> BTreeMap<&str, &Profile> {
        self.chosen(only).filter_map(|(name, profiles)| Some((name.as_str(), profiles.get(identifier)?))).collect()
    }

    fn chosen(&self, only: Option<usize>) -> impl Iterator<Item = &(String, BTreeMap<String, Profile>)> {
        let all = self.by_integration.iter().enumerate();
        all.filter(move |(place, _)| only.is_none_or(|only| only == *place)).map(|(_, entry)| entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn properties<const N: usize>(pairs: [(&str, &str); N]) -> Properties {
        let owned = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        owned.into()
    }

    #[test]
    fn later_executions_merge_over_earlier_ones() {
        let mut profiles = Profiles::new(["b", "a"].map(str::to_owned).into_iter());
        profiles.upsert(0, "jane", &properties([("MAIL", "jane"), ("NEWS", "1")]));
        profiles.upsert(0, "jane", &properties([("MAIL", "jane"), ("NEWS", "0")]));
        profiles.upsert(0, "jane", &properties([("MAIL", "jane"), ("SMS", "1")]));
        let expected = json!({
            "a": {}, "b": {"jane": {"MAIL": "jane", "NEWS": "0", "SMS": "1"}}
        });
        assert_eq!(json!(profiles.show(None)), expected);
        assert_eq!(json!(profiles.show(Some(1))), json!({"a": {}}));
        assert_eq!(profiles.find(None, "jane")["b"].triggers, 3);
        assert!(profiles.find(Some(1), "jane").is_empty());
        assert!(profiles.find(None, "Jane").is_empty());
        profiles.clear();
        assert_eq!(json!(profiles.show(None)), json!({"a": {}, "b": {}}));
    }
}
