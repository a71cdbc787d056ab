//! No input makes the plan parser panic, and what it accepts keeps the invariants of a plan.

use std::collections::HashSet;

use proptest::prelude::*;
use step_engine::plan::{Admission, Capacity, Plan, StepIndex};

const SEEDS: [&str; 3] = [
    r#"{"steps": []}"#,
    r#"{"run_id": "r", "pipeline": "p", "execution_mode": "fail_fast", "max_parallelism": 3,
        "steps": [{"name": "a"}, {"name": "b", "upstream": ["a"], "resources": {"cpu_millis": 500, "memory_bytes": 9,
        "gpus": 1}, "retry": {"max_retries": 2, "delay_seconds": 0.5, "backoff": 2}, "timeout_seconds": 60,
        "stop_grace_seconds": 1.5, "expected_seconds": 12.25}]}"#,
    r#"{"steps": [{"name": "a", "upstream": ["c"]}, {"name": "b", "upstream": ["a", "a"]}, {"name": "c"}]}"#,
];

/// What a plan's text is made of, and what tends to break parsers.
fn token() -> impl Strategy<Value = String> {
    let words = [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "null",
        "true",
        "-1",
        "0",
        "1e309",
        "-0.0",
        "NaN",
        "18446744073709551616",
        "1.8e19",
        "\"a\"",
        "\"b\"",
        "\"steps\"",
        "\"name\"",
        "\"upstream\"",
        "\"retry\"",
        "\"timeout_seconds\"",
        "\"\\ud800\"",
        "\u{feff}",
        "\u{1f980}",
        " ",
        "\n",
    ];
    prop::sample::select(words.to_vec()).prop_map(str::to_owned)
}

fn check(text: &str) {
    let plan = match Plan::from_json(text) {
        Ok(plan) => plan,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let names: HashSet<_> = plan.steps.iter().map(|step| &step.name).collect();
    assert_eq!(names.len(), plan.len(), "names are unique");
    let order = plan.dag().topological_order();
    assert_eq!(order.len(), plan.len());
    let mut place = vec![0; plan.len()];
    for (at, step) in order.iter().enumerate() {
        place[step.get()] = at;
    }
    for step in (0..plan.len()).map(StepIndex::new) {
        assert!(plan.dag().upstream(step).iter().all(|up| place[up.get()] < place[step.get()]));
    }
    for (step, path) in plan.steps.iter().zip(plan.remaining_path_seconds()) {
        assert!(path >= 0.0);
        for n in [1, 2, 1000, u32::MAX] {
            assert!(step.retry.delay_before(n) <= step_engine::plan::Retry::MAX_DELAY);
        }
    }
    // May be refused, but does not panic.
    let _ = Admission::new(&plan, Capacity { cpu_millis: 0, memory_bytes: 1 << 30, gpus: 0 });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn damaged_plans_never_panic(
        seed in prop::sample::select(SEEDS.to_vec()),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..12_usize, prop::option::of(token())), 1..6),
    ) {
        let mut text: Vec<char> = seed.chars().collect();
        for (at, removed, inserted) in edits {
            let at = at.index(text.len() + 1);
            let end = (at + removed).min(text.len());
            text.splice(at..end, inserted.unwrap_or_default().chars());
        }
        check(&text.into_iter().collect::<String>());
    }

    #[test]
    fn streams_of_tokens_never_panic(tokens in prop::collection::vec(token(), 0..60)) {
        check(&tokens.concat());
    }
}

#[test]
fn the_seeds_are_plans() {
    for seed in SEEDS {
        Plan::from_json(seed).unwrap();
    }
}

#[test]
fn deep_nesting_is_refused_not_overflowed() {
    for open in ["[", "{\"steps\":", "{\"steps\":[{\"upstream\":["] {
        assert!(Plan::from_json(&open.repeat(100_000)).is_err());
    }
}
