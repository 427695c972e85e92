//! What can become of a request between a node and its store.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::super::waiting::{Boxed, counted, dropped_after};
use crate::dcs::{
    Capabilities, Dcs, DcsError, DcsErrorKind, Expect, Key, LeaderRecord, Lease, LeaseSecret,
    RawSnapshot,
};
use crate::ids::{MemberName, Revision};

/// A store at the other end of a bad line, for tests of the store and of those who use one.
///
/// About half of the requests come through. Of the others, as a seed draws it, some are refused
/// (`Unavailable`), and some fail as `Indeterminate`: they are lost, or done and not answered, or
/// done later, when nobody waits for them any more. What takes the lock is dropped somewhere in
/// between, so that it is the store that must [`settle`](Dcs::settle) it; a store that answers
/// without ever waiting leaves nothing to settle, and its answer comes through.
///
/// # Examples
/// ```
/// use std::sync::Arc;
/// use spilo_core::conformance::dcs::BadLine;
/// use spilo_core::dcs::{Dcs, DcsErrorKind, Expect, Key};
///
/// async fn put_at_last(store: Arc<dyn Dcs>) {
///     let line = BadLine::new(store, 4711);
///     while let Err(error) = line.put(Key::Config, "{}".into(), Expect::Anything).await {
///         assert_ne!(error.kind(), DcsErrorKind::Conflict);
///     }
///     line.arrive().await; // nothing that was written above is done after this
/// }
/// ```
pub struct BadLine {
    store: Arc<dyn Dcs>,
    chance: Mutex<Chance>,
    /// Requests that were said to have failed and will be done.
    late: Mutex<Vec<Boxed<'static, ()>>>,
    /// How often a request for the lock was polled that came through last.
    polls: AtomicU32,
}

/// Numbers that look drawn by chance, and are the same for the same seed (SplitMix64).
#[derive(Debug)]
pub(super) struct Chance(pub(super) u64);

/// What becomes of a request.
enum Fate {
    ComesThrough,
    IsRefused,
    IsLost,
    IsNotAnswered,
    IsLate,
}

type Answer<T> = Result<T, DcsError>;

impl BadLine {
    /// Puts a bad line before a node's handle of the store.
    pub fn new(store: Arc<dyn Dcs>, seed: u64) -> Self {
        Self {
            store,
            chance: Mutex::new(Chance(seed)),
            late: Mutex::default(),
            polls: AtomicU32::new(2),
        }
    }

    /// Lets everything be done that is late.
    ///
    /// # Cancellation
    /// What it was doing may be lost.
    pub async fn arrive(&self) {
        while let Some(request) = self.a_late_one() {
            request.await;
        }
    }

    async fn some_arrive(&self) {
        while self.below(2) == 0
            && let Some(request) = self.a_late_one()
        {
            request.await;
        }
    }

    /// Takes out any one: the later may overtake the earlier.
    fn a_late_one(&self) -> Option<Boxed<'static, ()>> {
        let mut late = held(&self.late);
        let count = u64::try_from(late.len()).unwrap_or(u64::MAX);
        let n = usize::try_from(self.below(count)).unwrap_or(0);
        (n < late.len()).then(|| late.swap_remove(n))
    }

    async fn write<T: Send + 'static>(
        &self,
        action: &str,
        request: impl FnOnce(Arc<dyn Dcs>) -> Boxed<'static, Answer<T>> + Send,
    ) -> Answer<T> {
        self.some_arrive().await;
        let store = Arc::clone(&self.store);
        match self.fate() {
            Fate::ComesThrough => return request(store).await,
            Fate::IsRefused => return Err(self.refusal(action)),
            Fate::IsLost => {}
            Fate::IsNotAnswered => drop(request(store).await),
            Fate::IsLate => {
                let request = request(store);
                held(&self.late).push(Box::pin(async move { drop(request.await) }));
            }
        }
        Err(self.silence(action))
    }

    /// Asks for the lock. It is never late: a node may ask again once it has settled, and has
    /// one such request under way at most.
    async fn attempt(&self, action: &str, request: Boxed<'_, Answer<Lease>>) -> Answer<Lease> {
        self.some_arrive().await;
        match self.fate() {
            Fate::ComesThrough => {
                let (answer, polls) = counted(request).await;
                if answer.is_ok() {
                    self.polls.store(polls, Ordering::Relaxed);
                }
                answer
            }
            Fate::IsRefused => Err(self.refusal(action)),
            Fate::IsLost => Err(self.silence(action)),
            Fate::IsNotAnswered | Fate::IsLate => {
                let all = u64::from(self.polls.load(Ordering::Relaxed));
                let some = 1 + self.below(all.saturating_sub(1));
                let answer = dropped_after(request, u32::try_from(some).unwrap_or(1)).await;
                answer.unwrap_or_else(|| Err(self.silence(action)))
            }
        }
    }

    async fn look_up<T: Send>(&self, request: Boxed<'_, Answer<T>>) -> Answer<T> {
        self.some_arrive().await;
        match self.fate() {
            Fate::IsRefused => Err(self.refusal("read")),
            _ => request.await,
        }
    }

    fn fate(&self) -> Fate {
        match self.below(8) {
            0 => Fate::IsRefused,
            1 => Fate::IsLost,
            2 => Fate::IsNotAnswered,
            3 => Fate::IsLate,
            _ => Fate::ComesThrough,
        }
    }

    fn below(&self, below: u64) -> u64 {
        held(&self.chance).below(below)
    }

    fn refusal(&self, action: &str) -> DcsError {
        let problem = "the line is down";
        DcsError::new(
            self.capabilities().name,
            DcsErrorKind::Unavailable,
            action,
            problem,
        )
    }

    fn silence(&self, action: &str) -> DcsError {
        let problem = "no answer came";
        DcsError::new(
            self.capabilities().name,
            DcsErrorKind::Indeterminate,
            action,
            problem,
        )
    }
}

