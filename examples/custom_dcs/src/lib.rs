//! A store of one's own, from the guide for authors ([`spilo_core::dcs::guide`]): a file that the
//! agents of one machine share, as in a laboratory.
//!
//! What a cluster has in common is the reference store, [`Store`], which knows what a lease, an epoch
//! and a conflict are. A backend over anything that can be read, changed and written back by one
//! client at a time needs three things more: that one at a time, a clock that all clients share, and
//! honesty about requests of which nobody knows whether they were done.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use spilo_core::dcs::{
    Capabilities, DcsErrorKind, Expect, Key, LeaderRecord, Lease, LeaseSecret, RawSnapshot,
};
use spilo_core::store::{Conflict, Store};
use spilo_core::{Bytes, Dcs, DcsError, MemberName, NodeTime, Revision, async_trait};
use tokio::time::{sleep, timeout};

/// One agent's handle of one cluster, which is a file.
#[derive(Debug)]
pub struct FileStore {
    path: PathBuf,
    /// Leases of requests whose end the caller has not seen.
    unsettled: Mutex<BTreeSet<u64>>,
}

/// What is in the file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    /// When the times in the store began to count.
    boot: String,
    store: Store,
}

type Outcome<T> = Result<T, DcsError>;

impl FileStore {
    /// Creates a handle of the cluster in the file at `path`, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            unsettled: Mutex::default(),
        }
    }

    /// Does one thing to the store, alone, and returns once that is on disk.
    async fn step<T: Send + 'static>(
        &self,
        action: &str,
        lost: DcsErrorKind,
        act: impl FnOnce(&mut Store, NodeTime) -> Result<T, Conflict> + Send + 'static,
    ) -> Outcome<T> {
        let path = self.path.clone();
        let work = tokio::task::spawn_blocking(move || alone(&path, act));
        // Whoever waits for the lock is not told when its request is done after all, so neither a
        // timeout nor an error of the disk means that nothing was.
        let problem = match timeout(LIMIT, work).await {
            Ok(Ok(Ok(done))) => {
                let refused = |why: Conflict| self.error(DcsErrorKind::Conflict, action, &why);
                return done.map_err(refused);
            }
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(panic)) => panic.to_string(),
            Err(_) => "it is locked".to_owned(),
        };
        Err(self.error(lost, action, &problem))
    }

    fn error(&self, kind: DcsErrorKind, action: &str, problem: &dyn fmt::Display) -> DcsError {
        let problem = format!("{}: {problem}", self.path.display());
        DcsError::new("file", kind, action, problem)
    }

    /// Takes the lock in a lease that is known, and remembered, before anything is asked with it.
    async fn take(
        &self,
        action: &str,
        act: impl FnOnce(&mut Store, NodeTime, u64) -> Result<Lease, Conflict> + Send + 'static,
    ) -> Outcome<Lease> {
        let id = self.step(action, UNKNOWN, |store, _| Ok(store.new_lease_id()));
        let id = id.await?;
        held(&self.unsettled).insert(id);
        let acting = move |store: &mut Store, now| act(store, now, id);
        let result = self.step(action, UNKNOWN, acting).await;
        // After the last await point: if the caller is gone, or does not know, `settle` revokes it.
        let unknown = |error: &DcsError| error.kind() == UNKNOWN;
        if !result.as_ref().is_err_and(unknown) {
            held(&self.unsettled).remove(&id);
        }
        result
    }
}

