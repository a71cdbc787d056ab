//! What the executor adds to a step. Figures, not tests: `cargo test docker::measure -- --ignored --nocapture`.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;
use step_engine::event::Outcome;
use step_engine::plan::Demand;

use super::fixture::Fixture;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, run by hand"]
#[expect(clippy::print_stdout, reason = "the figures are the purpose")]
async fn latencies() {
    const ROUNDS: usize = 40;

    let Some(fixture) = Fixture::new("measure").await else { return };
    let mut columns = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        let (outcome, memory) = fixture.start(&["clock"], json!({}), Demand::default()).end().await;
        let end = Instant::now();
        assert_eq!(outcome, Outcome::Completed);
        let exited = Duration::from_nanos(memory.text().trim().parse().unwrap());
        let settled = memory.settled_at();
        let since_exit = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().saturating_sub(exited) - end.elapsed();
        let row = [memory.started_at() - begin, since_exit - (end - settled), settled - begin, end - settled];
        columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
    }
    for (name, mut values) in
        ["launch to started", "exit to settled", "launch to settled", "removal"].into_iter().zip(columns)
    {
        values.sort();
        println!("{name:20} median {:?}, 95th percentile {:?}", values[ROUNDS / 2], values[ROUNDS * 95 / 100]);
    }
    fixture.leaves_nothing().await;
}
