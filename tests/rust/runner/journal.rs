//! A journal, cut anywhere, leads to the state that the run had there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use step_engine::event::{AttemptDetails, Outcome, RunEvent, StepStatus};
use step_engine::plan::{Admission, Capacity, ExecutionMode, Plan, PlanSpec, RetrySpec, StepIndex, StepSpec};
use step_engine::runner::journal::{Entry, Header, VERSION, parse};
use step_engine::runner::replay::{ReplayError, replay};
use step_engine::schedule::{CancelReason, Effect, Input, ScheduleOptions, Scheduler, Verdict};

const HOST: Capacity = Capacity { cpu_millis: 4000, memory_bytes: 4 << 30, gpus: 0 };

/// What the world does next, as far as it can at that moment.
#[derive(Debug, Clone)]
enum Move {
    Start(usize),
    Over(usize, Outcome),
    End(usize, Outcome, bool),
    Wait(u64),
    Cancel(CancelReason),
    /// A step of this number, when somebody leads.
    Request(usize, u32),
    Drop(usize),
}

fn plan() -> impl Strategy<Value = PlanSpec> {
    let step = |at: usize| {
        let upstream = prop::collection::vec(0..at.max(1), 0..=at.min(3));
        (upstream, 0..3_u32, prop::option::of(0.01..5.0), 0.0..2.0, prop::option::of(0.0..9.0)).prop_map(
            move |(upstream, max_retries, timeout_seconds, delay_seconds, expected_seconds)| StepSpec {
                name: format!("s{at}"),
                upstream: if at == 0 { vec![] } else { upstream.iter().map(|up| format!("s{up}")).collect() },
                retry: RetrySpec { max_retries, delay_seconds, backoff: 1.1 },
                timeout_seconds,
                stop_grace_seconds: Some(0.1),
                expected_seconds,
                ..StepSpec::default()
            },
        )
    };
    let mode = prop_oneof![
        3 => Just(ExecutionMode::ContinueOnFailure),
        1 => Just(ExecutionMode::StopOnFailure),
        1 => Just(ExecutionMode::FailFast),
    ];
    (1..12_usize, 1..5_u32, mode, any::<bool>()).prop_flat_map(move |(count, max_parallelism, execution_mode, led)| {
        let count = if led { 1 } else { count };
        (0..count).map(step).collect::<Vec<_>>().prop_map(move |steps| PlanSpec {
            run_id: "r".into(),
            pipeline: "p".into(),
            execution_mode,
            max_parallelism: Some(max_parallelism),
            steps,
            leader: led.then(|| "s0".into()),
        })
    })
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let outcome = || prop_oneof![6 => Just(Outcome::Completed), 2 => Just(Outcome::Exited { code: 1 }), 1 => Just(Outcome::Stopped)];
    let reason = prop_oneof![Just(CancelReason::Interrupt), Just(CancelReason::Kill), Just(CancelReason::Abandon)];
    let one = prop_oneof![
        6 => (0..9_usize).prop_map(Move::Start),
        2 => (0..9_usize, outcome()).prop_map(|(at, outcome)| Move::Over(at, outcome)),
        8 => (0..9_usize, outcome(), any::<bool>()).prop_map(|(at, outcome, again)| Move::End(at, outcome, again)),
        4 => (1..4000_u64).prop_map(Move::Wait),
        1 => reason.prop_map(Move::Cancel),
        5 => (1..9_usize, 0..3_u32).prop_map(|(at, retries)| Move::Request(at, retries)),
        1 => (1..9_usize).prop_map(Move::Drop),
    ];
    prop::collection::vec(one, 0..80)
}

/// A scheduler with what it was told.
struct Live {
    scheduler: Scheduler,
    now: Duration,
    running: BTreeSet<(StepIndex, u32)>,
    entries: Vec<Entry>,
    /// By entry.
    effects: Vec<Vec<Effect>>,
}

impl Live {
    fn new(spec: &PlanSpec, prepare: bool) -> Self {
        let plan = Arc::new(Plan::new(spec.clone()).unwrap());
        let admission = Admission::new(&plan, HOST).unwrap();
        Self {
            scheduler: Scheduler::new(plan, &admission, ScheduleOptions { prepare }),
            now: Duration::ZERO,
            running: BTreeSet::new(),
            entries: Vec::new(),
            effects: Vec::new(),
        }
    }

    fn feed(&mut self, input: Input) {
        if let Input::AttemptEnded { step, attempt, .. } = input {
            self.running.remove(&(step, attempt));
        }
        let effects = self.scheduler.handle(self.now, input.clone());
        let launched = launches(&effects);
        self.running.extend(&launched);
        self.entries.push(Entry::new(self.now, input, launched));
        self.effects.push(effects);
    }

    fn make(&mut self, what: Move) {
        let chosen = |at: usize| self.running.iter().copied().nth(at);
        match what {
            Move::Start(at) => {
                if let Some((step, attempt)) = chosen(at) {
                    self.feed(Input::AttemptStarted { step, attempt, details: AttemptDetails::default() });
                }
            }
            Move::Over(at, outcome) => {
                if let Some((step, attempt)) = chosen(at) {
                    self.feed(Input::AttemptOver { step, attempt, outcome });
                }
            }
            Move::End(at, outcome, may_retry) => {
                if let Some((step, attempt)) = chosen(at) {
                    self.feed(Input::AttemptEnded { step, attempt, verdict: Verdict { outcome, may_retry } });
                }
            }
            Move::Wait(milliseconds) => {
                self.now += Duration::from_millis(milliseconds);
                self.feed(Input::Tick);
            }
            Move::Cancel(reason) => self.feed(Input::Cancel { reason }),
            Move::Request(at, max_retries) => {
                let retry = RetrySpec { max_retries, delay_seconds: 0.5, backoff: 2.0 };
                let spec = StepSpec { name: format!("s{at}"), retry, ..StepSpec::default() };
                self.feed(Input::StepRequested { spec });
            }
            Move::Drop(at) => self.feed(Input::StepDropped { step: StepIndex::new(at) }),
        }
    }
}

