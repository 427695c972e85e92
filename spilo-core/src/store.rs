//! The reference store: what a [`Dcs`](crate::Dcs) does, as a value.
//!
//! [`Store`] is the specification of a backend. It holds one cluster, reads no clock (every call
//! takes `now`, on one clock for all callers: the store's) and never waits. The memory backend
//! wraps it, the simulator and the model checker step it, and every other backend passes the
//! conformance suite that the memory backend passes.
//!
//! What a store may do and this one does not: let go of a lease later than its end
//! ([`Capabilities::release_slack`](crate::dcs::Capabilities)), and lose answers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::cluster::is_news;
use crate::dcs::{Entry, Expect, Key, LeaderRecord, Lease, LeaseSecret, RawSnapshot};
use crate::ids::{Epoch, MemberName, Revision};
use crate::time::NodeTime;

/// A linearisable store of one cluster, as a pure value.
///
/// # Contract
/// - Each call is one transaction. One that changes something takes the next revision; one that
///   fails, and one that only lengthens a lease, changes nothing that a snapshot shows.
/// - Leases end by themselves: each call first ends those whose time is over at its `now`, all of
///   them in one revision. `now` must not go back.
/// - The leader key hangs on a lease and goes when the lease ends. A lease outlives a leader key
///   that was deleted by hand: [`renew`](Self::renew) does not notice, the next snapshot does.
/// - Lease ids are chosen by the caller ([`new_lease_id`](Self::new_lease_id)), so that a request
///   without an answer can be undone: once [`revoke`](Self::revoke) was called with an id, no
///   request that names it ever succeeds, however late it arrives.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use spilo_core::store::Store;
/// use spilo_core::{MemberName, NodeTime};
///
/// let me = MemberName::new("a")?;
/// let mut store = Store::default();
/// let id = store.new_lease_id();
/// let lease = store.acquire(NodeTime(0), id, &me, Duration::from_secs(10))?;
/// store.renew(NodeTime(9_000), &lease)?;
/// assert!(store.snapshot(NodeTime(18_999)).leader.is_some());
/// assert!(store.snapshot(NodeTime(19_000)).leader.is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Store {
    revision: u64,
    /// The last revision with something in it that a watcher is woken for.
    noticed: u64,
    last_lease_id: u64,
    leases: BTreeMap<u64, Running>,
    revoked: BTreeSet<u64>,
    leader: Option<LeaderRecord>,
    members: BTreeMap<String, (Entry, NodeTime)>,
    documents: BTreeMap<Key, Document>,
}

