//! The memory store passes the conformance suite, in paused time.

#![expect(clippy::unwrap_used, reason = "what helps a test fails as a test does")]

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use spilo_core::conformance::dcs::{BadLine, Laboratory, worlds};
use spilo_core::dcs::{Expect, Key};
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

/// As a store at the other end of a network is: what the suite drops half-way is under way.
#[tokio::test]
async fn a_request_can_be_dropped_before_and_after_it_is_done() {
    let laboratory = laboratory().await;
    let (a, b) = (laboratory.node().await, laboratory.node().await);
    let (me, ttl) = (MemberName::new("a").unwrap(), Duration::from_secs(10));
    for is_done in [false, true] {
        let mut acquire = a.acquire(&me, ttl);
        for _ in 0..=u32::from(is_done) {
            let polled = poll_fn(|cx| Poll::Ready(acquire.as_mut().poll(cx))).await;
            assert!(polled.is_pending());
        }
        drop(acquire);
        assert_eq!(b.read().await.unwrap().leader.is_some(), is_done);
    }
    a.settle().await.unwrap();
    assert_eq!(b.read().await.unwrap().leader, None);
}

/// A write over a bad line: what its sender was told, and whether it was there at once and in the
/// end. All of these happen, and nothing else.
#[tokio::test]
async fn a_bad_line_loses_delays_and_does_what_it_says_nothing_of() {
    let laboratory = laboratory().await;
    let store = laboratory.node().await;
    let line = BadLine::new(laboratory.node().await, 0);
    let is_there = async |text: &str| {
        let documents = store.read().await.unwrap().documents;
        documents[&Key::Config].value == text
    };
    let mut seen = BTreeSet::new();
    for n in 0..200 {
        store
            .put(Key::Config, "none".into(), Expect::Anything)
            .await
            .unwrap();
        let text = n.to_string();
        let put = line
            .put(Key::Config, text.clone().into(), Expect::Anything)
            .await;
        let told = put.map(|_| ()).map_err(|error| error.kind());
        let at_once = is_there(&text).await;
        line.arrive().await;
        seen.insert((format!("{told:?}"), at_once, is_there(&text).await));
    }
    let all = [
        ("Err(Indeterminate)", false, false),
        ("Err(Indeterminate)", false, true),
        ("Err(Indeterminate)", true, true),
        ("Err(Unavailable)", false, false),
        ("Ok(())", true, true),
    ];
    let all = all.map(|(told, at_once, at_last)| (told.to_owned(), at_once, at_last));
    assert_eq!(seen, BTreeSet::from(all));
}

/// The suite walks one seed; in here a walk takes milliseconds.
#[tokio::test]
async fn unknown_outcomes_are_one_of_two_worlds_by_many_seeds() {
    for seed in 0..SEEDS {
        let laboratory = laboratory().await;
        let unknown = worlds::walk(&*laboratory, seed, 200).await;
        assert!(unknown > 10, "seed {seed}: {unknown} unknown outcomes");
        tokio::time::resume();
    }
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

#[async_trait]
impl Clock for Paused {
    fn now(&self) -> NodeTime {
        NodeTime(0) + self.0.elapsed()
    }

    async fn sleep_until(&self, at: NodeTime) {
        tokio::time::sleep(at.since(self.now())).await;
    }
}

fn scope(name: &str) -> Scope {
    Scope::new(name).unwrap()
}

const SEEDS: u64 = 100;
