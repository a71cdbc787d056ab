//! PURE. What the engine holds a container to, when it is created and when a warm worker gets to work.

use bollard::models::{ContainerUpdateBody, HostConfig};

use super::engine::EngineInfo;
use super::spec::ContainerSpec;
use crate::plan::Demand;

/// CPU shares of a container that says nothing else. Written out for steps that may start warm, so that a warm start and a
/// cold one get the same share from every engine.
const NORMAL_CPU_SHARES: i64 = 1024;

/// The least that the kernel has: a worker that warms up gets what nobody else wants.
const IDLE_CPU_SHARES: i64 = 2;

/// How hard a container may press for the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shares {
    /// As the engine has it.
    Default,
    /// As every step.
    Normal,
    /// Warming up.
    Idle,
}

/// Limits of one container. What the user sets in `run_args` is the user's, and is never among them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// Billionths of a CPU.
    nano_cpus: Option<i64>,
    /// Bytes.
    memory: Option<i64>,
    /// Whether the user sets the limit of memory and swap together.
    keeps_swap: bool,
    /// Whether the user sets the CPU shares.
    keeps_shares: bool,
}

impl Limits {
    /// The limits of a step; `host` is what its run arguments say.
    pub(super) fn of(spec: &ContainerSpec, host: &HostConfig, demand: Demand) -> Self {
        let sets_cpus = host.nano_cpus.is_some() || host.cpu_quota.is_some() || host.cpu_period.is_some();
        let limit = |number: u64, is_free: bool| (spec.enforce_limits && number > 0 && is_free).then(|| signed(number));
        Self {
            nano_cpus: limit(demand.cpu_millis.saturating_mul(1_000_000), !sets_cpus),
            memory: limit(demand.memory_bytes, host.memory.is_none()),
            keeps_swap: host.memory_swap.is_some(),
            keeps_shares: host.cpu_shares.is_some(),
        }
    }

    /// For a container that is to be created.
    pub(super) fn apply(self, host: &mut HostConfig, shares: Shares) {
        // While it warms up, the shares are all that holds it back: a limit would only make it late.
        if shares != Shares::Idle {
            host.nano_cpus = host.nano_cpus.or(self.nano_cpus);
        }
        if let Some(memory) = self.memory {
            host.memory = Some(memory);
            // The default is twice the memory: the limit would be one of memory and as much swap.
            host.memory_swap = host.memory_swap.or(Some(memory));
        }
        host.cpu_shares = host.cpu_shares.or(match shares {
            Shares::Default => None,
            Shares::Normal => Some(NORMAL_CPU_SHARES),
            Shares::Idle => Some(IDLE_CPU_SHARES),
        });
    }

    /// What makes a container that was created with idle shares under `self` one of `wanted`; none when nothing changes.
    pub(super) fn awake(self, wanted: Self, engine: &EngineInfo) -> Option<ContainerUpdateBody> {
        let created = Self { nano_cpus: None, ..self };
        let mut body = created.change(wanted, engine).unwrap_or_default();
        body.cpu_shares = (!self.keeps_shares).then_some(NORMAL_CPU_SHARES);
        (body != ContainerUpdateBody::default()).then_some(body)
    }

    /// What makes a running container of `self` one of `wanted`; none when nothing changes.
    pub(super) fn change(self, wanted: Self, engine: &EngineInfo) -> Option<ContainerUpdateBody> {
        if (self.nano_cpus, self.memory) == (wanted.nano_cpus, wanted.memory) {
            return None;
        }
        let mut body = ContainerUpdateBody::default();
        // An engine takes no limit away; all that the host has is as good.
        if self.nano_cpus != wanted.nano_cpus {
            body.nano_cpus =
                Some(wanted.nano_cpus.unwrap_or_else(|| signed(engine.cpus.saturating_mul(1_000_000_000))));
        }
        if self.memory != wanted.memory {
            body.memory = Some(wanted.memory.unwrap_or_else(|| signed(engine.memory_bytes)));
            body.memory_swap = body.memory.filter(|_| !self.keeps_swap);
        }
        Some(body)
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(cpu_millis: u64, memory_bytes: u64, host: &HostConfig) -> Limits {
        Limits::of(&ContainerSpec::of_image("a"), host, Demand { cpu_millis, memory_bytes, gpus: 0 })
    }

    fn engine() -> EngineInfo {
        EngineInfo { cpus: 4, memory_bytes: 1 << 33, ..EngineInfo::default() }
    }

    fn created(limits: Limits, host: &HostConfig, shares: Shares) -> [Option<i64>; 4] {
        let mut host = host.clone();
        limits.apply(&mut host, shares);
        [host.cpu_shares, host.nano_cpus, host.memory, host.memory_swap]
    }

    #[test]
    fn a_worker_warms_up_with_idle_shares_under_its_memory_limit() {
        let host = HostConfig::default();
        let limits = limits(500, 1 << 20, &host);
        assert_eq!(created(limits, &host, Shares::Default), [None, Some(500_000_000), Some(1 << 20), Some(1 << 20)]);
        assert_eq!(created(limits, &host, Shares::Normal)[0], Some(1024));
        assert_eq!(created(limits, &host, Shares::Idle), [Some(2), None, Some(1 << 20), Some(1 << 20)]);
        let awake = limits.awake(limits, &engine()).unwrap();
        assert_eq!((awake.cpu_shares, awake.nano_cpus, awake.memory), (Some(1024), Some(500_000_000), None));
    }

    #[test]
    fn what_the_user_sets_is_left_alone() {
        let host = HostConfig {
            cpu_shares: Some(7),
            cpu_quota: Some(50_000),
            memory: Some(1 << 30),
            memory_swap: Some(1 << 31),
            ..HostConfig::default()
        };
        let theirs = limits(500, 1 << 20, &host);
        assert_eq!(created(theirs, &host, Shares::Idle), [Some(7), None, Some(1 << 30), Some(1 << 31)]);
        assert_eq!(theirs.awake(theirs, &engine()), None);
        let swap = HostConfig { memory_swap: Some(-1), ..HostConfig::default() };
        let change = limits(0, 1 << 20, &swap).change(limits(0, 1 << 21, &swap), &engine()).unwrap();
        assert_eq!((change.memory, change.memory_swap), (Some(1 << 21), None));
    }

    #[test]
    fn a_worker_is_changed_for_the_next_step_only_when_it_asks_for_something_else() {
        let host = HostConfig::default();
        let (small, free) = (limits(500, 1 << 20, &host), limits(0, 0, &host));
        assert_eq!(small.change(small, &engine()), None);
        assert_eq!(free.change(free, &engine()), None);
        let grown = small.change(free, &engine()).unwrap();
        assert_eq!(
            (grown.nano_cpus, grown.memory, grown.memory_swap),
            (Some(4_000_000_000), Some(1 << 33), Some(1 << 33))
        );
        assert_eq!(free.change(small, &engine()).unwrap().memory, Some(1 << 20));
        let unlimited = ContainerSpec { enforce_limits: false, ..ContainerSpec::of_image("a") };
        assert_eq!(
            Limits::of(&unlimited, &host, Demand { cpu_millis: 1, memory_bytes: 1, gpus: 0 }),
            Limits::default()
        );
    }
}
