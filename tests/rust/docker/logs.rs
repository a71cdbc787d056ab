//! Output from the first byte to the last.

use serde_json::json;
use step_engine::event::Outcome;

use super::fixture::Fixture;

#[tokio::test]
async fn the_shortest_step_loses_nothing() {
    let Some(fixture) = Fixture::new("short").await else { return };
    for _ in 0..10 {
        let (outcome, memory) = fixture.run(&["say", "hello", "3"], json!({})).await;
        assert_eq!((outcome, memory.text().as_str()), (Outcome::Exited { code: 3 }, "hello\n"));
    }
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn streams_are_told_apart_and_keep_their_order() {
    let Some(fixture) = Fixture::new("both").await else { return };
    let (outcome, memory) = fixture.run(&["both", "500"], json!({})).await;
    assert_eq!(outcome, Outcome::Completed);
    let expected = |name: &str| (0..500).map(|line| format!("{name} {line}\n")).collect::<String>();
    assert_eq!((memory.text(), memory.stderr()), (expected("out"), expected("err")));
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn a_hundred_megabytes_arrive_before_the_outcome() {
    const BYTES: usize = 100_000_000;

    let Some(fixture) = Fixture::new("flood").await else { return };
    // The engine's own copy would fill its disk for nothing.
    let (outcome, memory) =
        fixture.run(&["flood", &BYTES.to_string()], json!({"run_args": {"log_config": {"type": "none"}}})).await;
    assert_eq!(outcome, Outcome::Completed);
    let out = memory.stdout();
    assert_eq!(out.len(), BYTES);
    let block: Vec<u8> =
        (0..64 * 1024).map(|at: usize| if at % 100 == 99 { b'\n' } else { b'a' + (at % 26) as u8 }).collect();
    assert!(out.chunks(block.len()).all(|part| part == &block[..part.len()]), "bytes were changed on their way");
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn a_megabyte_without_newline_and_bytes_that_are_no_text() {
    let Some(fixture) = Fixture::new("odd").await else { return };
    let (_, memory) = fixture.run(&["line", "1048576"], json!({})).await;
    assert!(memory.stdout().len() == 1_048_576 && memory.stdout().iter().all(|byte| *byte == b'x'));
    let (_, memory) = fixture.run(&["binary"], json!({})).await;
    assert_eq!(memory.stdout(), [0xff, 0xfe, b'a', 0xc3, b'\n', 0x00, 0x80]);
    fixture.leaves_nothing().await;
}

#[tokio::test]
#[ignore = "takes longer than the time limit of a request, that is two minutes"]
async fn a_step_outlives_the_time_limit_of_a_request() {
    let Some(fixture) = Fixture::new("long").await else { return };
    let running = fixture.start(&["sleep", "130000"], json!({}), step_engine::plan::Demand::default());
    running.memory.until_ready().await;
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    let (outcome, memory) = running.end().await;
    assert_eq!((outcome, memory.warnings()), (Outcome::Completed, Vec::new()));
    fixture.leaves_nothing().await;
}
