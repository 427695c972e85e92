//! What the store says, fresh if it answers soon and as the agent saw it last if not.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::response::Response;
use http::{HeaderValue, StatusCode};
use spilo_core::dcs::RawSnapshot;
use spilo_core::{Cluster, NodeTime};
use tokio::sync::Semaphore;

use crate::node::Node;
use crate::reply::Refusal;

/// Reads the store for requests: one read at a time, shared by all who wait for it, so that no
/// number of requests makes more than a few reads a second.
#[derive(Debug)]
pub(crate) struct View {
    reading: Semaphore,
    last: Mutex<Option<Arc<Snapshot>>>,
}

/// One picture of the store.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) raw: RawSnapshot,
    pub(crate) cluster: Arc<Cluster>,
    asked_at: NodeTime,
}

/// A cluster to show, and how old it is if it is not fresh.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) cluster: Arc<Cluster>,
    age: Option<Duration>,
}

impl View {
    pub(crate) fn new() -> Self {
        Self {
            reading: Semaphore::new(1),
            last: Mutex::new(None),
        }
    }

    /// Reads the store, for a decision: nothing older than the call.
    ///
    /// # Errors
    /// Why there is no answer; given up after a second.
    pub(crate) async fn read(&self, node: &dyn Node) -> Result<Arc<Snapshot>, String> {
        self.no_older_than(node.now(), node).await
    }

    /// Reads the store, to show it: a moment ago is good enough, and if the store does not answer
    /// so is what the agent saw last.
    ///
    /// # Errors
    /// There is nothing to show.
    pub(crate) async fn show(&self, node: &dyn Node) -> Result<Shown, Refusal> {
        let problem = match self
            .no_older_than(node.now().before(SHARED_FOR), node)
            .await
        {
            Ok(snapshot) => {
                return Ok(Shown {
                    cluster: snapshot.cluster.clone(),
                    age: None,
                });
            }
            Err(problem) => problem,
        };
        let status = node.status();
        match (&status.cluster, status.cluster_at) {
            (Some(cluster), Some(at)) => Ok(Shown {
                cluster: cluster.clone(),
                age: Some(node.now().since(at)),
            }),
            (None, _) | (_, None) => Err(Refusal::no_document(
                StatusCode::SERVICE_UNAVAILABLE,
                problem,
            )),
        }
    }

    async fn no_older_than(
        &self,
        oldest: NodeTime,
        node: &dyn Node,
    ) -> Result<Arc<Snapshot>, String> {
        tokio::time::timeout(READ_TIMEOUT, self.next(oldest, node))
            .await
            .unwrap_or_else(|_| Err(format!("the store did not answer within {READ_TIMEOUT:?}")))
    }

    async fn next(&self, oldest: NodeTime, node: &dyn Node) -> Result<Arc<Snapshot>, String> {
        let _one_at_a_time = self
            .reading
            .acquire()
            .await
            .map_err(|error| error.to_string())?;
        let known = self
            .last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(known) = known.filter(|known| known.asked_at >= oldest) {
            return Ok(known);
        }
        let asked_at = node.now();
        let raw = node.dcs().read().await.map_err(|error| error.to_string())?;
        let cluster = Arc::new(Cluster::read(&raw, node.status().cluster.as_deref()));
        let snapshot = Arc::new(Snapshot {
            raw,
            cluster,
            asked_at,
        });
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(snapshot.clone());
        Ok(snapshot)
    }

    /// Makes the next reader ask the store, because something was just written.
    pub(crate) fn forget(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Shown {
    /// Says in the answer how old it is, unless it is fresh.
    pub(crate) fn mark(&self, mut response: Response) -> Response {
        if let Some(age) = self.age {
            let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
            response
                .headers_mut()
                .insert(AGE_HEADER, HeaderValue::from(age_ms));
        }
        response
    }
}

/// How old the answer is, in milliseconds; absent from a fresh one.
pub(crate) const AGE_HEADER: &str = "spilo-age-ms";

/// Patroni leaves the asker without an answer for `retry_timeout`; monitoring gives up before.
const READ_TIMEOUT: Duration = Duration::from_secs(1);

/// For how long one read serves those who only want to show it.
const SHARED_FOR: Duration = Duration::from_millis(100);
