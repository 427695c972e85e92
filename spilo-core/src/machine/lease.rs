//! When this node may write: the laws of the lease and of consent, as arithmetic.
//!
//! 1. A lease counts from when its request left, never from when the answer came.
//! 2. Writes end strictly before the lease does: the hard deadline is `base + ttl x 99 % - B`.
//!    1 % is the greatest difference between the rates of two clocks, B the fence's worst time.
//! 3. `base` is the older of two moments: when the last renewal that succeeded left, and when the
//!    last read that showed the key to be ours left. A store may keep a lease alive whose key
//!    somebody deleted, and then the renewals alone would prove nothing.
//! 4. An epoch that was given up is never held again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cluster::ReleaseDocument;
use crate::dcs::{LeaderRecord, Lease};
use crate::guard::Deadline;
use crate::ids::{Epoch, MemberName, Revision};
use crate::mutant::{Mutant, planted};
use crate::status::{Leadership, PermittedBy};
use crate::time::NodeTime;

/// The lock, held by this node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holding {
    /// The lease.
    pub lease: Lease,
    /// When the request left that the lease lives by: the acquisition, or the latest renewal that
    /// succeeded.
    pub renewed: NodeTime,
    /// When the latest read left that showed the lock to be ours.
    pub confirmed: NodeTime,
    /// Whether the latest renewal failed.
    pub failing: bool,
    /// When all who held the lock before cannot write any more; `None` until a read that left
    /// after the acquisition said who they were.
    pub clear: Option<NodeTime>,
    /// Whether the store has the record of this holding. Nothing is written by it before: a
    /// candidate that never saw the leader key must find out that there was a holder.
    pub recorded: bool,
}

/// The consent of all members, held by a primary without the store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Consent {
    /// The lease that the permission continues.
    pub lease: Lease,
    /// When the first request of the round left that all accepted.
    pub asked: NodeTime,
}

/// A promise to another node not to acquire, hold or promote.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Promise {
    /// The primary that asked.
    pub to: MemberName,
    /// Until when.
    pub until: NodeTime,
}

/// Who held the lock before, for as long as it may still write.
///
/// A lock that vanished is not a lease that ended: keys get deleted, stores get wiped, and an old
/// etcd leader may revoke early. A candidate therefore waits out the longest possible deadline of
/// the holder before it, unless it has proof that this one cannot write any more.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Predecessor {
    /// Its name, if the key held one.
    pub name: Option<MemberName>,
    /// The leader key as last seen; `None` if this agent never saw one.
    pub record: Option<LeaderRecord>,
    /// The holding that the `release` key told of, if this agent never saw its leader key.
    pub told: Option<Epoch>,
    /// The longest ttl it may have had, as far as that is known.
    pub ttl: Option<Duration>,
    /// When the first answer came that showed the key gone; `None` while it is there.
    pub gone: Option<NodeTime>,
    /// The revision of that answer.
    pub gone_revision: Option<Revision>,
    /// How long its lease lasted when the store was asked: when the question left, and the rest.
    pub left: Option<(NodeTime, Duration)>,
    /// Until when an earlier holding of the same node may be what its guard goes by, if that one
    /// lasts longer: a node that takes its own lock over may die before it knows that it did.
    pub older_until: Option<NodeTime>,
    /// Why it cannot write any more, once that is proven.
    pub proof: Option<Proof>,
}

/// Who held the lock before the last holder.
///
/// A holder waits for those before it, and then leaves its record and writes. One without a record
/// may still be waiting for somebody who writes, and what is proven of it proves nothing of him.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Earlier {
    /// The holding whose record the store has, and which is one of them.
    pub record: Option<Epoch>,
    /// When the last of them cannot write any more.
    pub until: NodeTime,
}

/// Why a former holder of the lock cannot write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Proof {
    /// It left the record of a release in the transaction that removed the key.
    Released,
    /// The store says that the lease ended, and the key went when it should by our own clock.
    Aged,
    /// It says so itself: its server is down or a standby.
    Vouched,
    /// It is this node, whose own server is known.
    Own,
    /// There never was one: the cluster is new.
    NewCluster,
}

impl Proof {
    /// Returns whether it shows that the holder does not live on by consent either: the end of a
    /// lease alone does not.
    pub(crate) fn ends_consent(self) -> bool {
        match self {
            Self::Released | Self::Vouched | Self::Own | Self::NewCluster => true,
            Self::Aged => false,
        }
    }
}

