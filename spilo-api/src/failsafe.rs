//! `POST /failsafe`: a primary asks whether it may stay one without the store.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::response::Response;
use http::{HeaderValue, StatusCode};
use serde_json::{Map, Value};
use spilo_core::peer::{ConsentAnswer, ConsentRequest};
use spilo_core::{Lsn, MemberName};

use crate::body;
use crate::node::Node;
use crate::reply::{self, Refusal};

/// Answers the question in `map`.
///
/// # Errors
/// No consent, or a question that is malformed.
pub(crate) async fn answer(node: &dyn Node, map: &Map<String, Value>) -> Result<Response, Refusal> {
    let unavailable = |problem: &str| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, problem);
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, node.consent(read(map)?))
        .await
        .map_err(|_| unavailable("the agent did not answer in time"))?;
    match answer {
        ConsentAnswer::Accepted(position) => {
            let mut response = reply::text(StatusCode::OK, ACCEPTED);
            if let Some(lsn) = position {
                response
                    .headers_mut()
                    .insert(LSN_HEADER, HeaderValue::from(lsn.0));
            }
            Ok(response)
        }
        ConsentAnswer::RunningAsLeader => Err(Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "Running as a leader",
        )),
        ConsentAnswer::Off => Err(Refusal::new(
            StatusCode::BAD_GATEWAY,
            "failsafe mode is off",
        )),
        ConsentAnswer::Busy => {
            let problem = "this node asked for the lock itself and does not know the answer";
            Err(unavailable(problem))
        }
        ConsentAnswer::Stranger => Err(Refusal::new(
            StatusCode::PRECONDITION_FAILED,
            "this node is a member of another cluster",
        )),
    }
}

fn read(map: &Map<String, Value>) -> Result<ConsentRequest, Refusal> {
    let bad = |problem: String| Refusal::bad_request(problem);
    let text = |key: &str| {
        body::text(map, key)?
            .map(str::to_owned)
            .ok_or_else(|| bad(format!("{key}: is missing")))
    };
    let name = MemberName::new(text("name")?).map_err(|error| bad(format!("name: {error}")))?;
    let mut slots = BTreeMap::new();
    match map.get("slots") {
        None | Some(Value::Null) => {}
        Some(Value::Object(given)) => {
            for (slot, at) in given {
                let lsn = at.as_u64().ok_or_else(|| {
                    bad(format!(
                        "slots.{slot}: wanted a position as a number, found {at}"
                    ))
                })?;
                slots.insert(slot.clone(), Lsn(lsn));
            }
        }
        Some(other) => return Err(bad(format!("slots: wanted an object, found {other}"))),
    }
    Ok(ConsentRequest {
        scope: body::text(map, "scope")?.map(str::to_owned),
        name,
        conn_url: text("conn_url")?,
        api_url: text("api_url")?,
        slots,
    })
}

/// The one body that is a consent.
pub(crate) const ACCEPTED: &str = "Accepted";

/// The header with the position of the node that consents.
pub(crate) const LSN_HEADER: &str = "lsn";

/// Patroni gives up after this time; an answer that nobody waits for only holds a connection.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
