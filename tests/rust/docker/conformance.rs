//! The rules that every executor keeps.

use std::sync::Arc;

use serde_json::json;
use step_engine::docker::DockerExecutor;
use step_engine::runner::conformance::{self, Behaviour, Workbench};

use super::fixture::Fixture;

impl Workbench for Fixture {
    type Executor = DockerExecutor;

    async fn executor(&self, behaviour: Behaviour) -> Arc<DockerExecutor> {
        let container = match behaviour {
            Behaviour::Print { lines } => self.container(&["lines", &lines.to_string()], json!({})),
            Behaviour::Exit { code } => self.container(&["exit", &code.to_string()], json!({})),
            Behaviour::Wait => self.container(&["sleep", "600000"], json!({})),
            // Deaf from its first instant: nothing ends by this signal, so no handler has to be in place in time.
            Behaviour::Insist => self.container(&["sleep", "600000"], json!({"run_args": {"stop_signal": "SIGWINCH"}})),
        };
        Self::executor(self, container)
    }
}

#[tokio::test]
async fn containers_keep_the_rules() {
    let Some(fixture) = Fixture::new("conformance").await else { return };
    conformance::all(&fixture).await;
    fixture.leaves_nothing().await;
}
