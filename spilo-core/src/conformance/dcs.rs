//! The conformance suite of a [`Dcs`].
//!
//! A backend is described by a [`Laboratory`]: a store of its own for each test, any number of
//! nodes that use it, and the two things that a test does behind their backs.
//! [`dcs_conformance!`](crate::dcs_conformance) makes the tests. Requests of unknown outcome are
//! among them: the suite drops some, and puts a [`BadLine`] before the store, which is there for
//! tests of what uses a store, too.
//!
//! A crate with a store of its own needs this in its `Cargo.toml`. What the traits and the macro
//! take is in `spilo_core` (its `Bytes` and its `async_trait`); tokio is what the tests run on.
//! ```toml
//! [dependencies]
//! spilo-core = "0.1"
//!
//! [dev-dependencies]
//! spilo-core = { version = "0.1", features = ["conformance"] }
//! tokio = { version = "1", features = ["macros", "rt", "test-util"] }
//! ```
//! The tests are quick where the store's clock stands still while anybody is busy, as tokio's does
//! after `pause`.
//!
//! What the suite cannot see: whether an answer came before what it answers was safe on disk, what
//! becomes of the store when one of its own machines fails, and whether its clock is right. That
//! needs tests of real servers.
//!
//! # Examples
//! A store in 200 lines, and its tests:
//! ```
#![doc = include_str!("../../tests/own_store.rs")]
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::dcs::{Dcs, DcsError, DcsErrorKind, Key, Lease, RawSnapshot};
use crate::ids::MemberName;

mod bad_line;
pub mod documents;
pub mod lock;
pub mod unknown;
pub mod worlds;

pub use bad_line::BadLine;

/// One cluster in one store, for one test.
#[async_trait]
pub trait Laboratory: Send + Sync + fmt::Debug {
    /// Returns a new handle, as another process would have it.
    async fn node(&self) -> Arc<dyn Dcs>;

    /// Lets time pass on the store's clock, and lets others go on meanwhile: not even a short sleep
    /// is over when it is first polled.
    async fn sleep(&self, span: Duration);

    /// Returns the time on a clock that goes with [`sleep`](Self::sleep).
    fn elapsed(&self) -> Duration;

    /// Deletes the leader key, as somebody with the store's own command line would.
    async fn delete_leader_key(&self);
}

/// Makes one `#[tokio::test]` of each property of [`conformance::dcs`](crate::conformance::dcs).
///
/// The argument is an async expression of a [`Laboratory`](crate::conformance::dcs::Laboratory);
/// it is evaluated in each test, so a paused clock is paused in there.
///
/// # Examples
/// A whole store with its tests is in [`conformance::dcs`](crate::conformance::dcs).
/// ```no_run
/// # use spilo_core::conformance::dcs::Laboratory;
/// async fn laboratory() -> Box<dyn Laboratory> {
///     unimplemented!("start a store")
/// }
/// # mod tests { use super::*;
/// spilo_core::dcs_conformance!(super::laboratory());
/// # }
/// ```
#[macro_export]
macro_rules! dcs_conformance {
    ($laboratory:expr) => {
        $crate::dcs_conformance!(@each $laboratory;
            lock: one_of_twenty_racing_acquirers_wins,
            lock: a_renewed_lease_is_kept,
            lock: a_lease_that_nobody_renews_ends_at_its_ttl_and_not_before,
            lock: a_later_holding_has_a_greater_epoch,
            lock: a_deleted_leader_key_is_seen_and_frees_the_lock,
            lock: a_release_leaves_its_record_in_the_same_revision,
            lock: only_the_exact_secret_succeeds,
            lock: the_end_of_a_lease_is_proven_only_when_it_has_ended,
            lock: what_is_left_of_a_lease_is_never_overstated,
            lock: a_name_is_no_claim_to_the_lock,
            lock: a_succession_lasts_for_a_ttl_of_its_own,
            lock: a_claim_to_initialize_goes_with_its_lease,
            documents: a_deposed_leader_cannot_write,
            documents: a_write_is_done_only_as_expected,
            documents: a_snapshot_is_of_one_revision,
            documents: any_bytes_come_back_unharmed,
            documents: a_member_record_vanishes_when_it_is_not_announced,
            documents: a_change_wakes_a_watcher,
            unknown: f18_an_abandoned_acquire_is_settled,
            unknown: f18_an_abandoned_succession_is_settled,
            worlds: an_unknown_outcome_is_one_of_two_worlds,
        );
    };
    (@each $laboratory:expr; $($noun:ident: $property:ident,)*) => {
        $(
            #[tokio::test]
            async fn $property() {
                let laboratory = $laboratory.await;
                $crate::conformance::dcs::$noun::$property(&*laboratory).await;
            }
        )*
    };
}

