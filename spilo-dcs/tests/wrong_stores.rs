//! The suite sees what a store does wrong: stores with one mistake each, made of the right one.

#![expect(clippy::unwrap_used, reason = "what helps a test fails as a test does")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use spilo_core::conformance::dcs::{Laboratory, documents, lock, unknown, worlds};
use spilo_core::dcs::{
    Capabilities, DcsErrorKind, Expect, Key, LeaderRecord, Lease, LeaseSecret, RawSnapshot,
};
use spilo_core::{Clock, Dcs, DcsError, MemberName, NodeTime, Revision, Scope};
use spilo_dcs::{MemoryDcs, MemoryStore};
use tokio::time::Instant;

/// What a store does wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mistake {
    None,
    /// Takes whoever has the holder's name for the holder.
    GoesByTheName,
    /// Keeps a lock back that was given up, as it may one whose lease ended by itself.
    KeepsBackWhatWasGivenUp,
    /// Gives a lock that becomes free to somebody whom it has refused.
    KeepsAQueue,
    /// Leaves a succession with the end that the earlier lease had.
    KeepsTheOldTtl,
    /// Counts a succession's time from when the earlier lease began.
    CountsFromTheFirst,
    /// Gives up the lock in one transaction, and writes the record in another.
    ReleasesInTwo,
    /// Renews a lease that was given up.
    RenewsAnything,
    /// Lets the lock's holder claim a cluster that has an identifier.
    ClaimsWhatThereIs,
    /// Leaves a claim behind when the lock is given up.
    LeavesTheClaim,
    /// Writes for a leader that was deposed.
    FencesNothing,
    /// Does not compare on deletion.
    DeletesAnything,
    /// Does not delete for the leader.
    DeletesNothing,
    /// Keeps all member records for as long as one of them is announced.
    HasOneMemberLease,
    /// Tells the revision of the newest thing that there is.
    TellsTheNewest,
    /// Forgets what it has to settle.
    SettlesNothing,
    /// Says that nothing was done when no answer came.
    SaysUnavailable,
    /// Writes what it then refuses.
    WritesAndRefuses,
}

