//! Who saw, moved or removed personal data: what a command reports about itself, for the worker's log.
//!
//! An entry names who ran the command, what it was for and how much it touched, never whom: filters by person or
//! event are only counted. A worker trusts an entry no further than that, since it comes from a queue: its texts are
//! cut, and only known commands are logged.

use jiff::Timestamp;
use nix::unistd::{Uid, User, gethostname};
use serde::{Deserialize, Serialize};
use strum::VariantArray;

/// The target of an entry's line in the log, which is written at every level.
pub const TARGET: &str = "audit";

/// The largest entry that is read, in bytes.
const MAX_ENTRY: usize = 4 * 1024;
/// The longest text in an entry, in characters.
const MAX_TEXT: usize = 256;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, VariantArray)]
#[serde(rename_all = "snake_case")]
pub enum AuditedAction {
    DeadList,
    DeadShow,
    DeadExport,
    DeadDiscard,
    DeadReplay,
    PersonShow,
    PersonForget,
}

impl AuditedAction {
    /// All of them: labels of a metric.
    pub const ALL: &'static [AuditedAction] = AuditedAction::VARIANTS;

    /// Its name in metrics and logs.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            AuditedAction::DeadList => "dead_list",
            AuditedAction::DeadShow => "dead_show",
            AuditedAction::DeadExport => "dead_export",
            AuditedAction::DeadDiscard => "dead_discard",
            AuditedAction::DeadReplay => "dead_replay",
            AuditedAction::PersonShow => "person_show",
            AuditedAction::PersonForget => "person_forget",
        }
    }
}

/// What a command touched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// `dead`, `aside`, or `records`.
    pub queue: String,
    /// Which letters were asked for, without anybody's name.
    pub filter: String,
    /// How many letters or persons; `None` while that is not known yet.
    pub count: Option<u64>,
}

/// One look at personal data, or one change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub command: AuditedAction,
    pub at: Timestamp,
    /// The real user id of the process.
    pub uid: u32,
    /// The user's login name, if the machine's user database has it.
    pub user: Option<String>,
    /// The machine on which the user has that id and name.
    pub host: String,
    #[serde(flatten)]
    pub scope: Scope,
}

impl Entry {
    /// An entry as of now, by the user who runs this process.
    #[must_use]
    pub fn own(command: AuditedAction, scope: Scope) -> Entry {
        let uid = Uid::current();
        let user = User::from_uid(uid).ok().flatten().map(|user| user.name);
        let host = gethostname().map(|host| host.to_string_lossy().into_owned()).unwrap_or_default();
        Entry { command, at: Timestamp::now(), uid: uid.as_raw(), user, host, scope }.cut()
    }

    /// Reads what some command wrote; `None` if that is not an entry.
    #[must_use]
    pub fn read(written: &[u8]) -> Option<Entry> {
        let entry: Entry = serde_json::from_slice(written.get(..written.len().min(MAX_ENTRY))?).ok()?;
        Some(entry.cut())
    }

    fn cut(self) -> Entry {
        let cut = |text: String| text.chars().take(MAX_TEXT).collect::<String>();
        let Scope { queue, filter, count } = self.scope;
        let scope = Scope { queue: cut(queue), filter: cut(filter), count };
        Entry { user: self.user.map(cut), host: cut(self.host), scope, ..self }
    }

    /// Writes its line to the log.
    pub fn log(&self, integration: &str) {
        let Entry { command, at, uid, user, host, scope: Scope { queue, filter, count } } = self;
        tracing::info!(
            target: TARGET,
            target = TARGET,
            integration,
            command = command.code(),
            uid,
            user = user.as_deref().unwrap_or("unknown"),
            host,
            queue,
            filter,
            count,
            %at,
            "personal data was touched"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_says_who_runs_the_process_whatever_the_environment_says() {
        let scope = Scope { queue: "dead".to_owned(), filter: "all".to_owned(), count: Some(3) };
        let entry = Entry::own(AuditedAction::DeadList, scope);
        assert_eq!(entry.uid, Uid::current().as_raw());
        let known = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let by_file = known.lines().find(|line| line.split(':').nth(2) == Some(&entry.uid.to_string()));
        if let Some(name) = by_file.and_then(|line| line.split(':').next()) {
            assert_eq!(entry.user.as_deref(), Some(name));
        }
        assert_eq!(Entry::read(serde_json::json!(entry).to_string().as_bytes()), Some(entry));
    }

    #[test]
    fn whatever_else_lies_in_the_queue_is_no_entry() {
        let scope = Scope { queue: "x".repeat(5_000), filter: String::new(), count: None };
        let entry = Entry {
            command: AuditedAction::DeadShow,
            at: Timestamp::UNIX_EPOCH,
            uid: 0,
            user: None,
            host: String::new(),
            scope,
        };
        let large = serde_json::json!(entry).to_string();
        let unknown = serde_json::json!(entry.cut()).to_string().replace("dead_show", "jane@example.com");
        for written in [b"".as_slice(), b"{}", b"\xff", large.as_bytes(), unknown.as_bytes()] {
            assert_eq!(Entry::read(written), None);
        }
    }

    #[test]
    fn every_command_has_the_name_that_is_written() {
        for command in AuditedAction::ALL.iter().copied() {
            assert_eq!(serde_json::json!(command), command.code());
        }
    }
}
