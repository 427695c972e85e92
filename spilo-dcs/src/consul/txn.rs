//! Transactions: several operations on keys, all or none.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::failure::{Failure, Verdict};
use super::http::{Http, Request};

/// One operation of a transaction.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Op {
    #[serde(rename = "KV")]
    kv: Kv,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Kv {
    verb: &'static str,
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<String>,
}

/// What became of a transaction that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All of it was done; the keys that it left behind, with the revision that each is of.
    Done(Vec<(String, u64)>),
    /// Nothing was done, because a condition did not hold; in Consul's words.
    Refused(String),
    /// Nothing was done, because a session that it names does not exist.
    SessionGone,
}

impl Op {
    pub(super) fn set(key: impl Into<String>, value: &[u8]) -> Self {
        Self::new("set", key).value(value)
    }

    /// Writes a key that goes when the session ends; not one that another session holds.
    pub(super) fn lock(key: impl Into<String>, value: &[u8], session: &str) -> Self {
        Self::new("lock", key).value(value).session(session)
    }

    /// Deletes a key that may not be there.
    pub(super) fn delete(key: impl Into<String>) -> Self {
        Self::new("delete", key)
    }

    /// Holds while there is no such key.
    pub(super) fn absent(key: impl Into<String>) -> Self {
        Self::new("check-not-exists", key)
    }

    /// Holds while the key was last written at this revision.
    pub(super) fn at(key: impl Into<String>, index: u64) -> Self {
        let mut op = Self::new("check-index", key);
        op.kv.index = Some(index);
        op
    }

    /// Holds while the session holds the key.
    pub(super) fn held_by(key: impl Into<String>, session: &str) -> Self {
        Self::new("check-session", key).session(session)
    }

    fn new(verb: &'static str, key: impl Into<String>) -> Self {
        Self {
            kv: Kv {
                verb,
                key: key.into(),
                value: None,
                index: None,
                session: None,
            },
        }
    }

    fn value(mut self, value: &[u8]) -> Self {
        self.kv.value = Some(STANDARD.encode(value));
        self
    }

    fn session(mut self, session: &str) -> Self {
        self.kv.session = Some(session.to_owned());
        self
    }
}

impl Outcome {
    /// Returns the revision that the key was left with.
    pub(super) fn index_of(&self, key: &str) -> Option<u64> {
        match self {
            // A key that was deleted and written anew stands there twice.
            Self::Done(written) => written
                .iter()
                .rev()
                .find(|(k, _)| k == key)
                .map(|(_, i)| *i),
            Self::Refused(_) | Self::SessionGone => None,
        }
    }
}

impl Http {
    /// Sends one transaction.
    pub(super) async fn transact(&self, ops: &[Op], until: Instant) -> Result<Outcome, Failure> {
        let body = serde_json::to_vec(ops)
            .map_err(|error| Failure::new(Verdict::Refused, error.to_string()))?;
        let request = Request::put(["txn"])
            .with_body(body)
            .expecting(&[StatusCode::CONFLICT]);
        let answer = self.send(request, until).await?;
        if answer.status == StatusCode::CONFLICT {
            return refusal(&answer.body);
        }
        let answer: Results = serde_json::from_slice(&answer.body).map_err(|error| {
            let problem = format!("the answer to a transaction is none: {error}");
            Failure::new(Verdict::Unknown, problem)
        })?;
        let written = answer.results.unwrap_or_default().into_iter();
        Ok(Outcome::Done(
            written
                .filter_map(|result| result.kv)
                .map(|kv| (kv.key, kv.modify_index))
                .collect(),
        ))
    }
}

/// Judges the errors of a transaction that was not done.
fn refusal(body: &[u8]) -> Result<Outcome, Failure> {
    let errors = match serde_json::from_slice::<Errors>(body) {
        Ok(answer) => answer.errors.unwrap_or_default(),
        Err(error) => {
            let problem = format!("the refusal of a transaction is none: {error}");
            return Err(Failure::new(Verdict::Unknown, problem));
        }
    };
    let texts: Vec<_> = errors.iter().map(|error| error.what.as_str()).collect();
    let text = texts.join("; ");
    if text.contains("Permission denied") || text.contains("ACL not found") {
        return Err(Failure::new(Verdict::Refused, text));
    }
    if text.contains("invalid session") {
        return Ok(Outcome::SessionGone);
    }
    Ok(Outcome::Refused(text))
}

#[derive(Debug, Deserialize)]
struct Results {
    /// `null` where nothing is left behind; an answer without it is none.
    #[serde(rename = "Results", deserialize_with = "Option::deserialize")]
    results: Option<Vec<Written>>,
}

#[derive(Debug, Deserialize)]
struct Written {
    #[serde(rename = "KV")]
    kv: Option<WrittenKey>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct WrittenKey {
    key: String,
    modify_index: u64,
}

#[derive(Debug, Deserialize)]
struct Errors {
    #[serde(rename = "Errors")]
    errors: Option<Vec<Complaint>>,
}

#[derive(Debug, Deserialize)]
struct Complaint {
    #[serde(rename = "What", default)]
    what: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(what: &str) -> Result<Outcome, Verdict> {
        let body = format!(r#"{{"Results":null,"Errors":[{{"OpIndex":0,"What":"{what}"}}]}}"#);
        refusal(body.as_bytes()).map_err(|failure| failure.verdict)
    }

    #[test]
    fn a_refusal_says_why() {
        let conflict = "failed index check for key 'a', current modify index 2 != 1";
        assert_eq!(refused(conflict), Ok(Outcome::Refused(conflict.to_owned())));
        let delay = "failed to lock key 'a' due to lock delay";
        assert_eq!(refused(delay), Ok(Outcome::Refused(delay.to_owned())));
        assert_eq!(refused("invalid session 'f2f4'"), Ok(Outcome::SessionGone));
        assert_eq!(refused("Permission denied"), Err(Verdict::Refused));
        let nonsense = refusal(b"<html>").map_err(|failure| failure.verdict);
        assert_eq!(nonsense, Err(Verdict::Unknown));
    }

    #[test]
    fn operations_are_written_as_consul_reads_them() {
        let ops = [Op::at("a", 7), Op::lock("a", b"\xff", "s"), Op::delete("b")];
        let text = serde_json::to_string(&ops).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"[{"KV":{"Verb":"check-index","Key":"a","Index":7}},"#,
                r#"{"KV":{"Verb":"lock","Key":"a","Value":"/w==","Session":"s"}},"#,
                r#"{"KV":{"Verb":"delete","Key":"b"}}]"#
            )
        );
    }
}
