//! Takes away machines and task definitions that nothing uses any more. Only what was made here, known by its tags.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aws_sdk_ecs::types::TaskDefinitionFamilyStatus;
use aws_sdk_sfn::types::ExecutionStatus;

use super::definition::{MARK, TEMPLATE_TAG};
use super::error::AwsError;
use super::machines::{MACHINE_TAG, PIPELINE_TAG};
use super::session::Session;
use super::unix_seconds;

/// What stays.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    /// So many of the newest.
    pub newest: usize,
    /// What is younger.
    pub min_age: Duration,
}

/// Something that could be taken away.
#[derive(Debug, Clone, PartialEq)]
struct Candidate {
    arn: String,
    created_at: f64,
}

/// PURE. Those that are old enough and not among the newest.
fn old(mut candidates: Vec<Candidate>, keep: Keep, now: f64) -> Vec<String> {
    candidates.sort_by(|one, other| other.created_at.total_cmp(&one.created_at));
    let old = candidates.into_iter().skip(keep.newest);
    old.filter(|each| now - each.created_at >= keep.min_age.as_secs_f64()).map(|each| each.arn).collect()
}

impl Session {
    /// Deletes old root machines of a pipeline, then the machines inside that no machine starts any more.
    ///
    /// # Errors
    /// [`AwsError`]: something may not be listed or deleted.
    pub async fn collect_machines(&self, pipeline: &str, keep: Keep) -> Result<Vec<String>, AwsError> {
        let mut roots = Vec::new();
        let mut nested = Vec::new();
        let mut others = Vec::new();
        for machine in self.machines().await? {
            // Both kinds have names that begin with the pipeline's, as far as it goes; their tags decide.
            let head: String = pipeline.chars().take(20).collect();
            if !name_of(&machine.arn).starts_with(&head) {
                others.push(machine.arn);
                continue;
            }
            let tags = self.tags_of_machine(&machine.arn).await?;
            let kind = tags.get(MACHINE_TAG).map(String::as_str);
            match (kind, tags.get(PIPELINE_TAG).is_some_and(|its| its == pipeline)) {
                (Some("root"), true) => roots.push(machine),
                (Some("nested"), true) => nested.push(machine),
                _ => others.push(machine.arn),
            }
        }
        let old_roots = old(roots.clone(), keep, unix_seconds());
        let scheduled = if old_roots.is_empty() { Vec::new() } else { self.scheduled_machines().await? };
        let mut deleted = Vec::new();
        for arn in old_roots {
            // A schedule may name a version of the machine.
            if scheduled.iter().any(|target| target.starts_with(&arn)) || self.has_running(&arn).await? {
                continue;
            }
            self.delete_machine(&arn).await?;
            deleted.push(arn);
        }
        if nested.is_empty() {
            return Ok(deleted);
        }
        roots.retain(|root| !deleted.contains(&root.arn));
        let mut used = String::new();
        for arn in roots.iter().chain(&nested).map(|machine| &machine.arn).chain(&others) {
            used.push_str(&self.definition_of(arn).await?.unwrap_or_default());
        }
        // A machine inside may be started by another one inside that goes now; the next time takes it, too.
        for arn in old(nested, Keep { newest: 0, ..keep }, unix_seconds()) {
            if !used.contains(&format!("\"{arn}\"")) && !self.has_running(&arn).await? {
                self.delete_machine(&arn).await?;
                deleted.push(arn);
            }
        }
        Ok(deleted)
    }

    /// Deregisters old task definitions that were derived from a template and that no machine mentions.
    ///
    /// # Errors
    /// [`AwsError`]: something may not be listed or deregistered.
    pub async fn collect_task_definitions(&self, template: &str, keep: Keep) -> Result<Vec<String>, AwsError> {
        let described = self.describe_task_definition(template).await?;
        let family = described["taskDefinition"]["family"].as_str().unwrap_or_default().to_owned();
        let mut candidates = Vec::new();
        for derived in self.families_of(&format!("{family}{MARK}")).await? {
            let described = match self.describe_family(&derived).await {
                // Deregistered since it was listed.
                Err(error) if error.is("ClientException") => continue,
                other => other?,
            };
            let ours = described.tags.unwrap_or_default().iter().any(|tag| tag.key.as_deref() == Some(TEMPLATE_TAG));
            let definition = described.task_definition.filter(|_| ours);
            if let Some((arn, at)) =
                definition.and_then(|found| Some((found.task_definition_arn?, found.registered_at?)))
            {
                candidates.push(Candidate { arn, created_at: at.as_secs_f64() });
            }
        }
        let old = old(candidates, keep, unix_seconds());
        if old.is_empty() {
            return Ok(old);
        }
        let mut used = BTreeSet::new();
        for machine in self.machines().await? {
            let definition = self.definition_of(&machine.arn).await?.unwrap_or_default();
            used.extend(old.iter().filter(|arn| mentions(&definition, arn)).cloned());
        }
        let unused: Vec<String> = old.into_iter().filter(|arn| !used.contains(arn)).collect();
        for arn in &unused {
            let deregister = self.ecs().deregister_task_definition().task_definition(arn);
            self.call("DeregisterTaskDefinition", arn, || deregister.clone().send()).await?;
            self.families().forget(arn).await;
        }
        Ok(unused)
    }

