//! The lock and its leases.

use std::time::Duration;

use super::super::waiting::{Boxed, all};
use super::{
    Laboratory, MARGIN, STEP, acquired, acquired_after_end, assert_holds, bytes, kind, name,
    shortest, snapshot, until_free, value,
};
use crate::dcs::{DcsError, DcsErrorKind, Expect, Key, LeaseSecret};
use crate::ids::Epoch;

/// One acquirer wins, all others are told of the conflict, and the snapshot names the winner.
pub async fn one_of_twenty_racing_acquirers_wins(laboratory: &dyn Laboratory) {
    let mut nodes = Vec::new();
    for i in 0..20 {
        nodes.push((name(&format!("node-{i}")), laboratory.node().await));
    }
    let race = nodes
        .iter()
        .map(|(me, node)| node.acquire(me, LONG))
        .collect();
    let results: Vec<_> = all(race).await.into_iter().map(kind).collect();
    let lost = results
        .iter()
        .filter(|r| **r == Err(DcsErrorKind::Conflict))
        .count();
    assert_eq!(lost, 19, "all but one lose: {results:?}");
    let winner = results
        .iter()
        .position(Result::is_ok)
        .expect("one acquirer wins");
    let lease = results[winner].as_ref().expect("it has won");
    let (me, node) = &nodes[winner];
    assert_holds(&snapshot(&**node).await, me.as_str(), lease);
    node.release(lease, bytes("r"))
        .await
        .expect("the holder releases");
    for _ in 0..2 {
        let leader = snapshot(&**node).await.leader;
        assert_eq!(leader, None, "who was refused does not queue for the lock");
        laboratory.sleep(STEP).await;
    }
}

/// Whoever asks for a lock that is held by its own name is refused, by the handle that holds it
/// and by any other: an earlier incarnation of a node may still be writing.
pub async fn a_name_is_no_claim_to_the_lock(laboratory: &dyn Laboratory) {
    let (a, b) = (laboratory.node().await, laboratory.node().await);
    let (me, lease) = (name("a"), acquired(&*a, "a", LONG).await);
    for node in [&a, &b] {
        assert_eq!(
            kind(node.acquire(&me, LONG).await),
            Err(DcsErrorKind::Conflict)
        );
        node.settle().await.expect("there is nothing to settle");
        assert_holds(&snapshot(&*b).await, "a", &lease);
    }
    a.renew(&lease).await.expect("the first lease lives on");
}

/// The lease of a succession neither ends with the earlier one nor lasts as long as that would
/// have.
pub async fn a_succession_lasts_for_a_ttl_of_its_own(laboratory: &dyn Laboratory) {
    let (old, new) = (laboratory.node().await, laboratory.node().await);
    let ttl = shortest(&*old);
    for earlier in [ttl, LONG] {
        let lease = acquired_after_end(laboratory, &*old, "a", earlier).await;
        laboratory.sleep(ttl / 2).await;
        let sent = laboratory.elapsed();
        let next = new.succeed(&lease.secret, &name("a"), ttl).await;
        let next = next.expect("the exact secret succeeds");
        let ended = until_free(laboratory, &*old, sent, ttl).await;
        assert!(
            ended >= sent + ttl,
            "held for its whole ttl, not {:?}",
            ended - sent
        );
        assert_eq!(kind(new.renew(&next).await), Err(DcsErrorKind::Conflict));
    }
}

/// A lease renewed in time outlives its ttl, and nobody else gets the lock.
pub async fn a_renewed_lease_is_kept(laboratory: &dyn Laboratory) {
    let (a, b) = (laboratory.node().await, laboratory.node().await);
    let ttl = shortest(&*a);
    let lease = acquired(&*a, "a", ttl).await;
    for _ in 0..10 {
        laboratory.sleep(ttl / 4).await;
        a.renew(&lease).await.expect("a living lease is renewed");
    }
    assert_holds(&snapshot(&*b).await, "a", &lease);
    assert_eq!(
        kind(b.acquire(&name("b"), ttl).await),
        Err(DcsErrorKind::Conflict)
    );
}

/// The lease of a dead holder ends at its ttl, counted from the last renewal, and not before; and
/// can then not be renewed.
pub async fn a_lease_that_nobody_renews_ends_at_its_ttl_and_not_before(
    laboratory: &dyn Laboratory,
) {
    let (a, b) = (laboratory.node().await, laboratory.node().await);
    let ttl = shortest(&*a);
    let lease = acquired(&*a, "a", ttl).await;
    laboratory.sleep(ttl / 2).await;
    let sent = laboratory.elapsed();
    a.renew(&lease).await.expect("a living lease is renewed");
    let ended = until_free(laboratory, &*b, sent, ttl).await;
    assert!(
        ended >= sent + ttl,
        "held for its whole ttl, not {:?}",
        ended - sent
    );
    assert_eq!(kind(a.renew(&lease).await), Err(DcsErrorKind::Conflict));
    assert_eq!(
        kind(a.release(&lease, bytes("x")).await),
        Err(DcsErrorKind::Conflict)
    );
    acquired_after_end(laboratory, &*b, "b", ttl).await;
}

