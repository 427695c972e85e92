//! Consul, 1.8 and later, with Patroni's keys.
//!
//! Below `<namespace>/<scope>/` stand the keys of Patroni's `consul` backend, byte for byte, so
//! that its tools and its agents read and write the same cluster. Three things differ: the leader key
//! and the member key hang on sessions of their own, the lock has a longer lock delay, and `release`
//! is an extra key.
//!
//! # How it is safe
//! - The epoch is the leader key's modification index. Every transaction that passes the lock on,
//!   gives it up or writes by it compares it, and the session where there is one; never the name.
//! - A session can be invalidated at any time: by an operator, by an agent that leaves the
//!   datacenter, with its node. A candidate of spilo's therefore takes a lock that vanished only when
//!   its last holder may not write any more, whatever the store says. For Patroni's agents, which
//!   take what is free, and as a second line, the lock has a *lock delay* of the holder's whole ttl,
//!   up to Consul's limit of 60 s: so long nobody gets it after its session has ended. (Consul keeps
//!   delays in memory, and may forget one when its servers restart.)
//! - Sessions have no health checks. Consul's default ends a session when gossip loses sight of the
//!   agent, long before its ttl is over.
//! - A lock is given up by deleting the key in a transaction, never by destroying its session, which
//!   would keep it back from the next holder. A session is destroyed when it holds no lock; only
//!   where an acquire that was given up takes the lock in that very moment, the delay comes in.
//! - That a session is unknown counts only when a consistent read says so too: a server that has
//!   just been elected may not have read its own log.
//! - A request that may have been done is
//!   [`Indeterminate`](spilo_core::dcs::DcsErrorKind::Indeterminate).
//! - Snapshots are read with `consistent`: the leader of the servers asks the others whether it
//!   still is, before it answers. What `default` and `stale` save is not worth a deposed view.
//!
//! # How long a failover takes
//! Consul ends a session after up to twice its time, and that is at least 10 s
//! ([`ConsulOptions::session_ttl_min`]); the lock delay comes on top. So a lock whose holder died
//! is free after at most `max(20 s, ttl) + ttl` (and 2 s for whole seconds and a busy server; an
//! election among Consul's servers begins all sessions anew): 30 s at a ttl of 10, 60 s at a ttl of
//! 30. A lock that was given up is free at once. Where that is too slow, etcd is the store to take.
//!
//! # What the agent on a node should be told
//! `leave_on_terminate: false`, Consul's default for servers only. Without it an agent that is
//! stopped takes its node out of the catalogue, and with that every session of the node.
//!
//! # Why neither of the crates for Consul
//! `consul-rs` has no keys and no sessions; `rs-consul` has both, and cannot renew a session, so
//! that no lock of it outlives its first ttl. This backend speaks the HTTP API, over `reqwest`.

mod documents;
mod failure;
mod http;
mod lock;
mod member;
mod options;
mod service;
mod session;
mod txn;
mod watch;

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;
use spilo_core::dcs::{Capabilities, Expect, Key, Lease, LeaseSecret, RawSnapshot};
use spilo_core::{Dcs, DcsError, MemberName, Revision};

pub use options::ConsulOptions;
pub use service::Registration;

use documents::Seen;
use http::Http;
use lock::LONGEST_LOCK_DELAY;
use member::Announced;
use session::{Spare, Unsettled};

use crate::keys::Keys;

/// One cluster in Consul.
///
/// Connects when it is first used, and again whenever it must.
///
/// # Contract
/// One lease request (`acquire`, `succeed`, `settle`) at a time: `settle` gives up whatever session
/// the lock is being acquired with.
///
/// # Examples
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use spilo_core::{Dcs, Scope};
/// use spilo_dcs::{Consul, ConsulOptions};
///
/// let options = ConsulOptions::new(Scope::new("demo")?, "http://127.0.0.1:8500");
/// println!("{:?}", Consul::new(options)?.read().await?.leader);
/// # Ok(())
/// # }
/// ```
pub struct Consul {
    http: Http,
    keys: Keys,
    unsettled: Unsettled,
    spare: Mutex<Option<Spare>>,
    seen: Mutex<Seen>,
    announced: Mutex<Option<Announced>>,
    /// What was registered last, if anything was; `Some(None)` is to serve nobody.
    registered: Mutex<Option<Option<Value>>>,
    /// The revision that a watcher was last told of a change after.
    told: Mutex<Option<Revision>>,
}

impl Consul {
    /// Creates a handle, without connecting.
    ///
    /// # Errors
    /// `Refused` when the options cannot be used: an address that is none, a certificate that
    /// cannot be read.
    pub fn new(options: ConsulOptions) -> Result<Self, DcsError> {
        Ok(Self {
            keys: Keys::new(&options.namespace, &options.scope).without_root(),
            http: Http::new(options)?,
            unsettled: Unsettled::default(),
            spare: Mutex::default(),
            seen: Mutex::default(),
            announced: Mutex::default(),
            registered: Mutex::default(),
            told: Mutex::default(),
        })
    }
}

#[async_trait]
impl Dcs for Consul {
    fn capabilities(&self) -> Capabilities {
        let shortest = self.http.options().session_ttl_min;
        let mut capabilities = Capabilities::new(NAME);
        capabilities.ttl_min = shortest;
        // A session of half the ttl, or of the shortest time, ends after twice its time, in whole
        // seconds: with the shortest ttl that is a ttl too late.
        capabilities.release_slack = shortest + Duration::from_secs(2);
        capabilities.lock_delay_max = LONGEST_LOCK_DELAY;
        capabilities
    }

    async fn read(&self) -> Result<RawSnapshot, DcsError> {
        self.read_snapshot().await
    }

    async fn acquire(&self, me: &MemberName, ttl: Duration) -> Result<Lease, DcsError> {
        self.acquire_lock(me, ttl).await
    }

    async fn succeed(
        &self,
        old: &LeaseSecret,
        me: &MemberName,
        ttl: Duration,
    ) -> Result<Lease, DcsError> {
        self.succeed_lock(old, me, ttl).await
    }

    async fn settle(&self) -> Result<(), DcsError> {
        self.settle_sessions().await
    }

    async fn renew(&self, lease: &Lease) -> Result<(), DcsError> {
        self.renew_lease(lease).await
    }

    async fn release(&self, lease: &Lease, record: Bytes) -> Result<(), DcsError> {
        self.release_lock(lease, record).await
    }

    async fn claim_initialize(&self, lease: &Lease) -> Result<(), DcsError> {
        self.claim(lease).await
    }

    async fn announce(
        &self,
        me: &MemberName,
        record: Bytes,
        ttl: Duration,
    ) -> Result<(), DcsError> {
        self.announce_member(me, record, ttl).await
    }

    async fn put(&self, key: Key, value: Bytes, expect: Expect) -> Result<Revision, DcsError> {
        self.put_document(key, value, expect).await
    }

    async fn delete(&self, key: Key, expect: Expect) -> Result<(), DcsError> {
        self.delete_document(key, expect).await
    }

    async fn changed(&self, since: Revision) -> Result<(), DcsError> {
        self.wait_for_change(since).await;
        Ok(())
    }
}

impl fmt::Debug for Consul {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consul")
            .field("http", &self.http)
            .finish_non_exhaustive()
    }
}

/// Locks, and goes on after a panic elsewhere: each change under these locks is whole.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const NAME: &str = "consul";
