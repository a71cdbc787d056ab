//! Limits and prices of the service, each with its source.
//!
//! "Quotas" is <https://docs.aws.amazon.com/step-functions/latest/dg/service-quotas.html>.

/// Bytes of a state machine's definition. Quotas: "Maximum request size 1 MB".
pub const DEFINITION_BYTES: u64 = 1_048_576;
/// Events in the history of one execution. Quotas: 25,000, then the execution fails.
pub const HISTORY_EVENTS: u64 = 25_000;
/// Bytes of a state's input or output. Quotas: 256 KiB as a UTF-8 string.
pub const PAYLOAD_BYTES: u64 = 262_144;
/// Bytes of a payload that are not names of steps: the input of the execution, and some 90 for each branch of a `Parallel`.
pub(crate) const PAYLOAD_BESIDE_NAMES: u64 = 32_768;
/// Characters of the cause of a run that did not complete beside names of steps.
pub(crate) const CAUSE_BESIDE_NAMES: usize = 128;
/// Characters of a state's or a machine's name. Amazon States Language specification, "States"; Quotas.
pub const NAME_CHARACTERS: usize = 80;
/// Characters of `overrides` in ECS `RunTask`, JSON formatting included. ECS API reference, `RunTask`.
pub const OVERRIDES_CHARACTERS: u64 = 8_192;
/// Subnets and security groups of a task. ECS API reference, `AwsVpcConfiguration`.
pub const SUBNETS: usize = 16;
/// See [`SUBNETS`].
pub const SECURITY_GROUPS: usize = 5;
/// Characters of the cause of a failed execution. API reference, `HistoryEvent`: `cause` up to 32,768.
pub const CAUSE_CHARACTERS: usize = 32_768;
/// Largest number of seconds that a field takes. Amazon States Language specification: 99,999,999.
pub const SECONDS: u64 = 99_999_999;
/// Seconds of the longest execution. Quotas: 1 year.
pub const EXECUTION_SECONDS: u64 = 31_536_000;
// A waiter's intervals grow by four. One that times out is, with the two before it (a quarter and a sixteenth), no longer than an
// execution, so the next one is allowed; those of the first two are, since `recheck_seconds` is no more than a sixteenth of the most.
const _: () = assert!(4 * (EXECUTION_SECONDS * 16 / 21) <= SECONDS);
/// Seconds of the largest `MaxDelaySeconds`. Amazon States Language specification: below 31,622,401.
pub const MAX_DELAY_SECONDS: u64 = 31_622_400;
/// `Parallel` states inside each other in one definition. AWS names no number, it only refuses with
/// `TOO_DEEPLY_NESTED`; each level is five levels of JSON and common parsers stop at 128.
pub const PARALLEL_DEPTH: u32 = 16;
/// Levels of rows and branches inside each other in a pipeline, over all machines. Ours: the compiler walks them on its stack.
pub const TREE_DEPTH: u32 = 128;
/// Branches of one `Parallel`. AWS names no number; above this the branches are grouped, which keeps merging intrinsics short.
pub const PARALLEL_BRANCHES: usize = 200;
/// Characters of one intrinsic function, kept below the 10,000 that AWS documents for strings in intrinsics.
pub const INTRINSIC_CHARACTERS: usize = 4_000;
/// US dollars for one state transition of a Standard workflow (us-east-1). <https://aws.amazon.com/step-functions/pricing/>.
pub const DOLLARS_PER_TRANSITION: f64 = 0.025 / 1_000.0;

/// Events of an `ecs:runTask.sync` state that succeeds at once: entered, scheduled, started, submitted, succeeded, exited.
pub(crate) const SYNC_EVENTS: u64 = 6;
/// Events of a state that makes one request: entered, scheduled, started, succeeded or failed, exited.
pub(crate) const REQUEST_EVENTS: u64 = 5;
/// Events of `Pass`, `Choice` and `Succeed`: entered, exited.
pub(crate) const PLAIN_EVENTS: u64 = 2;
/// Events of `Parallel`: entered, started, succeeded, exited.
pub(crate) const PARALLEL_EVENTS: u64 = 4;
/// Events of the execution itself: started, succeeded.
pub(crate) const EXECUTION_EVENTS: u64 = 2;

/// Events of `Map` beside its items: entered, started, succeeded, exited.
pub(crate) const MAP_EVENTS: u64 = 4;
/// Events of one item of a `Map` beside those of its states: started, succeeded.
pub(crate) const ITEM_EVENTS: u64 = 2;

/// Token edges that are told of a skipped part inside its machine; more of them get a machine for that, whose events count there.
pub(crate) const SKIPPED_INLINE: usize = 40;
/// Token edges for which one such machine tells: 17 events each, and a payload of at most 180 bytes each.
pub(crate) const SKIPPED_OF_MACHINE: usize = 500;
