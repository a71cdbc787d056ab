//! The warm workers of one run: which are made, who gets which, which go.
//!
//! With `isolation: container` a worker is made when a step is prepared, or launched without, for that attempt. With `isolation: process` steps
//! whose containers are described alike form a [`Group`] that shares workers; of these there are no more than can run at
//! once. An idle worker is kept by a task of its own, which ends with it, and which nobody waits for but [`Pool::close`].

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::container::RunIdentity;
use super::engine::Engine;
use super::error::DockerError;
use super::files::Archives;
use super::image::Images;
use super::outlet::Event;
use super::run_args::RunArgs;
use super::spec::{ContainerSpec, Isolation, KeepContainers, WarmSpec};
use super::worker::{Purpose, Recipe, Worker};
use crate::plan::{Demand, Plan, StepIndex};
use crate::runner::AttemptSpec;

/// The removal of workers is waited for so long.
const CLOSE_LIMIT: Duration = Duration::from_secs(20);

/// After so many workers that died while they warmed up, one after the other, no more are made for their steps.
const MAX_FAILURES: u32 = 3;

/// How a step may start.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Start {
    Cold,
    /// In a worker for this attempt alone.
    Own,
    /// In a worker of a group.
    Shared(Arc<str>),
}

impl Start {
    /// Cold, where a container ahead of need would take something from the ones that run: a port, an address, a device.
    fn of(spec: &ContainerSpec) -> Self {
        let (Some(warm), Ok(arguments)) = (&spec.warm, RunArgs::parse(&spec.run_args)) else { return Self::Cold };
        let claims = arguments.host.port_bindings.is_some()
            || arguments.host.device_requests.is_some()
            || arguments.body.networking_config.is_some();
        match (warm.isolation, spec.keep_containers) {
            _ if claims => Self::Cold,
            (Isolation::Container, _) => Self::Own,
            (Isolation::Process, KeepContainers::Never) => Self::Shared(key(spec)),
            // A container of several steps is nobody's to keep.
            (Isolation::Process, _) => Self::Cold,
        }
    }
}

/// When a worker is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    /// Before it is needed.
    Ahead,
    /// For a step that starts now.
    OnDemand,
}

/// Everything that the engine is told about a worker, except for which step it is. Secrets in it: it stays in memory.
fn key(spec: &ContainerSpec) -> Arc<str> {
    let warm = spec.warm.as_ref().map(|warm| WarmSpec { command: Vec::new(), ..warm.clone() });
    let alike = ContainerSpec {
        entrypoint: Vec::new(),
        command: Vec::new(),
        name_hint: None,
        stop_grace_seconds: None,
        warm,
        ..spec.clone()
    };
    // A value with string keys is always JSON.
    Arc::from(serde_json::to_string(&alike).unwrap_or_default())
}

/// What a run's workers are made with. Cheap to clone.
#[derive(Clone)]
pub(super) struct Pool(Arc<Shared>);

struct Shared {
    engine: Engine,
    images: Images,
    archives: Archives,
    run: Arc<RunIdentity>,
    starts: BTreeMap<String, (Start, Arc<ContainerSpec>)>,
    /// Set when this engine turned out not to change limits: workers then have theirs from the beginning.
    keeps_limits: AtomicBool,
    last_number: AtomicU32,
    state: Mutex<State>,
}

struct State {
    max_parallelism: usize,
    upstream: HashMap<StepIndex, Vec<StepIndex>>,
    /// Workers for one attempt.
    own: HashMap<StepIndex, Idle>,
    /// Steps whose own worker could not be used: they start the plain way from then on.
    unfit: HashSet<StepIndex>,
    groups: BTreeMap<Arc<str>, Group>,
    /// For the next attempt that starts cold.
    warning: Option<String>,
    tasks: JoinSet<Option<String>>,
    left: Vec<String>,
    closed: bool,
}

