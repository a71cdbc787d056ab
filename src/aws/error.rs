//! What AWS refused, wrapped by operation.

use std::error::Error;

use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::operation::RequestId;

/// An operation that failed. No secret and no environment value ever stands in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.sentence())]
pub struct AwsError {
    /// The API's name of the operation, or `configure`.
    pub operation: &'static str,
    /// What it was about: a name or an ARN; may be empty.
    pub subject: String,
    /// The service's code, or one of [`NO_CREDENTIALS`], [`NO_ANSWER`], [`TIMEOUT`].
    pub code: String,
    /// The service's message, or what went wrong on the way to it.
    pub message: String,
    /// The service's name of the request; empty when none answered.
    pub request_id: String,
}

/// Code of a request for which no credentials were found.
pub const NO_CREDENTIALS: &str = "NoCredentials";
/// Code of a request that could not be sent, or whose answer is no answer.
pub const NO_ANSWER: &str = "NoAnswer";
/// Code of a request that nobody answered in time.
pub const TIMEOUT: &str = "Timeout";

impl AwsError {
    /// An error of our own.
    pub(super) fn new(
        operation: &'static str,
        subject: &str,
        code: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        let (code, message) = (code.into(), message.into());
        Self { operation, subject: subject.to_owned(), code, message, request_id: String::new() }
    }

    /// What the SDK reports.
    pub(super) fn of_sdk<E, R>(operation: &'static str, subject: &str, error: &SdkError<E, R>) -> Self
    where
        E: ProvideErrorMetadata + Error + 'static,
        R: std::fmt::Debug,
        SdkError<E, R>: RequestId,
    {
        let chain = innermost(error);
        let (code, message) = match error {
            SdkError::ServiceError(service) => {
                let code = service.err().code().unwrap_or(NO_ANSWER);
                (code, service.err().message().unwrap_or("the service gives no reason").to_owned())
            }
            SdkError::TimeoutError(_) => (TIMEOUT, "no answer came in time".into()),
            // The credentials are asked for while a request is on its way; without any it never leaves.
            _ if lacks_credentials(error) => {
                (NO_CREDENTIALS, "no credentials were found; log in, or give them to the stack component".into())
            }
            SdkError::DispatchFailure(failure) if failure.is_timeout() => (TIMEOUT, chain),
            _ => (NO_ANSWER, chain),
        };
        let request_id = error.request_id().unwrap_or_default().to_owned();
        Self { request_id, ..Self::new(operation, subject, code, message) }
    }

    /// Whether the code is this one.
    #[must_use]
    pub fn is(&self, code: &str) -> bool {
        self.code == code
    }

    /// Whether new credentials would mend it.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        matches!(self.code.as_str(), "ExpiredTokenException" | "ExpiredToken" | "RequestExpired" | NO_CREDENTIALS)
    }

    /// Whether the same request may well succeed later, although the SDK has given up or does not know the code.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        let throttled = [
            "ThrottlingException",
            "Throttling",
            "ThrottledException",
            "TooManyRequestsException",
            "RequestLimitExceeded",
            "SlowDown",
            "BandwidthLimitExceeded",
        ];
        let hiccups = [
            "ServerException",
            "InternalServerException",
            "InternalServerError",
            "InternalServiceError",
            "InternalFailure",
            "ServiceUnavailable",
            "ServiceUnavailableException",
        ];
        throttled.contains(&self.code.as_str())
            || hiccups.contains(&self.code.as_str())
            || matches!(self.code.as_str(), NO_ANSWER | TIMEOUT)
            || self.is_race()
    }

    /// Whether another client did the same at this moment, or throttling that hides behind a code for wrong requests.
    pub(super) fn is_race(&self) -> bool {
        let hidden =
            ["Too many concurrent attempts", "Rate exceeded", "(ErrorCode: Throttling)", "Request limit exceeded"];
        matches!(self.code.as_str(), "ClientException" | "InvalidParameterException" | "AmazonECSException")
            && hidden.iter().any(|text| self.message.contains(text))
    }

    fn sentence(&self) -> String {
        let Self { operation, subject, code, message, .. } = self;
        let about = if subject.is_empty() { String::new() } else { format!(" for {subject}") };
        let end = if message.ends_with(['.', '!', '?']) { "" } else { "." };
        let hint = match code.as_str() {
            "AccessDeniedException" if message.contains("managed-rule") => {
                " Allow events:PutRule, events:PutTargets and events:DescribeRule to the state machine's role."
            }
            "AccessDeniedException" if message.contains("authorized to assume") => {
                " Let states.amazonaws.com assume the role."
            }
            "AccessDeniedException" | "AccessDenied" | "UnauthorizedOperation" => {
                " Allow the action to the caller on that resource."
            }
            "ExpiredTokenException" | "ExpiredToken" | "RequestExpired" => " Renew the credentials.",
            "UnrecognizedClientException" | "InvalidClientTokenId" | "InvalidSignatureException" => {
                " Check the access key and its secret."
            }
            _ => "",
        };
        if *operation == "configure" {
            return format!("AWS cannot be used: {message}{end}");
        }
        format!("AWS {operation}{about} failed ({code}): {message}{end}{hint}")
    }
}

/// The end of a chain of causes: the part that says something.
fn innermost(error: &dyn Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

fn lacks_credentials(error: &dyn Error) -> bool {
    let mut at = Some(error);
    while let Some(this) = at {
        if this.to_string().to_ascii_lowercase().contains("credential") {
            return true;
        }
        at = this.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_names_operation_subject_and_reason() {
        let denied =
            AwsError::new("RunTask", "cluster `c`", "AccessDeniedException", "User x may not ecs:RunTask on y");
        assert_eq!(
            denied.to_string(),
            "AWS RunTask for cluster `c` failed (AccessDeniedException): User x may not ecs:RunTask on y. \
             Allow the action to the caller on that resource."
        );
        let region = AwsError::new("configure", "", "NoRegion", "no region is set");
        assert_eq!(region.to_string(), "AWS cannot be used: no region is set.");
    }

    #[test]
    fn races_and_hidden_throttling_are_transient() {
        let error = |code: &str, message: &str| AwsError::new("X", "", code, message);
        assert!(error("ClientException", "Too many concurrent attempts to create a new revision.").is_transient());
        assert!(error("InvalidParameterException", "… Rate exceeded (ErrorCode: Throttling)").is_transient());
        // https://github.com/dask/dask-cloudprovider/issues/56
        let burst =
            "Error retrieving security group information: Request limit exceeded. (ErrorCode: RequestLimitExceeded)";
        assert!(error("InvalidParameterException", burst).is_transient());
        assert!(error(TIMEOUT, "").is_transient());
        assert!(!error("ClientException", "No Fargate configuration exists for given values.").is_transient());
        assert!(!error("AccessDeniedException", "Rate exceeded").is_transient());
    }
}
