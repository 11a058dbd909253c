//! The rules in force, and which of them applies to a request.
//!
//! All rules are applied after the body was read, since a selector may need it. The first rule
//! that matches applies. A rule that stands for a quota or for the network (`status` 429 or 503
//! without execution, `hang`, `reset`) matches any request to the gate, whatever its signature,
//! as far as the selectors can be read from it; every other rule matches only requests that pass
//! all checks. Shares are drawn from a small generator that starts again whenever the rules are
//! replaced, so that the same sequence of requests meets the same faults.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::effect::Effect;
use crate::rule::Rule;

/// A request, as the selectors see it.
pub struct Subject<'a> {
    pub integration: Option<&'a str>,
    pub identifier: Option<&'a str>,
    /// Whether it passed every check.
    pub in_order: bool,
}

/// A rule, and how many requests it has applied to so far.
struct Active {
    rule: Rule,
    affected: u64,
}

/// The rules in force.
pub struct Faults {
    active: Vec<Active>,
    seed: u64,
    state: u64,
}

impl Faults {
    pub fn new(seed: u64) -> Self {
        Self { active: Vec::new(), seed, state: seed }
    }

    /// Puts these rules in place of all others.
    pub fn replace(&mut self, rules: Vec<Rule>) {
        self.state = self.seed;
        self.active = rules.into_iter().map(|rule| Active { rule, affected: 0 }).collect();
    }

    /// The rules as they were written, each with `affected`: how many requests it has applied to.
    pub fn show(&self) -> Vec<Map<String, Value>> {
        let shown = self.active.iter().map(|active| {
            let mut shown = active.rule.written.clone();
            shown.insert("affected".to_owned(), active.affected.into());
            shown
        });
        shown.collect()
    }

    /// What happens to this request, if a rule applies to it.
    pub fn choose(&mut self, subject: &Subject) -> Option<Arc<Effect>> {
        for place in 0..self.active.len() {
            let Active { rule, affected } = &self.active[place];
            let spent = rule.times.is_some_and(|times| *affected >= times);
            let share = rule.share;
            if !spent && matches(rule, subject) && (share >= 1.0 || self.draw() < share) {
                let active = &mut self.active[place];
                active.affected += 1;
                return Some(Arc::clone(&active.rule.effect));
            }
        }
        None
    }

    /// A number from 0 up to but not including 1 (the generator `SplitMix64`).
    fn draw(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        (mixed >> 11) as f64 / (1_u64 << 53) as f64
    }
}

fn matches(rule: &Rule, subject: &Subject) -> bool {
    let fits = |wanted: &Option<String>, actual: Option<&str>| wanted.is_none() || wanted.as_deref() == actual;
    (subject.in_order || rule.effect.is_early())
        && fits(&rule.integration, subject.integration)
        && fits(&rule.identifier, subject.identifier)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const JANE: Subject = Subject { integration: Some("shop"), identifier: Some("jane"), in_order: true };

    fn faults(rules: &[Value]) -> Faults {
        let names = ["shop".to_owned(), "news".to_owned()];
        let rules = rules.iter().map(|rule| Rule::parse(rule.clone(), &names).unwrap());
        let mut faults = Faults::new(1);
        faults.replace(rules.collect());
        faults
    }

    fn status(faults: &mut Faults, subject: &Subject) -> Option<u16> {
        faults.choose(subject).and_then(|effect| effect.ending.status())
    }

    #[test]
    fn the_first_rule_that_matches_applies_until_it_is_spent() {
        let mut faults = faults(&[
            json!({"status": 500, "integration": "news"}),
            json!({"status": 501, "identifier": "joe"}),
            json!({"status": 502, "times": 2}),
            json!({"status": 504, "integration": "shop", "identifier": "jane"}),
        ]);
        let seen = [0; 4].map(|_| status(&mut faults, &JANE));
        assert_eq!(seen, [Some(502), Some(502), Some(504), Some(504)]);
        assert_eq!(faults.show()[2]["affected"], 2);
        assert_eq!(faults.show()[0]["affected"], 0);
    }

    #[test]
    fn only_quota_and_network_meet_a_request_that_is_not_in_order() {
        let mut faults = faults(&[json!({"status": 500}), json!({"status": 429, "times": 1})]);
        let refused = Subject { integration: None, identifier: None, in_order: false };
        assert_eq!(status(&mut faults, &refused), Some(429));
        assert_eq!(status(&mut faults, &refused), None);
        assert_eq!(status(&mut faults, &JANE), Some(500));
    }

    #[test]
    fn a_share_is_kept_and_repeats_with_the_seed() {
        let rule = json!({"status": 500, "share": 0.2});
        let run = || {
            let mut faults = faults(std::slice::from_ref(&rule));
            let drawn = (0..10_000).map(|_| status(&mut faults, &JANE).is_some());
            drawn.collect::<Vec<bool>>()
        };
        let taken = run().iter().filter(|taken| **taken).count();
        assert!((1_900..2_100).contains(&taken), "{taken}");
        assert_eq!(run(), run());
        let mut none = faults(&[json!({"status": 500, "share": 0})]);
        assert!((0..100).all(|_| none.choose(&JANE).is_none()));
    }
}
