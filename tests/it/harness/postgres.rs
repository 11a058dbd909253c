//! PostgreSQL: a schema of one test's own in the shared node, or a node of its own.

use super::Folder;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The database of the tests.
pub fn url() -> String {
    std::env::var("CONSENT_GATE_TEST_POSTGRES_URL").expect(
        "these tests need PostgreSQL: run scripts/test, or set CONSENT_GATE_TEST_POSTGRES_URL to a database in which schemas may be made",
    )
}

fn script() -> Command {
    Command::new(super::project().join("scripts/postgres"))
}

/// What a command prints, or why it failed.
fn try_run(command: &mut Command) -> Result<String, String> {
    let output = command.output().unwrap();
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned())
    } else {
        Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)))
    }
}

fn run(command: &mut Command) -> String {
    try_run(command).unwrap_or_else(|why| panic!("{why}"))
}

/// Tidies up; a test that fails already says why, and a second panic would end all the others.
fn tidy(command: &mut Command) {
    let done = try_run(command);
    assert!(done.is_ok() || std::thread::panicking(), "{done:?}");
}

/// Has `psql`, or the script that runs it, give the bare values of statements: one row a line, `|`
/// between columns.
fn psql(mut command: Command, statements: &[&str]) -> Command {
    command.args(["--quiet", "--tuples-only", "--no-align"]);
    for statement in statements {
        command.args(["--command", statement]);
    }
    command
}

/// A node of one test's own, to be stopped and killed.
pub struct Node {
    folder: Folder,
    environment: Vec<(&'static str, OsString)>,
    /// Where it listens, whether or not it runs.
    pub url: String,
}

impl Node {
    /// Starts a node.
    pub fn start() -> Node {
        Node::with(Vec::new())
    }

    /// One that speaks TLS too, with a certificate and its key in PEM files. Its URL still says
    /// `sslmode=disable`.
    pub fn start_with_tls(cert: &Path, key: &Path) -> Node {
        Node::with(vec![("CONSENT_GATE_POSTGRES_TLS_CERT", cert.into()), ("CONSENT_GATE_POSTGRES_TLS_KEY", key.into())])
    }

    fn with(environment: Vec<(&'static str, OsString)>) -> Node {
        let mut node = Node { folder: Folder::new(), environment, url: String::new() };
        node.url = run(&mut node.script("start"));
        node
    }

    fn script(&self, verb: &str) -> Command {
        let mut command = script();
        command.envs(self.environment.iter().cloned()).arg(verb).arg(self.place());
        command
    }

    fn place(&self) -> PathBuf {
        self.folder.0.join("node")
    }

    /// Starts it again, with everything that it kept.
    pub fn restart(&self) {
        assert_eq!(run(&mut self.script("start")), self.url);
    }

    /// An orderly stop, which ends every connection.
    pub fn stop(&self) {
        run(&mut self.script("stop"));
    }

    pub fn kill(&self) {
        run(&mut self.script("kill"));
    }

    /// Puts a `PgBouncer` of so many connections in front of it, in place of the one before; its URL.
    pub fn pool(&self, mode: &str, connections: u32) -> String {
        run(self.script("pool").arg(mode).env("CONSENT_GATE_POOL_SIZE", connections.to_string()))
    }

    /// Starts a node that has everything of this one: from now on it commits nothing that the other lacks.
    pub fn replica(&self) -> Node {
        let mut node = Node { folder: Folder::new(), environment: Vec::new(), url: String::new() };
        node.url = run(node.script("replica").arg(self.place()));
        node
    }

    /// Lets a replica take over from the node that it follows.
    pub fn promote(&self) {
        run(&mut self.script("promote"));
    }

    /// Lets the `PgBouncer` in front of this node lead to another one.
    pub fn lead_to(&self, other: &Node) {
        run(self.script("lead").arg(other.place()));
    }

    /// What a statement gives to the superuser.
    pub fn sql(&self, statement: &str) -> String {
        run(&mut psql(self.script("sql"), &[statement]))
    }

    /// Keeps a copy of the data of a node that is stopped.
    pub fn save(&self, name: &str) {
        let data = self.data();
        run(Command::new("cp").arg("-a").arg(&data).arg(format!("{}.{name}", data.display())));
    }

    /// Puts that copy in place of the data of a node that is stopped.
    pub fn replace(&self, name: &str) {
        let data = self.data();
        fs::remove_dir_all(&data).unwrap();
        fs::rename(format!("{}.{name}", data.display()), &data).unwrap();
    }

    fn data(&self) -> PathBuf {
        let node = self.place();
        fs::read_to_string(node.join("elsewhere")).map_or_else(|_| node.join("data"), |path| path.trim().into())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        tidy(&mut self.script("remove"));
    }
}

/// A schema of one test's own in the shared node, owned by the role of the URL.
pub struct Schema {
    /// Needs no quotes in SQL.
    pub name: String,
}

impl Schema {
    pub fn new() -> Schema {
        let name = super::unique().replace('-', "_");
        // In somebody else's database it belongs to the role that makes it.
        let owner = if node().is_some() { " AUTHORIZATION consent_gate" } else { "" };
        run(&mut psql(shared(), &[&format!("CREATE SCHEMA {name}{owner}")]));
        Schema { name }
    }

    /// The URL for a worker that shall find this schema and no other.
    pub fn url(&self) -> String {
        let url = url();
        let separator = if url.contains('?') { '&' } else { '?' };
        format!("{url}{separator}options=-csearch_path%3D{}", self.name)
    }

    /// What a statement gives in this schema: to the superuser, or in somebody else's database to
    /// the role of the URL.
    pub fn sql(&self, statement: &str) -> String {
        run(&mut psql(shared(), &[&format!("SET search_path TO {}", self.name), statement]))
    }
}

impl Drop for Schema {
    fn drop(&mut self) {
        // A connection that still holds a table fails the test instead of stopping it for good.
        let drop = format!("DROP SCHEMA {} CASCADE", self.name);
        tidy(&mut psql(shared(), &["SET lock_timeout TO '60s'", &drop]));
    }
}

/// The folder of the shared node, where it is the tests' own.
fn node() -> Option<OsString> {
    std::env::var_os("CONSENT_GATE_TEST_POSTGRES_NODE")
}

/// `psql` at the shared node.
fn shared() -> Command {
    if let Some(node) = node() {
        let mut command = script();
        command.arg("sql").arg(node);
        command
    } else {
        let mut command = Command::new("psql");
        command.args(["--no-psqlrc", "--set=ON_ERROR_STOP=1", "--dbname", &url()]);
        command
    }
}