impl Holding {
    /// Creates the holding that a request which left at `sent` brought.
    pub fn new(lease: Lease, sent: NodeTime) -> Self {
        Self {
            lease,
            renewed: sent,
            confirmed: sent,
            failing: false,
            clear: None,
            recorded: planted(Mutant::RecordNotAwaited),
        }
    }

    /// Returns the document that records this holding.
    pub fn record(&self, me: &MemberName) -> ReleaseDocument {
        ReleaseDocument {
            epoch: self.lease.epoch,
            name: me.to_string(),
            ttl: Some(self.lease.ttl),
            taken: true,
            position: None,
            candidate: None,
            revision: Revision(0),
        }
    }

    /// Returns the moment that the permission counts from.
    pub fn base(&self) -> NodeTime {
        if planted(Mutant::UnconfirmedRenewal) {
            return self.renewed;
        }
        self.renewed.min(self.confirmed)
    }

    /// Returns whether the lease itself can still be alive by this node's clock.
    pub fn is_alive(&self, now: NodeTime) -> bool {
        now < self.renewed + self.lease.ttl
    }

    /// Returns the permission to write that it gives.
    pub fn leadership(&self, fence_budget: Duration) -> Leadership {
        let until = hard(self.base(), self.lease.ttl, fence_budget);
        Leadership {
            epoch: self.lease.epoch,
            until,
            by: PermittedBy::Lease,
        }
    }
}

impl Consent {
    /// Returns the permission to write that it gives.
    pub fn leadership(&self, fence_budget: Duration) -> Leadership {
        let until = hard(self.asked, self.lease.ttl, fence_budget);
        Leadership {
            epoch: self.lease.epoch,
            until,
            by: PermittedBy::Consent,
        }
    }
}

impl Predecessor {
    /// Returns the end of its longest possible deadline, or `None` while it holds the lock.
    ///
    /// It cannot have confirmed its lock after the key was gone, and the key was gone when the
    /// answer came that showed it.
    pub fn may_write_until(&self) -> Option<NodeTime> {
        if planted(Mutant::VanishedIsEnded) {
            return self.gone;
        }
        let until = self.gone.map(|gone| gone + self.longest())?;
        Some(self.older_until.map_or(until, |older| until.max(older)))
    }

    /// Returns how long it may go on writing after its lock is gone, at most.
    pub fn longest(&self) -> Duration {
        self.ttl.unwrap_or(UNKNOWN_TTL)
    }

    /// Returns whether its key went when the lease was to end that the store told of last.
    ///
    /// The store tells whole seconds, and is late by up to one and a half to remove a key. A key
    /// that went later had been renewed since, and when *that* lease was to end is not known; and
    /// what was heard long before the end says nothing about renewals in between.
    pub fn went_in_time(&self, now: NodeTime) -> bool {
        let (Some(gone), Some((asked, left))) = (self.gone, self.left) else {
            return false;
        };
        let end = asked + left;
        let in_time = now >= end && gone <= end + REMOVED_LATE;
        if planted(Mutant::RevokedIsAged) {
            return true;
        }
        in_time && left <= HEARD_EARLY && self.older_until.is_none_or(|older| now >= older)
    }

    /// Returns why it cannot write any more at `now`, or until when it may.
    ///
    /// # Errors
    /// The end of its longest possible deadline; `NodeTime(u64::MAX)` while it holds the lock.
    pub fn cannot_write(&self, now: NodeTime) -> Result<Option<Proof>, NodeTime> {
        if self.proof.is_some() {
            return Ok(self.proof);
        }
        self.waited_out(now)
    }

    /// Returns as [`cannot_write`](Self::cannot_write), by the clock alone.
    ///
    /// # Errors
    /// As there.
    pub fn waited_out(&self, now: NodeTime) -> Result<Option<Proof>, NodeTime> {
        match self.may_write_until() {
            Some(until) if now >= until => Ok(None),
            Some(until) => Err(until),
            None => Err(NodeTime(u64::MAX)),
        }
    }

    /// Returns the epoch of the holding, if it is known.
    pub fn epoch(&self) -> Option<Epoch> {
        let seen = self.record.as_ref().map(|record| record.epoch);
        seen.max(self.told)
    }
}

/// Returns the guard's deadline for a permission that ends at `until`.
pub fn deadline(leadership: &Leadership, lease: &Lease) -> Deadline {
    Deadline {
        epoch: leadership.epoch,
        secret: lease.secret.clone(),
        soft: leadership.until.before(soft_margin(lease.ttl)),
        hard: leadership.until,
    }
}