/// Steps that share workers.
#[derive(Default)]
struct Group {
    idle: Vec<Idle>,
    busy: HashSet<(StepIndex, u32)>,
    prepared: BTreeMap<StepIndex, AttemptSpec>,
    /// Steps that were never launched.
    unlaunched: BTreeSet<String>,
    failures: u32,
}

/// A worker that serves nobody. Dropping this discards it.
struct Idle {
    attempt: u32,
    phase: watch::Receiver<Phase>,
    wanted: oneshot::Sender<Wanted>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Made,
    Warming,
    Ready,
    /// It says that it cannot warm up.
    Unfit,
    /// It died before it was ready.
    Failed,
    /// It died later, or the engine went away.
    Died,
}

/// Somebody wants a worker.
struct Wanted {
    spec: Arc<ContainerSpec>,
    demand: Demand,
    /// None, when nothing is wrong with the step's workers: the engine is away, or this one died while it was idle.
    reply: oneshot::Sender<Option<Worker>>,
}

/// A promise of a worker, and the place of its step in the pool.
pub(super) struct Taken {
    /// None, when nothing is wrong with the step's workers, yet there is none now.
    pub(super) worker: oneshot::Receiver<Option<Worker>>,
    pub(super) lease: Lease,
}

/// The place of a step that runs in a worker. Given back by dropping.
pub(super) struct Lease {
    pool: Pool,
    group: Option<Arc<str>>,
    id: (StepIndex, u32),
}

impl Pool {
    pub(super) fn new(
        engine: Engine,
        images: Images,
        archives: Archives,
        run: Arc<RunIdentity>,
        containers: &BTreeMap<String, Arc<ContainerSpec>>,
    ) -> Self {
        let starts: BTreeMap<_, _> =
            containers.iter().map(|(step, spec)| (step.clone(), (Start::of(spec), Arc::clone(spec)))).collect();
        let mut groups: BTreeMap<Arc<str>, Group> = BTreeMap::new();
        for (step, (start, _)) in &starts {
            if let Start::Shared(key) = start {
                groups.entry(Arc::clone(key)).or_default().unlaunched.insert(step.clone());
            }
        }
        let state = State {
            max_parallelism: usize::MAX,
            upstream: HashMap::new(),
            own: HashMap::new(),
            unfit: HashSet::new(),
            groups,
            warning: None,
            tasks: JoinSet::new(),
            left: Vec::new(),
            closed: false,
        };
        Self(Arc::new(Shared {
            engine,
            images,
            archives,
            run,
            starts,
            keeps_limits: AtomicBool::new(false),
            last_number: AtomicU32::new(0),
            state: Mutex::new(state),
        }))
    }

    /// What runs at once, and which step waits for which: a step gets the worker of one that it waits for.
    pub(super) fn expect(&self, plan: &Plan, max_parallelism: u32) {
        let steps = (0..plan.len()).map(StepIndex::new);
        let mut state = self.state();
        state.max_parallelism = max_parallelism as usize;
        state.upstream = steps.map(|step| (step, plan.dag().upstream(step).to_vec())).collect();
    }

    /// The run had another owner: these steps need nothing got ready, and workers have numbers that no other had.
    pub(super) fn go_on(&self, launched: &[Arc<str>], last_number: u32) {
        self.0.last_number.fetch_max(last_number, Ordering::Relaxed);
        let mut state = self.state();
        for group in state.groups.values_mut() {
            group.unlaunched.retain(|step| !launched.iter().any(|known| **known == **step));
        }
    }

    /// Whether any step may start warm.
    pub(super) fn can_prepare(&self) -> bool {
        self.0.starts.values().any(|(start, _)| *start != Start::Cold)
    }

