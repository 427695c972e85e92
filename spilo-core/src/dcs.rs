//! The store that the nodes of a cluster agree through.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, MemberName, Revision};

#[doc = include_str!("dcs/guide.md")]
pub mod guide {}

/// A linearisable key-value store with leases, scoped to one cluster.
///
/// # Contract
/// - [`read`](Self::read) is one linearisable snapshot: everything in it is of one revision, and it
///   includes every write that was acknowledged before the read began.
/// - The revision grows with every change that a snapshot shows, deletions and the ends of leases
///   included: two states that differ are never of one revision.
/// - At most one lease holds the lock at any revision, and nobody else gets it, whatever its name.
///   The lock is held until the lease is released, revoked, or ends of age, and never ends before
///   `ttl` has passed on the store's clock since the last acknowledged [`renew`](Self::renew)
///   *began*. It may end later, by at most [`Capabilities::release_slack`], and a ttl under
///   [`Capabilities::ttl_min`] may be taken for that. A store that may end a lease early keeps the
///   lock back instead ([`Capabilities::lock_delay_max`]).
/// - `Epoch` is the revision at which the leader key was written, so that a later holding has a
///   greater one. Renewals do not change it.
/// - A request whose outcome is not known fails with [`DcsErrorKind::Indeterminate`], never with
///   [`DcsErrorKind::Unavailable`]: that one promises that nothing was done.
/// - Every method answers within the time that the backend was configured with. The caller may
///   drop any future at any time; what was sent may then have been done.
/// - `read`, the lease methods, the writes and `changed` may be called at the same time from
///   different tasks and do not wait for each other: a slow snapshot must not delay a renewal.
/// - Nothing renews by itself: a lease that nobody renews ends.
///
/// A store may leave out what has a default here: [`lease_ended`](Self::lease_ended),
/// [`lease_left`](Self::lease_left) and [`changed`](Self::changed).
///
/// # Examples
/// A store in 200 lines is in `conformance::dcs`, with the tests that it passes (feature
/// `conformance`). How to write one is told in [`guide`].
#[async_trait]
pub trait Dcs: Send + Sync + fmt::Debug {
    /// Returns what this store can do.
    fn capabilities(&self) -> Capabilities;

    /// Reads everything about the cluster at one revision.
    ///
    /// # Errors
    /// `Unavailable` when no answer came; `Refused` when the store answered with an error that
    /// a retry does not mend (wrong credentials).
    async fn read(&self) -> Result<RawSnapshot, DcsError>;

    /// Takes the lock if nobody holds it, with a new lease.
    ///
    /// # Errors
    /// `Conflict` when somebody holds it, be it under the name `me` and by this very handle; the
    /// lock is then not waited for. `Indeterminate` also when it was lost but the lease that
    /// it was tried with could not be given back. After `Indeterminate`, and after the future was
    /// dropped, the caller must call [`settle`](Self::settle) before it tries again.
    async fn acquire(&self, me: &MemberName, ttl: Duration) -> Result<Lease, DcsError>;

    /// Passes the lock from an earlier incarnation of `me` to this one, in one transaction that
    /// compares exactly the lease in `old`. That one is void from then on; the new one is of a later
    /// epoch, and lasts for its own `ttl`, counted from this request.
    ///
    /// # Errors
    /// `Conflict` when the lock is no longer held by exactly that lease. Otherwise as
    /// [`acquire`](Self::acquire).
    async fn succeed(
        &self,
        old: &LeaseSecret,
        me: &MemberName,
        ttl: Duration,
    ) -> Result<Lease, DcsError>;

    /// Makes sure that no earlier `acquire` or `succeed` of this handle with an unknown outcome
    /// holds the lock or can still take it, by revoking the leases they were made with. What was
    /// answered is not touched.
    ///
    /// So a handle remembers such a lease from before the request leaves until its future cannot be
    /// dropped any more: past its last `.await`. A store whose requests never wait for anything has
    /// nothing to settle.
    ///
    /// Not to be called while an `acquire` or `succeed` is under way.
    ///
    /// # Errors
    /// Any failure means that it is still not known.
    async fn settle(&self) -> Result<(), DcsError>;

