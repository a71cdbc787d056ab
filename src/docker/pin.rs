//! Pins an image before there is a run.

use std::sync::Arc;

use super::engine::Engine;
use super::error::DockerError;
use super::image::{Images, PullObserver};
use super::spec::{ContainerSpec, PullPolicy};

/// The id behind an image reference, pulled by policy.
///
/// # Errors
/// The image is not there and must not or cannot be pulled.
pub async fn image_id(
    engine: &Engine,
    reference: &str,
    policy: PullPolicy,
    platform: Option<&str>,
    observer: Option<PullObserver>,
) -> Result<String, Arc<DockerError>> {
    let spec = ContainerSpec { pull_policy: policy, ..ContainerSpec::of_image(reference) };
    let images = Images::new(engine.clone(), observer);
    images.resolve(&spec, reference, platform).await.map(|id| id.to_string())
}
