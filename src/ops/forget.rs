//! `person forget`: removes the records and dead letters of one person, or of everybody whom a file names.
//!
//! Records are erased one by one, in the order of the file: a failure does not stop the others, and the same
//! command with the same file makes up for it. Letters are gone through for all persons at once.

use super::audit::{audit, persons};
use super::dead::OfPersons;
use super::store::{compared, none_known};
use super::{Failure, Progress, agreed, counted, integration, is_somebody, print, talk, usage};
use crate::cli::PersonForgetArgs;
use crate::config::{Environment, Settings};
use crate::integration::Integration;
use crate::observe::audit::AuditedAction;
use crate::record::Backend;
use crate::record::control_socket::Access;
use crate::record::sequencer::person;
use crate::text::shown;
use serde_json::json;
use std::borrow::Cow;
use std::io::Read;
use std::path::Path;

/// The longest identifier that a line may hold, in bytes: a longer line means another kind of file.
const LONGEST_IDENTIFIER: usize = 4_096;

/// How identifiers are compared: a misspelt one matches nobody.
const COMPARED: &str = "an identifier is compared letter by letter with those of the events, but an e-mail address in \
    lower case and without the blanks around it";

/// Forgets people, after asking for confirmation unless told not to: removes their records and dead letters, and
/// leaves a tombstone for events that are still on their way.
///
/// # Errors
/// Problems of configuration or usage, with every line that names nobody (exit code 2); the records or
/// the broker cannot be reached, or somebody was not forgotten (1).
pub async fn forget(
    args: &PersonForgetArgs,
    file: Option<&Path>,
    environment: &Environment,
    as_json: bool,
) -> Result<(), Failure> {
    let persons = args.from.as_deref().map(read).transpose()?;
    args.identifier.as_deref().map_or(Ok(()), is_somebody)?;
    let (settings, integration) = integration(&args.integration, file, environment)?;
    // Before anything is counted or asked: an answer from the wrong records would be worthless.
    let access = match settings.records.place {
        Backend::Off => {
            none_known(&settings, &integration).await?;
            None
        }
        _ => Some(compared(&settings, &integration).await?),
    };
    if access.is_none() {
        talk(
            "no records are kept ([records] store is \"off\"): letters are removed and nothing is remembered, \
            so an older event that is still on its way can bring the person back",
        );
    }
    let forgetting = Forgetting { settings, integration, access, yes: args.yes, as_json };
    match (persons, &args.identifier) {
        (Some(persons), _) => forgetting.everybody(&persons).await,
        (None, Some(identifier)) => forgetting.one(identifier).await,
        (None, None) => Err(Failure::Usage("name a person, or a file with --from".to_owned())),
    }
}

/// A line that names a person.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    number: usize,
    identifier: String,
}

/// What there was of a person.
struct Forgotten {
    was_known: bool,
    letters: u32,
}

struct Forgetting {
    settings: Settings,
    integration: Integration,
    /// `None` if no records are kept.
    access: Option<Access>,
    yes: bool,
    as_json: bool,
}

impl Forgetting {
    async fn one(&self, identifier: &str) -> Result<(), Failure> {
        let theirs = self.letters_of(&[identifier]).await?;
        self.ask(&format!(
            "this person under {}: what is recorded, and {}",
            self.name(),
            counted(theirs.letters, "dead letter")
        ))?;
        audit(&self.settings, &self.integration.name, AuditedAction::PersonForget, persons(1)).await;
        let unreadable = theirs.unreadable;
        let was_known = self.erase(identifier).await?;
        let letters: u32 = theirs.remove(&[identifier]).await?.values().sum();
        warn_of(unreadable);
        if !was_known && letters == 0 {
            talk(&format!("is it spelled correctly? {COMPARED}"));
        }
        if self.as_json {
            return print(&format!("{}\n", json!({ "forgotten": true, "was_known": was_known, "letters": letters })));
        }
        let known = match (was_known, letters) {
            (true, _) => "what was recorded is gone",
            (false, 0) => "nothing was known under this identifier",
            (false, _) => "nothing was recorded",
        };
        let promise = if self.access.is_some() { "; older events of this person will be skipped" } else { "" };
        print(&format!("{known}, dead letters removed: {letters}{promise}\n"))
    }

