//! A store of one's own: a map behind a lock, with what the contract of `Dcs` adds to it, and its
//! tests. What a store may leave out is: it neither watches nor tells how long a lease lasts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use spilo_core::dcs::{
    Capabilities, DcsErrorKind, Entry, Expect, Key, LeaderRecord, Lease, LeaseSecret, RawSnapshot,
};
use spilo_core::{Bytes, Dcs, DcsError, Epoch, MemberName, Revision, async_trait};
use tokio::time::Instant;

/// A store in memory. Clones share it, one for each node.
#[derive(Clone, Debug, Default)]
struct MapStore(Arc<Mutex<Rows>>);

#[derive(Debug, Default)]
struct Rows {
    revision: u64,
    map: BTreeMap<String, (Entry, Hung)>,
}

/// The lease that a row goes with: the revision that began it, and when it ends.
type Hung = Option<(u64, Instant)>;
type Outcome<T> = Result<T, DcsError>;
type Answer<T> = Result<T, &'static str>;

#[async_trait]
impl Dcs for MapStore {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new("map");
        capabilities.watches = false;
        capabilities
    }

    async fn read(&self) -> Outcome<RawSnapshot> {
        self.transact(|rows| Ok(rows.snapshot()))
    }

    async fn acquire(&self, me: &MemberName, ttl: Duration) -> Outcome<Lease> {
        self.transact(|rows| match rows.map.get(LEADER) {
            Some(_) => Err("the lock is held"),
            None => Ok(rows.lead(me, ttl)),
        })
    }

    async fn succeed(&self, old: &LeaseSecret, me: &MemberName, ttl: Duration) -> Outcome<Lease> {
        self.transact(|rows| {
            let old = old.0.parse().map_err(|_| "it is no secret of ours")?;
            rows.check_leader(old)?;
            rows.end(|lease, _| lease == old);
            Ok(rows.lead(me, ttl))
        })
    }

    async fn settle(&self) -> Outcome<()> {
        // Nothing is under way when a future is dropped: none of them waits for anything.
        Ok(())
    }

    async fn renew(&self, lease: &Lease) -> Outcome<()> {
        self.transact(|rows| {
            rows.check_leader(lease.epoch.0)?;
            let leases = rows.map.values_mut().filter_map(|(_, hung)| hung.as_mut());
            for (_, ends) in leases.filter(|(id, _)| *id == lease.epoch.0) {
                *ends = Instant::now() + lease.ttl;
            }
            Ok(())
        })
    }

    async fn release(&self, lease: &Lease, record: Bytes) -> Outcome<()> {
        self.transact(|rows| {
            rows.check_leader(lease.epoch.0)?;
            rows.end(|id, _| id == lease.epoch.0);
            rows.write(Key::Release.path(), record, None);
            Ok(())
        })
    }

    async fn claim_initialize(&self, lease: &Lease) -> Outcome<()> {
        self.transact(|rows| {
            rows.check_leader(lease.epoch.0)?;
            rows.check(Key::Initialize, Expect::Absent)?;
            rows.write(Key::Initialize.path(), Bytes::new(), rows.map[LEADER].1);
            Ok(())
        })
    }

    async fn announce(&self, me: &MemberName, record: Bytes, ttl: Duration) -> Outcome<()> {
        self.transact(|rows| {
            let lease = (rows.revision + 1, Instant::now() + ttl);
            rows.write(&format!("{MEMBERS}{me}"), record, Some(lease));
            Ok(())
        })
    }

    async fn put(&self, key: Key, value: Bytes, expect: Expect) -> Outcome<Revision> {
        self.transact(|rows| {
            rows.check(key, expect)?;
            Ok(rows.write(key.path(), value, None))
        })
    }

    async fn delete(&self, key: Key, expect: Expect) -> Outcome<()> {
        self.transact(|rows| {
            rows.check(key, expect)?;
            rows.remove(|path, _| path == key.path());
            Ok(())
        })
    }
}

impl MapStore {
    /// Deletes the leader key, as somebody does by hand.
    fn delete_leader_key(&self) -> Outcome<()> {
        self.transact(|rows| {
            rows.remove(|path, _| path == LEADER);
            Ok(())
        })
    }