    /// Makes a worker for a step that is likely to start next, unless there is one.
    pub(super) fn prepare(&self, spec: AttemptSpec) {
        let Some((start, container)) = self.0.starts.get(&*spec.name) else { return };
        let mut state = self.state();
        if state.closed || spec.demand.gpus > 0 {
            return;
        }
        match start {
            Start::Cold => {}
            Start::Own if state.unfit.contains(&spec.step) => {}
            Start::Own => {
                let purpose = Purpose::Attempt { step: Arc::clone(&spec.name), attempt: spec.attempt };
                let idle = self.make(&mut state, container, purpose, &spec, Made::Ahead);
                state.own.extend(idle.map(|idle| (spec.step, idle)));
            }
            Start::Shared(key) => {
                if let Some(group) = state.groups.get_mut(key) {
                    group.prepared.insert(spec.step, spec);
                }
                self.balance(&mut state, key);
            }
        }
    }

    /// Gives back what was prepared for a step.
    pub(super) fn discard(&self, step: StepIndex) {
        let mut state = self.state();
        state.own.remove(&step);
        for group in state.groups.values_mut() {
            if group.prepared.remove(&step).is_some() {
                let kept = group.prepared.len();
                group.keep_best(kept);
            }
        }
    }

    /// A worker for an attempt that starts now; none when it has to start cold.
    pub(super) fn take(&self, spec: &AttemptSpec) -> Option<Taken> {
        let (start, container) = self.0.starts.get(&*spec.name)?;
        let mut state = self.state();
        if let Start::Shared(key) = start
            && let Some(group) = state.groups.get_mut(key)
        {
            group.unlaunched.remove(&*spec.name);
        }
        if state.closed {
            return None;
        }
        if spec.demand.gpus > 0 {
            if let Start::Shared(key) = start {
                // Its group may have been kept for it alone.
                self.balance(&mut state, key);
            }
            return None;
        }
        let (reply, worker) = oneshot::channel();
        let wanted = Wanted { spec: Arc::clone(container), demand: spec.demand, reply };
        let lease = |group| Lease { pool: self.clone(), group, id: (spec.step, spec.attempt) };
        match start {
            Start::Cold => None,
            Start::Own => {
                let prepared = state.own.remove(&spec.step).filter(|idle| idle.attempt == spec.attempt);
                let idle = match prepared {
                    Some(idle) => Some(idle),
                    // Its way to the step's first line is shorter than that of a plain start.
                    None if !state.unfit.contains(&spec.step) => {
                        let purpose = Purpose::Attempt { step: Arc::clone(&spec.name), attempt: spec.attempt };
                        self.make(&mut state, container, purpose, spec, Made::OnDemand)
                    }
                    None => None,
                };
                idle.and_then(|idle| idle.wanted.send(wanted).ok()).map(|()| Taken { worker, lease: lease(None) })
            }
            Start::Shared(key) => self
                .take_shared(&mut state, key, spec, wanted)
                .then(|| Taken { worker, lease: lease(Some(Arc::clone(key))) }),
        }
    }

    /// What the user should know about workers that could not be used: one sentence, once.
    pub(super) fn warning(&self) -> Option<String> {
        self.state().warning.take()
    }

    /// Whether somebody keeps the worker for this wish: the one that is ready first, or a new one.
    fn take_shared(&self, state: &mut State, key: &Arc<str>, spec: &AttemptSpec, wanted: Wanted) -> bool {
        let container = Arc::clone(&wanted.spec);
        let Some(group) = state.groups.get_mut(key) else { return false };
        group.prepared.remove(&spec.step);
        group.forget_dead();
        // One that has just died gives the wish back.
        let mut refused = Some(wanted);
        while let Some(wanted) = refused.take() {
            let Some(idle) = group.best() else {
                refused = Some(wanted);
                break;
            };
            refused = idle.wanted.send(wanted).err();
        }
        let unfit = group.is_unfit();
        if let Some(wanted) = refused.take_if(|_| !unfit) {
            refused = match self.make(state, &container, self.shared_purpose(), spec, Made::OnDemand) {
                Some(idle) => idle.wanted.send(wanted).err(),
                None => Some(wanted),
            };
        }
        let taken = refused.is_none();
        if let Some(group) = state.groups.get_mut(key)
            && taken
        {
            group.busy.insert((spec.step, spec.attempt));
        }
        self.balance(state, key);
        taken
    }

