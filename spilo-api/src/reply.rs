//! Answers.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use crate::python;

/// An answer that says why a request is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    code: StatusCode,
    problem: String,
    form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    Json,
    Challenge,
}

impl Refusal {
    /// Refuses in one line of text.
    pub(crate) fn new(code: StatusCode, problem: impl Into<String>) -> Self {
        Self {
            code,
            problem: problem.into(),
            form: Form::Text,
        }
    }

    /// Refuses a request that is not as it must be.
    pub(crate) fn bad_request(problem: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, problem)
    }

    /// Refuses a request for a document that cannot be had.
    pub(crate) fn no_document(code: StatusCode, problem: impl Into<String>) -> Self {
        Self {
            code,
            problem: problem.into(),
            form: Form::Json,
        }
    }

    /// Refuses a request without the right user and password.
    pub(crate) fn unknown_user(problem: impl Into<String>) -> Self {
        Self {
            code: StatusCode::UNAUTHORIZED,
            problem: problem.into(),
            form: Form::Challenge,
        }
    }

    /// Refuses a method that this server does not have, in the words that patronictl looks for.
    pub(crate) fn unsupported() -> Self {
        Self::new(
            StatusCode::NOT_IMPLEMENTED,
            "Server does not support this operation",
        )
    }
}

impl From<Refusal> for Response {
    fn from(refusal: Refusal) -> Self {
        match refusal.form {
            Form::Text => text(refusal.code, refusal.problem),
            Form::Json => document(refusal.code, &json!({ "error": refusal.problem })),
            Form::Challenge => {
                let mut response = text(refusal.code, refusal.problem);
                let realm = HeaderValue::from_static("Basic realm=\"Patroni\"");
                response
                    .headers_mut()
                    .insert(header::WWW_AUTHENTICATE, realm);
                response
            }
        }
    }
}

/// Returns an answer in JSON.
pub(crate) fn document(code: StatusCode, value: &Value) -> Response {
    with_type(code, "application/json", python::to_text(value))
}

/// Returns an answer of one line of text.
pub(crate) fn text(code: StatusCode, body: impl Into<String>) -> Response {
    with_type(code, "text/html", body.into())
}

/// Returns an answer that is only a status.
pub(crate) fn bare(code: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = code;
    response
}

/// Returns 200 or 503.
pub(crate) fn verdict(passes: bool) -> StatusCode {
    if passes {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

fn with_type(code: StatusCode, content_type: &'static str, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
