//! Schedules of EventBridge Scheduler that start executions.

use aws_sdk_scheduler::types::{
    ActionAfterCompletion as After, FlexibleTimeWindow, FlexibleTimeWindowMode, RetryPolicy, ScheduleState, Target,
};
use aws_smithy_types::DateTime;
use aws_smithy_types::error::operation::BuildError;
use serde::Serialize;
use serde_json::Value;

use super::error::AwsError;
use super::session::Session;
use super::unix_seconds;

/// A start that is refused is tried again for so long.
const START_AGE_SECONDS: i32 = 900;

/// A schedule.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Schedule {
    /// Name.
    pub name: String,
    /// Group; none is `default`.
    pub group: Option<String>,
    /// `cron(…)`, `rate(…)` or `at(…)`.
    pub expression: String,
    /// Time zone; none is UTC.
    pub timezone: Option<String>,
    /// Nothing happens before.
    pub start_at_unix_seconds: Option<f64>,
    /// Nothing happens after.
    pub end_at_unix_seconds: Option<f64>,
    /// Whether it acts.
    pub enabled: bool,
    /// What it starts.
    pub state_machine_arn: String,
    /// Role that the service takes.
    pub role_arn: String,
    /// Input of each execution.
    pub input: Value,
    /// Starts may be delayed by so many minutes.
    pub flexible_minutes: Option<u16>,
    /// For people.
    pub description: String,
    /// Whether it is deleted after its last start.
    pub delete_after_completion: bool,
    /// ARN, when it exists.
    pub arn: String,
}

impl Session {
    /// Creates a schedule, or replaces the one of this name. Returns its ARN and whether it is new.
    ///
    /// # Errors
    /// [`AwsError`]: it was refused.
    pub async fn put_schedule(&self, schedule: &Schedule) -> Result<(String, bool), AwsError> {
        self.write_schedule(schedule, true).await
    }

    /// Replaces a schedule that exists; one that somebody has just deleted is not made again.
    ///
    /// # Errors
    /// [`AwsError`]: it was refused.
    pub async fn change_schedule(&self, schedule: &Schedule) -> Result<String, AwsError> {
        let next = |start| next_start(&schedule.expression, start, unix_seconds());
        let start = schedule.start_at_unix_seconds.and_then(next);
        let (arn, _) =
            self.write_schedule(&Schedule { start_at_unix_seconds: start, ..schedule.clone() }, false).await?;
        Ok(arn)
    }

    async fn write_schedule(&self, schedule: &Schedule, may_create: bool) -> Result<(String, bool), AwsError> {
        let subject = format!("schedule `{}`", schedule.name);
        let (target, window) = parts(schedule)
            .map_err(|error| AwsError::new("CreateSchedule", &subject, "Incomplete", error.to_string()))?;
        let state = if schedule.enabled { ScheduleState::Enabled } else { ScheduleState::Disabled };
        let after = if schedule.delete_after_completion { After::Delete } else { After::None };
        let date = |seconds: Option<f64>| seconds.map(DateTime::from_secs_f64);
        let description = Some(schedule.description.as_str()).filter(|text| !text.is_empty());
        // An update takes the place of everything, so both requests give everything.
        macro_rules! given {
            ($request:expr) => {
                $request
                    .name(&schedule.name)
                    .set_group_name(schedule.group.clone())
                    .schedule_expression(&schedule.expression)
                    .set_schedule_expression_timezone(schedule.timezone.clone())
                    .set_start_date(date(schedule.start_at_unix_seconds))
                    .set_end_date(date(schedule.end_at_unix_seconds))
                    .set_description(description.map(str::to_owned))
                    .state(state.clone())
                    .action_after_completion(after.clone())
                    .target(target.clone())
                    .flexible_time_window(window.clone())
            };
        }
        if may_create {
            let create = || given!(self.scheduler().create_schedule()).send();
            match self.call("CreateSchedule", &subject, create).await {
                Ok(created) => return Ok((created.schedule_arn, true)),
                // It exists. An earlier try whose answer was lost would look the same, and the update is the same, too.
                Err(error) if error.is("ConflictException") => {}
                Err(error) => return Err(error),
            }
        }
        let update = || given!(self.scheduler().update_schedule()).send();
        let updated = self.call("UpdateSchedule", &subject, update).await?;
        Ok((updated.schedule_arn, false))
    }

