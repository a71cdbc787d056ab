//! Sizes that Fargate has. A request is rounded up to the nearest valid pair.
//!
//! Source: <https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-cpu-memory-error.html> and "Task size" of the
//! Fargate developer guide; 8 and 16 vCPU need Linux and platform version 1.4.0.

use serde::Serialize;

use crate::plan::ResourceSpec;

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// CPU units; 1024 are one vCPU.
    pub cpu_units: u32,
    /// Smallest memory in MiB.
    pub memory_from: u32,
    /// Largest memory in MiB.
    pub memory_to: u32,
    /// Distance between sizes in MiB; 0 where the sizes double.
    pub memory_step: u32,
}

/// Every CPU size with its memory sizes.
pub const TABLE: [Row; 7] = [
    Row { cpu_units: 256, memory_from: 512, memory_to: 2_048, memory_step: 0 },
    Row { cpu_units: 512, memory_from: 1_024, memory_to: 4_096, memory_step: 1_024 },
    Row { cpu_units: 1_024, memory_from: 2_048, memory_to: 8_192, memory_step: 1_024 },
    Row { cpu_units: 2_048, memory_from: 4_096, memory_to: 16_384, memory_step: 1_024 },
    Row { cpu_units: 4_096, memory_from: 8_192, memory_to: 30_720, memory_step: 1_024 },
    Row { cpu_units: 8_192, memory_from: 16_384, memory_to: 61_440, memory_step: 4_096 },
    Row { cpu_units: 16_384, memory_from: 32_768, memory_to: 122_880, memory_step: 8_192 },
];

/// A size that Fargate has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Size {
    /// CPU units; 1024 are one vCPU.
    pub cpu_units: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Whether CPU is more than was asked for.
    pub cpu_rounded: bool,
    /// Whether memory is more than was asked for.
    pub memory_rounded: bool,
}

const MIB: u64 = 1024 * 1024;

impl Row {
    fn memory_for(self, mib: u64) -> Option<u32> {
        let mut size = self.memory_from;
        while u64::from(size) < mib {
            size = if self.memory_step == 0 { size * 2 } else { size + self.memory_step };
            if size > self.memory_to {
                return None;
            }
        }
        Some(size)
    }
}

/// The smallest size that holds a request. Nothing asked for is the smallest size.
///
/// # Errors
/// What no size holds, as the end of a sentence that begins with the step.
pub fn fit(resources: ResourceSpec) -> Result<Size, String> {
    let largest = TABLE[TABLE.len() - 1];
    if resources.gpus > 0 {
        return Err(format!(
            "asks for {} GPUs and Fargate has none; set launch_type EC2 or a capacity provider with GPUs",
            resources.gpus
        ));
    }
    // 1000 thousandths are 1024 units; what is left over needs the next unit.
    let units = (u128::from(resources.cpu_millis) * 1_024).div_ceil(1_000);
    let mib = resources.memory_bytes.div_ceil(MIB);
    if units > u128::from(largest.cpu_units) {
        return Err(format!(
            "asks for {} thousandths of a CPU and the largest Fargate task has 16000; lower its request or use launch_type EC2",
            resources.cpu_millis
        ));
    }
    if mib > u64::from(largest.memory_to) {
        return Err(format!(
            "asks for {mib} MiB of memory and the largest Fargate task has {}; lower its request or use launch_type EC2",
            largest.memory_to
        ));
    }
    let found = TABLE.iter().filter(|row| u128::from(row.cpu_units) >= units).find_map(|row| {
        row.memory_for(mib).map(|memory_mib| Size {
            cpu_units: row.cpu_units,
            memory_mib,
            cpu_rounded: units != 0 && u128::from(row.cpu_units) != units,
            memory_rounded: resources.memory_bytes != 0 && u64::from(memory_mib) * MIB != resources.memory_bytes,
        })
    });
    found.ok_or_else(|| format!("asks for {mib} MiB of memory, which no Fargate task has"))
}