/// An epoch given up is never held again: each later holding has a greater one, which is the
/// revision of the leader key.
pub async fn a_later_holding_has_a_greater_epoch(laboratory: &dyn Laboratory) {
    let node = laboratory.node().await;
    let mut last = Epoch(0);
    for _ in 0..3 {
        let lease = acquired(&*node, "a", LONG).await;
        assert!(lease.epoch > last, "{} after {last}", lease.epoch);
        assert_eq!(snapshot(&*node).await.revision.0, lease.epoch.0);
        last = lease.epoch;
        node.release(&lease, bytes("r"))
            .await
            .expect("the holder releases");
    }
}

/// A leader key that somebody deleted is gone from the snapshot, its holder can no longer release
/// or write by it, and the lock can be taken.
pub async fn a_deleted_leader_key_is_seen_and_frees_the_lock(laboratory: &dyn Laboratory) {
    let (a, b) = (laboratory.node().await, laboratory.node().await);
    let lease = acquired(&*a, "a", LONG).await;
    laboratory.delete_leader_key().await;
    assert_eq!(snapshot(&*a).await.leader, None);
    let by = Expect::Leader(lease.epoch);
    assert_eq!(
        kind(a.put(Key::Status, bytes("1"), by).await),
        Err(DcsErrorKind::Conflict)
    );
    assert_eq!(
        kind(a.release(&lease, bytes("r")).await),
        Err(DcsErrorKind::Conflict)
    );
    assert_eq!(value(&snapshot(&*a).await, Key::Release), None);
    let next = acquired(&*b, "b", LONG).await;
    assert!(next.epoch > lease.epoch);
    assert_holds(&snapshot(&*a).await, "b", &next);
}

/// A release frees the lock at once and leaves its record: no snapshot shows the one without the
/// other.
pub async fn a_release_leaves_its_record_in_the_same_revision(laboratory: &dyn Laboratory) {
    let (a, b) = (laboratory.node().await, laboratory.node().await);
    for round in 0..10 {
        let lease = acquired(&*a, "a", LONG).await;
        let record = bytes(&format!("round {round}"));
        let watch: Boxed<'_, Result<(), DcsError>> = Box::pin(async {
            loop {
                let seen = snapshot(&*b).await;
                let left = value(&seen, Key::Release).as_ref() == Some(&record);
                assert_eq!(seen.leader.is_none(), left, "both or neither: {seen:?}");
                if left {
                    return Ok(());
                }
                laboratory.sleep(Duration::from_millis(1)).await;
            }
        });
        for result in all(vec![watch, a.release(&lease, record.clone())]).await {
            result.expect("the holder releases");
        }
        assert_eq!(
            kind(a.release(&lease, bytes("again")).await),
            Err(DcsErrorKind::Conflict)
        );
        let renewed = kind(a.renew(&lease).await);
        assert_eq!(renewed, Err(DcsErrorKind::Conflict), "it was given up");
    }
}

/// The lock passes to the next incarnation by its exact secret only; the earlier lease is void.
pub async fn only_the_exact_secret_succeeds(laboratory: &dyn Laboratory) {
    let (old, new) = (laboratory.node().await, laboratory.node().await);
    let me = name("a");
    let given_up = acquired(&*old, "a", LONG).await;
    old.release(&given_up, bytes("r"))
        .await
        .expect("the holder releases");
    let lease = acquired(&*old, "a", LONG).await;
    for wrong in [
        given_up.secret.clone(),
        LeaseSecret(String::new()),
        LeaseSecret("x@y".into()),
    ] {
        assert_eq!(
            kind(new.succeed(&wrong, &me, LONG).await),
            Err(DcsErrorKind::Conflict)
        );
    }
    assert_holds(&snapshot(&*new).await, "a", &lease);
    let next = new
        .succeed(&lease.secret, &me, LONG)
        .await
        .expect("the exact secret succeeds");
    assert!(next.epoch > lease.epoch);
    assert_holds(&snapshot(&*new).await, "a", &next);
    assert_eq!(kind(old.renew(&lease).await), Err(DcsErrorKind::Conflict));
    assert_eq!(
        kind(old.release(&lease, bytes("r")).await),
        Err(DcsErrorKind::Conflict)
    );
    assert_eq!(
        kind(old.succeed(&lease.secret, &me, LONG).await),
        Err(DcsErrorKind::Conflict),
        "a secret is good for one succession"
    );
    new.renew(&next).await.expect("the next incarnation renews");
    assert_holds(&snapshot(&*new).await, "a", &next);
}

