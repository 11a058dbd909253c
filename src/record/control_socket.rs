//! What commands ask about records, and who answers: the records themselves, or the process that holds them.
//!
//! An embedded store belongs to one process at a time. That process answers on a Unix socket in the store's
//! directory, which only its owner can open: each question is one line of JSON, and so is each answer.

use super::{Backend, Claim, Failed, Recorded, Records, RecordsSettings, execution_horizon};
use crate::integration::{Integration, Name};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// The socket's name in the store's directory.
pub(super) const SOCKET: &str = "commands.sock";
/// The longest line that is read, in bytes.
const LONGEST_LINE: u64 = 1024 * 1024;
/// The timeout for a question and its answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait after a failed accept.
const PAUSE: Duration = Duration::from_secs(1);

/// A question about the records.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// The store's identity and epoch.
    Claim,
    /// How many persons are on record.
    Count,
    /// Whether the broker ever knew these records as those of an integration, now that it knows none.
    WasClaimed { integration: Name },
    /// What is recorded of a person.
    Person { records: Name, identifier: String },
    /// Forget a person: everything up to now.
    Forget { records: Name, identifier: String, execution_horizon: SignedDuration },
}

/// The answer to a [`Question`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Claim(Claim),
    Count(u64),
    WasClaimed(bool),
    Person(Box<Recorded>),
    /// Whether anything was known about the person.
    Erased(bool),
    Failed(String),
}

/// How to reach the records.
#[derive(Debug)]
pub enum Access {
    /// Opened by this process.
    Direct(Box<Records>),
    /// Held by another process, which answers for them.
    Socket(PathBuf),
}

impl Access {
    /// Opens existing records, or finds the process that holds them. They are never created here: empty
    /// records in a wrong place would give wrong answers.
    ///
    /// # Errors
    /// They cannot be opened, there are none, or none are kept.
    pub async fn open(settings: &RecordsSettings) -> Result<Access, Failed> {
        if !settings.place.exists().await? {
            let place = &settings.place;
            let look = "check whether the settings are the worker's; its first start creates them";
            return Err(Failed::new(format!("there are no records in {place}: {look}")));
        }
        let records = Records::new(settings.clone());
        match (records.claim().await, &settings.place) {
            (_, Backend::Off) => Err(Failed::new("no records are kept: [records] store is \"off\"")),
            (Ok(_), _) => Ok(Access::Direct(Box::new(records))),
            (Err(failed), Backend::Directory(directory)) if failed.is_held() => Ok(Access::Socket(directory.clone())),
            (Err(failed), _) => Err(failed),
        }
    }

    /// Checks that these are the records that the broker remembers, and not an older state of them. Returns whether
    /// the broker has forgotten them, so that nobody can know.
    ///
    /// # Errors
    /// They are not; or as for [`Access::ask`].
    pub async fn compare(&self, integration: &Name, known: Option<&Claim>, place: &Backend) -> Result<bool, Failed> {
        match (self, known) {
            (Access::Direct(records), Some(_)) => records.compare(integration, known).await.map(|()| false),
            (Access::Socket(_), Some(known)) => self.claim().await?.follows(known, place).map(|()| false),
            (_, None) => match self.ask(Question::WasClaimed { integration: integration.clone() }).await? {
                Reply::WasClaimed(was_claimed) => Ok(was_claimed),
                other => Err(unfit(&other)),
            },
        }
    }

    /// Asks a question.
    ///
    /// # Errors
    /// The records failed, or the process that holds them does not answer.
    pub async fn ask(&self, question: Question) -> Result<Reply, Failed> {
        let reply = match self {
            Access::Direct(records) => answer(records, question).await,
            Access::Socket(directory) => {
                let asked = tokio::time::timeout(TIMEOUT, ask(directory, &question)).await;
                let silent = || std::io::Error::other(format!("no answer within {TIMEOUT:?}"));
                asked.unwrap_or_else(|_| Err(silent())).map_err(|error| {
                    let which = directory.display();
                    Failed::new(format!("another process holds the records in {which} and does not answer: {error}"))
                })?
            }
        };
        match reply {
            Reply::Failed(why) => Err(Failed::new(why)),
            reply => Ok(reply),
        }
    }

    /// What is known about a person.
    ///
    /// # Errors
    /// As for [`Access::ask`].
    pub async fn person(&self, records: &Name, identifier: &str) -> Result<Recorded, Failed> {
        let question = Question::Person { records: records.clone(), identifier: identifier.to_owned() };
        match self.ask(question).await? {
            Reply::Person(recorded) => Ok(*recorded),
            other => Err(unfit(&other)),
        }
    }

    /// Forgets a person. Returns whether anything was known.
    ///
    /// # Errors
    /// As for [`Access::ask`].
    pub async fn forget(&self, integration: &Integration, identifier: &str) -> Result<bool, Failed> {
        let (records, identifier) = (integration.records.clone(), identifier.to_owned());
        let question = Question::Forget { records, identifier, execution_horizon: execution_horizon(integration) };
        match self.ask(question).await? {
            Reply::Erased(was_known) => Ok(was_known),
            other => Err(unfit(&other)),
        }
    }