#[async_trait]
impl Dcs for FileStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new("file")
    }

    async fn read(&self) -> Outcome<RawSnapshot> {
        self.step("read", DcsErrorKind::Unavailable, |s, now| {
            Ok(s.snapshot(now))
        })
        .await
    }

    async fn acquire(&self, me: &MemberName, ttl: Duration) -> Outcome<Lease> {
        let me = me.clone();
        self.take("acquire", move |s, now, id| s.acquire(now, id, &me, ttl))
            .await
    }

    async fn succeed(&self, old: &LeaseSecret, me: &MemberName, ttl: Duration) -> Outcome<Lease> {
        let (old, me) = (old.clone(), me.clone());
        self.take("succeed", move |s, now, id| {
            s.succeed(now, id, &old, &me, ttl)
        })
        .await
    }

    async fn settle(&self) -> Outcome<()> {
        let ids = held(&self.unsettled).clone();
        let revoked = ids.clone();
        let revoke = move |store: &mut Store, now| {
            revoked.iter().for_each(|id| store.revoke(now, *id));
            Ok(())
        };
        self.step("settle", UNKNOWN, revoke).await?;
        held(&self.unsettled).retain(|id| !ids.contains(id));
        Ok(())
    }

    async fn renew(&self, lease: &Lease) -> Outcome<()> {
        let lease = lease.clone();
        self.step("renew", UNKNOWN, move |s, now| s.renew(now, &lease))
            .await
    }

    async fn release(&self, lease: &Lease, record: Bytes) -> Outcome<()> {
        let lease = lease.clone();
        self.step("release", UNKNOWN, move |s, now| {
            s.release(now, &lease, record)
        })
        .await
    }

    async fn claim_initialize(&self, lease: &Lease) -> Outcome<()> {
        let lease = lease.clone();
        self.step("claim", UNKNOWN, move |s, now| {
            s.claim_initialize(now, &lease)
        })
        .await
    }

    async fn announce(&self, me: &MemberName, record: Bytes, ttl: Duration) -> Outcome<()> {
        let me = me.clone();
        let announce = move |s: &mut Store, now| {
            s.announce(now, &me, record, ttl);
            Ok(())
        };
        self.step("announce", UNKNOWN, announce).await
    }

    async fn put(&self, key: Key, value: Bytes, expect: Expect) -> Outcome<Revision> {
        self.step("write", UNKNOWN, move |s, now| {
            s.put(now, key, value, expect)
        })
        .await
    }

    async fn delete(&self, key: Key, expect: Expect) -> Outcome<()> {
        self.step("delete", UNKNOWN, move |s, now| s.delete(now, key, expect))
            .await
    }

    async fn lease_ended(&self, holder: &LeaderRecord) -> Outcome<bool> {
        let holder = holder.clone();
        let ended = move |s: &mut Store, now| Ok(s.lease_ended(now, &holder));
        self.step("look", DcsErrorKind::Unavailable, ended).await
    }

    async fn changed(&self, since: Revision) -> Outcome<()> {
        let look = || {
            let changed = move |s: &mut Store, now| Ok(s.changed(now, since));
            self.step("look", DcsErrorKind::Unavailable, changed)
        };
        while !look().await? {
            sleep(POLL).await;
        }
        Ok(())
    }
}

/// Reads the store, does one thing to it, and writes it back if that changed it.
fn alone<T>(path: &Path, act: impl FnOnce(&mut Store, NodeTime) -> T) -> io::Result<T> {
    let lock = File::create(path.with_extension("lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let before = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        bytes => Some(bytes?),
    };
    let mut content: Content = match &before {
        None => Content::default(),
        Some(bytes) => serde_json::from_slice(bytes)?,
    };
    // The time since the machine started: no clock that somebody may set, and the same for all.
    let time = Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default();
    let now = NodeTime(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    if content.boot != boot {
        content.boot = boot;
        content.store.begin_leases_anew(now);
    }
    let done = act(&mut content.store, now);
    let after = serde_json::to_vec(&content)?;
    if Some(&after) != before.as_ref() {
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&after)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
        File::open(directory.unwrap_or_else(|| Path::new(".")))?.sync_all()?;
    }
    Ok(done)
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a write without an answer is.
const UNKNOWN: DcsErrorKind = DcsErrorKind::Indeterminate;
const LIMIT: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(200);
