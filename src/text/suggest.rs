//! Suggestions for misspelt words (pure).

/// How many edits a text is from a word; `None` if they are too many for a misspelling.
#[must_use]
pub fn distance(written: &str, word: &str) -> Option<usize> {
    let distance = strsim::damerau_levenshtein(&written.to_lowercase(), &word.to_lowercase());
    (distance <= 1 + word.len() / 4).then_some(distance)
}

/// The closest of the words, if one is close.
pub fn nearest<'w>(written: &str, words: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    let near = words.filter_map(|word| Some((distance(written, word)?, word)));
    near.min_by_key(|(distance, _)| *distance).map(|(_, word)| word)
}

/// `; did you mean x?` if one of the words is close, else nothing.
pub fn did_you_mean<'w>(written: &str, words: impl Iterator<Item = &'w str>) -> String {
    nearest(written, words).map_or_else(String::new, asked)
}

/// The question itself.
#[must_use]
pub fn asked(word: &str) -> String {
    format!("; did you mean {word}?")
}