    /// Makes the lease last for its full time again, counted from when the request left.
    ///
    /// Need not notice that somebody deleted the leader key while the lease lives on: the caller
    /// counts on nothing that a snapshot has not confirmed since.
    ///
    /// # Errors
    /// `Conflict` when the lease has ended, by age, by a release or by a succession, or, as far as
    /// the backend looks, the lock is not held by it any more.
    async fn renew(&self, lease: &Lease) -> Result<(), DcsError>;

    /// Gives the lock up, ends the lease, and leaves `record` at [`Key::Release`], over an earlier
    /// one, in the same transaction, so that others see that it was given up rather than that it
    /// vanished.
    ///
    /// # Errors
    /// `Conflict` when the lock is not held by this lease.
    async fn release(&self, lease: &Lease, record: Bytes) -> Result<(), DcsError>;

    /// Writes the empty `initialize` key if there is none, bound to the lease, so that it goes
    /// when the bootstrapper dies or gives the lock up. A [`put`](Self::put) over it unbinds it.
    ///
    /// # Errors
    /// `Conflict` when the key exists, whatever is in it, or the lock is not held by this lease.
    async fn claim_initialize(&self, lease: &Lease) -> Result<(), DcsError>;

    /// Writes this node's member record, which vanishes when it was not written for `ttl`, whatever
    /// becomes of the others and of the lock. Writing the same bytes again need not be a change.
    ///
    /// # Errors
    /// Nothing conflicts with it. A caller that does not know whether it was done does it again.
    async fn announce(&self, me: &MemberName, record: Bytes, ttl: Duration)
    -> Result<(), DcsError>;

    /// Writes a document, which stays until it is deleted, and returns the revision that a snapshot
    /// shows it with. Writing the same bytes again need not be a change.
    ///
    /// # Errors
    /// `Conflict` when `expect` does not hold.
    async fn put(&self, key: Key, value: Bytes, expect: Expect) -> Result<Revision, DcsError>;

    /// Deletes a document; succeeds when there is none and `expect` allows that.
    ///
    /// # Errors
    /// `Conflict` when `expect` does not hold.
    async fn delete(&self, key: Key, expect: Expect) -> Result<(), DcsError>;

    /// Returns whether the lease of an earlier holder has ended of age, proven by the store.
    ///
    /// A store that cannot tell returns `false`, which is always safe, and leaves
    /// [`LeaderRecord::lease_id`] out: an id there promises that the end is told some time.
    async fn lease_ended(&self, _holder: &LeaderRecord) -> Result<bool, DcsError> {
        Ok(false)
    }

    /// Returns how much longer the lease of the holder lasts if it is not renewed, rounded down;
    /// `None` when the store cannot tell or the lease has ended.
    async fn lease_left(&self, _holder: &LeaderRecord) -> Result<Option<Duration>, DcsError> {
        Ok(None)
    }

    /// Returns when something of the cluster may have changed after `since`.
    ///
    /// A hint and no more: it may come late, twice, for nothing, or never. A backend leaves out
    /// what changes all the time and wakes nobody up for good reason (`status`), and may leave out a
    /// member of which only the position moved ([`is_news`](crate::cluster::is_news)).
    async fn changed(&self, _since: Revision) -> Result<(), DcsError> {
        std::future::pending().await
    }
}

/// What a store can do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The backend's name, as it stands in messages.
    pub name: &'static str,
    /// The shortest time to live that the store honours.
    pub ttl_min: Duration,
    /// How much later than `ttl` the store may let go of the lock of a dead holder.
    pub release_slack: Duration,
    /// For how long after a lease ended by itself nobody gets the lock though no snapshot shows a
    /// holder: for the lease's ttl, and at most for this. A store that keeps a lock back makes up
    /// for leases that it may end early. Not after a release, a deletion by hand or a
    /// [`settle`](Dcs::settle).
    pub lock_delay_max: Duration,
    /// Whether [`Expect::Leader`] is checked by the store in the transaction of the write. The
    /// conformance suite asks for it: without, a deposed leader can write over its successor.
    pub fences_writes: bool,
    /// Whether [`Dcs::changed`] ever returns.
    pub watches: bool,
}

impl Capabilities {
    /// Returns the capabilities of a store that honours any ttl, lets go at once, keeps nothing
    /// back, fences writes and watches.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            ttl_min: Duration::from_secs(1),
            release_slack: Duration::ZERO,
            lock_delay_max: Duration::ZERO,
            fences_writes: true,
            watches: true,
        }
    }
}

