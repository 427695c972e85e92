//! Bodies of requests: bounded in size and time, and JSON objects.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::{Map, Value};

use crate::reply::Refusal;

/// Reads a JSON object with at least one key.
///
/// # Errors
/// What is wrong with it.
pub(crate) async fn object(headers: &HeaderMap, body: Body) -> Result<Map<String, Value>, Refusal> {
    let bytes = read(headers, body).await?;
    let bad = |problem: String| Refusal::bad_request(problem);
    let value: Value = serde_json::from_slice(&bytes)
        .map_err(|error| bad(format!("the body is not JSON: {error}")))?;
    match value {
        Value::Object(map) if map.is_empty() => {
            Err(bad("the body is an empty JSON object".to_owned()))
        }
        Value::Object(map) => Ok(map),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Err(bad("the body is JSON, but not an object".to_owned()))
        }
    }
}

/// Reads the body of a request that says all with its address.
///
/// # Errors
/// There is something in it.
pub(crate) async fn nothing(headers: &HeaderMap, body: Body) -> Result<(), Refusal> {
    if is_without(headers) {
        return Ok(());
    }
    let bytes = read(headers, body).await?;
    match bytes.trim_ascii() {
        b"" | b"{}" => Ok(()),
        _ => Err(Refusal::bad_request("the request takes no body")),
    }
}

/// Returns the text at `key`; `None` if there is none or it is null or empty.
///
/// # Errors
/// A value of another type, named.
pub(crate) fn text<'a>(map: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, Refusal> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_))) => {
            let problem = format!("{key}: wanted a text, found {other}");
            Err(Refusal::bad_request(problem))
        }
    }
}

async fn read(headers: &HeaderMap, body: Body) -> Result<Bytes, Refusal> {
    if is_without(headers) {
        return Err(Refusal::new(
            StatusCode::LENGTH_REQUIRED,
            "the request has no Content-Length",
        ));
    }
    let whole = Limited::new(body, MAX_BYTES).collect();
    match tokio::time::timeout(READ_TIMEOUT, whole).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let problem = format!("the body is longer than {MAX_BYTES} bytes");
            Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, problem))
        }
        Ok(Err(error)) => {
            let problem = format!("the body could not be read: {error}");
            Err(Refusal::bad_request(problem))
        }
        Err(_) => Err(Refusal::new(
            StatusCode::REQUEST_TIMEOUT,
            "the body did not arrive in time",
        )),
    }
}

fn is_without(headers: &HeaderMap) -> bool {
    let sized = headers.contains_key(header::CONTENT_LENGTH);
    !sized && !headers.contains_key(header::TRANSFER_ENCODING)
}

/// Enough for any configuration: stores refuse values of a few times this.
const MAX_BYTES: usize = 64 * 1024;

/// A body of this size takes milliseconds on any network that a cluster can live on.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
