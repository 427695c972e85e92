//! The store of a single process: the reference store behind a lock.
//!
//! Nothing survives the process, so it serves tests, examples and demonstrations, in which several
//! agents share one [`MemoryStore`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use spilo_core::dcs::{
    Capabilities, DcsErrorKind, Expect, Key, LeaderRecord, Lease, LeaseSecret, RawSnapshot,
};
use spilo_core::store::{Conflict, Store};
use spilo_core::{Clock, Dcs, DcsError, MemberName, NodeTime, Revision, Scope};
use tokio::sync::Notify;

/// A store for any number of clusters in one process.
///
/// Clones share it.
///
/// # Examples
/// ```
/// # use std::sync::Arc;
/// # use spilo_core::{Clock, NodeTime, Scope};
/// # #[derive(Debug)]
/// # struct Stopped;
/// # #[async_trait::async_trait]
/// # impl Clock for Stopped {
/// #     fn now(&self) -> NodeTime { NodeTime(0) }
/// #     async fn sleep_until(&self, _: NodeTime) { std::future::pending().await }
/// # }
/// # let clock = Arc::new(Stopped);
/// use spilo_dcs::MemoryStore;
///
/// let store = MemoryStore::new(clock);
/// let a = store.cluster(Scope::new("demo")?);
/// let b = store.cluster(Scope::new("demo")?); // the same cluster, seen by another agent
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

/// One agent's handle of one cluster in a [`MemoryStore`].
pub struct MemoryDcs {
    shared: Arc<Shared>,
    scope: Scope,
    /// Leases of requests whose end the caller has not seen.
    unsettled: Mutex<BTreeSet<u64>>,
}

struct Shared {
    clock: Arc<dyn Clock>,
    clusters: Mutex<BTreeMap<Scope, Store>>,
    bell: Notify,
}

impl MemoryStore {
    /// Creates an empty store, whose leases are measured on `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let clusters = Mutex::new(BTreeMap::new());
        Self {
            shared: Arc::new(Shared {
                clock,
                clusters,
                bell: Notify::new(),
            }),
        }
    }

    /// Returns a new handle of a cluster, which need not have existed before.
    pub fn cluster(&self, scope: Scope) -> MemoryDcs {
        MemoryDcs {
            shared: Arc::clone(&self.shared),
            scope,
            unsettled: Mutex::default(),
        }
    }

    /// Does something to a cluster that no agent does: deletes its leader key, wipes it, looks at
    /// it. The closure gets the reference store and the time.
    pub fn with<T>(&self, scope: &Scope, act: impl FnOnce(&mut Store, NodeTime) -> T) -> T {
        self.shared.with(scope, act)
    }
}

