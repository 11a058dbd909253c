//! What one event costs in this process, step by step. `cargo bench` measures the time of each;
//! how often memory is asked for, which no machine changes, `tests/it/allocations.rs` holds.

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
