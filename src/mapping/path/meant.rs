//! Which path somebody meant who misspelt one.

use super::{FIELDS, Path, ROOTS};
use crate::text::suggest::{asked, distance};
use std::cmp::Reverse;

/// A "did you mean" with a valid path that is close to what was written.
pub(super) fn meant(written: &str) -> String {
    let joined = written.replace('.', "_").trim_end_matches('_').to_owned();
    let whole = ["purposes_", "channels_", "vendors_"].iter().any(|list| joined.starts_with(list));
    let whole = if whole { format!("consents_{joined}") } else { joined };
    let rooted = with_root(&whole).unwrap_or_else(|| whole.clone());
    let ended = with_field(&rooted);
    let is_consent = rooted.starts_with("consents_");
    // `values` contains the preferences, and each has a `value`.
    let twice = rooted.rsplit_once("_values_").filter(|(before, _)| before.contains("_values_"));
    let chosen = twice.map(|(before, id)| format!("{before}_value_{id}"));
    let valued = rooted.contains("_values_").then(|| format!("{rooted}_value"));
    let longer = is_consent.then(|| format!("{rooted}_enabled"));
    let purpose = (!is_consent).then(|| format!("consents_purposes_{}", ended.as_deref().unwrap_or(&rooted)));
    let mut candidates = [Some(whole), Some(rooted), ended, chosen, valued, longer, purpose].into_iter().flatten();
    candidates.find(|path| Path::read(path).is_ok()).map_or_else(String::new, |path| asked(&path))
}

/// Replaces a misspelt root by the known one.
fn with_root(written: &str) -> Option<String> {
    let near = |root: &&'static str| {
        let count = root.split('_').count();
        let end = written.match_indices('_').nth(count - 1).map_or(written.len(), |(at, _)| at);
        Some((distance(&written[..end], root)?, *root, &written[end..]))
    };
    let nearest = ROOTS.iter().filter_map(near).min_by_key(|(distance, root, _)| (*distance, Reverse(root.len())));
    nearest.map(|(_, root, rest)| format!("{root}{rest}"))
}

/// Replaces a misspelt field at the end by the known one.
pub(super) fn with_field(written: &str) -> Option<String> {
    let near = |field: &&'static str| {
        let count = field.split('_').count();
        let begin = written.rmatch_indices('_').nth(count - 1).map(|(at, _)| at + 1)?;
        Some((distance(&written[begin..], field)?, *field, &written[..begin]))
    };
    let nearest = FIELDS.iter().filter_map(near).min_by_key(|(distance, _, _)| *distance);
    nearest.map(|(_, field, before)| format!("{before}{field}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_suggested_for_a_misspelt_path_is_a_path() {
        for (written, meant) in [
            ("consents_purposes_newsletter_enable", "consents_purposes_newsletter_enabled"),
            ("newsletter_enable", "consents_purposes_newsletter_enabled"),
            ("purposes_news_enabled", "consents_purposes_news_enabled"),
            ("consent_purposes_news_enable", "consents_purposes_news_enabled"),
            ("consents.purposes.news.enabled", "consents_purposes_news_enabled"),
            ("consents_purposes_sms", "consents_purposes_sms_enabled"),
            ("consents_purposes_newsletter_enabled_", "consents_purposes_newsletter_enabled"),
            ("consents_purposes_x_values_t", "consents_purposes_x_values_t_value"),
            ("consents_purposes_x_values_t_valu", "consents_purposes_x_values_t_value"),
            ("consents_purposes_x_values_t_values_sport", "consents_purposes_x_values_t_value_sport"),
            ("consents_vendor_google_enabled", "consents_vendors_google_enabled"),
            ("consents_vendors_google_enable", "consents_vendors_google_enabled"),
            ("create_at", "created_at"),
            ("Organisation_User_ID", "organization_user_id"),
            ("usr_country", "user_country"),
        ] {
            let why = Path::compile(written).unwrap_err();
            assert!(why.ends_with(&asked(meant)), "{written}: {why}");
            assert!(Path::compile(meant).is_ok(), "{meant}");
        }
        for written in ["user", "country_zip", "consents_purposes", "something", ""] {
            let why = Path::compile(written).unwrap_err();
            assert!(!why.contains("did you mean"), "{written}: {why}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics_and_each_suggestion_is_right(
            written in r"((consents?_?)?(purpose|channel|vendor|user|created?)s?[._])?[a-zé_.]{0,12}(_enable|_value_|_)?"
        ) {
            if let Err(why) = Path::compile(&written)
                && let Some((_, meant)) = why.split_once("; did you mean ")
            {
                proptest::prop_assert!(Path::compile(meant.trim_end_matches('?')).is_ok(), "{}", why);
            }
        }
    }
}
