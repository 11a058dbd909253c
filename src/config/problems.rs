//! What is wrong with a configuration: every problem of a run, and the warnings.

use super::node::Location;
use crate::text::shown;
use std::cell::RefCell;
use std::fmt;

/// One problem: where it is, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub place: Location,
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What it quotes may contain anything.
        write!(f, "{}: {}", self.place, shown::value(&self.text))
    }
}

/// All problems of one run, so that a user can fix everything at once; and the warnings.
#[derive(Debug, Default)]
pub struct Problems {
    list: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<String>>,
    /// The name of every table that was read, with every key that it may have.
    known: RefCell<Vec<(String, &'static str)>>,
}

impl Problems {
    /// Records a problem.
    pub fn add(&self, place: &Location, text: impl Into<String>) {
        self.list.borrow_mut().push(Problem { place: place.clone(), text: text.into() });
    }

    /// How many problems there are so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.list.borrow().len()
    }

    /// All problems: files in the order in which they were read, and in each the lines from top to bottom.
    #[must_use]
    pub fn into_list(self) -> Vec<Problem> {
        let mut list = self.list.into_inner();
        let files: Vec<_> = list.iter().map(|problem| problem.place.file().cloned()).collect();
        list.sort_by_cached_key(|problem| {
            let file = problem.place.file();
            (files.iter().position(|known| known.as_ref() == file), problem.place.line())
        });
        list
    }

    /// Records a warning: something that works but may surprise.
    pub fn warn(&self, place: &Location, text: impl fmt::Display) {
        self.warnings.borrow_mut().push(shown::value(&format!("{place}: {text}")).into_owned());
    }

    /// All warnings so far, in the order found.
    #[must_use]
    pub fn take_warnings(&self) -> Vec<String> {
        self.warnings.take()
    }

    /// A table was read that may have these keys.
    pub fn learn(&self, table: &str, keys: &[&'static str]) {
        self.known.borrow_mut().extend(keys.iter().map(|key| (table.to_owned(), *key)));
    }

    /// Every key of every table that was read, whether it is written or not.
    #[must_use]
    pub fn take_known(&self) -> Vec<(String, &'static str)> {
        self.known.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_complaint_quotes_begins_no_line_of_its_own() {
        let problems = Problems::default();
        let place = Location::File("acme.json".into());
        problems.add(&place, "path \"a\nerror: b\u{202e}\" does not begin with a known root");
        problems.warn(&place, "gate \"a\r\nok\"");
        let told = problems
            .take_warnings()
            .into_iter()
            .chain(problems.into_list().into_iter().map(|problem| problem.to_string()));
        let told: Vec<String> = told.collect();
        assert_eq!(
            told,
            [
                "acme.json: gate \"a\\u000d\\u000aok\"",
                "acme.json: path \"a\\u000aerror: b\\u202e\" does not begin with a known root"
            ]
        );
    }
}
