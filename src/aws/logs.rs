//! Follows the log of a task in CloudWatch: no line lost, none doubled.
//!
//! `GetLogEvents` goes on exactly where its last answer ended. A stream is read until its task has ended and several looks in a
//! row found nothing more: the log driver delivers in batches, the last of them after the container's end.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::error::AwsError;
use super::session::Session;
use crate::runner::{AttemptLog, LogStream, Notice, NoticeSender};

/// Between looks while lines come, and the longest time between looks while none come.
const BUSY: Duration = Duration::from_millis(800);
const QUIET: Duration = Duration::from_secs(5);
/// Looks without a line after a task's end.
const LAST_LOOKS: u32 = 3;
/// A log that cannot be read is given up so long after its task's end.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is followed.
#[derive(Debug)]
pub(super) struct Follow {
    pub session: Session,
    pub group: String,
    pub stream: String,
    pub region: Option<String>,
    pub step: Arc<str>,
    pub attempt: u32,
    pub notices: NoticeSender,
    /// True once the task has ended.
    pub ended: watch::Receiver<bool>,
    pub told: Told,
}

/// What the user knows already: log groups and task definitions whose logs cannot be read.
#[derive(Debug, Clone, Default)]
pub(super) struct Told(Arc<Mutex<HashSet<String>>>);

impl Told {
    /// Whether it is not known yet; from now on it is.
    pub(super) fn first_time(&self, group: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(group.to_owned())
    }
}

/// What a look found.
enum Look {
    Lines,
    Nothing,
    NotThere,
}

/// Follows a log to its end. Returns its last lines.
pub(super) async fn follow(mut follow: Follow) -> Vec<String> {
    let (mut log, _) = AttemptLog::open(None);
    let mut token = None;
    let mut interval = BUSY;
    let mut empty_looks = 0;
    let mut trouble_since: Option<Instant> = None;
    loop {
        let ended = *follow.ended.borrow();
        match look(&follow, &mut token, &mut log).await {
            Ok(Look::Lines) => {
                (interval, empty_looks, trouble_since) = (BUSY, 0, None);
                // There may be more already.
                continue;
            }
            Ok(Look::Nothing | Look::NotThere) => {
                trouble_since = None;
                interval = interval.mul_f64(1.3).min(QUIET);
                empty_looks += u32::from(ended);
                if empty_looks >= LAST_LOOKS {
                    break;
                }
            }
            Err(error) if error.is_transient() || error.is_expired() => {
                let since = *trouble_since.get_or_insert_with(Instant::now);
                interval = QUIET;
                if ended && since.elapsed() >= PATIENCE {
                    follow.warn(format!("the end of its log is not shown: {error}"));
                    break;
                }
            }
            Err(error) => {
                if follow.told.first_time(&follow.group) {
                    follow.warn(format!("logs are not shown: {error}"));
                }
                break;
            }
        }
        let wait = if ended { BUSY } else { interval };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // Without its sender nobody waits for the end.
            changed = follow.ended.changed(), if !ended => if changed.is_err() { break },
        }
    }
    let rest = log.finish(LogStream::Stdout);
    follow.notices.log(&follow.step, follow.attempt, LogStream::Stdout, rest);
    follow.notices.flush_omission(&follow.step);
    log.tail()
}

async fn look(follow: &Follow, token: &mut Option<String>, log: &mut AttemptLog) -> Result<Look, AwsError> {
    let get = follow
        .session
        .logs(follow.region.as_deref())
        .get_log_events()
        .log_group_name(&follow.group)
        .log_stream_name(&follow.stream)
        .start_from_head(true)
        .set_next_token(token.clone());
    let page = match follow.session.call("GetLogEvents", &follow.group, || get.clone().send()).await {
        Ok(page) => page,
        Err(error) if is_missing_stream(&error) => return Ok(Look::NotThere),
        Err(error) => return Err(error),
    };
    let events = page.events.unwrap_or_default();
    let mut text = String::new();
    for event in &events {
        let mut line = event.message.clone().unwrap_or_default();
        line.push('\n');
        text.push_str(&log.push(LogStream::Stdout, line.as_bytes()).0);
    }
    follow.notices.log(&follow.step, follow.attempt, LogStream::Stdout, text);
    // The end is where the same token comes back; a page before it may be empty.
    let goes_on = page.next_forward_token.is_some() && page.next_forward_token != *token && token.is_some();
    if page.next_forward_token.is_some() {
        *token = page.next_forward_token;
    }
    Ok(if !events.is_empty() || goes_on { Look::Lines } else { Look::Nothing })
}

/// A stream begins with its first line, so one that is missing may still come. A group that is missing will not.
fn is_missing_stream(error: &AwsError) -> bool {
    error.is("ResourceNotFoundException") && error.message.contains("log stream")
}

impl Follow {
    fn warn(&self, message: String) {
        self.notices.send(Notice::Warning { step: Arc::clone(&self.step), message });
    }
}

impl Session {
    /// Lines of a log stream, oldest first: the first ones or the last ones. None when there is no such stream.
    ///
    /// # Errors
    /// [`AwsError`]: they may not be read.
    pub async fn log_lines(
        &self,
        group: &str,
        stream: &str,
        limit: usize,
        from_head: bool,
        region: Option<&str>,
    ) -> Result<Vec<String>, AwsError> {
        /// Events of one answer. API reference, `GetLogEvents`: up to 10,000.
        const OF_A_REQUEST: usize = 10_000;
        let mut pages: Vec<Vec<String>> = Vec::new();
        let mut token: Option<String> = None;
        let mut missing = limit;
        while missing > 0 {
            let get = self
                .logs(region)
                .get_log_events()
                .log_group_name(group)
                .log_stream_name(stream)
                .start_from_head(from_head)
                .limit(i32::try_from(missing.min(OF_A_REQUEST)).unwrap_or(i32::MAX))
                .set_next_token(token.clone());
            let page = match self.call("GetLogEvents", group, || get.clone().send()).await {
                Ok(page) => page,
                Err(error) if error.is("ResourceNotFoundException") => break,
                Err(error) => return Err(error),
            };
            let next = if from_head { page.next_forward_token } else { page.next_backward_token };
            let lines: Vec<String> =
                page.events.unwrap_or_default().into_iter().filter_map(|event| event.message).collect();
            let at_the_end = next.is_none() || next == token;
            missing = missing.saturating_sub(lines.len());
            pages.push(lines);
            if at_the_end {
                break;
            }
            token = next;
        }
        if !from_head {
            pages.reverse();
        }
        Ok(pages.concat())
    }
}
