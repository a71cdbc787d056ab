//! GPUs: which there are, and who has them. Parallel steps never share one.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bollard::models::{DeviceRequest, SystemInfo};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The GPUs that an engine offers, by the ids that a device request takes.
///
/// An engine does not report NVIDIA devices; it reports that it has the runtime (and, since Docker 28, what CDI found). So the
/// devices are looked up on this machine when the engine runs here, and otherwise have to be named by the user.
pub(super) async fn detect(info: &SystemInfo, local: bool) -> Vec<String> {
    let discovered: Vec<String> = info
        .discovered_devices
        .iter()
        .flatten()
        .filter_map(|device| device.id.clone())
        .filter(|id| id.starts_with("nvidia.com/gpu=") && !id.ends_with("=all"))
        // CDI lists a device by index and by UUID; the index alone is enough.
        .filter(|id| id.rsplit('=').next().is_some_and(|index| index.parse::<u32>().is_ok()))
        .collect();
    if !discovered.is_empty() {
        return discovered;
    }
    let has_runtime = info.runtimes.as_ref().is_some_and(|runtimes| runtimes.contains_key("nvidia"));
    if !local || !(has_runtime || Path::new("/proc/driver/nvidia/gpus").is_dir()) {
        return Vec::new();
    }
    match tokio::process::Command::new("nvidia-smi").arg("-L").kill_on_drop(true).output().await {
        Ok(output) if output.status.success() => smi_list(&String::from_utf8_lossy(&output.stdout)),
        _ => std::fs::read_dir("/proc/driver/nvidia/gpus")
            .map(|entries| (0..entries.count()).map(|index| index.to_string()).collect())
            .unwrap_or_default(),
    }
}

/// UUIDs out of `GPU 0: NVIDIA A100 (UUID: GPU-…)`.
fn smi_list(text: &str) -> Vec<String> {
    text.lines()
        .filter(|line| line.starts_with("GPU "))
        .filter_map(|line| Some(line.split_once("UUID: ")?.1.trim_end_matches(')').trim().to_owned()))
        .collect()
}

/// The free GPUs of an engine.
#[derive(Debug, Clone)]
pub(super) struct GpuPool {
    free: Arc<Mutex<BTreeSet<String>>>,
    permits: Arc<Semaphore>,
    size: usize,
}

/// GPUs that an attempt holds. They are free again when this is dropped.
#[derive(Debug)]
pub(super) struct GpuLease {
    ids: Vec<String>,
    pool: GpuPool,
    // Returned after the ids are: fields drop after `drop`.
    _permits: OwnedSemaphorePermit,
}

impl GpuPool {
    pub(super) fn new(ids: &[String]) -> Self {
        let free: BTreeSet<_> = ids.iter().cloned().collect();
        let size = free.len();
        Self { permits: Arc::new(Semaphore::new(size)), free: Arc::new(Mutex::new(free)), size }
    }

    /// What a container has that was started by somebody else; nothing when it is not free.
    pub(super) fn claim(&self, ids: &[String]) -> Option<GpuLease> {
        let permits = Arc::clone(&self.permits).try_acquire_many_owned(u32::try_from(ids.len()).ok()?).ok()?;
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        ids.iter().all(|id| free.contains(id)).then(|| {
            free.retain(|id| !ids.contains(id));
            GpuLease { ids: ids.to_vec(), pool: self.clone(), _permits: permits }
        })
    }

    /// Waits for `count` free GPUs. None when the engine does not have so many.
    ///
    /// Cancel safe.
    pub(super) async fn acquire(&self, count: u32) -> Option<GpuLease> {
        if count as usize > self.size {
            return None;
        }
        let permits = Arc::clone(&self.permits).acquire_many_owned(count).await.ok()?;
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let ids = (0..count).map_while(|_| free.pop_first()).collect();
        drop(free);
        Some(GpuLease { ids, pool: self.clone(), _permits: permits })
    }
}

impl GpuLease {
    /// Whether it is of no GPU.
    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// What asks the engine for exactly these.
    pub(super) fn request(&self) -> Option<DeviceRequest> {
        let first = self.ids.first()?;
        // CDI names are qualified, `nvidia.com/gpu=0`; everything else goes to the classic runtime hook.
        let driver = first.contains('=').then(|| "cdi".to_owned());
        Some(DeviceRequest {
            driver,
            device_ids: Some(self.ids.clone()),
            capabilities: Some(vec![vec!["gpu".to_owned()]]),
            ..Default::default()
        })
    }
}

impl Drop for GpuLease {
    fn drop(&mut self) {
        self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).extend(self.ids.drain(..));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smi_lines_give_uuids() {
        let text = "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aa-bb)\nGPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-cc)\n  MIG 1g.5gb\n";
        assert_eq!(smi_list(text), ["GPU-aa-bb", "GPU-cc"]);
        assert!(smi_list("No devices found.").is_empty());
    }

    #[tokio::test]
    async fn leases_never_overlap_and_come_back() {
        let pool = GpuPool::new(&["0".into(), "1".into(), "2".into()]);
        let two = pool.acquire(2).await.unwrap();
        let one = pool.acquire(1).await.unwrap();
        assert!(two.ids.iter().all(|id| !one.ids.contains(id)));
        let mut waiting = Box::pin(pool.acquire(2));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(two);
        assert_eq!(waiting.await.unwrap().ids.len(), 2);
        assert!(pool.acquire(4).await.is_none());
    }

    #[tokio::test]
    async fn what_a_container_has_is_claimed_once() {
        let pool = GpuPool::new(&["0".into(), "1".into()]);
        let claimed = pool.claim(&["1".into()]).unwrap();
        assert!(pool.claim(&["1".into()]).is_none());
        assert_eq!(pool.acquire(1).await.unwrap().ids, ["0"]);
        drop(claimed);
        assert_eq!(pool.acquire(2).await.unwrap().ids.len(), 2);
    }

    #[tokio::test]
    async fn a_lease_asks_for_its_devices() {
        let lease = GpuPool::new(&["GPU-a".into()]).acquire(1).await.unwrap();
        let request = lease.request().unwrap();
        assert_eq!((request.driver, request.device_ids), (None, Some(vec!["GPU-a".to_owned()])));
        let cdi = GpuPool::new(&["nvidia.com/gpu=0".into()]).acquire(1).await.unwrap().request().unwrap();
        assert_eq!(cdi.driver.as_deref(), Some("cdi"));
        assert!(GpuPool::new(&[]).acquire(0).await.unwrap().request().is_none());
    }
}
