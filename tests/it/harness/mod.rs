//! What the tests share: a lab with its own broker objects, simulators and workers, golden files, and the one
//! place that waits.

mod broker;
mod faults;
mod lab;
mod postgres;
mod power;
mod process;
mod way;

pub use broker::{Bench, Letter, Message, Node, ctl, unacked, url};
pub use faults::library as fault_library;
pub use lab::{Lab, PASSWORD, document};
pub use postgres::{Node as PgNode, Schema};
pub use power::Power;
pub use process::{Finished, Running, run};
pub use way::Way;

use serde_json::{Value, json};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Nothing takes this long unless it is broken; machines may be slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// The one place that waits: calls `ask` until it returns a value.
pub fn poll_until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        sleep(Duration::from_millis(5));
    }
}

/// xorshift64*: small and reproducible.
#[derive(Clone, Copy)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        // Neighbouring seeds must start far apart; none may be zero.
        Random(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below the bound.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap() % bound
    }

    /// True with a probability of `share` percent.
    pub fn percent(&mut self, share: usize) -> bool {
        self.below(100) < share
    }
}

/// A figure for the person who runs a long test; the suite does not show it.
pub fn note(text: &str) {
    // The test runner shows it with --nocapture; it does not matter if standard error is closed.
    let _ = writeln!(std::io::stderr(), "      {text}");
}

/// The project's folder.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A name that no other test uses, even across runs at the same broker.
pub fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let since_epoch = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis();
    format!("t{since_epoch:x}-{:x}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A folder that is removed with the test.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Folder {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique());
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Compares with `tests/golden/NAME`; `UPDATE_GOLDEN=1` writes it instead.
pub fn golden(name: &str, actual: &str) {
    let path = project().join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, actual).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(actual, expected, "differs from {}; UPDATE_GOLDEN=1 accepts it", path.display());
}

/// `count` events of different people, each with one choice.
pub fn events(kind: &str, count: usize) -> Vec<Message> {
    (0..count).map(|n| choice(&person(kind, n), true).into()).collect()
}

/// The e-mail address of one of these people.
pub fn person(kind: &str, n: usize) -> String {
    format!("{kind}-{n}@example.com")
}

/// A sample message from the project's fixtures.
pub fn fixture(name: &str) -> Vec<u8> {
    fs::read(project().join("tests/fixtures/events").join(name)).unwrap()
}

/// An `event.created` dated now, in which a person makes a choice about the newsletter.
pub fn choice(person: &str, newsletter: bool) -> Value {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let id = format!("00000000-0000-4000-8000-{:012x}", NEXT.fetch_add(1, Ordering::Relaxed));
    json!({
        "type": "event.created",
        "parameters": { "entity": {
            "id": id,
            "organization_id": "acme",
            "created_at": jiff::Timestamp::now().to_string(),
            "status": "confirmed",
            "user": { "id": "device-1", "organization_user_id": person },
            "consents": { "purposes": [{ "id": "newsletter", "enabled": newsletter }] },
        } },
        "regulation": "gdpr",
    })
}