    /// Does what a request asks for under the lock, which makes it one transaction.
    fn transact<T>(&self, act: impl FnOnce(&mut Rows) -> Answer<T>) -> Outcome<T> {
        let mut rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rows.end(|_, ends| ends <= Instant::now());
        act(&mut rows).map_err(|why| DcsError::new("map", DcsErrorKind::Conflict, "do that", why))
    }
}

impl Rows {
    fn snapshot(&self) -> RawSnapshot {
        let mut seen = RawSnapshot::default();
        for (path, (entry, _)) in &self.map {
            if let Some(name) = path.strip_prefix(MEMBERS) {
                seen.members.insert(name.to_owned(), entry.clone());
            } else if let Some(key) = Key::ALL.into_iter().find(|key| key.path() == path) {
                seen.documents.insert(key, entry.clone());
            } else {
                seen.leader = Some(LeaderRecord {
                    name: entry.value.clone(),
                    epoch: Epoch(entry.revision.0),
                    // With an id, `lease_ended` would have to tell of its end.
                    lease_id: None,
                });
            }
        }
        seen.revision = Revision(self.revision);
        seen
    }

    /// Writes the leader key, with a new lease.
    fn lead(&mut self, me: &MemberName, ttl: Duration) -> Lease {
        let lease = (self.revision + 1, Instant::now() + ttl);
        let Revision(epoch) = self.write(LEADER, me.to_string().into(), Some(lease));
        let (epoch, secret) = (Epoch(epoch), LeaseSecret(epoch.to_string()));
        Lease { epoch, secret, ttl }
    }

    fn check_leader(&self, epoch: u64) -> Answer<()> {
        self.check(Key::Release, Expect::Leader(Epoch(epoch)))
    }

    fn check(&self, key: Key, expect: Expect) -> Answer<()> {
        let at = |path| self.map.get(path).map(|(entry, _)| entry.revision);
        let holds = match expect {
            Expect::Anything => true,
            Expect::Absent => at(key.path()).is_none(),
            Expect::Revision(revision) => at(key.path()) == Some(revision),
            Expect::Leader(epoch) => at(LEADER) == Some(Revision(epoch.0)),
        };
        holds.then_some(()).ok_or("it is not as expected")
    }

    fn write(&mut self, path: &str, value: Bytes, hung: Hung) -> Revision {
        self.revision += 1;
        let revision = Revision(self.revision);
        let entry = Entry { value, revision };
        self.map.insert(path.to_owned(), (entry, hung));
        revision
    }

    /// Ends leases, and removes the rows that go with them.
    fn end(&mut self, over: impl Fn(u64, Instant) -> bool) {
        self.remove(|_, hung| hung.is_some_and(|(id, ends)| over(id, ends)));
    }

    fn remove(&mut self, gone: impl Fn(&str, Hung) -> bool) {
        let before = self.map.len();
        self.map.retain(|path, (_, hung)| !gone(path, *hung));
        self.revision += u64::from(self.map.len() < before);
    }
}

const LEADER: &str = "leader";
const MEMBERS: &str = "members/";

#[cfg(test)]
mod tests {
    use spilo_core::conformance::dcs::Laboratory;

    use super::*;

    spilo_core::dcs_conformance!(laboratory());

    /// A store, and the time, which is paused: it goes on when everybody sleeps.
    #[derive(Debug)]
    struct InMemory(MapStore, Instant);

    async fn laboratory() -> Box<InMemory> {
        tokio::time::pause();
        Box::new(InMemory(MapStore::default(), Instant::now()))
    }

    #[async_trait]
    impl Laboratory for InMemory {
        async fn node(&self) -> Arc<dyn Dcs> {
            Arc::new(self.0.clone())
        }

        async fn sleep(&self, span: Duration) {
            tokio::time::sleep(span).await;
        }

        fn elapsed(&self) -> Duration {
            self.1.elapsed()
        }

        async fn delete_leader_key(&self) {
            self.0.delete_leader_key().expect("nothing forbids it");
        }
    }
}
