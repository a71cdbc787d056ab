//! From an image reference to the id that containers are created from: looked up once in a run, pulled when the policy says
//! so, one pull for all steps that wait for it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::future::{BoxFuture, FutureExt as _, Shared, WeakShared};
use futures_util::stream::StreamExt as _;
use tokio::time::Instant;

use super::engine::Engine;
use super::error::{self, DockerError};
use super::registry;
use super::spec::{ContainerSpec, PullPolicy};

/// The least time between two reports of one pull, so that a log stays readable.
const REPORT_EVERY: Duration = Duration::from_secs(2);

/// A report about a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullProgress {
    /// The image as the user knows it.
    pub image: String,
    /// Bytes of all layers that are there.
    pub done_bytes: u64,
    /// Bytes of all layers that are known so far; grows at the beginning.
    pub total_bytes: u64,
    /// Whether the pull is over.
    pub finished: bool,
}

impl fmt::Display for PullProgress {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        match (self.finished, self.total_bytes) {
            (true, _) => write!(f, "pulled image `{}`", self.image),
            (false, 0) => write!(f, "pulling image `{}`", self.image),
            (false, total) => write!(
                f,
                "pulling image `{}`: {:.1} of {:.1} MB",
                self.image,
                megabytes(self.done_bytes),
                megabytes(total)
            ),
        }
    }
}

/// Takes reports about pulls. Called on a tokio thread; must not block.
pub type PullObserver = Arc<dyn Fn(&PullProgress) + Send + Sync>;

type Resolution = Result<Arc<str>, Arc<DockerError>>;
type Key = (String, String, PullPolicy, Option<String>);

enum Entry {
    Resolved(Arc<str>),
    // Weak: when every step that waits was stopped, the pull is dropped, and the engine ends it.
    Pending(WeakShared<BoxFuture<'static, Resolution>>),
}

/// Image ids of one run.
#[derive(Clone)]
pub(super) struct Images {
    engine: Engine,
    observer: Option<PullObserver>,
    entries: Arc<Mutex<HashMap<Key, Entry>>>,
}

impl Images {
    pub(super) fn new(engine: Engine, observer: Option<PullObserver>) -> Self {
        Self { engine, observer, entries: Arc::default() }
    }

    /// The id to create from. The first answer holds for the whole run, so that a later build or pull of the same tag cannot
    /// swap the image under a running pipeline.
    ///
    /// Cancel safe: a pull goes on as long as anybody waits for it.
    pub(super) async fn resolve(&self, spec: &ContainerSpec, image: &str, platform: Option<&str>) -> Resolution {
        // A run argument that replaces the image replaces its name, too.
        let name = if image == spec.image { spec.image_name() } else { image };
        let key = (image.to_owned(), name.to_owned(), spec.pull_policy, platform.map(str::to_owned));
        let pending = match self.enter(&key) {
            Ok(id) => return Ok(id),
            Err(pending) => pending,
        };
        let resolution = pending.await;
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        match &resolution {
            Ok(id) => drop(entries.insert(key, Entry::Resolved(Arc::clone(id)))),
            // A retry tries anew; those who waited share the error.
            Err(_) => {
                if matches!(entries.get(&key), Some(Entry::Pending(weak)) if weak.upgrade().is_none_or(|p| p.peek().is_some()))
                {
                    entries.remove(&key);
                }
            }
        }
        drop(entries);
        resolution
    }

    fn enter(&self, key: &Key) -> Result<Arc<str>, Shared<BoxFuture<'static, Resolution>>> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        match entries.get(key) {
            Some(Entry::Resolved(id)) => return Ok(Arc::clone(id)),
            Some(Entry::Pending(weak)) => {
                if let Some(pending) = weak.upgrade().filter(|pending| pending.peek().is_none()) {
                    return Err(pending);
                }
            }
            None => {}
        }
        let pending = provide(self.engine.clone(), self.observer.clone(), key.clone()).boxed().shared();
        if let Some(weak) = pending.downgrade() {
            entries.insert(key.clone(), Entry::Pending(weak));
        }
        Err(pending)
    }
}

async fn provide(engine: Engine, observer: Option<PullObserver>, key: Key) -> Resolution {
    let (image, name, policy, platform) = key;
    let operation = || format!("look up image `{name}`");
    if policy != PullPolicy::Always {
        match lookup(&engine, &image).await.map_err(DockerError::of(operation()))? {
            Some(id) => return Ok(id),
            None if policy == PullPolicy::Never => return Err(Arc::new(DockerError::ImageMissing { image: name })),
            None => {}
        }
    }
    pull(&engine, observer.as_ref(), &name, platform.as_deref()).await?;
    lookup(&engine, &name)
        .await
        .map_err(DockerError::of(operation()))?
        .ok_or_else(|| Arc::new(DockerError::ImageMissing { image: name.clone() }))
}