/// A request that was not done, because something else was already there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{0}")]
pub struct Conflict(pub &'static str);

/// A lease that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Running {
    ends: NodeTime,
    ttl: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Document {
    entry: Entry,
    lease_id: Option<u64>,
}

impl Store {
    /// Returns everything at the present revision.
    pub fn snapshot(&mut self, now: NodeTime) -> RawSnapshot {
        self.expire(now);
        RawSnapshot {
            revision: Revision(self.revision),
            leader: self.leader.clone(),
            members: self
                .members
                .iter()
                .map(|(n, (e, _))| (n.clone(), e.clone()))
                .collect(),
            documents: self
                .documents
                .iter()
                .map(|(k, d)| (*k, d.entry.clone()))
                .collect(),
        }
    }

    /// Returns a lease id that was never returned before; it must be kept before it is used.
    pub fn new_lease_id(&mut self) -> u64 {
        self.last_lease_id += 1;
        self.last_lease_id
    }

    /// Takes the lock with a new lease, if nobody holds it.
    ///
    /// # Errors
    /// Somebody holds it, or the lease id was used or revoked before.
    pub fn acquire(
        &mut self,
        now: NodeTime,
        lease_id: u64,
        me: &MemberName,
        ttl: Duration,
    ) -> Result<Lease, Conflict> {
        self.expire(now);
        if self.leader.is_some() {
            return Err(Conflict("the lock is held"));
        }
        self.grant(now, lease_id, ttl)?;
        Ok(self.take(lease_id, me, ttl))
    }

    /// Passes the lock from the lease in `old` to a new one, and ends the old one.
    ///
    /// # Errors
    /// The lock is not held by exactly that lease, or the lease id was used or revoked before.
    pub fn succeed(
        &mut self,
        now: NodeTime,
        lease_id: u64,
        old: &LeaseSecret,
        me: &MemberName,
        ttl: Duration,
    ) -> Result<Lease, Conflict> {
        self.expire(now);
        let old_id = self.held_by(old)?;
        self.grant(now, lease_id, ttl)?;
        let lease = self.take(lease_id, me, ttl);
        self.end(&BTreeSet::from([old_id]));
        Ok(lease)
    }

    /// Ends a lease and everything that hangs on it, and makes sure that no request with this id
    /// succeeds from now on.
    pub fn revoke(&mut self, now: NodeTime, lease_id: u64) {
        self.expire(now);
        self.revoked.insert(lease_id);
        self.end(&BTreeSet::from([lease_id]));
    }

    /// Makes the lease last for its full time from `now`.
    ///
    /// # Errors
    /// The lease has ended. That the leader key was deleted under a living lease is not noticed.
    pub fn renew(&mut self, now: NodeTime, lease: &Lease) -> Result<(), Conflict> {
        self.expire(now);
        let id = parse(&lease.secret).map_or(0, |(id, _)| id);
        let running = self
            .leases
            .get_mut(&id)
            .ok_or(Conflict("the lease has ended"))?;
        running.ends = now + running.ttl;
        Ok(())
    }

    /// Gives the lock up, ends the lease and leaves `record` at [`Key::Release`], all in one
    /// revision.
    ///
    /// # Errors
    /// The lock is not held by this lease.
    pub fn release(&mut self, now: NodeTime, lease: &Lease, record: Bytes) -> Result<(), Conflict> {
        self.expire(now);
        let id = self.held_by(&lease.secret)?;
        self.advance(true);
        self.leader = None;
        self.leases.remove(&id);
        self.documents.retain(|_, d| d.lease_id != Some(id));
        self.write(Key::Release, record, None);
        Ok(())
    }

    /// Writes the empty `initialize` key, which goes when the lease ends.
    ///
    /// # Errors
    /// The key exists, or the lock is not held by this lease.
    pub fn claim_initialize(&mut self, now: NodeTime, lease: &Lease) -> Result<(), Conflict> {
        self.expire(now);
        let id = self.held_by(&lease.secret)?;
        if self.documents.contains_key(&Key::Initialize) {
            return Err(Conflict("the initialize key exists"));
        }
        self.advance(true);
        self.write(Key::Initialize, Bytes::new(), Some(id));
        Ok(())
    }

    /// Writes a member record, which vanishes when it was not written again for `ttl`. Writing
    /// the bytes that are there already takes no revision.
    pub fn announce(&mut self, now: NodeTime, me: &MemberName, record: Bytes, ttl: Duration) {
        self.expire(now);
        let before = self.members.get(me.as_str()).map(|(entry, _)| &entry.value);
        let same = before == Some(&record);
        let noticed = before.is_none_or(|before| is_news(before, &record));
        if !same {
            self.advance(noticed);
        }
        let revision = match self.members.get(me.as_str()) {
            Some((entry, _)) if same => entry.revision,
            _ => Revision(self.revision),
        };
        let entry = Entry {
            value: record,
            revision,
        };
        self.members
            .insert(me.as_str().to_owned(), (entry, now + ttl));
    }

    /// Writes a document; one that hung on a lease does not any more.
    ///
    /// # Errors
    /// `expect` does not hold.
    pub fn put(
        &mut self,
        now: NodeTime,
        key: Key,
        value: Bytes,
        expect: Expect,
    ) -> Result<Revision, Conflict> {
        self.expire(now);
        self.check(key, expect)?;
        self.advance(is_noticed(key));
        self.write(key, value, None);
        Ok(Revision(self.revision))
    }

    /// Deletes a document; succeeds, without a revision, when there is none and `expect` holds.
    ///
    /// # Errors
    /// `expect` does not hold.
    pub fn delete(&mut self, now: NodeTime, key: Key, expect: Expect) -> Result<(), Conflict> {
        self.expire(now);
        self.check(key, expect)?;
        if self.documents.remove(&key).is_some() {
            self.advance(is_noticed(key));
        }
        Ok(())
    }

    /// Returns how much longer the lease of `holder` lasts, in whole seconds as a real store tells
    /// it; `None` when it has ended.
    pub fn lease_left(&mut self, now: NodeTime, holder: &LeaderRecord) -> Option<Duration> {
        self.expire(now);
        let running = self.leases.get(&holder.lease_id?)?;
        Some(Duration::from_secs(running.ends.since(now).as_secs()))
    }

    /// Returns whether the lease of an earlier holder is known no more.
    pub fn lease_ended(&mut self, now: NodeTime, holder: &LeaderRecord) -> bool {
        self.expire(now);
        holder
            .lease_id
            .is_some_and(|id| id <= self.last_lease_id && !self.leases.contains_key(&id))
    }

    /// Returns whether something that a watcher is woken for was written after `since`: anything
    /// but positions, which change all the time and which nobody waits for.
    pub fn changed(&mut self, now: NodeTime, since: Revision) -> bool {
        self.expire(now);
        self.noticed > since.0
    }

    /// Returns when the next lease ends if nobody renews it.
    pub fn next_end(&self) -> Option<NodeTime> {
        let leases = self.leases.values().map(|l| l.ends);
        leases
            .chain(self.members.values().map(|(_, ends)| *ends))
            .min()
    }

    /// Lets every lease last for its full time from `now`, as a store does that has elected a leader
    /// which does not know when they were renewed.
    pub fn begin_leases_anew(&mut self, now: NodeTime) {
        self.expire(now);
        for running in self.leases.values_mut() {
            running.ends = now + running.ttl;
        }
    }

    /// Deletes the leader key as somebody with a command line would: the lease lives on.
    pub fn delete_leader(&mut self, now: NodeTime) {
        self.expire(now);
        if self.leader.take().is_some() {
            self.advance(true);
        }
    }

    /// Writes the leader key as somebody with a command line would: on no lease, and any bytes.
    pub fn overwrite_leader(&mut self, now: NodeTime, name: Bytes) {
        self.expire(now);
        self.advance(true);
        self.leader = Some(LeaderRecord {
            name,
            epoch: Epoch(self.revision),
            lease_id: None,
        });
    }

    /// Deletes every key, as `patronictl remove` does: the leases live on.
    pub fn wipe(&mut self, now: NodeTime) {
        self.expire(now);
        self.advance(true);
        self.leader = None;
        self.members.clear();
        self.documents.clear();
    }

    fn take(&mut self, lease_id: u64, me: &MemberName, ttl: Duration) -> Lease {
        self.advance(true);
        let epoch = Epoch(self.revision);
        let name = Bytes::copy_from_slice(me.as_str().as_bytes());
        self.leader = Some(LeaderRecord {
            name,
            epoch,
            lease_id: Some(lease_id),
        });
        Lease {
            epoch,
            secret: secret(lease_id, epoch),
            ttl,
        }
    }

    fn grant(&mut self, now: NodeTime, lease_id: u64, ttl: Duration) -> Result<(), Conflict> {
        if self.revoked.contains(&lease_id) || self.leases.contains_key(&lease_id) {
            return Err(Conflict("the lease id was used before"));
        }
        self.last_lease_id = self.last_lease_id.max(lease_id);
        self.leases.insert(
            lease_id,
            Running {
                ends: now + ttl,
                ttl,
            },
        );
        Ok(())
    }

    /// Returns the id of the lease in `secret` if the leader key is exactly the one it wrote.
    fn held_by(&self, secret: &LeaseSecret) -> Result<u64, Conflict> {
        let leader = self
            .leader
            .as_ref()
            .ok_or(Conflict("nobody holds the lock"))?;
        match parse(secret) {
            Some((id, epoch)) if leader.lease_id == Some(id) && leader.epoch == epoch => Ok(id),
            _ => Err(Conflict("the lock is held by another lease")),
        }
    }

    fn check(&self, key: Key, expect: Expect) -> Result<(), Conflict> {
        let there = self.documents.get(&key).map(|d| d.entry.revision);
        let (holds, problem) = match expect {
            Expect::Anything => (true, ""),
            Expect::Absent => (there.is_none(), "the key exists"),
            Expect::Revision(revision) => {
                (there == Some(revision), "the key is not at that revision")
            }
            Expect::Leader(epoch) => (
                self.leader.as_ref().is_some_and(|l| l.epoch == epoch),
                "the lock is not held in that epoch",
            ),
        };
        if holds {
            Ok(())
        } else {
            Err(Conflict(problem))
        }
    }

    fn write(&mut self, key: Key, value: Bytes, lease_id: Option<u64>) {
        let entry = Entry {
            value,
            revision: Revision(self.revision),
        };
        self.documents.insert(key, Document { entry, lease_id });
    }

    fn expire(&mut self, now: NodeTime) {
        let over: BTreeSet<u64> = self
            .leases
            .iter()
            .filter(|(_, l)| l.ends <= now)
            .map(|(id, _)| *id)
            .collect();
        let members = self.members.len();
        self.members.retain(|_, (_, ends)| *ends > now);
        let lost_member = self.members.len() < members;
        // One revision for all that ends at once: a snapshot can never show half of it.
        let ended_a_key = self.end(&over);
        if lost_member && !ended_a_key {
            self.advance(true);
        }
    }

    /// Ends leases; returns whether that deleted a key, and so took a revision.
    fn end(&mut self, ids: &BTreeSet<u64>) -> bool {
        let ended = |id: Option<u64>| id.is_some_and(|id| ids.contains(&id));
        let keys = self.documents.len() + usize::from(self.leader.is_some());
        self.leases.retain(|id, _| !ids.contains(id));
        self.documents.retain(|_, d| !ended(d.lease_id));
        self.leader = self.leader.take().filter(|l| !ended(l.lease_id));
        let lost = self.documents.len() + usize::from(self.leader.is_some()) < keys;
        if lost {
            self.advance(true);
        }
        lost
    }

    fn advance(&mut self, noticed: bool) {
        self.revision += 1;
        if noticed {
            self.noticed = self.revision;
        }
    }
}

fn is_noticed(key: Key) -> bool {
    !matches!(key, Key::Status | Key::LegacyOptime)
}

fn secret(lease_id: u64, epoch: Epoch) -> LeaseSecret {
    LeaseSecret(format!("{lease_id}@{epoch}"))
}

fn parse(secret: &LeaseSecret) -> Option<(u64, Epoch)> {
    let (id, epoch) = secret.0.split_once('@')?;
    Some((id.parse().ok()?, Epoch(epoch.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn name(text: &str) -> MemberName {
        MemberName::new(text).unwrap()
    }

    fn held() -> (Store, Lease) {
        let mut store = Store::default();
        let id = store.new_lease_id();
        let lease = store.acquire(NodeTime(0), id, &name("a"), TTL).unwrap();
        (store, lease)
    }

    #[test]
    fn a_revoked_request_that_arrives_late_takes_nothing() {
        let mut store = Store::default();
        let id = store.new_lease_id();
        store.revoke(NodeTime(0), id);
        assert_eq!(
            store.acquire(NodeTime(1), id, &name("a"), TTL),
            Err(Conflict("the lease id was used before"))
        );
        assert_eq!(store, {
            let mut same = Store::default();
            let id = same.new_lease_id();
            same.revoke(NodeTime(0), id);
            same
        });
    }

    #[test]
    fn what_ends_at_the_same_time_ends_in_one_revision() {
        let (mut store, lease) = held();
        store.claim_initialize(NodeTime(0), &lease).unwrap();
        store.announce(NodeTime(0), &name("a"), Bytes::from_static(b"{}"), TTL);
        let before = store.snapshot(NodeTime(9_999));
        assert_eq!(before.revision, Revision(3));
        assert_eq!(
            store.snapshot(NodeTime(10_000)),
            RawSnapshot {
                revision: Revision(4),
                ..RawSnapshot::default()
            }
        );
    }

    #[test]
    fn positions_wake_nobody() {
        let (mut store, lease) = held();
        let record = |lsn: u64| Bytes::from(format!(r#"{{"xlog_location":{lsn}}}"#));
        store.announce(NodeTime(0), &name("a"), record(1), TTL);
        let since = store.snapshot(NodeTime(0)).revision;
        let by = Expect::Leader(lease.epoch);
        for key in [Key::Status, Key::LegacyOptime] {
            store
                .put(NodeTime(0), key, Bytes::from_static(b"1"), by)
                .unwrap();
        }
        store.announce(NodeTime(0), &name("a"), record(2), TTL);
        assert!(!store.changed(NodeTime(0), since));
        store
            .put(NodeTime(0), Key::Config, Bytes::from_static(b"{}"), by)
            .unwrap();
        assert!(store.changed(NodeTime(0), since));
    }

    #[test]
    fn a_lease_outlives_a_leader_key_deleted_by_hand() {
        let (mut store, lease) = held();
        let holder = store.snapshot(NodeTime(0)).leader.unwrap();
        store.delete_leader(NodeTime(1));
        assert_eq!(store.renew(NodeTime(5_000), &lease), Ok(()));
        assert!(!store.lease_ended(NodeTime(14_999), &holder));
        assert!(store.lease_ended(NodeTime(15_000), &holder));
    }

    #[test]
    fn the_same_requests_give_the_same_store() {
        assert_eq!(held(), held());
        assert_eq!(held().0.next_end(), Some(NodeTime(10_000)));
    }
}
