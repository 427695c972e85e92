//! The simulator's store, as its nodes reach it over the simulated network, passes what real
//! stores must pass.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use spilo_core::conformance::dcs::{Laboratory, worlds};
use spilo_core::dcs::{
    Capabilities, DcsErrorKind, Expect, Key, LeaderRecord, Lease, LeaseSecret, RawSnapshot,
};
use spilo_core::sim::{Conditions, Outside, Sim};
use spilo_core::store::Store;
use spilo_core::{Dcs, DcsError, MemberName, NodeTime, Revision};
use tokio::time::{Instant, sleep};

spilo_core::dcs_conformance!(async {
    tokio::time::pause();
    Box::new(Simulated::new(Conditions::default(), 0))
});

/// Requests are lost before the store and after it, answers overtake each other, and each walk has
/// a [`BadLine`](spilo_core::conformance::dcs::BadLine) on top.
#[tokio::test(start_paused = true)]
async fn unknown_outcomes_of_a_lossy_network_are_one_of_two_worlds() {
    for seed in 0..SEEDS {
        let mut conditions = Conditions::default();
        conditions.way_ms = 20;
        conditions.slow_ways = 200;
        conditions.lost_requests = 100;
        let laboratory = Simulated::new(conditions, seed);
        let unknown = worlds::walk(&laboratory, seed, 100).await;
        assert!(unknown > 20, "seed {seed}: {unknown} unknown outcomes");
    }
}

/// A simulation with a node for each name that the suite uses.
#[derive(Debug)]
struct Simulated {
    outside: Arc<Outside>,
    begun: Instant,
}

/// A handle of a process that may call itself anything, as the suite's do. A node of the
/// simulation has one name, so a call goes through the door of the node of that name.
#[derive(Debug)]
struct Handle {
    outside: Arc<Outside>,
    doors: Vec<(String, Arc<dyn Dcs>)>,
    /// The doors that it asked for the lock by.
    asked: Mutex<BTreeSet<usize>>,
}

impl Simulated {
    fn new(conditions: Conditions, seed: u64) -> Self {
        let names = names();
        let mut sim = Sim::new(names.iter().map(String::as_str), 10);
        sim.set_conditions(conditions);
        sim.set_seed(seed);
        Self {
            outside: Arc::new(Outside::new(sim)),
            begun: Instant::now(),
        }
    }
}

#[async_trait]
impl Laboratory for Simulated {
    async fn node(&self) -> Arc<dyn Dcs> {
        let door = |(n, name)| (name, self.outside.backends(n).dcs);
        Arc::new(Handle {
            outside: Arc::clone(&self.outside),
            doors: names().into_iter().enumerate().map(door).collect(),
            asked: Mutex::default(),
        })
    }

    async fn sleep(&self, span: Duration) {
        self.outside.run_for(span).await;
    }

    fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    async fn delete_leader_key(&self) {
        self.outside.by_hand(Store::delete_leader);
    }
}

/// What somebody does with the store's own command line.
trait ByHand {
    fn by_hand<T>(&self, act: impl FnOnce(&mut Store, NodeTime) -> T) -> T;
}

impl ByHand for Outside {
    fn by_hand<T>(&self, act: impl FnOnce(&mut Store, NodeTime) -> T) -> T {
        self.change(|sim| {
            let now = sim.store_time();
            act(sim.store(), now)
        })
    }
}

impl Handle {
    async fn of(&self, me: &MemberName) -> &dyn Dcs {
        sleep(PAUSE).await;
        let known = self.doors.iter().position(|(name, _)| name == me.as_str());
        let known = known.expect("there is a node of each name");
        self.asked.lock().unwrap().insert(known);
        &*self.doors[known].1
    }

    /// What bears no name goes by any node.
    async fn any(&self) -> &dyn Dcs {
        sleep(PAUSE).await;
        &*self.doors[0].1
    }
}

#[async_trait]
impl Dcs for Handle {
    fn capabilities(&self) -> Capabilities {
        self.doors[0].1.capabilities()
    }

    async fn read(&self) -> Result<RawSnapshot, DcsError> {
        self.any().await.read().await
    }

    async fn acquire(&self, me: &MemberName, ttl: Duration) -> Result<Lease, DcsError> {
        self.of(me).await.acquire(me, ttl).await
    }

    async fn succeed(
        &self,
        old: &LeaseSecret,
        me: &MemberName,
        ttl: Duration,
    ) -> Result<Lease, DcsError> {
        self.of(me).await.succeed(old, me, ttl).await
    }

    async fn settle(&self) -> Result<(), DcsError> {
        let asked = self.asked.lock().unwrap().clone();
        for door in asked {
            self.doors[door].1.settle().await?;
        }
        Ok(())
    }

    async fn renew(&self, lease: &Lease) -> Result<(), DcsError> {
        self.any().await.renew(lease).await
    }

    async fn release(&self, lease: &Lease, record: Bytes) -> Result<(), DcsError> {
        self.any().await.release(lease, record).await
    }

    async fn claim_initialize(&self, lease: &Lease) -> Result<(), DcsError> {
        self.any().await.claim_initialize(lease).await
    }

    async fn announce(
        &self,
        me: &MemberName,
        record: Bytes,
        ttl: Duration,
    ) -> Result<(), DcsError> {
        self.of(me).await.announce(me, record, ttl).await
    }

    async fn put(&self, key: Key, value: Bytes, expect: Expect) -> Result<Revision, DcsError> {
        self.any().await.put(key, value, expect).await
    }

    /// No node of the simulation deletes a document: this is done by hand.
    async fn delete(&self, key: Key, expect: Expect) -> Result<(), DcsError> {
        let deleted = self
            .outside
            .by_hand(|store, now| store.delete(now, key, expect));
        let kind = DcsErrorKind::Conflict;
        deleted.map_err(|conflict| DcsError::new("by hand", kind, "delete", conflict.0))
    }

    async fn lease_ended(&self, holder: &LeaderRecord) -> Result<bool, DcsError> {
        self.any().await.lease_ended(holder).await
    }

    async fn lease_left(&self, holder: &LeaderRecord) -> Result<Option<Duration>, DcsError> {
        self.any().await.lease_left(holder).await
    }

    async fn changed(&self, since: Revision) -> Result<(), DcsError> {
        self.any().await.changed(since).await
    }
}

fn names() -> Vec<String> {
    let racing = (0..20).map(|n| format!("node-{n}"));
    let others = ["a", "b", "a b%c"].map(str::to_owned);
    others.into_iter().chain(racing).collect()
}

const SEEDS: u64 = 20;

/// The simulator takes a node that does too much in a second for a broken one, and stops.
const PAUSE: Duration = Duration::from_millis(20);