    async fn everybody(&self, named: &[Line]) -> Result<(), Failure> {
        let count = named.len();
        let who = counted(count as u64, "person");
        self.ask(&format!("{who} under {}: what is recorded, and all dead letters about them", self.name()))?;
        audit(&self.settings, &self.integration.name, AuditedAction::PersonForget, persons(count)).await;
        let (forgotten, unreadable) = self.forget_all(named).await;
        let (mut done, mut unknown) = (0, 0);
        for (Line { number, .. }, forgotten) in named.iter().zip(forgotten) {
            if let Ok(forgotten) = &forgotten {
                done += 1;
                unknown += usize::from(!forgotten.was_known && forgotten.letters == 0);
            }
            print(&self.result(*number, forgotten))?;
        }
        warn_of(unreadable);
        if unknown > 0 {
            talk(&format!("nothing was known of {}: {COMPARED}", counted(unknown as u64, "person")));
        }
        if done == count {
            return Ok(());
        }
        let (refused, all) = (count - done, counted(count as u64, "person"));
        Err(Failure::Failed(format!("{refused} of {all} not forgotten; type the same again to go on")))
    }

    fn name(&self) -> &str {
        self.integration.name.as_str()
    }

    fn ask(&self, what: &str) -> Result<(), Failure> {
        let promise = if self.access.is_some() { " Older events of theirs will be skipped" } else { "" };
        if !self.yes && !agreed(&format!("forget {what}?{promise}"), "this cannot be taken back")? {
            return Err(Failure::Failed("nothing was forgotten".to_owned()));
        }
        Ok(())
    }

    /// For each person, what was forgotten, or why it failed; and how many letters may be about anybody.
    async fn forget_all(&self, named: &[Line]) -> (Vec<Result<Forgotten, String>>, u32) {
        let persons: Vec<&str> = named.iter().map(|line| line.identifier.as_str()).collect();
        let theirs = match self.letters_of(&persons).await {
            Ok(theirs) => theirs,
            Err(failure) => return (named.iter().map(|_| Err(failure.why().into_owned())).collect(), 0),
        };
        let unreadable = theirs.unreadable;
        let mut erased = Vec::with_capacity(named.len());
        let mut progress = Progress::new("forgot", "persons", named.len() as u64);
        for identifier in &persons {
            erased.push(self.erase(identifier).await.map_err(|failure| failure.why().into_owned()));
            progress.at(erased.len() as u64);
        }
        progress.end();
        let done = persons.iter().zip(&erased).filter(|(_, erased)| erased.is_ok());
        let done: Vec<&str> = done.map(|(identifier, _)| *identifier).collect();
        let mut removed = theirs.remove(&done).await.map_err(|failure| failure.why().into_owned());
        let forgotten = persons.iter().zip(erased).map(|(identifier, erased)| {
            let was_known = erased?;
            let removed = removed.as_mut().map_err(|why| why.clone())?;
            Ok(Forgotten { was_known, letters: removed.remove(&*person(identifier)).unwrap_or_default() })
        });
        (forgotten.collect(), unreadable)
    }

    async fn letters_of(&self, persons: &[&str]) -> Result<OfPersons, Failure> {
        OfPersons::count(self.settings.clone(), self.integration.clone(), persons).await
    }

    /// Erases what is recorded, and returns whether anything was. Comes before the letters, so that from then on
    /// none of them brings the person back.
    async fn erase(&self, identifier: &str) -> Result<bool, Failure> {
        match &self.access {
            None => Ok(false),
            Some(access) => Ok(access.forget(&self.integration, identifier).await?),
        }
    }

    /// The output for the person whom a line names. The line's number stands for the identifier.
    fn result(&self, line: usize, forgotten: Result<Forgotten, String>) -> String {
        let told = match forgotten {
            Ok(Forgotten { was_known, letters, .. }) if self.as_json => {
                json!({ "line": line, "forgotten": true, "was_known": was_known, "letters": letters }).to_string()
            }
            Ok(Forgotten { was_known: false, letters: 0, .. }) => format!("line {line}: nothing known"),
            Ok(Forgotten { letters, .. }) => format!("line {line}: done, dead letters removed: {letters}"),
            Err(why) if self.as_json => json!({ "line": line, "forgotten": false, "refused": why }).to_string(),
            Err(why) => format!("line {line}: refused: {}", shown::value(&why)),
        };
        format!("{told}\n")
    }
}

fn warn_of(unreadable: u32) {
    if unreadable > 0 {
        talk(&format!("{} cannot be read and may be about anybody", counted(unreadable, "dead letter")));
    }
}

