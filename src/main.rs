//! Parse, load, dispatch, exit code.

use clap::Parser;
use consent_gate::cli::{Cli, CliCommand, PersonCommand, StoreCommand};
use consent_gate::observe::metrics::Metrics;
use consent_gate::observe::telemetry::{self, LogLines};
use consent_gate::ops::{self, Failure};
use consent_gate::{config, serve};
use nix::sys::stat::{Mode, umask};
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

// Why it is not the system's: docs/decisions.md, "jemalloc in what is released".
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How long a helper thread of the runtime waits for work. The worker checks for changed files more often, so one is
/// always there, and a machine that has no thread left is not a fault: work waits.
const HELPERS_STAY: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    // Nothing else installs one, so this cannot fail.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = Cli::parse();
    // Records, copies and sockets are for their owner alone; manual pages are for everybody. The mask holds for the
    // whole process, so it is not set where the records are created: other users of the library create files of
    // their own.
    if !matches!(cli.command, CliCommand::Man { .. }) {
        umask(Mode::S_IRWXG | Mode::S_IRWXO);
    }
    let mut lines = None;
    // One thread for all tasks: the client of the broker has threads of its own, and passing work between more of
    // ours costs more than it gains (docs/rabbitmq.md).
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let ended = match runtime.enable_all().thread_keep_alive(HELPERS_STAY).build() {
        Ok(runtime) => {
            let ended = runtime.block_on(dispatch(cli, &mut lines));
            // A host name that is still being looked up is not waited for.
            runtime.shutdown_background();
            ended
        }
        Err(error) => Err(Failure::Failed(format!("cannot start: {error}"))),
    };
    end(ended, lines)
}

/// Says why it failed, after every line of the log, and returns the exit code.
fn end(ended: Result<(), Failure>, lines: Option<LogLines>) -> ExitCode {
    let (last_words, code) = match ended {
        Ok(()) => (String::new(), ExitCode::SUCCESS),
        Err(failure @ Failure::Failed(_)) => (format!("{failure}\n"), ExitCode::FAILURE),
        Err(failure) => (format!("{failure}\n"), ExitCode::from(2)),
    };
    match lines {
        Some(lines) => lines.finish(&last_words),
        // A closed standard error changes nothing about the exit code.
        None => drop(std::io::stderr().write_all(last_words.as_bytes())),
    }
    code
}

async fn dispatch(cli: Cli, lines: &mut Option<LogLines>) -> Result<(), Failure> {
    let environment = config::environment(std::env::vars_os()).map_err(Failure::Usage)?;
    let file = cli.config.as_deref();
    match &cli.command {
        CliCommand::Run => {
            let config = config::load(file, &environment)?;
            let lines = lines.insert(telemetry::start_detached(config.settings.log));
            let metrics = Metrics::new(lines.dropped()).map_err(|error| Failure::Failed(error.to_string()))?;
            let served = serve::run(config, metrics, file, &environment).await;
            served.map_err(|error| Failure::Failed(format!("{error:#}")))
        }
        CliCommand::Check(args) => ops::check::check(file, &environment, args.connect, cli.json).await,
        CliCommand::Declare => ops::declare::declare(file, &environment, cli.json).await,
        CliCommand::Map(args) => ops::map::map(args, file, &environment, cli.json).await,
        CliCommand::Send(args) => ops::send::send(args, file, &environment, cli.json).await,
        CliCommand::Dead(command) => ops::dead::run(command, file, &environment, cli.json).await,
        CliCommand::Person(PersonCommand::Show(args)) => ops::person::show(args, file, &environment, cli.json).await,
        CliCommand::Person(PersonCommand::Forget(args)) => {
            ops::forget::forget(args, file, &environment, cli.json).await
        }
        CliCommand::Store(StoreCommand::Show) => ops::store::show(file, &environment, cli.json).await,
        CliCommand::Store(StoreCommand::Copy(args)) => ops::copy::copy(args, file, &environment, cli.json).await,
        CliCommand::Store(StoreCommand::Adopt(args)) => ops::store::adopt(args, file, &environment, cli.json).await,
        CliCommand::Healthcheck => ops::healthcheck::healthcheck(file, &environment).await,
        CliCommand::Completions { shell } => ops::shell::completions(*shell),
        CliCommand::Man { directory } => ops::shell::man(directory),
    }
}
