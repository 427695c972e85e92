//! Sessions, which keys hang on.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use reqwest::StatusCode;
use serde::Deserialize;
use serde_json::json;
use spilo_core::dcs::LeaseSecret;
use spilo_core::{Epoch, MemberName};
use tokio::time::Instant;

use super::failure::{Failure, Verdict};
use super::held;
use super::http::{Http, Request};

/// What [`LeaseSecret`] stands for: the session, and the revision that it took the lock at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Secret {
    pub(super) session: String,
    pub(super) epoch: Epoch,
}

/// A session that the lock was refused to: it holds nothing and serves the next try, so that trying
/// again and again while the lock is kept back costs Consul next to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spare {
    pub(super) session: String,
    pub(super) me: MemberName,
    pub(super) ttl: Duration,
}

/// The sessions that the lock was asked for with and of which nobody knows whether they hold it.
#[derive(Debug, Default)]
pub(super) struct Unsettled(Mutex<BTreeSet<String>>);

impl Http {
    /// Creates a session whose keys are deleted when nobody has renewed it for `ttl`, and not
    /// before. Where it held a lock, nobody else gets that for `lock_delay` more.
    ///
    /// A session of which nobody heard holds nothing and ends by itself.
    pub(super) async fn create_session(
        &self,
        me: &MemberName,
        ttl: Duration,
        lock_delay: Duration,
        until: Instant,
    ) -> Result<String, Failure> {
        let body = json!({
            "Name": format!("{}-{me}", self.options().scope),
            "TTL": format!("{}s", session_seconds(ttl, self.options().session_ttl_min)),
            "LockDelay": format!("{}ms", lock_delay.as_nanos().div_ceil(1_000_000)),
            "Behavior": "delete",
            // Without this it would hang on the health of the agent, and end when gossip loses
            // sight of that for some seconds.
            "Checks": [],
            "NodeChecks": [],
        });
        let request = Request::put(["session", "create"]).with_body(body.to_string().into_bytes());
        let answer = self.send(request, until).await?;
        let created: Session = serde_json::from_slice(&answer.body).map_err(|error| {
            let problem = format!("a new session has no id: {error}");
            Failure::new(Verdict::Unknown, problem)
        })?;
        Ok(created.id)
    }

    /// Makes a session last for its time again; returns whether it still exists.
    pub(super) async fn renew_session(&self, id: &str, until: Instant) -> Result<bool, Failure> {
        let request = Request::put(["session", "renew", id]).expecting(&[StatusCode::NOT_FOUND]);
        let answer = self.send(request, until).await?;
        if answer.status == StatusCode::NOT_FOUND {
            // A server that has just been elected may say so before it has read its own log.
            return self.lacks_session(id, until).await;
        }
        // A proxy's friendly page is no renewal.
        let renewed: Vec<Session> = serde_json::from_slice(&answer.body).map_err(|error| {
            let problem = format!("the answer to a renewal is none: {error}");
            Failure::new(Verdict::Unknown, problem)
        })?;
        if renewed.iter().any(|session| session.id == id) {
            return Ok(true);
        }
        let problem = "the answer to a renewal is of another session";
        Err(Failure::new(Verdict::Unknown, problem))
    }

    /// Makes sure that there is no such session, and returns `false` then.
    async fn lacks_session(&self, id: &str, until: Instant) -> Result<bool, Failure> {
        let request = Request::get(["session", "info", id]).with("consistent", "");
        let answer = self.send(request, until).await?;
        match serde_json::from_slice::<Option<Vec<Session>>>(&answer.body) {
            Ok(found) if found.as_ref().is_none_or(Vec::is_empty) => Ok(false),
            Ok(_) => Err(Failure::new(
                Verdict::Unknown,
                "the session was not found, and exists",
            )),
            Err(error) => {
                let problem = format!("the answer about a session is none: {error}");
                Err(Failure::new(Verdict::Unknown, problem))
            }
        }
    }

    /// Ends a session; one that does not exist has ended.
    pub(super) async fn destroy_session(&self, id: &str, until: Instant) -> Result<(), Failure> {
        let request = Request::put(["session", "destroy", id]);
        let answer = self.send(request, until).await?;
        if answer.body.trim_ascii() != b"true" {
            let problem = "the answer to the end of a session is none";
            return Err(Failure::new(Verdict::Unknown, problem));
        }
        Ok(())
    }
}

impl Secret {
    /// Reads a secret; `None` if it is not one of Consul's.
    pub(super) fn parse(secret: &LeaseSecret) -> Option<Self> {
        let (session, epoch) = secret.0.split_once('@')?;
        // It becomes part of a path.
        let is_id = session.len() == 36
            && session
                .bytes()
                .all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        is_id.then_some(Self {
            session: session.to_owned(),
            epoch: Epoch(epoch.parse().ok()?),
        })
    }

    pub(super) fn write(&self) -> LeaseSecret {
        LeaseSecret(format!("{}@{}", self.session, self.epoch))
    }
}

impl Unsettled {
    pub(super) fn remember(&self, session: &str) {
        held(&self.0).insert(session.to_owned());
    }

    pub(super) fn forget(&self, session: &str) {
        held(&self.0).remove(session);
    }

    pub(super) fn all(&self) -> BTreeSet<String> {
        held(&self.0).clone()
    }
}

#[derive(Debug, Deserialize)]
struct Session {
    #[serde(rename = "ID")]
    id: String,
}

/// Returns the time of a session that has to last for `ttl`, in Consul's whole seconds.
///
/// Consul promises a session its time and ends it after twice that, so that half is enough; and
/// were that to change one day, the lock would still be kept back for a whole `ttl` after.
fn session_seconds(ttl: Duration, shortest: Duration) -> u64 {
    let half = ttl.max(shortest * 2) / 2;
    half.as_secs() + u64::from(half.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_lasts_for_half_the_ttl_and_never_less_than_the_servers_grant() {
        let floor = Duration::from_secs(10);
        for (ttl_ms, seconds) in [
            (1_000, 10),
            (10_000, 10),
            (20_000, 10),
            (20_001, 11),
            (30_000, 15),
            (31_000, 16),
        ] {
            let ttl = Duration::from_millis(ttl_ms);
            assert_eq!(session_seconds(ttl, floor), seconds, "{ttl_ms} ms");
        }
    }

    #[test]
    fn a_secret_is_read_as_it_was_written() {
        let secret = Secret {
            session: "adf4238a-882b-9ddc-4a9d-5b6758e4159e".to_owned(),
            epoch: Epoch(42),
        };
        assert_eq!(Secret::parse(&secret.write()), Some(secret));
        for text in [
            "",
            "@",
            "adf4238a-882b-9ddc-4a9d-5b6758e4159e",
            "adf4238a-882b-9ddc-4a9d-5b6758e4159e@",
            "adf4238a-882b-9ddc-4a9d-5b6758e4159e@-1",
            "adf4238a/882b-9ddc-4a9d-5b6758e4159e@1",
            "123456789abc@1",
        ] {
            assert_eq!(Secret::parse(&LeaseSecret(text.to_owned())), None, "{text}");
        }
    }
}
