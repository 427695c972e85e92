//! What an error of Consul says about the request that it answers.

use std::error::Error as StdError;

use reqwest::StatusCode;
use spilo_core::DcsError;

use super::NAME;
pub(super) use crate::verdict::{Effect, Verdict};

/// A request that failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) verdict: Verdict,
    pub(super) problem: String,
    pub(super) source: Option<reqwest::Error>,
}

impl Failure {
    pub(super) fn new(verdict: Verdict, problem: impl Into<String>) -> Self {
        Self {
            verdict,
            problem: problem.into(),
            source: None,
        }
    }

    /// Judges a request without an answer.
    pub(super) fn of_transport(error: reqwest::Error) -> Self {
        let verdict = if error.is_builder() {
            Verdict::Refused
        } else if error.is_connect() {
            Verdict::NotDone
        } else {
            Verdict::Unknown
        };
        Self {
            verdict,
            problem: innermost(&error),
            source: Some(error),
        }
    }

    /// Judges an answer that is an error.
    pub(super) fn of_status(status: StatusCode, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(&body[..body.len().min(LONGEST_TEXT)]);
        let text = text.trim();
        Self::new(judge(status, text), format!("{status}: {text}"))
    }

    /// Says what was about to be done.
    pub(super) fn while_about_to(self, action: &str, effect: Effect) -> DcsError {
        let kind = self.verdict.kind(effect);
        let error = DcsError::new(NAME, kind, action, self.problem);
        match self.source {
            Some(source) => error.because(source),
            None => error,
        }
    }
}

fn judge(status: StatusCode, text: &str) -> Verdict {
    // Said before the request is forwarded, or by a server that is not the leader and has not
    // looked at it.
    const NOT_DONE: [&str; 2] = ["No cluster leader", "node is not the leader"];
    if NOT_DONE.iter().any(|said| text.contains(said)) || status == StatusCode::TOO_MANY_REQUESTS {
        return Verdict::NotDone;
    }
    // A forwarded request may be refused under the status of an internal error.
    const REFUSED: [&str; 4] = [
        "Permission denied",
        "ACL not found",
        "Invalid Session TTL",
        "cross datacenter lock must be created at server agent",
    ];
    // What a proxy says when it has lost patience with what it forwarded: request timeout, too
    // early, client closed the request.
    const IMPATIENT: [u16; 3] = [408, 425, 499];
    let is_known = status.is_client_error() && !IMPATIENT.contains(&status.as_u16());
    if REFUSED.iter().any(|said| text.contains(said)) || is_known {
        return Verdict::Refused;
    }
    // "leadership lost while committing log", "rpc error: EOF", and whatever a proxy may say.
    Verdict::Unknown
}

/// Returns why, which stands at the end of the chain: the outer errors only name the URL.
fn innermost(error: &reqwest::Error) -> String {
    let mut innermost: &dyn StdError = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// More than any message of Consul's.
const LONGEST_TEXT: usize = 500;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f14_every_answer_has_a_verdict() {
        let internal = StatusCode::INTERNAL_SERVER_ERROR;
        for (status, text, verdict) in [
            (internal, "No cluster leader", Verdict::NotDone),
            (
                internal,
                "rpc error making call: No cluster leader",
                Verdict::NotDone,
            ),
            (internal, "node is not the leader", Verdict::NotDone),
            (
                StatusCode::TOO_MANY_REQUESTS,
                "Your IP is issuing too many concurrent connections",
                Verdict::NotDone,
            ),
            (
                internal,
                "leadership lost while committing log",
                Verdict::Unknown,
            ),
            (internal, "rpc error making call: EOF", Verdict::Unknown),
            (StatusCode::BAD_GATEWAY, "", Verdict::Unknown),
            (StatusCode::REQUEST_TIMEOUT, "", Verdict::Unknown),
            (
                internal,
                "Invalid Session TTL '10000000000', must be between [30s=24h0m0s]",
                Verdict::Refused,
            ),
            (StatusCode::SERVICE_UNAVAILABLE, "", Verdict::Unknown),
            (
                internal,
                "rpc error making call: Permission denied",
                Verdict::Refused,
            ),
            (StatusCode::FORBIDDEN, "ACL not found", Verdict::Refused),
            (StatusCode::BAD_REQUEST, "Bad request", Verdict::Refused),
            (StatusCode::NOT_FOUND, "", Verdict::Refused),
            (
                StatusCode::PAYLOAD_TOO_LARGE,
                "Request body too large",
                Verdict::Refused,
            ),
        ] {
            let failure = Failure::of_status(status, text.as_bytes());
            assert_eq!(failure.verdict, verdict, "{status} {text}");
        }
    }
}
