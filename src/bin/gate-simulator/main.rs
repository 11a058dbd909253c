//! `gate-simulator`: a strict stand-in for Selligent's campaign gate (REST v1).
//!
//! It promises to accept exactly what the vendor documents and to name what is wrong with
//! everything else, to keep profiles in the order in which triggers were executed, and to
//! misbehave only as the rules at `/faults` ask. It keeps everything in memory. It shares no
//! code with the worker, so that neither can hide a mistake of the other.
//!
//! In reading order: `cli` and `document` (its configuration), `server` (connections), `visit`
//! and `body` (one request from receipt to ending), `judge`, `signature` and `trigger` (the
//! checks), `faults`, `rule` and `effect` (misbehaviour on demand), `simulator`, `profiles` and
//! `requests` (what it remembers), `control` (how that is seen and changed), `answer`, `outcome`
//! and `talk`.

mod answer;
mod body;
mod cli;
mod control;
mod document;
mod effect;
mod faults;
mod judge;
mod outcome;
mod profiles;
mod requests;
mod rule;
mod server;
mod signature;
mod simulator;
mod talk;
mod trigger;
mod visit;

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::Cli;
use crate::simulator::Simulator;
use crate::talk::say;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (addresses, simulator) = match prepare(&cli) {
        Ok(prepared) => prepared,
        Err(problems) => {
            for problem in &problems {
                say(problem);
            }
            return ExitCode::from(2);
        }
    };
    match run(&addresses, simulator) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("cannot serve on {}: {error}", cli.listen));
            ExitCode::FAILURE
        }
    }
}

/// Turns the arguments into a simulator, or lists every problem with them.
fn prepare(cli: &Cli) -> Result<(Vec<SocketAddr>, Arc<Simulator>), Vec<String>> {
    let addresses = cli.listen.to_socket_addrs().map_err(|error| {
        let listen = &cli.listen;
        format!("--listen {listen}: {error}; give an address and a port, such as 127.0.0.1:9090")
    });
    let loaded = document::load(&cli.integration, &|name| std::env::var(name).ok());
    match (addresses, loaded) {
        (Ok(addresses), Ok(loaded)) => {
            loaded.remarks.iter().for_each(|remark| say(remark));
            let simulator = Simulator::new(loaded.integrations, cli.keep, cli.seed);
            Ok((addresses.collect(), Arc::new(simulator)))
        }
        (addresses, loaded) => {
            let mut problems = loaded.err().unwrap_or_default();
            problems.extend(addresses.err());
            Err(problems)
        }
    }
}

/// Serves until SIGTERM or SIGINT, then exits at once: nothing here is worth draining.
fn run(addresses: &[SocketAddr], simulator: Arc<Simulator>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate())?;
        let mut interrupted = signal(SignalKind::interrupt())?;
        let listener = TcpListener::bind(addresses).await?;
        let address = listener.local_addr()?;
        talk::announce(&format!("gate-simulator listening on http://{address}"));
        tokio::select! {
            () = server::serve(listener, simulator) => {}
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
        }
        Ok(())
    });
    runtime.shutdown_background();
    result
}
