//! The memory store passes the conformance suite, in paused time.

#![expect(clippy::unwrap_used, reason = "what helps a test fails as a test does")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use spilo_core::conformance::dcs::Laboratory;
use spilo_core::{Clock, Dcs, MemberName, NodeTime, Scope};
use spilo_dcs::MemoryStore;
use tokio::time::Instant;

spilo_core::dcs_conformance!(laboratory());

#[derive(Debug)]
struct InMemory {
    store: MemoryStore,
    started: Instant,
}

/// The runtime's time, which a test pauses.
#[derive(Debug)]
struct Paused(Instant);

#[tokio::test]
async fn clusters_of_one_store_do_not_see_each_other() {
    let laboratory = laboratory().await;
    let (a, b) = (
        laboratory.store.cluster(scope("a")),
        laboratory.store.cluster(scope("b")),
    );
    let me = MemberName::new("node").unwrap();
    a.acquire(&me, Duration::from_secs(10)).await.unwrap();
    assert_eq!(b.read().await.unwrap().leader, None);
    b.acquire(&me, Duration::from_secs(10)).await.unwrap();
}

async fn laboratory() -> Box<InMemory> {
    tokio::time::pause();
    let started = Instant::now();
    Box::new(InMemory {
        store: MemoryStore::new(Arc::new(Paused(started))),
        started,
    })
}

#[async_trait]
impl Laboratory for InMemory {
    async fn node(&self) -> Arc<dyn Dcs> {
        Arc::new(self.store.cluster(scope("demo")))
    }

    async fn sleep(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    async fn delete_leader_key(&self) {
        self.store
            .with(&scope("demo"), |store, now| store.delete_leader(now));
    }
}

impl Clock for Paused {
    fn now(&self) -> NodeTime {
        NodeTime(0) + self.0.elapsed()
    }
}

fn scope(name: &str) -> Scope {
    Scope::new(name).unwrap()
}