    fn shared_purpose(&self) -> Purpose {
        Purpose::Shared { number: self.0.last_number.fetch_add(1, Ordering::Relaxed) + 1 }
    }

    /// Ends all idle workers and waits until they are gone. Returns the names of containers that stay against our will.
    pub(super) async fn close(&self) -> Vec<String> {
        let (mut tasks, mut left) = {
            let mut state = self.state();
            state.closed = true;
            state.own.clear();
            state.groups.clear();
            (std::mem::take(&mut state.tasks), std::mem::take(&mut state.left))
        };
        let joined = timeout(CLOSE_LIMIT, async {
            while let Some(ended) = tasks.join_next().await {
                left.extend(ended.ok().flatten());
            }
        });
        // Whatever is late still runs and is found by its label.
        drop(joined.await);
        tasks.detach_all();
        left
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes as many workers of a group as its prepared steps will need, and ends those that nobody will.
    fn balance(&self, state: &mut State, key: &Arc<str>) {
        let Some(group) = state.groups.get_mut(key) else { return };
        group.forget_dead();
        if group.unlaunched.is_empty() && group.prepared.is_empty() {
            group.idle.clear();
        }
        let needed = if group.is_unfit() { Vec::new() } else { group.without_worker(&state.upstream) };
        let live = group.busy.len() + group.idle.len();
        let wanted = (group.busy.len() + needed.len()).min(state.max_parallelism);
        for spec in needed.into_iter().take(wanted.saturating_sub(live)) {
            let Some((_, container)) = self.0.starts.get(&*spec.name) else { continue };
            let idle = self.make(state, container, self.shared_purpose(), &spec, Made::Ahead);
            if let Some(group) = state.groups.get_mut(key) {
                group.idle.extend(idle);
            }
        }
        state.end_surplus(key);
    }

    fn make(
        &self,
        state: &mut State,
        container: &Arc<ContainerSpec>,
        purpose: Purpose,
        spec: &AttemptSpec,
        made: Made,
    ) -> Option<Idle> {
        let shared = &self.0;
        let recipe = Recipe {
            engine: shared.engine.clone(),
            images: shared.images.clone(),
            archives: shared.archives.clone(),
            run: Arc::clone(&shared.run),
            warm: container.warm.clone()?,
            spec: Arc::clone(container),
            purpose,
            demand: spec.demand,
            ahead: made == Made::Ahead,
            idles: made == Made::Ahead && !shared.keeps_limits.load(Ordering::Relaxed),
        };
        let (phase, phases) = watch::channel(Phase::Made);
        let (wanted, wish) = oneshot::channel();
        let pool = self.clone();
        state.spawn(async move { pool.make_and_keep(recipe, phase, wish).await });
        Some(Idle { attempt: spec.attempt, phase: phases, wanted })
    }

    async fn make_and_keep(
        self,
        recipe: Recipe,
        phase: watch::Sender<Phase>,
        mut wish: oneshot::Receiver<Wanted>,
    ) -> Option<String> {
        let mut wanted: Option<Wanted> = None;
        let unwanted = async {
            if let Ok(wants) = (&mut wish).await {
                // Its step may be stopped, or start the plain way when this takes too long.
                wanted.insert(wants).reply.closed().await;
            }
        };
        match recipe.make(unwanted).await {
            Ok(worker) => {
                phase.send_replace(Phase::Warming);
                self.keep(worker, phase, wanted, wish).await
            }
            Err(not_made) if not_made.engine_failed => {
                let_down(wanted, wish);
                phase.send_replace(Phase::Died);
                recipe.clear(not_made).await
            }
            Err(not_made) => {
                phase.send_replace(Phase::Failed);
                // The step that waits starts beside nothing of this.
                let left = recipe.clear(not_made).await;
                drop(wanted);
                left
            }
        }
    }

    /// Keeps a worker until somebody wants it, it is discarded, or it dies. Returns the name of a container that stays
    /// against our will.
    async fn keep(
        self,
        mut worker: Worker,
        phase: watch::Sender<Phase>,
        mut wanted: Option<Wanted>,
        mut wish: oneshot::Receiver<Wanted>,
    ) -> Option<String> {
        let died = loop {
            if let Some(wants) = wanted.take() {
                if let Err(error) = worker.fit(&wants.spec, wants.demand).await {
                    wanted = Some(wants);
                    break self.unlimited(&error);
                }
                return match wants.reply.send(Some(worker)) {
                    Ok(()) => None,
                    // Stopped meanwhile.
                    Err(Some(worker)) => worker.remove().await,
                    Err(None) => None,
                };
            }
            tokio::select! {
                biased;
                // Its death first: nobody shall get a dead one.
                event = worker.event() => match event {
                    Event::Ready => {
                        if let Err(error) = worker.wake().await {
                            break self.unlimited(&error);
                        }
                        phase.send_replace(Phase::Ready);
                    }
                    Event::Unfit => break Phase::Unfit,
                    _ => break if worker.ready || worker.is_cut_off().await { Phase::Died } else { Phase::Failed },
                },
                wish = &mut wish => match wish {
                    Ok(wants) => wanted = Some(wants),
                    Err(_) => return worker.remove().await,
                },
            }
        };
        // Nobody may wait for it while it is being removed.
        match died {
            Phase::Died => let_down(wanted, wish),
            _ => drop((wanted, wish)),
        }
        phase.send_replace(died);
        worker.remove().await
    }

    /// Its limits could not be set: what that makes of a worker.
    fn unlimited(&self, error: &DockerError) -> Phase {
        if error.is_engine_away() {
            return Phase::Died;
        }
        if !self.0.keeps_limits.swap(true, Ordering::Relaxed) {
            let message = format!("{error}; workers are made with the limits of their steps from now on");
            self.state().warning = Some(message);
        }
        Phase::Failed
    }
}

/// Tells whoever wants this worker that there is none, for no fault of its step's workers.
fn let_down(wanted: Option<Wanted>, mut wish: oneshot::Receiver<Wanted>) {
    wish.close();
    if let Some(wants) = wanted.or_else(|| wish.try_recv().ok()) {
        drop(wants.reply.send(None));
    }
}

impl Lease {
    /// Whether the worker serves further steps.
    pub(super) fn is_shared(&self) -> bool {
        self.group.is_some()
    }