/// Returns whether a deadline that the guard has is as good as the one it should have.
///
/// A hundredth of the ttl more is not worth a message. More than that is: it is missing from the
/// time for which the store may be away.
pub fn is_as_good(armed: &Deadline, wanted: &Deadline, ttl: Duration) -> bool {
    let enough = if planted(Mutant::LateArmed) {
        renew_every(ttl) / 4
    } else {
        ttl / 100
    };
    armed.epoch == wanted.epoch && wanted.hard.since(armed.hard) < enough
}

/// Returns how often the lock is renewed.
pub fn renew_every(ttl: Duration) -> Duration {
    ttl / 4
}

/// Returns when writes end by a lease of which `base` is the beginning.
pub fn hard(base: NodeTime, ttl: Duration, fence_budget: Duration) -> NodeTime {
    if planted(Mutant::NoFenceMargin) {
        return base + ttl;
    }
    (base + ttl)
        .before(ttl / RATE_DIFFERENCE)
        .before(fence_budget)
}

/// A fast stop of a server with level standbys takes some tens of milliseconds; a sixth of the
/// ttl leaves room for a busy one, and two seconds is where waiting longer loses more writes than
/// a kill would.
fn soft_margin(ttl: Duration) -> Duration {
    (ttl / 6).clamp(Duration::from_millis(400), Duration::from_secs(2))
}

/// Patroni's default, which is longer than any that spilo sets by itself.
const UNKNOWN_TTL: Duration = Duration::from_secs(30);

/// etcd tells whole seconds (one may be missing), looks for ended leases twice a second, and may be
/// busy; and the answer that shows it has a way to go.
const REMOVED_LATE: Duration = Duration::from_secs(3);

/// While a leader is suspected to be gone, its lease is asked for more often than this.
const HEARD_EARLY: Duration = Duration::from_secs(2);

/// One hundredth: no two clocks that are kept by NTP, or by nobody, differ more in rate.
const RATE_DIFFERENCE: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dcs::LeaseSecret;

    fn lease(ttl: u64) -> Lease {
        Lease {
            epoch: Epoch(7),
            secret: LeaseSecret("s".to_owned()),
            ttl: Duration::from_secs(ttl),
        }
    }

    const BUDGET: Duration = Duration::from_millis(250);

    #[test]
    fn writes_end_before_the_lease_does() {
        let holding = Holding::new(lease(10), NodeTime(1000));
        assert_eq!(
            holding.leadership(BUDGET).until,
            NodeTime(1000 + 9900 - 250)
        );
    }

    #[test]
    fn a_renewal_without_a_confirming_read_extends_nothing() {
        let mut holding = Holding::new(lease(10), NodeTime(1000));
        holding.renewed = NodeTime(6000);
        assert_eq!(
            holding.leadership(BUDGET).until,
            NodeTime(1000 + 9900 - 250)
        );
        holding.confirmed = NodeTime(5000);
        assert_eq!(
            holding.leadership(BUDGET).until,
            NodeTime(5000 + 9900 - 250)
        );
    }

    #[test]
    fn a_candidate_outlasts_every_deadline_of_a_vanished_holder() {
        // The holder's last confirming read left at most when the key was found gone.
        let holding = Holding::new(lease(10), NodeTime(50_000));
        let gone = Predecessor {
            name: None,
            record: None,
            told: None,
            ttl: Some(Duration::from_secs(10)),
            gone: Some(NodeTime(50_000)),
            gone_revision: None,
            left: None,
            older_until: None,
            proof: None,
        };
        let free = gone.may_write_until().unwrap();
        assert!(holding.leadership(Duration::ZERO).until < free);
        assert_eq!(
            gone.cannot_write(free.before(Duration::from_millis(1))),
            Err(free)
        );
        assert_eq!(gone.cannot_write(free), Ok(None));
    }

    #[test]
    fn the_soft_deadline_leaves_time_before_the_hard_one() {
        for (ttl, margin) in [(3, 500), (10, 1666), (30, 2000)] {
            let holding = Holding::new(lease(ttl), NodeTime(100_000));
            let deadline = deadline(&holding.leadership(BUDGET), &holding.lease);
            assert_eq!(
                deadline.hard - deadline.soft,
                Duration::from_millis(margin),
                "ttl {ttl}"
            );
        }
    }
}
