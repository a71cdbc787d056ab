//! Requests and answers in the API's own JSON.
//!
//! The SDK's types know the fields of the day they were generated; a task definition must keep those of tomorrow, too. So where a
//! document is handed through, its JSON goes around the types, while signing, endpoints, retries and errors stay the SDK's.

use std::sync::{Arc, Mutex, PoisonError};

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::AfterDeserializationInterceptorContextRef;
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::config_bag::ConfigBag;
use serde_json::Value;

/// Keeps the JSON of an answer.
#[derive(Debug, Clone, Default)]
pub(super) struct Answer(Arc<Mutex<Value>>);

impl Answer {
    /// What the last answer said; null before.
    pub(super) fn take(&self) -> Value {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Intercept for Answer {
    fn name(&self) -> &'static str {
        "step-engine: keep the answer"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(bytes) = context.response().body().bytes() {
            let value = serde_json::from_slice(bytes).unwrap_or_default();
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = value;
        }
        Ok(())
    }
}

/// Puts JSON in the place of a request's body, before it is signed.
pub(super) fn body(json: &Value) -> impl Fn(&mut HttpRequest) + Send + Sync + 'static + use<> {
    let text = json.to_string();
    move |request| {
        request.headers_mut().insert("content-length", text.len().to_string());
        *request.body_mut() = SdkBody::from(text.as_str());
    }
}

/// Runs an operation with the JSON of its request, if one is given, and gives the JSON of its answer.
macro_rules! raw_call {
    ($session:expr, $operation:literal, $subject:expr, $builder:expr, $body:expr) => {{
        let answer = $crate::aws::raw::Answer::default();
        let body: Option<&serde_json::Value> = $body;
        $session
            .call($operation, $subject, || {
                let mut call = $builder.customize().interceptor(answer.clone());
                if let Some(json) = body {
                    call = call.mutate_request($crate::aws::raw::body(json));
                }
                call.send()
            })
            .await
            .map(|_| answer.take())
    }};
}

pub(super) use raw_call;