fn launches(effects: &[Effect]) -> Vec<(StepIndex, u32)> {
    let launch = |effect: &Effect| match effect {
        Effect::Launch { step, attempt } => Some((*step, *attempt)),
        _ => None,
    };
    effects.iter().filter_map(launch).collect()
}

fn finished(effects: &[Effect]) -> impl Iterator<Item = (&str, StepStatus)> {
    effects.iter().filter_map(|effect| match effect {
        Effect::Emit(RunEvent::StepFinished { step, status, .. }) => Some((step.as_str(), *status)),
        _ => None,
    })
}

fn written(spec: &PlanSpec, prepare: bool, entries: &[Entry]) -> Vec<u8> {
    let header = Header { version: VERSION, plan: spec.clone(), capacity: HOST, prepare, began_unix_nanos: 1 };
    let lines = std::iter::once(serde_json::to_vec(&header)).chain(entries.iter().map(serde_json::to_vec));
    lines.flat_map(|line| [line.unwrap(), b"\n".to_vec()].concat()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn a_journal_cut_anywhere_leads_to_the_state_that_the_run_had(
        (spec, moves, cut, prepare) in (plan(), moves(), any::<prop::sample::Index>(), any::<bool>())
    ) {
        let mut live = Live::new(&spec, prepare);
        live.feed(Input::Start);
        moves.into_iter().for_each(|what| live.make(what));

        let bytes = written(&spec, prepare, &live.entries);
        let header_bytes = written(&spec, prepare, &[]).len();
        let recorded = parse(&bytes[..header_bytes + cut.index(bytes.len() - header_bytes + 1)]).unwrap();
        let kept = recorded.entries.len();
        prop_assert_eq!(&recorded.header.plan, &spec);
        prop_assert_eq!(&recorded.entries, &live.entries[..kept]);
        let mut replayed = replay(&recorded).unwrap();

        // It knows what ran and what was told.
        let before: Vec<Effect> = live.effects[..kept].concat();
        let told: Vec<_> = before.iter().filter_map(|effect| match effect {
            Effect::Emit(event) => Some(event.clone()),
            _ => None,
        }).collect();
        prop_assert_eq!(&replayed.events, &told);
        let mut in_flight: BTreeSet<_> = launches(&before).into_iter().collect();
        for entry in &recorded.entries {
            if let Input::AttemptEnded { step, attempt, .. } = entry.input {
                in_flight.remove(&(step, attempt));
            }
        }
        prop_assert_eq!(replayed.in_flight.keys().copied().collect::<BTreeSet<_>>(), in_flight.clone());

        // The same state: it decides alike on whatever comes, to the letter.
        for (entry, effects) in live.entries[kept..].iter().zip(&live.effects[kept..]) {
            prop_assert_eq!(&replayed.scheduler.handle(entry.time(), entry.input.clone()), effects);
        }

        // And from there it launches no step that is finished, and finishes each exactly once.
        let mut resumed = replay(&recorded).unwrap();
        let mut done: BTreeMap<String, StepStatus> = finished(&before).map(|(step, status)| (step.to_owned(), status)).collect();
        let mut now = resumed.at;
        let mut inbox: VecDeque<Input> = in_flight.into_iter().map(completed).collect();
        let mut over = resumed.summary.is_some() || kept == 0;
        // So many inputs end any of these runs: one that takes more never ends.
        let mut inputs_left = 10_000;
        while !over {
            prop_assert!(inputs_left > 0, "the run does not end");
            inputs_left -= 1;
            let input = inbox.pop_front().unwrap_or_else(|| {
                now += Duration::from_secs(3600);
                Input::Tick
            });
            let effects = resumed.scheduler.handle(now, input);
            for (step, attempt) in launches(&effects) {
                prop_assert!(!done.contains_key(&*resumed.scheduler.plan().step(step).name), "launched again");
                inbox.push_back(completed((step, attempt)));
            }
            for (step, status) in finished(&effects) {
                prop_assert_eq!(done.insert(step.to_owned(), status), None, "finished twice");
            }
            over = effects.iter().any(|effect| matches!(effect, Effect::Finish(_)));
        }
        prop_assert!(kept == 0 || done.len() == resumed.scheduler.plan().len());
    }
}

fn completed((step, attempt): (StepIndex, u32)) -> Input {
    Input::AttemptEnded { step, attempt, verdict: Verdict { outcome: Outcome::Completed, may_retry: false } }
}

#[test]
fn a_journal_of_other_decisions_is_refused() {
    let spec: PlanSpec = serde_json::from_str(r#"{"steps": [{"name": "a"}, {"name": "b"}]}"#).unwrap();
    let entry = Entry::new(Duration::ZERO, Input::Start, vec![(StepIndex::new(1), 1)]);
    let recorded = parse(&written(&spec, false, &[entry])).unwrap();
    assert!(matches!(replay(&recorded), Err(ReplayError::Diverged { line: 2 })));
}