#[async_trait]
impl Dcs for BadLine {
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    async fn read(&self) -> Answer<RawSnapshot> {
        self.look_up(self.store.read()).await
    }

    async fn acquire(&self, me: &MemberName, ttl: Duration) -> Answer<Lease> {
        let request = self.store.acquire(me, ttl);
        self.attempt("acquire the lock", request).await
    }

    async fn succeed(&self, old: &LeaseSecret, me: &MemberName, ttl: Duration) -> Answer<Lease> {
        let request = self.store.succeed(old, me, ttl);
        self.attempt("take the lock over", request).await
    }

    async fn settle(&self) -> Answer<()> {
        let action = "settle";
        self.some_arrive().await;
        match self.fate() {
            Fate::ComesThrough => self.store.settle().await,
            Fate::IsRefused => Err(self.refusal(action)),
            Fate::IsLost => Err(self.silence(action)),
            // A late one could meet the next attempt, which the contract rules out.
            Fate::IsNotAnswered | Fate::IsLate => {
                drop(self.store.settle().await);
                Err(self.silence(action))
            }
        }
    }

    async fn renew(&self, lease: &Lease) -> Answer<()> {
        let lease = lease.clone();
        self.write("renew the lease", |store| {
            Box::pin(async move { store.renew(&lease).await })
        })
        .await
    }

    async fn release(&self, lease: &Lease, record: Bytes) -> Answer<()> {
        let lease = lease.clone();
        self.write("release the lock", |store| {
            Box::pin(async move { store.release(&lease, record).await })
        })
        .await
    }

    async fn claim_initialize(&self, lease: &Lease) -> Answer<()> {
        let lease = lease.clone();
        self.write("claim the initialize key", |store| {
            Box::pin(async move { store.claim_initialize(&lease).await })
        })
        .await
    }

    async fn announce(&self, me: &MemberName, record: Bytes, ttl: Duration) -> Answer<()> {
        let me = me.clone();
        self.write("announce the member", |store| {
            Box::pin(async move { store.announce(&me, record, ttl).await })
        })
        .await
    }

    async fn put(&self, key: Key, value: Bytes, expect: Expect) -> Answer<Revision> {
        self.write("write a document", |store| {
            Box::pin(async move { store.put(key, value, expect).await })
        })
        .await
    }

    async fn delete(&self, key: Key, expect: Expect) -> Answer<()> {
        self.write("delete a document", |store| {
            Box::pin(async move { store.delete(key, expect).await })
        })
        .await
    }

    async fn lease_ended(&self, holder: &LeaderRecord) -> Answer<bool> {
        self.look_up(self.store.lease_ended(holder)).await
    }

    async fn lease_left(&self, holder: &LeaderRecord) -> Answer<Option<Duration>> {
        self.look_up(self.store.lease_left(holder)).await
    }

    async fn changed(&self, since: Revision) -> Answer<()> {
        self.store.changed(since).await
    }
}

impl Chance {
    /// Returns a number below `below`, or zero if that is zero.
    pub(super) fn below(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)).checked_rem(below).unwrap_or(0)
    }

    /// Returns one of several, which must not be none.
    pub(super) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        let count = u64::try_from(of.len()).unwrap_or(u64::MAX);
        of[usize::try_from(self.below(count)).unwrap_or(0)]
    }
}

impl fmt::Debug for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BadLine")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

/// Locks, and goes on after a panic elsewhere: each change under these locks is whole.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
