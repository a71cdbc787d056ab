//! The output of a container on its way to the sink.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bollard::container::{AttachContainerResults, LogOutput};
use futures_util::stream::StreamExt as _;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::container::Container;
use crate::runner::{AttemptSink, LogStream};

/// After the end of the process, the log is over when nothing came for so long although the stream is open.
const LOG_IDLE: Duration = Duration::from_secs(2);

/// After the end of the process, the log is over, whatever still comes.
const LOG_DRAIN: Duration = Duration::from_secs(60);

/// The output of a container on its way to the sink.
pub(super) struct Log {
    pump: JoinHandle<()>,
    bytes: Arc<AtomicU64>,
}

impl Log {
    /// Hands on what comes, until the stream ends.
    pub(super) fn follow(sink: Arc<dyn AttemptSink>, attached: AttachContainerResults) -> Self {
        let bytes = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&bytes);
        let pump = tokio::spawn(async move {
            let AttachContainerResults { mut output, input } = attached;
            // Kept: dropping it would close the connection for writing, which some engines take as an end.
            let _input = input;
            // An error is a broken connection; whoever waits for the exit finds out what that means.
            while let Some(Ok(message)) = output.next().await {
                let (stream, message) = match message {
                    LogOutput::StdErr { message } => (LogStream::Stderr, message),
                    LogOutput::StdOut { message } | LogOutput::Console { message } | LogOutput::StdIn { message } => {
                        (LogStream::Stdout, message)
                    }
                };
                count.fetch_add(message.len() as u64, Ordering::Relaxed);
                sink.log(stream, message);
            }
        });
        Self { pump, bytes }
    }

    /// Attaches anew after the connection was found broken while the process runs.
    pub(super) async fn reconnect(&mut self, sink: &Arc<dyn AttemptSink>, container: &Container) {
        self.pump.abort();
        match container.attach().await {
            Ok(attached) => {
                *self = Self::follow(Arc::clone(sink), attached);
                sink.warning("the connection to the engine broke; some output may be missing".to_owned());
            }
            Err(error) => sink.warning(format!("the output is not followed any longer: {error}")),
        }
    }

    /// Waits for the rest of the output after the end of the process: until the stream ends, or is silent.
    pub(super) async fn drain(mut self) {
        let end = Instant::now() + LOG_DRAIN;
        let mut seen = self.bytes.load(Ordering::Relaxed);
        while timeout(LOG_IDLE, &mut self.pump).await.is_err() {
            let now = self.bytes.load(Ordering::Relaxed);
            if now == seen || Instant::now() > end {
                self.pump.abort();
                return;
            }
            seen = now;
        }
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

    use bytes::Bytes;
    use futures_util::stream::{self, BoxStream};

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
    fn bytes(count: u32, pause: Duration, ends: bool) -> BoxStream<'static, Result<LogOutput, bollard::errors::Error>> {
        let bytes = stream::iter(0..count).then(move |_| async move {
            tokio::time::sleep(pause).await;
            Ok(LogOutput::StdOut { message: Bytes::from_static(b"x") })
        });
        if ends { bytes.boxed() } else { bytes.chain(stream::pending()).boxed() }
    }

    async fn drained(output: BoxStream<'static, Result<LogOutput, bollard::errors::Error>>) -> (usize, Duration) {
        let sink = Arc::new(Collector::default());
        let attached = AttachContainerResults { output, input: Box::pin(tokio::io::sink()) };
        let log = Log::follow(Arc::clone(&sink) as Arc<dyn AttemptSink>, attached);
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
