//! What an error of ZooKeeper says about the request that it answers.

use spilo_core::DcsError;
use zookeeper_client::Error;

use super::NAME;
pub(super) use crate::verdict::{Effect, Verdict};

/// A request that failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) verdict: Verdict,
    pub(super) problem: String,
    pub(super) source: Option<Error>,
}

impl Failure {
    pub(super) fn new(verdict: Verdict, problem: impl Into<String>) -> Self {
        Self {
            verdict,
            problem: problem.into(),
            source: None,
        }
    }

    /// Judges a connection that did not come about: nothing was asked on it.
    pub(super) fn of_connection(error: Error, hosts: &str) -> Self {
        let verdict = match judge(&error) {
            Verdict::Refused => Verdict::Refused,
            Verdict::NotDone | Verdict::Unknown => Verdict::NotDone,
        };
        Self {
            verdict,
            problem: format!("connect to {hosts}: {error}"),
            source: Some(error),
        }
    }

    /// Judges a request that left.
    pub(super) fn of_request(error: Error) -> Self {
        Self {
            verdict: judge(&error),
            problem: error.to_string(),
            source: Some(error),
        }
    }

    /// Returns whether the session of the request has ended.
    pub(super) fn is_expired(&self) -> bool {
        matches!(self.source, Some(Error::SessionExpired))
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

fn judge(error: &Error) -> Verdict {
    match error {
        // Before the request is looked at; a server that is not of the quorum takes no writes.
        Error::NoHosts | Error::NotReadOnly | Error::Throttled => Verdict::NotDone,
        Error::NoAuth
        | Error::AuthFailed
        | Error::InvalidAcl
        | Error::QuotaExceeded
        | Error::BadArguments(_)
        | Error::MarshallingError
        | Error::Unimplemented
        | Error::NoChildrenForEphemerals => Verdict::Refused,
        // With an ended session or a closed connection, what was asked before may have been done.
        _ => Verdict::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use spilo_core::dcs::DcsErrorKind;

    use super::*;

    #[test]
    fn f14_every_error_has_a_verdict() {
        for (error, verdict) in [
            (Error::NoHosts, Verdict::NotDone),
            (Error::NotReadOnly, Verdict::NotDone),
            (Error::Throttled, Verdict::NotDone),
            (Error::ConnectionLoss, Verdict::Unknown),
            (Error::Timeout, Verdict::Unknown),
            (Error::SessionExpired, Verdict::Unknown),
            (Error::SessionMoved, Verdict::Unknown),
            (Error::ClientClosed, Verdict::Unknown),
            (Error::UnexpectedErrorCode(-1), Verdict::Unknown),
            (Error::UnexpectedError("x".to_owned()), Verdict::Unknown),
            (Error::NoAuth, Verdict::Refused),
            (Error::AuthFailed, Verdict::Refused),
            (Error::QuotaExceeded, Verdict::Refused),
            (Error::Unimplemented, Verdict::Refused),
        ] {
            assert_eq!(judge(&error), verdict, "{error}");
        }
    }

    #[test]
    fn nothing_was_done_where_no_connection_came_about() {
        for error in [Error::Timeout, Error::ConnectionLoss, Error::SessionExpired] {
            let failure = Failure::of_connection(error, "h:1");
            assert_eq!(failure.verdict, Verdict::NotDone);
            let told = failure.while_about_to("try", Effect::Write);
            assert_eq!(told.kind(), DcsErrorKind::Unavailable);
            assert!(told.to_string().contains("h:1"), "{told}");
        }
    }
}