    async fn machines(&self) -> Result<Vec<Candidate>, AwsError> {
        let mut machines = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let list = self.sfn().list_state_machines().max_results(1_000).set_next_token(token.take());
            let page = self.call("ListStateMachines", "", || list.clone().send()).await?;
            machines.extend(page.state_machines.into_iter().map(|machine| Candidate {
                arn: machine.state_machine_arn,
                created_at: machine.creation_date.as_secs_f64(),
            }));
            token = page.next_token;
            if token.is_none() {
                return Ok(machines);
            }
        }
    }

    async fn tags_of_machine(&self, arn: &str) -> Result<BTreeMap<String, String>, AwsError> {
        let list = self.sfn().list_tags_for_resource().resource_arn(arn);
        let tags = match self.call("ListTagsForResource", arn, || list.clone().send()).await {
            Ok(answer) => answer.tags.unwrap_or_default(),
            Err(error) if error.is("ResourceNotFound") => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(tags.into_iter().filter_map(|tag| Some((tag.key?, tag.value?))).collect())
    }

    async fn has_running(&self, arn: &str) -> Result<bool, AwsError> {
        let list =
            self.sfn().list_executions().state_machine_arn(arn).status_filter(ExecutionStatus::Running).max_results(1);
        match self.call("ListExecutions", arn, || list.clone().send()).await {
            Ok(page) => Ok(!page.executions.is_empty()),
            Err(error) if error.is("StateMachineDoesNotExist") => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn definition_of(&self, arn: &str) -> Result<Option<String>, AwsError> {
        let describe = self.sfn().describe_state_machine().state_machine_arn(arn);
        match self.call("DescribeStateMachine", arn, || describe.clone().send()).await {
            Ok(found) => Ok(Some(found.definition)),
            Err(error) if error.is("StateMachineDoesNotExist") => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn delete_machine(&self, arn: &str) -> Result<(), AwsError> {
        let delete = self.sfn().delete_state_machine().state_machine_arn(arn);
        self.call("DeleteStateMachine", arn, || delete.clone().send()).await.map(drop)
    }

    async fn families_of(&self, prefix: &str) -> Result<Vec<String>, AwsError> {
        let mut families = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let list = self
                .ecs()
                .list_task_definition_families()
                .family_prefix(prefix)
                .status(TaskDefinitionFamilyStatus::Active)
                .set_next_token(token.take());
            let page = self.call("ListTaskDefinitionFamilies", prefix, || list.clone().send()).await?;
            families.extend(page.families.unwrap_or_default().into_iter().filter(|family| family.starts_with(prefix)));
            token = page.next_token;
            if token.is_none() {
                return Ok(families);
            }
        }
    }

    async fn describe_family(
        &self,
        family: &str,
    ) -> Result<aws_sdk_ecs::operation::describe_task_definition::DescribeTaskDefinitionOutput, AwsError> {
        let tags = aws_sdk_ecs::types::TaskDefinitionField::Tags;
        let describe = self.ecs().describe_task_definition().task_definition(family).include(tags);
        self.call("DescribeTaskDefinition", family, || describe.clone().send()).await
    }
}

fn name_of(machine_arn: &str) -> &str {
    machine_arn.rsplit(':').next().unwrap_or_default()
}

/// Whether a machine needs a task definition: its own tasks are of it, or those that they start, whose families stand in a text in
/// their environment (`orchestrator/container/isolated.py`, `Definitions`).
fn mentions(machine: &str, arn: &str) -> bool {
    let family_and_revision = arn.rsplit('/').next().unwrap_or(arn);
    machine.contains(&format!("\"{arn}\"")) || machine.contains(&format!("\\\"{family_and_revision}\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_needs_what_its_tasks_start_as_well() {
        let arn = |revision: u32| format!("arn:aws:ecs:eu-west-1:1:task-definition/zenml-se-0a1b:{revision}");
        let inside = serde_json::json!({"": ["zenml-se-0a1b:1", "x", "y"]}).to_string();
        let machine = serde_json::json!({"TaskDefinition": arn(2), "Value": inside}).to_string();
        let needed = [1, 2, 3, 11, 21].map(|revision| mentions(&machine, &arn(revision)));
        assert_eq!(needed, [true, true, false, false, false]);
    }

    #[test]
    fn the_newest_and_the_young_stay() {
        let candidates: Vec<Candidate> =
            (0..6).map(|at| Candidate { arn: at.to_string(), created_at: f64::from(at) * 10.0 }).collect();
        let keep = |newest, seconds| Keep { newest, min_age: Duration::from_secs(seconds) };
        assert_eq!(old(candidates.clone(), keep(2, 0), 60.0), ["3", "2", "1", "0"]);
        assert_eq!(old(candidates.clone(), keep(2, 45), 60.0), ["1", "0"]);
        assert_eq!(old(candidates.clone(), keep(0, 0), 60.0).len(), 6);
        assert!(old(candidates, keep(9, 0), 60.0).is_empty());
    }
}
