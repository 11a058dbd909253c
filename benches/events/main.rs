//! What one event costs in this process, step by step. `cargo bench` measures the time of each step; how often memory
//! is allocated, which is the same on every machine, is held by `tests/it/allocations.rs`.

mod steps;

use criterion::Criterion;

fn main() -> anyhow::Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    for step in steps::all()? {
        criterion.bench_function(step.name, |bencher| bencher.iter(&step.run));
    }
    criterion.final_summary();
    Ok(())
}
