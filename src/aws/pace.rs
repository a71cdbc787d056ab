//! Keeps the rate of calls below what the account is allowed, so that several runs can be watched at once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A token bucket: `burst` calls at once, then `per_second`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rate {
    burst: f64,
    per_second: f64,
}

/// Our share of the account's rates: about a quarter of the documented refill, because other clients use it as well.
///
/// Step Functions quotas, "Quotas related to API action throttling": GetExecutionHistory 20 per second, DescribeExecution
/// 15, StopExecution 25, DescribeStateMachine 20, CreateStateMachine 1, ListStateMachines 5, ListExecutions 5. Amazon ECS
/// "Request throttling": task definition read 20, modify 1, cluster resource read 20, modify 20. CloudWatch Logs quotas:
/// `GetLogEvents` 25, 10 in small regions.
fn rate(operation: &str) -> Rate {
    let (burst, per_second) = match operation {
        "CreateStateMachine" | "UpdateStateMachine" | "DeleteStateMachine" | "RegisterTaskDefinition" => (20.0, 1.0),
        "DeregisterTaskDefinition" => (5.0, 1.0),
        "ListExecutions" | "ListStateMachines" | "ListTagsForResource" => (20.0, 1.5),
        "DescribeExecution" => (30.0, 4.0),
        "GetExecutionHistory" => (40.0, 5.0),
        "GetLogEvents" => (10.0, 8.0),
        _ => (50.0, 10.0),
    };
    Rate { burst, per_second }
}

/// When calls may go.
#[derive(Debug, Default)]
pub(super) struct Pace {
    buckets: Mutex<HashMap<&'static str, Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    rate: Rate,
    tokens: f64,
    at: Instant,
    calls: u64,
}

impl Pace {
    /// Waits until an operation may be called once more.
    pub(super) async fn take(&self, operation: &'static str) {
        let wait = {
            let now = Instant::now();
            let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
            let bucket = buckets.entry(operation).or_insert_with(|| Bucket::new(rate(operation), now));
            bucket.calls += 1;
            bucket.reserve(now)
        };
        tokio::time::sleep(wait).await;
    }

    /// How often each operation was called.
    pub(super) fn calls(&self) -> Vec<(&'static str, u64)> {
        let buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut calls: Vec<_> = buckets.iter().map(|(operation, bucket)| (*operation, bucket.calls)).collect();
        calls.sort_unstable();
        calls
    }
}

impl Bucket {
    fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, tokens: rate.burst, at: now, calls: 0 }
    }

    /// Takes a token that is there or will be; gives how long to wait for it.
    fn reserve(&mut self, now: Instant) -> Duration {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * self.rate.per_second;
        self.tokens = (self.tokens + gained).min(self.rate.burst) - 1.0;
        self.at = now;
        Duration::try_from_secs_f64(-self.tokens / self.rate.per_second).unwrap_or_default()
    }
}

/// Waits before another try: full jitter on a doubling ceiling, so that those who failed together do not come back together.
pub(super) fn backoff(attempt: u32, first: Duration, ceiling: Duration) -> Duration {
    let longest = first.saturating_mul(1_u32.checked_shl(attempt.min(16)).unwrap_or(u32::MAX)).min(ceiling);
    longest.mul_f64(0.5 + random_fraction() / 2.0)
}

/// 32 characters that nobody had before.
pub(super) fn random_name() -> String {
    format!("{:016x}{:016x}", random_bits(), random_bits())
}

/// The standard library seeds each hasher from the system's randomness.
fn random_bits() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// A number from 0 up to 1.
fn random_fraction() -> f64 {
    let bits = random_bits() >> 11;
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
    let fraction = bits as f64 / (1_u64 << 53) as f64;
    fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_lets_a_burst_go_and_then_its_rate() {
        let now = Instant::now();
        let mut bucket = Bucket::new(Rate { burst: 3.0, per_second: 2.0 }, now);
        let waits: Vec<u128> = (0..6).map(|_| bucket.reserve(now).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 500, 1_000, 1_500]);
        let later = now + Duration::from_secs(60);
        assert_eq!(bucket.reserve(later), Duration::ZERO, "it is full again");
        assert_eq!(bucket.tokens, 2.0, "and not fuller than that");
    }

    #[test]
    fn waits_double_and_are_spread() {
        let waits: Vec<Duration> =
            (0..200).map(|_| backoff(3, Duration::from_millis(100), Duration::from_secs(60))).collect();
        assert!(waits.iter().all(|wait| (400..=800).contains(&wait.as_millis())), "{waits:?}");
        assert!(waits.iter().max() > waits.iter().min(), "no two clients come back together");
        assert!(backoff(40, Duration::from_secs(1), Duration::from_secs(5)) <= Duration::from_secs(5));
    }
}