macro_rules! sees {
    ($($(#[$doc:meta])* $name:ident: $mistake:ident, $noun:ident::$property:ident, $says:literal;)*) => {
        $(
            #[tokio::test(start_paused = true)]
            #[should_panic(expected = $says)]
            async fn $name() {
                let laboratory = Wrong::new(Mistake::$mistake);
                $noun::$property(&laboratory).await;
            }
        )*
    };
}

sees! {
    a_name_is_not_enough: GoesByTheName, lock::a_name_is_no_claim_to_the_lock,
        "left: Ok";
    nobody_queues: KeepsAQueue, lock::one_of_twenty_racing_acquirers_wins,
        "does not queue for the lock";
    what_was_given_up_is_free: KeepsBackWhatWasGivenUp, lock::a_later_holding_has_a_greater_epoch,
        "a free lock is acquired";
    a_succession_has_its_ttl: KeepsTheOldTtl, lock::a_succession_lasts_for_a_ttl_of_its_own,
        "free after its ttl";
    a_succession_begins_anew: CountsFromTheFirst, lock::a_succession_lasts_for_a_ttl_of_its_own,
        "held for its whole ttl";
    a_release_is_one_transaction: ReleasesInTwo,
        lock::a_release_leaves_its_record_in_the_same_revision, "both or neither";
    what_was_given_up_is_over: RenewsAnything,
        lock::a_release_leaves_its_record_in_the_same_revision, "it was given up";
    an_identifier_is_not_claimed: ClaimsWhatThereIs,
        lock::a_claim_to_initialize_goes_with_its_lease, "left: Ok";
    a_claim_is_given_up_too: LeavesTheClaim,
        lock::a_claim_to_initialize_goes_with_its_lease, "goes with the lease";
    the_deposed_write_nothing: FencesNothing, documents::a_deposed_leader_cannot_write,
        "nobody holds the lock";
    the_leader_deletes: DeletesNothing, documents::a_deposed_leader_cannot_write,
        "the leader deletes";
    deletions_compare: DeletesAnything, documents::a_write_is_done_only_as_expected,
        "left: Ok";
    members_have_leases_of_their_own: HasOneMemberLease,
        documents::a_member_record_vanishes_when_it_is_not_announced, "gone after its ttl";
    a_deletion_is_a_revision: TellsTheNewest, documents::a_snapshot_is_of_one_revision,
        "no two states";
    an_abandoned_acquire_blocks: SettlesNothing, unknown::f18_an_abandoned_acquire_is_settled,
        "dropped after";
    an_attempt_outlives_its_settling: SettlesNothing,
        worlds::an_unknown_outcome_is_one_of_two_worlds, "neither done nor not done";
    unavailable_is_a_promise: SaysUnavailable,
        worlds::an_unknown_outcome_is_one_of_two_worlds, "neither done nor not done";
    a_refusal_is_a_promise: WritesAndRefuses,
        worlds::an_unknown_outcome_is_one_of_two_worlds, "neither done nor not done";
}

// What has no mistake passes, so that a failure above is that of the mistake.
spilo_core::dcs_conformance!(async {
    tokio::time::pause();
    Box::new(Wrong::new(Mistake::None))
});

/// A store with a mistake.
#[derive(Clone, Debug)]
struct Wrong {
    mistake: Mistake,
    store: MemoryStore,
    right: Arc<MemoryDcs>,
    started: Instant,
    memory: Arc<Mutex<Memory>>,
}

/// What a mistake needs to know.
#[derive(Debug, Default)]
struct Memory {
    refused: Vec<MemberName>,
    released: Option<Instant>,
    ttl: Duration,
    count: u32,
}

impl Wrong {
    fn new(mistake: Mistake) -> Self {
        let started = Instant::now();
        let store = MemoryStore::new(Arc::new(Paused(started)));
        Self {
            mistake,
            right: Arc::new(store.cluster(scope())),
            store,
            started,
            memory: Arc::default(),
        }
    }

    fn has(&self, mistake: Mistake) -> bool {
        self.mistake == mistake
    }

    fn every_third(&self) -> bool {
        let mut memory = self.memory.lock().unwrap();
        memory.count += 1;
        memory.count.is_multiple_of(3)
    }

    fn free_the_lock(&self) {
        self.store
            .with(&scope(), |store, now| store.delete_leader(now));
    }
}

#[async_trait]
impl Dcs for Wrong {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.right.capabilities();
        if self.has(Mistake::KeepsBackWhatWasGivenUp) {
            capabilities.lock_delay_max = Duration::from_secs(60);
        }
        capabilities
    }

    async fn read(&self) -> Result<RawSnapshot, DcsError> {
        let mut seen = self.right.read().await?;
        let next = self.memory.lock().unwrap().refused.pop();
        if let Some(next) = next.filter(|_| seen.leader.is_none()) {
            self.right.acquire(&next, Duration::from_secs(60)).await?;
            seen = self.right.read().await?;
        }
        if self.has(Mistake::TellsTheNewest) {
            let documents = seen.documents.values().map(|entry| entry.revision);
            let leader = seen.leader.iter().map(|leader| Revision(leader.epoch.0));
            seen.revision = documents.chain(leader).max().unwrap_or_default();
        }
        Ok(seen)
    }

    async fn acquire(&self, me: &MemberName, ttl: Duration) -> Result<Lease, DcsError> {
        let released = {
            let mut memory = self.memory.lock().unwrap();
            memory.ttl = ttl;
            memory.released
        };
        let is_fresh = released.is_some_and(|at| at.elapsed() < Duration::from_secs(1));
        if self.has(Mistake::KeepsBackWhatWasGivenUp) && is_fresh {
            let conflict = DcsErrorKind::Conflict;
            return Err(DcsError::new(
                "wrong",
                conflict,
                "acquire",
                "it is kept back",
            ));
        }
        let taken = self.right.acquire(me, ttl).await;
        if taken.is_ok() {
            return taken;
        }
        if self.has(Mistake::KeepsAQueue) {
            self.memory.lock().unwrap().refused.push(me.clone());
        }
        let holder = self.right.read().await?.leader;
        let is_me = holder.is_some_and(|holder| holder.name == me.as_str());
        if self.has(Mistake::GoesByTheName) && is_me {
            self.free_the_lock();
            return self.right.acquire(me, ttl).await;
        }
        taken
    }

    async fn succeed(
        &self,
        old: &LeaseSecret,
        me: &MemberName,
        ttl: Duration,
    ) -> Result<Lease, DcsError> {
        let earlier = self.memory.lock().unwrap().ttl;
        let ttl = match self.mistake {
            Mistake::KeepsTheOldTtl => earlier,
            Mistake::CountsFromTheFirst => ttl / 2,
            _ => ttl,
        };
        self.right.succeed(old, me, ttl).await
    }

    async fn settle(&self) -> Result<(), DcsError> {
        if self.has(Mistake::SettlesNothing) {
            return Ok(());
        }
        self.right.settle().await
    }

    async fn renew(&self, lease: &Lease) -> Result<(), DcsError> {
        let renewed = self.right.renew(lease).await;
        if self.has(Mistake::RenewsAnything) {
            return Ok(());
        }
        renewed
    }

    async fn release(&self, lease: &Lease, record: Bytes) -> Result<(), DcsError> {
        let before = self.right.read().await?;
        let claim = before.documents.get(&Key::Initialize);
        if self.has(Mistake::ReleasesInTwo) {
            self.right
                .put(Key::Release, record.clone(), Expect::Leader(lease.epoch))
                .await?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.right.release(lease, record).await?;
        self.memory.lock().unwrap().released = Some(Instant::now());
        if let Some(claim) = claim.filter(|_| self.has(Mistake::LeavesTheClaim)) {
            let (key, value) = (Key::Initialize, claim.value.clone());
            self.right.put(key, value, Expect::Anything).await?;
        }
        Ok(())
    }

    async fn claim_initialize(&self, lease: &Lease) -> Result<(), DcsError> {
        let there = self.right.read().await?;
        let there = there.documents.get(&Key::Initialize);
        let has_identifier = there.is_some_and(|entry| !entry.value.is_empty());
        if self.has(Mistake::ClaimsWhatThereIs) && has_identifier {
            let by = Expect::Leader(lease.epoch);
            self.right.delete(Key::Initialize, by).await?;
        }
        self.right.claim_initialize(lease).await
    }

    async fn announce(
        &self,
        me: &MemberName,
        record: Bytes,
        ttl: Duration,
    ) -> Result<(), DcsError> {
        if self.has(Mistake::HasOneMemberLease) {
            for (name, entry) in self.right.read().await?.members {
                let other = MemberName::new(&name).unwrap();
                self.right.announce(&other, entry.value, ttl).await?;
            }
        }
        self.right.announce(me, record, ttl).await
    }

    async fn put(&self, key: Key, value: Bytes, expect: Expect) -> Result<Revision, DcsError> {
        let expect = match expect {
            Expect::Leader(_) if self.has(Mistake::FencesNothing) => Expect::Anything,
            _ => expect,
        };
        let put = self.right.put(key, value, expect).await;
        let kind = match self.mistake {
            Mistake::SaysUnavailable => DcsErrorKind::Unavailable,
            Mistake::WritesAndRefuses => DcsErrorKind::Conflict,
            _ => return put,
        };
        if self.every_third() {
            return Err(DcsError::new("wrong", kind, "write", "who knows"));
        }
        put
    }

    async fn delete(&self, key: Key, expect: Expect) -> Result<(), DcsError> {
        let expect = match (self.mistake, expect) {
            (Mistake::DeletesAnything, _) => Expect::Anything,
            (Mistake::DeletesNothing, Expect::Leader(_)) => Expect::Revision(Revision(u64::MAX)),
            _ => expect,
        };
        self.right.delete(key, expect).await
    }

    async fn lease_ended(&self, holder: &LeaderRecord) -> Result<bool, DcsError> {
        self.right.lease_ended(holder).await
    }

    async fn lease_left(&self, holder: &LeaderRecord) -> Result<Option<Duration>, DcsError> {
        self.right.lease_left(holder).await
    }

    async fn changed(&self, since: Revision) -> Result<(), DcsError> {
        self.right.changed(since).await
    }
}

#[async_trait]
impl Laboratory for Wrong {
    async fn node(&self) -> Arc<dyn Dcs> {
        let right = Arc::new(self.store.cluster(scope()));
        Arc::new(Self {
            right,
            ..self.clone()
        })
    }

    async fn sleep(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    async fn delete_leader_key(&self) {
        self.free_the_lock();
    }
}

/// The runtime's time, which a test pauses.
#[derive(Debug)]
struct Paused(Instant);

#[async_trait]
impl Clock for Paused {
    fn now(&self) -> NodeTime {
        NodeTime(0) + self.0.elapsed()
    }

    async fn sleep_until(&self, at: NodeTime) {
        tokio::time::sleep(at.since(self.now())).await;
    }
}

fn scope() -> Scope {
    Scope::new("demo").unwrap()
}
