//! The output of a container on its way to whom it is for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bollard::container::{AttachContainerResults, LogOutput};
use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::container::Container;
use super::error::DockerError;
use super::survivors;
use crate::runner::{AttemptSink, LogStream};

/// When nothing came for so long although the stream is open, nothing more is waited for.
const LOG_IDLE: Duration = Duration::from_secs(2);

/// The end of the log is waited for so long, whatever still comes.
const LOG_DRAIN: Duration = Duration::from_secs(60);

pub(super) type Output = BoxStream<'static, Result<LogOutput, bollard::errors::Error>>;

/// Where a container's output goes.
pub(super) trait Receive: Send + Sync + 'static {
    /// The container wrote something.
    fn output(&self, stream: LogStream, bytes: Bytes);
    /// The stream is over, or broken.
    fn ended(&self) {}
}

/// All of it is the step's.
pub(super) struct Plain(pub(super) Arc<dyn AttemptSink>);

impl Receive for Plain {
    fn output(&self, stream: LogStream, bytes: Bytes) {
        self.0.log(stream, bytes);
    }
}

/// The output of a container on its way to a receiver.
pub(super) struct Log {
    receiver: Arc<dyn Receive>,
    pump: JoinHandle<()>,
    bytes: Arc<AtomicU64>,
    broken: bool,
    reconnects: Arc<Reconnects>,
}

/// The connections that were made after the first one was lost: what came between the two is in the engine's copy only.
#[derive(Default)]
pub(super) struct Reconnects {
    next: Notify,
    follows: AtomicBool,
}

impl Reconnects {
    /// Waits for the next one, also for one that came to nothing.
    pub(super) async fn next(&self) {
        self.next.notified().await;
    }

    /// Whether the newest brings what comes from then on.
    pub(super) fn follows(&self) -> bool {
        self.follows.load(Ordering::Relaxed)
    }

    pub(super) fn tell(&self, follows: bool) {
        self.follows.store(follows, Ordering::Relaxed);
        self.next.notify_one();
    }
}

impl Log {
    /// Hands everything that comes to the sink, until the stream ends.
    pub(super) fn to_sink(sink: Arc<dyn AttemptSink>, attached: AttachContainerResults) -> Self {
        let AttachContainerResults { output, input } = attached;
        Self::follow(Arc::new(Plain(sink)), output, input)
    }

    /// The same for output that somebody else followed before: all of it, and true, when the engine has a copy and the sink
    /// wants that; otherwise what is still to come.
    pub(super) async fn again(
        receiver: Arc<dyn Receive>,
        container: &Container,
        sink: &dyn AttemptSink,
    ) -> (Self, bool) {
        let written = survivors::written_bytes(container).await;
        if written.is_some_and(|bytes| sink.log_again(bytes)) {
            return (Self::follow(receiver, survivors::whole_output(container), ()), true);
        }
        sink.warning("the engine has no full copy of the output; some of it may be missing".to_owned());
        let log = match container.attach(false).await {
            Ok(AttachContainerResults { output, input }) => Self::follow(receiver, output, input),
            Err(_) => Self::follow(receiver, futures_util::stream::empty().boxed(), ()),
        };
        (log, false)
    }

    /// Hands on what comes, until the stream ends. `kept` is dropped no sooner.
    pub(super) fn follow(receiver: Arc<dyn Receive>, mut output: Output, kept: impl Send + 'static) -> Self {
        let bytes = Arc::new(AtomicU64::new(0));
        let (count, to) = (Arc::clone(&bytes), Arc::clone(&receiver));
        let pump = tokio::spawn(async move {
            // Kept: dropping the input would close the connection for writing, which some engines take as an end.
            let _kept = kept;
            // An error is a broken connection; whoever waits for the exit finds out what that means.
            while let Some(Ok(message)) = output.next().await {
                let (stream, message) = match message {
                    LogOutput::StdErr { message } => (LogStream::Stderr, message),
                    LogOutput::StdOut { message } | LogOutput::Console { message } | LogOutput::StdIn { message } => {
                        (LogStream::Stdout, message)
                    }
                };
                count.fetch_add(message.len() as u64, Ordering::Relaxed);
                to.output(stream, message);
            }
            to.ended();
        });
        Self { receiver, pump, bytes, broken: false, reconnects: Arc::default() }
    }

