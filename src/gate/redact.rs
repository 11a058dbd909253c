//! Text from outside, made fit for headers: values that were sent and secrets are replaced before
//! the text is cut, whatever their case and in the escaped forms that servers echo.

/// The longest text kept, in characters.
pub const MAX_CHARS: usize = 512;

const MASK: &str = "***";

/// Replaces every non-empty value in `text`, then cuts it to [`MAX_CHARS`] characters.
pub fn redact<'a>(text: &str, values: impl Iterator<Item = &'a str>) -> String {
    let mut forms: Vec<Vec<char>> = values.flat_map(forms_of).filter(|form| !form.is_empty()).collect();
    // Longest first, so that a value within another leaves nothing of the longer one behind.
    forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
    let chars: Vec<char> = text.chars().collect();
    let mut clean = String::new();
    let mut at = 0;
    let mut kept = 0;
    while at < chars.len() && kept < MAX_CHARS {
        match forms.iter().find(|form| starts_with(&chars[at..], form)) {
            Some(form) => {
                clean.push_str(MASK);
                kept += MASK.len();
                at += form.len();
            }
            None => {
                clean.push(if chars[at].is_control() { ' ' } else { chars[at] });
                kept += 1;
                at += 1;
            }
        }
    }
    clean.chars().take(MAX_CHARS).collect()
}

/// A value as sent, trimmed, as a JSON string's inside, and percent-encoded.
fn forms_of(value: &str) -> Vec<Vec<char>> {
    let json = serde_json::Value::from(value).to_string();
    // Without the quotes that JSON puts around it.
    let json = json.get(1..json.len() - 1).unwrap_or_default().to_owned();
    let percent: String = value
        .bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect();
    [value, value.trim(), &json, &percent].iter().map(|form| form.chars().collect()).collect()
}

fn starts_with(text: &[char], form: &[char]) -> bool {
    text.len() >= form.len() && form.iter().zip(text).all(|(a, b)| a.to_lowercase().eq(b.to_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_form_of_a_value_survives() {
        let text = "user JANE@example.com (jane%40example.com) said \"a\\\"b\"";
        let clean = redact(text, ["jane@example.com", "a\"b"].into_iter());
        assert_eq!(clean, "user *** (***) said \"***\"");
    }

    #[test]
    fn values_are_replaced_before_the_cut() {
        let text = format!("{}jane@example.com", "x".repeat(MAX_CHARS - 4));
        let clean = redact(&text, std::iter::once("jane@example.com"));
        assert!(!clean.contains("jan"), "{clean}");
        assert_eq!(clean.chars().count(), MAX_CHARS - 1);
    }

    #[test]
    fn the_longer_of_two_overlapping_values_goes_whole() {
        assert_eq!(redact("ab abc", ["ab", "abc"].into_iter()), "*** ***");
    }
}