/// Reads everybody whom a file or, for `-`, standard input names.
fn read(path: &Path) -> Result<Vec<Line>, Failure> {
    let which = path.display();
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes))
    };
    read.map_err(|error| {
        Failure::Usage(format!("{which} cannot be read: {error}; name a file, or - for standard input"))
    })?;
    let persons = lines(&bytes).map_err(|bad| usage(bad.iter().map(|why| format!("{which}, {why}")).collect()))?;
    if persons.is_empty() {
        return Err(Failure::Usage(format!("{which} names nobody; write one identifier a line")));
    }
    Ok(persons)
}

/// The lines of a file that name somebody (pure). Blank lines, a byte order mark and the line endings of other
/// systems change nothing.
///
/// # Errors
/// Every line that is not an identifier, by its number alone: its text is personal.
fn lines(bytes: &[u8]) -> Result<Vec<Line>, Vec<String>> {
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(vec!["line 1: the file is saved as UTF-16; save it as UTF-8".to_owned()]);
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let (mut persons, mut bad) = (Vec::new(), Vec::new());
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let number = index + 1;
        match identifier(line.strip_suffix(b"\r").unwrap_or(line)) {
            Ok(None) => {}
            Ok(Some(identifier)) => persons.push(Line { number, identifier: identifier.to_owned() }),
            Err(why) => bad.push(format!("line {number}: {why}")),
        }
    }
    if bad.is_empty() { Ok(persons) } else { Err(bad) }
}

/// The identifier in a line, if the line is not blank. Events never carry what is refused here, so it would match
/// nobody, and a real person would be reported as unknown.
fn identifier(line: &[u8]) -> Result<Option<&str>, &'static str> {
    if line.len() > LONGEST_IDENTIFIER {
        return Err("longer than 4,096 bytes, so it is not an identifier");
    }
    let text = std::str::from_utf8(line).map_err(|_| "not UTF-8; save the file as UTF-8")?;
    if text.trim().is_empty() {
        return Ok(None);
    }
    if matches!(shown::value(text), Cow::Owned(_)) {
        return Err("it holds a character that cannot be seen; write one bare identifier a line");
    }
    // For e-mail addresses, blanks around them are not compared.
    if text.trim() != text && !text.contains('@') {
        return Err("blanks around it would be part of it; remove them");
    }
    if text.contains([',', ';']) {
        return Err("a comma or semicolon in it, as in a table's row; write one bare identifier a line (one that has \
            such a character is named on the command line)");
    }
    if text.trim().starts_with('"') && text.trim().ends_with('"') {
        return Err("quotes around it would be part of it; remove them");
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(usize, String)> {
        lines(text.as_bytes()).unwrap().into_iter().map(|Line { number, identifier }| (number, identifier)).collect()
    }

    #[test]
    fn blank_lines_line_ends_and_a_byte_order_mark_change_nothing() {
        let named = |number, text: &str| (number, text.to_owned());
        let persons = [named(1, "jane@example.com"), named(3, "A 17"), named(4, " John@Example.com ")];
        assert_eq!(read("\u{feff}jane@example.com\r\n\r\nA 17\r\n John@Example.com \r\n  \r\n"), persons);
        assert_eq!(read("jane@example.com\n\nA 17\n John@Example.com "), persons);
        assert_eq!(read("\n \n"), []);
    }

    #[test]
    fn every_bad_line_is_told_at_once_and_none_is_quoted() {
        let long = "x".repeat(LONGEST_IDENTIFIER + 1);
        let text = format!(
            "jane@example.com\n 17\n\"17\"\nj\u{200b}ane\nj\tane\n{long}\n\u{fe}\njane@example.com,Jane\n17;Jane\n"
        );
        let mut bytes = text.into_bytes();
        bytes.extend(b"\xff\n");
        let bad = lines(&bytes).unwrap_err();
        let numbers: Vec<&str> = bad.iter().map(|why| why.split(':').next().unwrap()).collect();
        assert_eq!(
            numbers,
            ["line 2", "line 3", "line 4", "line 5", "line 6", "line 8", "line 9", "line 10"],
            "{bad:?}"
        );
        assert!(bad.iter().all(|why| !why.contains("17") && !why.contains("ane") && !why.contains("xx")), "{bad:?}");
        let utf_16 = lines(b"\xff\xfej\0").unwrap_err();
        assert!(utf_16[0].contains("UTF-16"), "{utf_16:?}");
    }
}