/// Everything about one cluster at one revision, as bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RawSnapshot {
    /// The revision of the store that this is a picture of.
    pub revision: Revision,
    /// Who holds the lock.
    pub leader: Option<LeaderRecord>,
    /// The member records by name, with the revision each was written at.
    pub members: BTreeMap<String, Entry>,
    /// The documents that exist.
    pub documents: BTreeMap<Key, Entry>,
}

/// A value and when it was written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Entry {
    /// The bytes as stored.
    #[serde(with = "crate::journal::form::bytes")]
    pub value: Bytes,
    /// The revision at which they were last written.
    pub revision: Revision,
}

/// The leader key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LeaderRecord {
    /// The value: a bare member name, if its writer kept to the contract.
    #[serde(with = "crate::journal::form::bytes")]
    pub name: Bytes,
    /// The revision at which the key was written.
    pub epoch: Epoch,
    /// The store's id of the lease that the key hangs on, if it has one and
    /// [`Dcs::lease_ended`] can tell of its end.
    pub lease_id: Option<u64>,
}

/// The lock, held.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lease {
    /// This holding.
    pub epoch: Epoch,
    /// What identifies the lease to the store.
    pub secret: LeaseSecret,
    /// The time that each renewal gives it.
    pub ttl: Duration,
}

/// What a backend needs to know a lease again after a restart; opaque to everybody else.
///
/// The guard keeps it for the next agent, hence text of one line.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LeaseSecret(pub String);

/// The documents of a cluster, by their names in the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Key {
    /// `initialize`: absent, empty while somebody bootstraps, then the system identifier.
    Initialize,
    /// `config`: the dynamic configuration.
    Config,
    /// `status`: the leader's position.
    Status,
    /// `failover`: a switchover or failover that somebody asked for.
    Failover,
    /// `sync`: the state of synchronous replication.
    Sync,
    /// `history`: the ends of the timelines so far.
    History,
    /// `failsafe`: the members whose consent keeps a primary without the store.
    Failsafe,
    /// `release`: who gave the lock up last, and where; spilo's own addition.
    Release,
    /// `optime/leader`: the leader's position for readers older than Patroni 2.1.
    LegacyOptime,
}

impl Key {
    /// Every document there is.
    pub const ALL: [Self; 9] = [
        Self::Initialize,
        Self::Config,
        Self::Status,
        Self::Failover,
        Self::Sync,
        Self::History,
        Self::Failsafe,
        Self::Release,
        Self::LegacyOptime,
    ];

    /// Returns the path below the cluster's own.
    pub fn path(self) -> &'static str {
        match self {
            Self::Initialize => "initialize",
            Self::Config => "config",
            Self::Status => "status",
            Self::Failover => "failover",
            Self::Sync => "sync",
            Self::History => "history",
            Self::Failsafe => "failsafe",
            Self::Release => "release",
            Self::LegacyOptime => "optime/leader",
        }
    }
}

/// What must hold for a write to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Expect {
    /// Nothing.
    Anything,
    /// The key does not exist.
    Absent,
    /// The key was last written at this revision.
    Revision(Revision),
    /// The lock is held in this epoch, whatever the key's own state.
    Leader(Epoch),
}

/// A request to the store that failed.
#[derive(Debug, thiserror::Error)]
#[error("{backend}: cannot {action}: {problem}")]
pub struct DcsError {
    backend: &'static str,
    action: String,
    problem: String,
    kind: DcsErrorKind,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What the caller of a failed request may conclude.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DcsErrorKind {
    /// Nothing was done; try again, here or later.
    Unavailable,
    /// It is not known whether it was done; look before acting.
    Indeterminate,
    /// Nothing was done, because something else was already there.
    Conflict,
    /// Nothing was done, and trying again does not help until somebody mends the cause
    /// (credentials, permissions, a request the store does not take).
    Refused,
}

impl DcsError {
    /// Creates an error of `backend`, which was about to `action` (in the infinitive).
    pub fn new(
        backend: &'static str,
        kind: DcsErrorKind,
        action: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        Self {
            backend,
            action: action.into(),
            problem: problem.into(),
            kind,
            source: None,
        }
    }

    /// Keeps the error that caused this one.
    #[must_use]
    pub fn because(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// Returns what the caller may conclude.
    pub fn kind(&self) -> DcsErrorKind {
        self.kind
    }
}

impl fmt::Debug for LeaseSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LeaseSecret(***)")
    }
}
