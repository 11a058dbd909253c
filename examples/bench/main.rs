//! The benchmarks behind `scripts/bench`: the worker against a bare loop and against itself, side by side in one
//! run, pairs interleaved, medians with their spread.
//!
//! `bench FOLDER OUT [CASE…]` runs cases and writes a table; `bench bare …` is the bare loop, a process of its own so
//! that its processor time can be measured.

mod bare;
mod cases;
mod gate;
mod instructions;
mod process;
mod queue;
mod size;
mod table;

use anyhow::{Context, bail};
use std::path::PathBuf;

fn main() -> anyhow::Result<()> {
    // Nothing else installs one, so this cannot fail.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some(bare @ ("bare" | "bare-tuned")) => {
            let mut next = |what: &str| arguments.next().with_context(|| format!("{what} is missing"));
            let (broker, queue, gate) = (next("the broker")?, next("the queue")?, next("the gate")?);
            let in_flight = next("the number in flight")?.parse()?;
            bare::run(&broker, &queue, &gate, in_flight, bare == "bare-tuned")
        }
        Some(folder) => {
            let out = PathBuf::from(arguments.next().context("usage: bench FOLDER OUT [CASE…]")?);
            let wanted: Vec<String> = arguments.collect();
            cases::run(&PathBuf::from(folder), &out, &wanted)
        }
        None => bail!("usage: bench FOLDER OUT [CASE…]; use scripts/bench"),
    }
}
