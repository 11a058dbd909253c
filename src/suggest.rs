//! What somebody meant who wrote something else (pure).

/// How far a text is from a word, if it may be that word misspelt.
#[must_use]
pub fn distance(written: &str, word: &str) -> Option<usize> {
    let distance = strsim::damerau_levenshtein(&written.to_lowercase(), &word.to_lowercase());
    (distance <= 1 + word.len() / 4).then_some(distance)
}

/// The word that is closest, if one is close.
pub fn nearest<'w>(written: &str, words: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    let near = words.filter_map(|word| Some((distance(written, word)?, word)));
    near.min_by_key(|(distance, _)| *distance).map(|(_, word)| word)
}

/// `; did you mean x?` when one of the words is close, else nothing.
pub fn did_you_mean<'w>(written: &str, words: impl Iterator<Item = &'w str>) -> String {
    nearest(written, words).map_or_else(String::new, asked)
}

/// The question itself.
#[must_use]
pub fn asked(word: &str) -> String {
    format!("; did you mean {word}?")
}