#[async_trait]
impl Dcs for MemoryDcs {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(NAME)
    }

    async fn read(&self) -> Result<RawSnapshot, DcsError> {
        Ok(self.step(Store::snapshot).await)
    }

    async fn acquire(&self, me: &MemberName, ttl: Duration) -> Result<Lease, DcsError> {
        let request = self.begin();
        let result = self
            .step(|store, now| store.acquire(now, request, me, ttl))
            .await;
        self.end(request);
        result.map_err(|conflict| refused("acquire the lock", conflict))
    }

    async fn succeed(
        &self,
        old: &LeaseSecret,
        me: &MemberName,
        ttl: Duration,
    ) -> Result<Lease, DcsError> {
        let request = self.begin();
        let result = self
            .step(|store, now| store.succeed(now, request, old, me, ttl))
            .await;
        self.end(request);
        result.map_err(|conflict| refused("take the lock over", conflict))
    }

    async fn settle(&self) -> Result<(), DcsError> {
        let unsettled = held(&self.unsettled).clone();
        self.step(|store, now| unsettled.iter().for_each(|id| store.revoke(now, *id)))
            .await;
        held(&self.unsettled).retain(|id| !unsettled.contains(id));
        Ok(())
    }

    async fn renew(&self, lease: &Lease) -> Result<(), DcsError> {
        let result = self.step(|store, now| store.renew(now, lease)).await;
        result.map_err(|conflict| refused("renew the lease", conflict))
    }

    async fn release(&self, lease: &Lease, record: Bytes) -> Result<(), DcsError> {
        let result = self
            .step(|store, now| store.release(now, lease, record))
            .await;
        result.map_err(|conflict| refused("release the lock", conflict))
    }

    async fn claim_initialize(&self, lease: &Lease) -> Result<(), DcsError> {
        let result = self
            .step(|store, now| store.claim_initialize(now, lease))
            .await;
        result.map_err(|conflict| refused("claim the initialize key", conflict))
    }

    async fn announce(
        &self,
        me: &MemberName,
        record: Bytes,
        ttl: Duration,
    ) -> Result<(), DcsError> {
        self.step(|store, now| store.announce(now, me, record, ttl))
            .await;
        Ok(())
    }

    async fn put(&self, key: Key, value: Bytes, expect: Expect) -> Result<Revision, DcsError> {
        let result = self
            .step(|store, now| store.put(now, key, value, expect))
            .await;
        result.map_err(|conflict| refused(&format!("write {}", key.path()), conflict))
    }

    async fn delete(&self, key: Key, expect: Expect) -> Result<(), DcsError> {
        let result = self.step(|store, now| store.delete(now, key, expect)).await;
        result.map_err(|conflict| refused(&format!("delete {}", key.path()), conflict))
    }

    async fn lease_ended(&self, holder: &LeaderRecord) -> Result<bool, DcsError> {
        Ok(self.step(|store, now| store.lease_ended(now, holder)).await)
    }

    async fn lease_left(&self, holder: &LeaderRecord) -> Result<Option<Duration>, DcsError> {
        Ok(self.step(|store, now| store.lease_left(now, holder)).await)
    }

    async fn changed(&self, since: Revision) -> Result<(), DcsError> {
        loop {
            let rung = self.shared.bell.notified();
            tokio::pin!(rung);
            // Listening begins before looking, so that nothing falls between the two.
            rung.as_mut().enable();
            let (changed, wait) = self.shared.with(&self.scope, |store, now| {
                let changed = store.changed(now, since);
                (
                    changed,
                    store.next_end().map_or(LONGEST_WAIT, |end| end - now),
                )
            });
            if changed {
                return Ok(());
            }
            // Nobody rings when a lease ends.
            let end = tokio::time::sleep(wait.clamp(SHORTEST_WAIT, LONGEST_WAIT));
            tokio::select! {
                () = rung => {}
                () = end => {}
            }
        }
    }
}

impl MemoryDcs {
    /// Makes one request: it leaves, is done, and is answered, and the caller may be gone in
    /// between, as with a store at the other end of a network.
    async fn step<T>(&self, act: impl FnOnce(&mut Store, NodeTime) -> T + Send) -> T
    where
        T: Send,
    {
        tokio::task::yield_now().await;
        let result = self.shared.with(&self.scope, act);
        self.shared.bell.notify_waiters();
        tokio::task::yield_now().await;
        result
    }

    fn begin(&self) -> u64 {
        let request = self
            .shared
            .with(&self.scope, |store, _| store.new_lease_id());
        held(&self.unsettled).insert(request);
        request
    }

    fn end(&self, request: u64) {
        held(&self.unsettled).remove(&request);
    }
}

impl Shared {
    fn with<T>(&self, scope: &Scope, act: impl FnOnce(&mut Store, NodeTime) -> T) -> T {
        let mut clusters = held(&self.clusters);
        // Read under the lock: the store's time must not go back from one call to the next.
        let now = self.clock.now();
        act(clusters.entry(scope.clone()).or_default(), now)
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

impl fmt::Debug for MemoryDcs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryDcs")
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}

/// Locks, and goes on after a panic elsewhere: each change under these locks is whole.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(action: &str, conflict: Conflict) -> DcsError {
    DcsError::new(NAME, DcsErrorKind::Conflict, action, conflict.to_string())
}

const NAME: &str = "memory";

/// A lease that is about to end is looked at once a millisecond, its clock's own step.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// The store's clock need not be the runtime's: its leases may end earlier than the runtime thinks.
const LONGEST_WAIT: Duration = Duration::from_millis(100);
