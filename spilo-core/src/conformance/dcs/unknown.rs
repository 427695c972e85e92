//! Requests of which nobody saw the end.
//!
//! They are dropped between two polls. A store that answers without ever waiting has nothing in
//! between, and passes.

use std::time::Duration;

use super::super::waiting::dropped_after;
use super::{Laboratory, acquired, assert_holds, bytes, name, snapshot};

/// An acquire dropped at any of its await points leaves nothing behind once it was settled: no
/// key of it survives, none appears later, and the lock can be taken at once.
///
/// A campaign that was given up and whose lease lived on would block the election.
pub async fn f18_an_abandoned_acquire_is_settled(laboratory: &dyn Laboratory) {
    let (a, b) = (laboratory.node().await, laboratory.node().await);
    let (me, ttl) = (name("a"), Duration::from_secs(60));
    let mut finished = false;
    let mut polls = 0;
    while !finished {
        polls += 1;
        assert!(polls < MOST_POLLS, "an acquire is done at last");
        if let Some(result) = dropped_after(a.acquire(&me, ttl), polls).await {
            let lease = result.expect("a free lock is acquired");
            // What was answered is not unknown: settling does not take it away.
            a.settle().await.expect("there is nothing to settle");
            assert_holds(&snapshot(&*b).await, "a", &lease);
            a.release(&lease, bytes("r"))
                .await
                .expect("the holder releases");
            finished = true;
        }
        a.settle().await.expect("a healthy store settles");
        assert_eq!(
            snapshot(&*b).await.leader,
            None,
            "dropped after {polls} polls"
        );
        laboratory.sleep(Duration::from_millis(20)).await;
        assert_eq!(
            snapshot(&*b).await.leader,
            None,
            "dropped after {polls} polls, and later"
        );
        let other = acquired(&*b, "b", ttl).await;
        b.release(&other, bytes("r"))
            .await
            .expect("the holder releases");
    }
}

/// A succession dropped at any of its await points leaves the lock with the old lease, or with
/// nobody once it was settled; never with a lease that nobody knows.
pub async fn f18_an_abandoned_succession_is_settled(laboratory: &dyn Laboratory) {
    let (a, b) = (laboratory.node().await, laboratory.node().await);
    let (me, ttl) = (name("a"), Duration::from_secs(60));
    let mut finished = false;
    let mut polls = 0;
    while !finished {
        polls += 1;
        assert!(polls < MOST_POLLS, "a succession is done at last");
        let old = acquired(&*a, "a", ttl).await;
        if let Some(result) = dropped_after(b.succeed(&old.secret, &me, ttl), polls).await {
            let lease = result.expect("the exact secret succeeds");
            b.settle().await.expect("there is nothing to settle");
            assert_holds(&snapshot(&*b).await, "a", &lease);
            b.release(&lease, bytes("r"))
                .await
                .expect("the holder releases");
            finished = true;
        }
        b.settle().await.expect("a healthy store settles");
        laboratory.sleep(Duration::from_millis(20)).await;
        let left = snapshot(&*b).await;
        if left.leader.is_some() {
            assert_holds(&left, "a", &old);
            a.release(&old, bytes("r"))
                .await
                .expect("the old lease still holds the lock");
        }
        assert_eq!(
            snapshot(&*b).await.leader,
            None,
            "dropped after {polls} polls"
        );
    }
}

/// More than any backend's acquire takes.
const MOST_POLLS: u32 = 200;