    /// Is told whenever the connection is a new one.
    pub(super) fn reconnects(&self) -> Arc<Reconnects> {
        Arc::clone(&self.reconnects)
    }

    /// Attaches anew after the connection was found broken while the process runs.
    pub(super) async fn reconnect(&mut self, container: &Container) -> Result<(), DockerError> {
        self.pump.abort();
        self.broken = true;
        let attached = container.attach(false).await;
        // Also when that fails: then more is missed.
        self.reconnects.tell(attached.is_ok());
        let AttachContainerResults { output, input } = attached?;
        let reconnects = self.reconnects();
        *self = Self::follow(Arc::clone(&self.receiver), output, input);
        self.broken = true;
        self.reconnects = reconnects;
        Ok(())
    }

    /// Whether the first connection is lost, and what it brought with it.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Waits for the rest of the output after the end of the process: until the stream ends, or is silent.
    pub(super) async fn drain(mut self) {
        let bytes = Arc::clone(&self.bytes);
        if unless_silent(&bytes, &mut self.pump).await.is_none() {
            self.pump.abort();
        }
    }

    /// Waits for something that the output brings: until it comes, or the output is silent.
    pub(super) async fn unless_silent<T>(&self, awaited: impl Future<Output = T>) -> Option<T> {
        unless_silent(&self.bytes, awaited).await
    }
}

async fn unless_silent<T>(bytes: &AtomicU64, awaited: impl Future<Output = T>) -> Option<T> {
    tokio::pin!(awaited);
    let end = Instant::now() + LOG_DRAIN;
    let mut seen = bytes.load(Ordering::Relaxed);
    loop {
        if let Ok(came) = timeout(LOG_IDLE, &mut awaited).await {
            return Some(came);
        }
        let now = bytes.load(Ordering::Relaxed);
        if now == seen || Instant::now() > end {
            return None;
        }
        seen = now;
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use futures_util::stream;

    use super::*;
    use crate::event::{AttemptDetails, Outcome};

    #[derive(Default)]
    struct Collector(Mutex<Vec<u8>>);

    impl Collector {
        fn bytes(&self) -> Vec<u8> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
        }
    }

    impl AttemptSink for Collector {
        fn started(&self, _: AttemptDetails) {}
        fn log(&self, _: LogStream, bytes: Bytes) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&bytes);
        }
        fn settled(&self, _: &Outcome) {}
        fn warning(&self, _: String) {}
    }

    /// `count` bytes, each after `pause`; then the stream ends or stays open.
    fn bytes(count: u32, pause: Duration, ends: bool) -> Output {
        let bytes = stream::iter(0..count).then(move |_| async move {
            tokio::time::sleep(pause).await;
            Ok(LogOutput::StdOut { message: Bytes::from_static(b"x") })
        });
        if ends { bytes.boxed() } else { bytes.chain(stream::pending()).boxed() }
    }

    async fn drained(output: Output) -> (usize, Duration) {
        let sink = Arc::new(Collector::default());
        let attached = AttachContainerResults { output, input: Box::pin(tokio::io::sink()) };
        let log = Log::to_sink(Arc::clone(&sink) as Arc<dyn AttemptSink>, attached);
        let begin = Instant::now();
        log.drain().await;
        (sink.bytes().len(), begin.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_arrives() {
        let (count, waited) = drained(bytes(10, Duration::from_millis(900), true)).await;
        assert_eq!((count, waited.as_millis()), (10, 9000));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_stays_open_is_left_after_silence() {
        let (count, waited) = drained(bytes(3, Duration::from_millis(100), false)).await;
        assert_eq!(count, 3);
        assert!(waited <= LOG_IDLE * 2, "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_never_is_silent_is_left_in_the_end() {
        let (_, waited) = drained(bytes(1_000_000, Duration::from_millis(500), true)).await;
        assert!((LOG_DRAIN..LOG_DRAIN + LOG_IDLE * 2).contains(&waited), "{waited:?}");
    }
}
