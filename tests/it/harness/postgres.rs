//! PostgreSQL: a schema for a single test in the shared node, or a node for a single test.

use super::Folder;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// The URL of the tests' database.
pub fn url() -> String {
    std::env::var("CONSENT_GATE_TEST_POSTGRES_URL").expect(
        "these tests need PostgreSQL: run scripts/test, or set CONSENT_GATE_TEST_POSTGRES_URL to a database in which schemas may be made",
    )
}

fn script() -> Command {
    Command::new(super::project().join("scripts/postgres"))
}

/// Runs a command; returns its output, or why it failed.
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

/// Cleans up. If the test is already failing, an error here is ignored: a second panic would end all the
/// other tests.
fn tidy(command: &mut Command) {
    let done = try_run(command);
    assert!(done.is_ok() || std::thread::panicking(), "{done:?}");
}

/// Makes `psql`, or the script that runs it, print the bare values of statements: one row a line, `|` between
/// columns.
fn psql(mut command: Command, statements: &[&str]) -> Command {
    command.args(["--quiet", "--tuples-only", "--no-align"]);
    for statement in statements {
        command.args(["--command", statement]);
    }
    command
}

/// A PostgreSQL node for a single test, which may stop and kill it.
pub struct Node {
    folder: Folder,
    environment: Vec<(&'static str, OsString)>,
    /// Its URL, whether it runs or not.
    pub url: String,
}

impl Node {
    /// Starts a node.
    pub fn start() -> Node {
        Node::with(Folder::new(), Vec::new())
    }

    /// Starts a node that also accepts TLS, and returns the certificate that it shows, for localhost. Its URL
    /// still says `sslmode=disable`.
    pub fn start_with_tls() -> (Node, PathBuf) {
        let folder = Folder::new();
        let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let cert = folder.write("cert.pem", certified.cert.pem());
        let key = folder.write("key.pem", certified.signing_key.serialize_pem());
        let tls = vec![
            ("CONSENT_GATE_POSTGRES_TLS_CERT", cert.clone().into()),
            ("CONSENT_GATE_POSTGRES_TLS_KEY", key.into()),
        ];
        (Node::with(folder, tls), cert)
    }

    fn with(folder: Folder, environment: Vec<(&'static str, OsString)>) -> Node {
        let mut node = Node { folder, environment, url: String::new() };
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

    /// Starts it again with its data.
    pub fn restart(&self) {
        assert_eq!(run(&mut self.script("start")), self.url);
    }

    /// Stops it in order, which ends every connection.
    pub fn stop(&self) {
        run(&mut self.script("stop"));
    }

    pub fn kill(&self) {
        run(&mut self.script("kill"));
    }

    /// Starts a `PgBouncer` with this many connections in front of it, replacing the one before, and returns
    /// its URL.
    pub fn pool(&self, mode: &str, connections: u32) -> String {
        run(self.script("pool").arg(mode).env("CONSENT_GATE_POOL_SIZE", connections.to_string()))
    }

    /// Starts a synchronous replica: from now on this node commits nothing that the replica lacks.
    pub fn replica(&self) -> Node {
        let mut node = Node { folder: Folder::new(), environment: Vec::new(), url: String::new() };
        node.url = run(node.script("replica").arg(self.place()));
        node
    }

    /// Promotes a replica to take over from the node that it follows.
    pub fn promote(&self) {
        run(&mut self.script("promote"));
    }

    /// Makes the `PgBouncer` in front of this node connect to another node.
    pub fn lead_to(&self, other: &Node) {
        run(self.script("lead").arg(other.place()));
    }

    /// Runs a statement as the superuser and returns its output.
    pub fn sql(&self, statement: &str) -> String {
        run(&mut psql(self.script("sql"), &[statement]))
    }

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.place().join("log")).unwrap()
    }

    /// Copies the data of a stopped node.
    pub fn save(&self, name: &str) {
        let data = self.data();
        run(Command::new("cp").arg("-a").arg(&data).arg(format!("{}.{name}", data.display())));
    }

    /// Replaces the data of a stopped node by that copy.
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

/// A schema for a single test in the shared node, owned by the role of the URL.
pub struct Schema {
    /// Needs no quotes in SQL.
    pub name: String,
}

impl Schema {
    pub fn new() -> Schema {
        let name = super::unique().replace('-', "_");
        // In somebody else's database it belongs to the role that creates it.
        let owner = if node().is_some() { " AUTHORIZATION consent_gate" } else { "" };
        run(&mut psql(shared(), &[&format!("CREATE SCHEMA {name}{owner}")]));
        Schema { name }
    }

    /// The URL with which a worker uses this schema and no other.
    pub fn url(&self) -> String {
        let url = url();
        let separator = if url.contains('?') { '&' } else { '?' };
        format!("{url}{separator}options=-csearch_path%3D{}", self.name)
    }

    /// Runs a statement in this schema, as the superuser or, in somebody else's database, as the role of the
    /// URL.
    pub fn sql(&self, statement: &str) -> String {
        run(&mut psql(shared(), &[&format!("SET search_path TO {}", self.name), statement]))
    }
}

impl Drop for Schema {
    fn drop(&mut self) {
        // With a connection that still locks a table, the test fails instead of hanging forever.
        let drop = format!("DROP SCHEMA {} CASCADE", self.name);
        tidy(&mut psql(shared(), &["SET lock_timeout TO '60s'", &drop]));
    }
}

/// The folder of the shared node, if it belongs to the tests.
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