/// `lease_ended` never says of a living lease that it ended, not even when its key was deleted;
/// a store that can tell says it of one that did.
pub async fn the_end_of_a_lease_is_proven_only_when_it_has_ended(laboratory: &dyn Laboratory) {
    let (a, b) = (laboratory.node().await, laboratory.node().await);
    let ttl = shortest(&*a);
    let lease = acquired(&*a, "a", ttl).await;
    let holder = snapshot(&*b).await.leader.expect("the leader key is there");
    assert!(
        !b.lease_ended(&holder)
            .await
            .expect("a healthy store answers")
    );
    laboratory.delete_leader_key().await;
    let sent = laboratory.elapsed();
    // A store whose leases end with their key need not know this one any more.
    let outlives = a.renew(&lease).await.is_ok();
    while holder.lease_id.is_some() {
        let asked = laboratory.elapsed();
        let ended = b
            .lease_ended(&holder)
            .await
            .expect("a healthy store answers");
        if ended {
            let age = laboratory.elapsed() - sent;
            assert!(
                !outlives || age >= ttl,
                "a living lease has not ended: {age:?}"
            );
            break;
        }
        let latest = sent + ttl + b.capabilities().release_slack + MARGIN;
        assert!(
            asked < latest,
            "the end of a lease that has an id is told; a store that cannot tell leaves it out"
        );
        laboratory.sleep(STEP).await;
    }
}

/// `lease_left` never says more than is left, says more again after a renewal, and says nothing
/// of a lease that has ended; a store that cannot tell says nothing at all.
pub async fn what_is_left_of_a_lease_is_never_overstated(laboratory: &dyn Laboratory) {
    let (a, b) = (laboratory.node().await, laboratory.node().await);
    let ttl = shortest(&*a) * 4;
    let lease = acquired(&*a, "a", ttl).await;
    // Counted from an answer on: the store's own count began before it.
    let mut answered = laboratory.elapsed();
    let holder = snapshot(&*b).await.leader.expect("the leader key is there");
    let mut most = Duration::ZERO;
    for renewed in [false, true] {
        laboratory.sleep(ttl * 2 / 5).await;
        if renewed {
            a.renew(&lease).await.expect("a living lease is renewed");
            answered = laboratory.elapsed();
        }
        let asked = laboratory.elapsed();
        let left = b
            .lease_left(&holder)
            .await
            .expect("a healthy store answers");
        let Some(left) = left else { return };
        assert!(left <= (answered + ttl) - asked, "{left:?} of {ttl:?}");
        assert!(
            !renewed || left > most,
            "a renewal gives time: {left:?} after {most:?}"
        );
        most = left;
    }
    a.release(&lease, bytes("r"))
        .await
        .expect("the holder releases");
    let left = b
        .lease_left(&holder)
        .await
        .expect("a healthy store answers");
    assert_eq!(left, None, "a lease that was given back");
}

/// The empty `initialize` key is claimed by the holder of the lock only, while there is none, and
/// vanishes with the lease, also when that is given up; what was written over it stays.
pub async fn a_claim_to_initialize_goes_with_its_lease(laboratory: &dyn Laboratory) {
    let (a, b) = (laboratory.node().await, laboratory.node().await);
    let ttl = shortest(&*a);
    let from = laboratory.elapsed();
    let lease = acquired(&*a, "a", ttl).await;
    a.claim_initialize(&lease).await.expect("the holder claims");
    assert_eq!(
        value(&snapshot(&*b).await, Key::Initialize),
        Some(bytes(""))
    );
    assert_eq!(
        kind(a.claim_initialize(&lease).await),
        Err(DcsErrorKind::Conflict)
    );
    until_free(laboratory, &*b, from, ttl).await;
    assert_eq!(value(&snapshot(&*b).await, Key::Initialize), None);
    assert_eq!(
        kind(a.claim_initialize(&lease).await),
        Err(DcsErrorKind::Conflict)
    );

    let from = laboratory.elapsed();
    let lease = acquired_after_end(laboratory, &*b, "b", ttl).await;
    b.claim_initialize(&lease)
        .await
        .expect("the next holder claims");
    let id = bytes("7710822623212245678");
    let by = Expect::Leader(lease.epoch);
    b.put(Key::Initialize, id.clone(), by)
        .await
        .expect("the holder writes the identifier");
    until_free(laboratory, &*b, from, ttl).await;
    assert_eq!(value(&snapshot(&*b).await, Key::Initialize), Some(id));

    let lease = acquired_after_end(laboratory, &*a, "a", LONG).await;
    assert_eq!(
        kind(a.claim_initialize(&lease).await),
        Err(DcsErrorKind::Conflict),
        "the cluster has its identifier"
    );
    let deleted = a.delete(Key::Initialize, Expect::Leader(lease.epoch)).await;
    deleted.expect("the leader deletes it");
    a.claim_initialize(&lease).await.expect("the holder claims");
    a.release(&lease, bytes("r"))
        .await
        .expect("the holder releases");
    let left = value(&snapshot(&*b).await, Key::Initialize);
    assert_eq!(left, None, "a claim goes with the lease that is given up");
    let lease = acquired(&*b, "b", LONG).await;
    let claimed = b.claim_initialize(&lease).await;
    claimed.expect("what was given up may be claimed at once");
}

/// Longer than any test.
const LONG: Duration = Duration::from_secs(60);
