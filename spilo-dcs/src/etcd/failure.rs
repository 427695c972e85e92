//! What an error of etcd says about the request that it answers.

use std::error::Error as StdError;

use etcd_client::Error;
use tonic::{Code, ConnectError, Status};

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was not done, and another endpoint may do it.
    NotDone,
    /// It may have been done.
    Unknown,
    /// It was not done, and no endpoint will do it.
    Refused,
    /// It was not done, because our token is not valid (any more).
    StaleToken,
    /// It was not sent, and this endpoint will not take it: it belongs to another etcd, or does not
    /// let us in. Another endpoint may do it.
    NotHere,
    /// It was done or refused by another etcd than the one that all earlier answers came from.
    Foreign,
    /// It was not done, because its lease does not exist.
    LeaseGone,
}

/// Judges an error that came after the request had left.
pub(super) fn judge(error: &Error) -> Verdict {
    match error {
        Error::GRpcStatus(status) => judge_status(status),
        Error::LeaseKeepAliveError(text) if text == LEASE_NOT_FOUND => Verdict::LeaseGone,
        Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::InvalidMetadataValue(_) => {
            Verdict::Refused
        }
        _ => Verdict::Unknown,
    }
}

/// Judges an error that came while connecting: nothing of the request has left.
pub(super) fn judge_connecting(error: &Error) -> Verdict {
    match (error, judge(error)) {
        // Only a wrong configuration (a certificate that is none) fails before connecting.
        (Error::TransportError(_), _) => Verdict::Refused,
        (Error::GRpcStatus(_), Verdict::Refused) => Verdict::NotHere,
        (_, Verdict::Refused) => Verdict::Refused,
        _ => Verdict::NotDone,
    }
}

/// Returns whether a login failed because authentication is switched off.
pub(super) fn auth_is_off(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status)
        if status.message() == "etcdserver: authentication is not enabled")
}

/// Returns the problem in one line.
pub(super) fn text(error: &Error) -> String {
    match error {
        Error::GRpcStatus(status) => match status.source() {
            // tonic's own text is "tcp connect error"; why stands further down.
            Some(source) => format!("{}: {}", status.message(), innermost(source)),
            None => status.message().to_owned(),
        },
        other => other.to_string(),
    }
}

fn judge_status(status: &Status) -> Verdict {
    if never_left(status) {
        return Verdict::NotDone;
    }
    // What a server says has no cause here. A broken connection has, and HTTP/2 has codes for it of
    // which some are taken for refusals.
    if status.source().is_some() {
        return Verdict::Unknown;
    }
    match status.message() {
        // Said before the request is looked at.
        "etcdserver: no leader"
        | "etcdserver: too many requests"
        | "etcdserver: rpc not supported for learner" => return Verdict::NotDone,
        "etcdserver: requested lease not found" => return Verdict::LeaseGone,
        "etcdserver: invalid auth token"
        | "etcdserver: user name is empty"
        | "etcdserver: revision of auth store is old" => return Verdict::StaleToken,
        _ => {}
    }
    match status.code() {
        Code::Unauthenticated => Verdict::StaleToken,
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented => Verdict::Refused,
        // "request timed out", "leader changed", "server stopped", a broken connection, and
        // whatever a later etcd or a proxy may say under these codes.
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => Verdict::Unknown,
    }
}

fn never_left(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

fn innermost<'a>(mut error: &'a (dyn StdError + 'static)) -> &'a (dyn StdError + 'static) {
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

/// What the client says of a lease that has ended.
pub(super) const LEASE_NOT_FOUND: &str = "lease not found";

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn status(code: Code, message: &str) -> Error {
        Error::GRpcStatus(Status::new(code, message))
    }

    #[test]
    fn f14_no_transient_error_is_fatal() {
        use Verdict::{NotDone, Refused, StaleToken};
        for (code, message, verdict) in [
            (Code::Unavailable, "no leader", NotDone),
            (Code::Unknown, "no leader", NotDone),
            (Code::ResourceExhausted, "too many requests", NotDone),
            (Code::Unavailable, "leader changed", Verdict::Unknown),
            (Code::Unavailable, "server stopped", Verdict::Unknown),
            (Code::Unknown, "server stopped", Verdict::Unknown),
            (Code::Unavailable, "request timed out", Verdict::Unknown),
            (Code::Unknown, "transport error", Verdict::Unknown),
            (Code::DeadlineExceeded, "too late", Verdict::Unknown),
            (Code::Cancelled, "Timeout expired", Verdict::Unknown),
            (Code::Unauthenticated, "invalid auth token", StaleToken),
            (Code::Unknown, "invalid auth token", StaleToken),
            (Code::InvalidArgument, "user name is empty", StaleToken),
            (Code::PermissionDenied, "permission denied", Refused),
            (Code::ResourceExhausted, "mvcc: no space", Refused),
        ] {
            let error = status(code, &format!("etcdserver: {message}"));
            assert_eq!(judge(&error), verdict, "{code:?} {message}");
        }
        let old = "etcdserver: revision of auth store is old";
        assert_eq!(judge(&status(Code::InvalidArgument, old)), StaleToken);
        let gone = "etcdserver: requested lease not found";
        assert_eq!(judge(&status(Code::NotFound, gone)), Verdict::LeaseGone);
    }

    #[test]
    fn what_never_left_was_not_done() {
        let mut refused = Status::unavailable("tcp connect error");
        refused.set_source(Arc::new(ConnectError("connection refused".into())));
        assert_eq!(judge(&Error::GRpcStatus(refused)), Verdict::NotDone);
        assert_eq!(
            judge(&status(Code::Unavailable, "tcp connect error")),
            Verdict::Unknown
        );
        assert_eq!(
            judge_connecting(&status(Code::Unavailable, "etcdserver: request timed out")),
            Verdict::NotDone
        );
        assert_eq!(
            judge_connecting(&status(
                Code::InvalidArgument,
                "etcdserver: authentication failed, invalid user ID or password"
            )),
            Verdict::NotHere
        );
    }
}