    /// Reads a schedule; none when there is no such one.
    ///
    /// # Errors
    /// [`AwsError`]: it may not be read.
    pub async fn get_schedule(&self, name: &str, group: Option<&str>) -> Result<Option<Schedule>, AwsError> {
        let get = self.scheduler().get_schedule().name(name).set_group_name(group.map(str::to_owned));
        let found = match self.call("GetSchedule", &format!("schedule `{name}`"), || get.clone().send()).await {
            Ok(found) => found,
            Err(error) if error.is("ResourceNotFoundException") => return Ok(None),
            Err(error) => return Err(error),
        };
        let target = found.target;
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        let input = target.as_ref().and_then(|target| serde_json::from_str(target.input.as_deref()?).ok());
        let window = found.flexible_time_window.and_then(|window| window.maximum_window_in_minutes);
        Ok(Some(Schedule {
            name: found.name.unwrap_or_default(),
            group: found.group_name.filter(|group| group != "default"),
            expression: found.schedule_expression.unwrap_or_default(),
            timezone: found.schedule_expression_timezone,
            start_at_unix_seconds: found.start_date.as_ref().map(DateTime::as_secs_f64),
            end_at_unix_seconds: found.end_date.as_ref().map(DateTime::as_secs_f64),
            enabled: found.state != Some(ScheduleState::Disabled),
            state_machine_arn: text(target.as_ref().map(|target| target.arn.as_str())),
            role_arn: text(target.as_ref().map(|target| target.role_arn.as_str())),
            input: input.unwrap_or_default(),
            flexible_minutes: window.and_then(|minutes| u16::try_from(minutes).ok()),
            description: found.description.unwrap_or_default(),
            delete_after_completion: found.action_after_completion.is_some_and(|action| action == After::Delete),
            arn: found.arn.unwrap_or_default(),
        }))
    }

    /// Pauses a schedule or lets it go on. Returns whether there is one.
    ///
    /// # Errors
    /// [`AwsError`]: it may not be read or changed.
    pub async fn set_schedule_enabled(&self, name: &str, group: Option<&str>, enabled: bool) -> Result<bool, AwsError> {
        let Some(schedule) = self.get_schedule(name, group).await? else { return Ok(false) };
        if schedule.enabled != enabled {
            self.change_schedule(&Schedule { enabled, ..schedule }).await?;
        }
        Ok(true)
    }

    /// Deletes a schedule. Returns whether there was one.
    ///
    /// # Errors
    /// [`AwsError`]: it may not be deleted.
    pub async fn delete_schedule(&self, name: &str, group: Option<&str>) -> Result<bool, AwsError> {
        let delete = self.scheduler().delete_schedule().name(name).set_group_name(group.map(str::to_owned));
        match self.call("DeleteSchedule", &format!("schedule `{name}`"), || delete.clone().send()).await {
            Ok(_) => Ok(true),
            Err(error) if error.is("ResourceNotFoundException") => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// ARNs of the machines that schedules of this account and region start.
    pub(super) async fn scheduled_machines(&self) -> Result<Vec<String>, AwsError> {
        let mut arns = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let list = self.scheduler().list_schedules().set_next_token(token.take());
            let page = self.call("ListSchedules", "", || list.clone().send()).await?;
            arns.extend(page.schedules.into_iter().filter_map(|schedule| Some(schedule.target?.arn)));
            token = page.next_token;
            if token.is_none() {
                return Ok(arns);
            }
        }
    }
}

/// A start that is not over: one that is may be refused. With an interval it says when in each the schedule acts, so it moves on
/// by whole ones; otherwise it means nothing any more.
fn next_start(expression: &str, start: f64, now: f64) -> Option<f64> {
    if start > now {
        return Some(start);
    }
    let (count, unit) = expression.strip_prefix("rate(")?.strip_suffix(')')?.split_once(' ')?;
    let unit = match unit.trim_end_matches('s') {
        "minute" => 60.0,
        "hour" => 3_600.0,
        "day" => 86_400.0,
        _ => return None,
    };
    let interval = count.parse::<u32>().ok().filter(|count| *count > 0).map(f64::from)? * unit;
    Some(start + (((now - start) / interval).floor() + 1.0) * interval)
}

fn parts(schedule: &Schedule) -> Result<(Target, FlexibleTimeWindow), BuildError> {
    let target = Target::builder()
        .arn(&schedule.state_machine_arn)
        .role_arn(&schedule.role_arn)
        .input(schedule.input.to_string())
        // The default is a day: what was mended or paused meanwhile would start all the runs of that day at once.
        .retry_policy(RetryPolicy::builder().maximum_event_age_in_seconds(START_AGE_SECONDS).build())
        .build()?;
    let mode = if schedule.flexible_minutes.is_some() {
        FlexibleTimeWindowMode::Flexible
    } else {
        FlexibleTimeWindowMode::Off
    };
    let window = FlexibleTimeWindow::builder()
        .mode(mode)
        .set_maximum_window_in_minutes(schedule.flexible_minutes.map(i32::from))
        .build()?;
    Ok((target, window))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_that_is_over_moves_on_by_whole_intervals() {
        assert_eq!(next_start("cron(0 8 * * ? *)", 1_000.0, 999.0), Some(1_000.0));
        assert_eq!(next_start("cron(0 8 * * ? *)", 1_000.0, 1_000.0), None);
        assert_eq!(next_start("rate(2 days)", 0.0, 86_400.0 * 5.5), Some(86_400.0 * 6.0));
        assert_eq!(next_start("rate(1 hour)", 100.0, 100.0), Some(3_700.0));
        assert_eq!(next_start("rate(5 minutes)", 30.0, 29.0), Some(30.0));
        assert_eq!(next_start("rate(0 days)", 0.0, 1.0), None);
    }
}