    /// The worker may serve the next step.
    pub(super) fn give_back(self, worker: Worker) {
        let pool = self.pool.clone();
        let mut state = pool.state();
        let (wanted, wish) = oneshot::channel();
        let (phase, phases) = watch::channel(Phase::Ready);
        let keeper = pool.clone();
        state.spawn(async move { keeper.keep(worker, phase, None, wish).await });
        if let Some(key) = &self.group
            && let Some(group) = state.groups.get_mut(key)
        {
            group.failures = 0;
            group.idle.push(Idle { attempt: 0, phase: phases, wanted });
        }
        // Otherwise the run is over, and the worker with its handle.
        drop(state);
    }

    /// The worker serves nobody any more.
    pub(super) fn retire(self, worker: Worker) {
        self.pool.state().spawn(worker.remove());
    }

    /// The warm-up failed.
    pub(super) fn failed(&self, says_so: bool) {
        let mut state = self.pool.state();
        let Some(key) = &self.group else {
            state.unfit.insert(self.id.0);
            return;
        };
        if let Some(group) = state.groups.get_mut(key) {
            group.failures = if says_so { MAX_FAILURES } else { group.failures + 1 };
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(key) = &self.group else { return };
        let mut state = self.pool.state();
        if let Some(group) = state.groups.get_mut(key) {
            group.busy.remove(&self.id);
        }
        self.pool.balance(&mut state, key);
    }
}

impl State {
    fn spawn(&mut self, task: impl Future<Output = Option<String>> + Send + 'static) {
        while let Some(ended) = self.tasks.try_join_next() {
            self.left.extend(ended.ok().flatten());
        }
        self.tasks.spawn(task);
    }