    /// The store's identity and epoch.
    ///
    /// # Errors
    /// As for [`Access::ask`].
    pub async fn claim(&self) -> Result<Claim, Failed> {
        match self.ask(Question::Claim).await? {
            Reply::Claim(claim) => Ok(claim),
            other => Err(unfit(&other)),
        }
    }

    /// How many persons are on record.
    ///
    /// # Errors
    /// As for [`Access::ask`].
    pub async fn count(&self) -> Result<u64, Failed> {
        match self.ask(Question::Count).await? {
            Reply::Count(count) => Ok(count),
            other => Err(unfit(&other)),
        }
    }
}

/// Only another version of this program would give such an answer.
fn unfit(_: &Reply) -> Failed {
    Failed::new("the process that holds the records gave an answer to another question; use its own version")
}

async fn answer(records: &Records, question: Question) -> Reply {
    let now = Timestamp::now();
    let answered = match question {
        Question::Claim => records.claim().await.map(Reply::Claim),
        Question::Count => records.count().await.map(Reply::Count),
        Question::WasClaimed { integration } => match records.compare(&integration, None).await {
            Ok(()) => records.was_claimed(&integration).await.map(Reply::WasClaimed),
            Err(failed) => Err(failed),
        },
        Question::Person { records: name, identifier } => {
            records.person(&name, &identifier).await.map(|recorded| Reply::Person(Box::new(recorded)))
        }
        Question::Forget { records: name, identifier, execution_horizon } => {
            records.forget(&name, &identifier, execution_horizon, now).await.map(Reply::Erased)
        }
    };
    answered.unwrap_or_else(|failed| Reply::Failed(failed.to_string()))
}

async fn ask(directory: &Path, question: &Question) -> std::io::Result<Reply> {
    let (_folder, path) = socket(directory)?;
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(&line(question)?).await?;
    read(&mut stream).await
}

fn line(value: &impl Serialize) -> std::io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

async fn read<T: for<'d> Deserialize<'d>>(stream: &mut UnixStream) -> std::io::Result<T> {
    let mut line = Vec::new();
    BufReader::new(stream.take(LONGEST_LINE)).read_until(b'\n', &mut line).await?;
    // The content is personal: the error says only that it is wrong.
    serde_json::from_slice(&line).map_err(|_| std::io::Error::other("not a line of this protocol"))
}

/// The socket's path through the open directory: the full path could be longer than the address of a socket
/// may be.
fn socket(directory: &Path) -> std::io::Result<(fs::File, PathBuf)> {
    let folder = fs::File::open(directory)?;
    let by_descriptor = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()));
    let path = if Path::new("/proc/self/fd").exists() { by_descriptor } else { directory.join(SOCKET) };
    Ok((folder, path))
}

/// Answers commands for as long as the process lives, once it holds an embedded store. A store that several
/// processes can open needs no such server.
pub async fn serve(records: &Arc<Records>) {
    let Backend::Directory(directory) = records.place().clone() else { return };
    let mut opened = 0;
    loop {
        opened = records.opened(opened).await;
        // Another process that held the store meanwhile has put its own socket there.
        tokio::select! {
            () = answer_all(records, &directory) => {}
            _ = records.opened(opened) => {}
        }
    }
}

/// Answers all questions on the socket. Returns if it cannot be opened.
async fn answer_all(records: &Arc<Records>, directory: &Path) {
    let folder = directory.to_owned();
    // A file system may hang, and nothing else should wait for it.
    let listener = match tokio::task::spawn_blocking(move || listen(&folder)).await {
        Ok(listener) => listener.and_then(UnixListener::from_std),
        Err(error) => Err(error.into()),
    };
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => {
            let directory = directory.display();
            return tracing::warn!(%error, "cannot answer commands in {directory}; they work while no worker runs");
        }
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(reply(Arc::clone(records), stream))),
            // Most likely out of file descriptors: give other connections time to end.
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Opens the socket. The holder of the store may remove a socket that a dead process left there.
fn listen(directory: &Path) -> std::io::Result<std::os::unix::net::UnixListener> {
    let (_folder, path) = socket(directory)?;
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(&path)?;
    // Nobody else could connect in between: the process creates all files for its owner alone.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn reply(records: Arc<Records>, mut stream: UnixStream) {
    let replied = async {
        let question = read(&mut stream).await?;
        let is_erasure = matches!(question, Question::Forget { .. });
        let reply = answer(&records, question).await;
        if is_erasure && matches!(reply, Reply::Erased(_)) {
            tracing::info!("a person was forgotten by a command");
        }
        stream.write_all(&line(&reply)?).await
    };
    // A command that went away no longer waits for the answer.
    let _ = tokio::time::timeout(TIMEOUT, replied).await;
}