/// The shortest lease that the store honours.
fn shortest(dcs: &dyn Dcs) -> Duration {
    dcs.capabilities().ttl_min
}

fn name(text: &str) -> MemberName {
    MemberName::new(text).expect("the suite's names are valid")
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn snapshot(dcs: &dyn Dcs) -> RawSnapshot {
    dcs.read().await.expect("a healthy store is read")
}

/// Acquires a lock that nobody holds.
async fn acquired(dcs: &dyn Dcs, me: &str, ttl: Duration) -> Lease {
    dcs.acquire(&name(me), ttl)
        .await
        .expect("a free lock is acquired")
}

/// Acquires a lock whose lease has ended by itself; where the store keeps it back, as soon as it may.
async fn acquired_after_end(
    laboratory: &dyn Laboratory,
    dcs: &dyn Dcs,
    me: &str,
    ttl: Duration,
) -> Lease {
    let latest = laboratory.elapsed() + dcs.capabilities().lock_delay_max;
    loop {
        let result = dcs.acquire(&name(me), ttl).await;
        let is_kept_back = kind_of(&result) == Some(DcsErrorKind::Conflict)
            && laboratory.elapsed() < latest
            && snapshot(dcs).await.leader.is_none();
        if !is_kept_back {
            return result.expect("a free lock is acquired");
        }
        laboratory.sleep(STEP).await;
    }
}

fn kind_of<T>(result: &Result<T, DcsError>) -> Option<DcsErrorKind> {
    result.as_ref().err().map(DcsError::kind)
}

fn kind<T>(result: Result<T, DcsError>) -> Result<T, DcsErrorKind> {
    result.map_err(|error| error.kind())
}

/// Asserts that the lock is held by exactly this lease.
fn assert_holds(snapshot: &RawSnapshot, me: &str, lease: &Lease) {
    let leader = snapshot.leader.as_ref().expect("the leader key is there");
    assert_eq!((&leader.name, leader.epoch), (&bytes(me), lease.epoch));
}

/// Waits until the lock is free, and fails if that takes longer after `from` than the store may
/// take; returns a time at which it was free.
async fn until_free(
    laboratory: &dyn Laboratory,
    dcs: &dyn Dcs,
    from: Duration,
    ttl: Duration,
) -> Duration {
    let latest = from + ttl + dcs.capabilities().release_slack + MARGIN;
    // What is kept back is free only later, which `acquired_after_end` waits for.
    while snapshot(dcs).await.leader.is_some() {
        assert!(
            laboratory.elapsed() < latest,
            "the lock of a dead holder is free after its ttl"
        );
        laboratory.sleep(STEP).await;
    }
    laboratory.elapsed()
}

/// Returns the bytes of a document.
fn value(snapshot: &RawSnapshot, key: Key) -> Option<Bytes> {
    snapshot
        .documents
        .get(&key)
        .map(|entry| entry.value.clone())
}

/// How often a property looks while it waits.
const STEP: Duration = Duration::from_millis(50);

/// What a busy machine may take on top of what the store promises.
const MARGIN: Duration = Duration::from_secs(2);
