//! How long a service has not answered a watcher, and when that is told. Calls nothing.
//!
//! Time is counted in ticks of a clock that runs beside the calls: one call to a server that keeps quiet takes minutes, with the
//! SDK's retries. A process that was suspended (Ctrl-Z, a closed laptop) has waited only while it ran.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::error::{AwsError, NO_ANSWER, TIMEOUT};

/// Time between two ticks.
const TICK: Duration = Duration::from_secs(1);
/// Silence is told after so long, and then whenever it has doubled. Longer than the SDK's eight tries of one throttled call,
/// whose pauses come to 26 seconds at most.
const TOLD_FIRST: Duration = Duration::from_secs(30);
/// Watching ends after so long: longer than a router or a VPN takes to come back and than a login takes that has to be renewed, short
/// enough for a CI job to end before its own limit. Nothing is lost, the execution goes on.
pub(super) const PATIENCE: Duration = Duration::from_secs(900);

/// What a tick came to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Tick {
    Quiet,
    /// Something for the user.
    Tell(String),
    /// Watching makes no sense any more.
    Lost(AwsError),
}

/// Shared by the watcher, which asks, and the clock.
#[derive(Debug)]
pub(super) struct Silence {
    service: String,
    /// None waits for ever.
    patience: Option<Duration>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Operation that is to answer; none while nothing is asked.
    asked: Option<&'static str>,
    lasted: Duration,
    /// Told when it has lasted so long.
    tell_at: Duration,
    last_error: Option<AwsError>,
}

impl State {
    const NONE: Self = Self { asked: None, lasted: Duration::ZERO, tell_at: TOLD_FIRST, last_error: None };
}

impl Silence {
    /// Silence of a service, which ends the watching when it outlasts the patience.
    pub(super) fn of(service: String, patience: Option<Duration>) -> Self {
        Self { service, patience, state: Mutex::new(State::NONE) }
    }

    /// An operation is asked for. A silence that lasts already goes on.
    pub(super) fn ask(&self, operation: &'static str) {
        self.lock().asked = Some(operation);
    }

    /// It answered, or nothing is asked any more. Returns whether the user was told that it did not answer.
    pub(super) fn is_over(&self) -> bool {
        let last = std::mem::replace(&mut *self.lock(), State::NONE);
        last.tell_at > TOLD_FIRST
    }

    /// It gave no answer, or none that helps. The silence lasts until one comes.
    pub(super) fn failed(&self, error: AwsError) {
        self.lock().last_error = Some(error);
    }

    /// Runs the clock until nobody has answered for too long.
    pub(super) async fn lasts_too_long(&self, mut tell: impl FnMut(String)) -> AwsError {
        loop {
            tokio::time::sleep(TICK).await;
            match self.tick() {
                Tick::Quiet => {}
                Tick::Tell(message) => tell(message),
                Tick::Lost(error) => return error,
            }
        }
    }