async fn lookup(engine: &Engine, image: &str) -> Result<Option<Arc<str>>, bollard::errors::Error> {
    match engine.docker.inspect_image(image).await {
        Ok(found) => Ok(Some(Arc::from(found.id.unwrap_or_else(|| image.to_owned())))),
        Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn pull(
    engine: &Engine,
    observer: Option<&PullObserver>,
    image: &str,
    platform: Option<&str>,
) -> Result<(), DockerError> {
    if image.starts_with("sha256:") {
        return Err(DockerError::ImageMissing { image: image.to_owned() });
    }
    let credentials = registry::credentials(engine.surroundings().config_directory().as_deref(), image).await?;
    let anonymous = credentials.is_none();
    let has_tag = image.contains('@') || image.rsplit('/').next().is_some_and(|last| last.contains(':'));
    let mut options = CreateImageOptionsBuilder::new().from_image(image);
    if !has_tag {
        // Without a tag the engine would pull all of them.
        options = options.tag("latest");
    }
    if let Some(platform) = platform {
        options = options.platform(platform);
    }
    let mut report = Report::new(observer, image);
    let mut stream = engine.docker.create_image(Some(options.build()), None, credentials);
    while let Some(message) = stream.next().await {
        let message = message.map_err(|error| match error {
            // The engine, not the registry.
            error if error::is_away(&error) => DockerError::of(format!("pull image `{image}`"))(error),
            error => pull_failed(image, anonymous, &error),
        })?;
        let detail = message.progress_detail.unwrap_or_default();
        report.layer(message.id, message.status.as_deref(), detail.current, detail.total);
    }
    report.finished();
    Ok(())
}

fn pull_failed(image: &str, anonymous: bool, error: &bollard::errors::Error) -> DockerError {
    let registry = registry::registry_of(image).to_owned();
    let message = match error {
        bollard::errors::Error::DockerResponseServerError { message, .. } => error::one_line(message),
        bollard::errors::Error::DockerStreamError { error } => error::one_line(error),
        other => error::chain(other),
    };
    let lower = message.to_ascii_lowercase();
    let hint = if error::says_full(&message) {
        "; the engine's disk is full: make room on it, for instance with `docker system prune`".to_owned()
    } else if ["denied", "unauthorized", "authentication", "forbidden", "credentials"]
        .iter()
        .any(|word| lower.contains(word))
    {
        if anonymous {
            format!("; no credentials for {registry} were found: run `docker login {registry}`, or check the name")
        } else {
            format!("; the credentials for {registry} were not accepted: run `docker login {registry}` again")
        }
    } else if ["not found", "manifest unknown", "does not exist"].iter().any(|word| lower.contains(word)) {
        "; check the name and the tag, or build it".to_owned()
    } else {
        "; check the connection to the registry, or set the pull policy to `never` for an image that you build"
            .to_owned()
    };
    DockerError::PullFailed { image: image.to_owned(), registry, message, hint }
}

/// Adds up the layers and reports at a readable rate.
struct Report<'a> {
    observer: Option<&'a PullObserver>,
    image: &'a str,
    layers: HashMap<String, (u64, u64)>,
    next: Instant,
}

impl<'a> Report<'a> {
    fn new(observer: Option<&'a PullObserver>, image: &'a str) -> Self {
        let report = Self { observer, image, layers: HashMap::new(), next: Instant::now() + REPORT_EVERY };
        report.send(false);
        report
    }

    fn layer(&mut self, id: Option<String>, status: Option<&str>, current: Option<i64>, total: Option<i64>) {
        let Some(id) = id else { return };
        let bytes = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok());
        let layer = self.layers.entry(id).or_default();
        match status {
            // Extracting counts the same bytes a second time; a layer is there once it is downloaded.
            Some("Downloading") => *layer = (bytes(current).unwrap_or(layer.0), bytes(total).unwrap_or(layer.1)),
            Some("Download complete" | "Pull complete" | "Extracting") => layer.0 = layer.1,
            _ => {}
        }
        if Instant::now() >= self.next {
            self.next = Instant::now() + REPORT_EVERY;
            self.send(false);
        }
    }

    fn finished(&self) {
        self.send(true);
    }

    fn send(&self, finished: bool) {
        let Some(observer) = self.observer else { return };
        let (done_bytes, total_bytes) = self
            .layers
            .values()
            .fold((0_u64, 0_u64), |sum, layer| (sum.0.saturating_add(layer.0), sum.1.saturating_add(layer.1)));
        observer(&PullProgress { image: self.image.to_owned(), done_bytes, total_bytes, finished });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_add_up() {
        let mut report = Report::new(None, "a");
        report.layer(Some("1".into()), Some("Downloading"), Some(5), Some(10));
        report.layer(Some("2".into()), Some("Downloading"), Some(1), Some(4));
        report.layer(Some("2".into()), Some("Download complete"), None, None);
        report.layer(None, Some("Digest: sha256:0"), None, None);
        assert_eq!((report.layers["1"], report.layers["2"]), ((5, 10), (4, 4)));
    }

    #[test]
    fn failures_say_what_to_do() {
        let stream = |text: &str| bollard::errors::Error::DockerStreamError { error: text.to_owned() };
        let denied = "pull access denied for x, repository does not exist or may require 'docker login': denied";
        let text = pull_failed("ghcr.io/a/b", true, &stream(denied)).to_string();
        assert!(text.contains("run `docker login ghcr.io`"), "{text}");
        let text = pull_failed("a", false, &stream("manifest for a:latest not found")).to_string();
        assert!(text.contains("docker.io") && text.contains("check the name"), "{text}");
        let text = pull_failed("a", false, &stream("dial tcp: lookup registry-1.docker.io: no such host")).to_string();
        assert!(text.contains("connection to the registry"), "{text}");
        let full = "write /var/lib/docker/tmp/GetImageBlob1: no space left on device";
        let text = pull_failed("a", false, &stream(full)).to_string();
        assert!(text.contains("the engine's disk is full"), "{text}");
    }
}