    /// Ends idle workers of other groups while there are more workers than can be needed at once.
    fn end_surplus(&mut self, key: &Arc<str>) {
        let prepared: usize = self.groups.values().map(|group| group.prepared.len()).sum();
        let live: usize = self.groups.values().map(|group| group.busy.len() + group.idle.len()).sum();
        let mut surplus = live.saturating_sub(self.max_parallelism.saturating_add(prepared));
        for group in self.groups.iter_mut().filter(|(other, _)| *other != key).map(|(_, group)| group) {
            let spare = group.idle.len().saturating_sub(group.prepared.len()).min(surplus);
            group.keep_best(group.idle.len() - spare);
            surplus -= spare;
        }
    }
}

impl Group {
    fn is_unfit(&self) -> bool {
        self.failures >= MAX_FAILURES
    }

    fn forget_dead(&mut self) {
        let failures = &mut self.failures;
        self.idle.retain(|idle| {
            let phase = *idle.phase.borrow();
            match phase {
                Phase::Unfit => *failures = MAX_FAILURES,
                Phase::Failed => *failures += 1,
                Phase::Made | Phase::Warming | Phase::Ready | Phase::Died => {}
            }
            phase <= Phase::Ready
        });
    }

    /// The worker that will be ready first.
    fn best(&mut self) -> Option<Idle> {
        let (at, _) = self.idle.iter().enumerate().max_by_key(|(at, idle)| (*idle.phase.borrow(), usize::MAX - at))?;
        Some(self.idle.swap_remove(at))
    }

    /// Ends all but the `count` that will be ready first.
    fn keep_best(&mut self, count: usize) {
        self.forget_dead();
        self.idle.sort_by_key(|idle| std::cmp::Reverse(*idle.phase.borrow()));
        self.idle.truncate(count);
    }

    /// Prepared steps that none of the steps that they wait for leaves a worker.
    fn without_worker(&self, upstream: &HashMap<StepIndex, Vec<StepIndex>>) -> Vec<AttemptSpec> {
        let serves =
            |step: &StepIndex| self.prepared.contains_key(step) || self.busy.iter().any(|(busy, _)| busy == step);
        let mut left: HashSet<StepIndex> = HashSet::new();
        let inherits = |step: &StepIndex, left: &mut HashSet<StepIndex>| {
            let before = upstream.get(step).into_iter().flatten();
            before.copied().find(|before| serves(before) && !left.contains(before)).is_some_and(|b| left.insert(b))
        };
        self.prepared.iter().filter(|(step, _)| !inherits(step, &mut left)).map(|(_, spec)| spec.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn start(isolation: Isolation, run_args: serde_json::Value) -> Start {
        let warm = WarmSpec { isolation, entrypoint: vec!["worker".to_owned()], command: Vec::new() };
        let run_args = serde_json::from_value(run_args).unwrap();
        Start::of(&ContainerSpec { warm: Some(warm), run_args, ..ContainerSpec::of_image("a") })
    }

    #[test]
    fn what_only_one_container_can_have_is_never_claimed_ahead_of_need() {
        for run_args in [
            json!({"ports": {"80/tcp": 8080}}),
            json!({"mac_address": "02:42:ac:11:65:43"}),
            json!({"device_requests": [{"count": -1, "capabilities": [["gpu"]]}]}),
        ] {
            for isolation in [Isolation::Container, Isolation::Process] {
                assert_eq!(start(isolation, run_args.clone()), Start::Cold, "{run_args}");
            }
        }
        // The engine gives every container ports of its own.
        assert_eq!(start(Isolation::Container, json!({"publish_all_ports": true})), Start::Own);
        assert!(matches!(start(Isolation::Process, json!({})), Start::Shared(_)));
    }
}