    fn tick(&self) -> Tick {
        let mut state = self.lock();
        let Some(operation) = state.asked else { return Tick::Quiet };
        let service = &self.service;
        state.lasted += TICK;
        let reason = state.last_error.as_ref().map(ToString::to_string).unwrap_or_default();
        let answer = match &state.last_error {
            Some(error) if !error.is(NO_ANSWER) && !error.is(TIMEOUT) => "useful answer",
            _ => "answer",
        };
        if self.patience.is_some_and(|patience| state.lasted >= patience) {
            let code = state.last_error.as_ref().map_or(TIMEOUT, |error| error.code.as_str());
            let message = format!("no {answer} from {service} for {} {reason}", span(state.lasted));
            return Tick::Lost(AwsError::new(operation, "", code, message.trim_end()));
        }
        if state.lasted < state.tell_at {
            return Tick::Quiet;
        }
        state.tell_at *= 2;
        let until = self.patience.map_or(".".into(), |patience| format!(" for up to {}", span(patience)));
        let lasted = span(state.lasted);
        let message = format!(
            "No {answer} from {service} for {lasted} The execution goes on by itself; trying again{until} {reason}"
        );
        Tick::Tell(message.trim_end().to_owned())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sentence's end: a time as people say it.
fn span(time: Duration) -> String {
    match time.as_secs() {
        seconds if seconds < 60 => format!("{seconds} seconds."),
        seconds if seconds < 120 => "a minute.".into(),
        seconds => format!("{} minutes.", seconds / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was told after how many seconds.
    type Said = Vec<(u64, String)>;

    /// Lets time go by. Returns what was told, and the end if it came.
    fn ticks(silence: &Silence, seconds: u64) -> (Said, Option<(u64, AwsError)>) {
        let mut told = Vec::new();
        for second in 1..=seconds {
            match silence.tick() {
                Tick::Quiet => {}
                Tick::Tell(message) => told.push((second, message)),
                Tick::Lost(error) => return (told, Some((second, error))),
            }
        }
        (told, None)
    }

    fn asked() -> Silence {
        let silence = Silence::of("Step Functions in eu-west-1".into(), Some(PATIENCE));
        silence.ask("GetExecutionHistory");
        silence
    }

    #[test]
    fn silence_is_told_at_growing_distances_and_ends_the_watch() {
        let (told, lost) = ticks(&asked(), 2_000);
        assert_eq!(told.iter().map(|(second, _)| *second).collect::<Vec<_>>(), [30, 60, 120, 240, 480]);
        assert_eq!(
            told[0].1,
            "No answer from Step Functions in eu-west-1 for 30 seconds. The execution goes on by itself; trying again for up to \
             15 minutes."
        );
        let (second, error) = lost.unwrap();
        assert_eq!((second, error.code.as_str(), error.operation), (900, TIMEOUT, "GetExecutionHistory"));
        assert_eq!(
            error.to_string(),
            "AWS GetExecutionHistory failed (Timeout): no answer from Step Functions in eu-west-1 for 15 minutes."
        );
    }

    #[test]
    fn the_last_error_is_told_and_its_code_kept() {
        let silence = asked();
        silence.failed(AwsError::new("GetExecutionHistory", "x", "ExpiredTokenException", "it has expired"));
        let (told, lost) = ticks(&silence, 900);
        let error =
            "AWS GetExecutionHistory for x failed (ExpiredTokenException): it has expired. Renew the credentials.";
        assert!(told[0].1.starts_with("No useful answer from Step Functions in eu-west-1"), "{told:?}");
        assert!(told.iter().all(|(_, message)| message.ends_with(error)), "{told:?}");
        assert!(lost.unwrap().1.is_expired());
    }

    #[test]
    fn one_throttled_call_is_not_told() {
        let silence = asked();
        assert_eq!(ticks(&silence, 26), (Vec::new(), None));
        silence.failed(AwsError::new("GetExecutionHistory", "", "ThrottlingException", "Rate exceeded"));
        assert_eq!(ticks(&silence, 3), (Vec::new(), None));
        silence.ask("GetExecutionHistory");
        assert!(!silence.is_over(), "nobody was told, so nobody is told that it is over");
        assert_eq!(ticks(&silence, 3_000), (Vec::new(), None), "nothing is asked");
    }

    #[test]
    fn an_answer_begins_anew() {
        let silence = asked();
        assert_eq!(ticks(&silence, 890).0.len(), 5);
        assert!(silence.is_over());
        assert!(!silence.is_over());
        silence.ask("GetExecutionHistory");
        assert_eq!(ticks(&silence, 29), (Vec::new(), None));
        assert_eq!(ticks(&silence, 1).0.len(), 1);
    }

    #[test]
    fn asking_again_does_not_end_a_silence() {
        let silence = asked();
        let mut told = 0;
        for _ in 0..89 {
            let (some, lost) = ticks(&silence, 10);
            told += some.len();
            assert_eq!(lost, None);
            silence.failed(AwsError::new("GetExecutionHistory", "", NO_ANSWER, "connection refused"));
            silence.ask("GetExecutionHistory");
        }
        assert_eq!(told, 5);
        assert!(ticks(&silence, 10).1.is_some());
    }

    #[test]
    fn a_service_that_can_be_done_without_ends_nothing() {
        let silence = Silence::of("ECS in eu-west-1".into(), None);
        silence.ask("DescribeTasks");
        let (told, lost) = ticks(&silence, 2_000);
        assert_eq!(told.iter().map(|(second, _)| *second).collect::<Vec<_>>(), [30, 60, 120, 240, 480, 960, 1_920]);
        assert!(told[6].1.ends_with("for 32 minutes. The execution goes on by itself; trying again."), "{told:?}");
        assert_eq!(lost, None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_clock_runs_beside_a_call_that_hangs() {
        let silence = asked();
        let mut told = 0;
        let begun = tokio::time::Instant::now();
        let error = tokio::select! {
            error = silence.lasts_too_long(|_| told += 1) => error,
            () = std::future::pending() => unreachable!(),
        };
        assert!(error.is_transient());
        assert_eq!(told, 5);
        assert!((899..=902).contains(&begun.elapsed().as_secs()));
    }
}
