//! etcd, v3.4 and later, with Patroni's keys.
//!
//! Below `/<namespace>/<scope>/` stand the keys of Patroni's `etcd3` backend, byte for byte, so
//! that its tools and its agents read and write the same cluster. Two things differ, and nobody
//! sees them: the leader key and the member key hang on leases of their own, and `release` is an
//! extra key.
//!
//! # How it is safe
//! - The epoch is the leader key's modification revision. Every transaction that touches the lock
//!   compares it, and the id of the lease where there is one; never the name.
//! - Lease ids are chosen here, so that a lease whose grant was never answered can be revoked.
//! - A request that may have been done is [`Indeterminate`](spilo_core::dcs::DcsErrorKind::Indeterminate). It is
//!   sent to another endpoint only where doing it twice does it once and the answer tells.
//! - All reads are linearizable; an answer older than one that was received before its request
//!   left is not taken.
//! - `renew` is one message on a stream that stays open, and reads no key: that the leader key was
//!   deleted under a living lease shows in the next [`read`](Dcs::read).
//! - Reads, renewals, writes and the watch have connections of their own.

mod addresses;
mod connect;
#[cfg(feature = "discovery")]
mod directory;
mod documents;
mod endpoints;
mod failure;
mod lane;
mod lease;
mod member;
mod options;
mod seen;
#[cfg(feature = "srv")]
mod srv;
mod watch;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use spilo_core::dcs::{Capabilities, Expect, Key, LeaderRecord, Lease, LeaseSecret, RawSnapshot};
use spilo_core::{Dcs, DcsError, MemberName, Revision};
use tokio::time::Instant;

#[cfg(feature = "discovery")]
pub use directory::EtcdDirectory;
pub use options::EtcdOptions;
#[cfg(feature = "srv")]
pub use srv::EtcdSrv;

use crate::keys::Keys;
use connect::Connector;
use lane::{Effect, Lane, Request};
use lease::{KeepAlive, LeaseIds};
use member::Announced;
use seen::Seen;
use watch::Watch;

/// One cluster in etcd.
///
/// Connects when it is first used, and again whenever it must.
///
/// # Contract
/// One lease request (`acquire`, `succeed`, `settle`) at a time: `settle` gives up whatever lease
/// is being acquired.
///
/// # Examples
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use spilo_core::{Dcs, Scope};
/// use spilo_dcs::{Etcd, EtcdOptions};
///
/// let etcd = Etcd::new(EtcdOptions::new(Scope::new("demo")?, ["127.0.0.1:2379"]))?;
/// println!("{:?}", etcd.read().await?.leader);
/// # Ok(())
/// # }
/// ```
pub struct Etcd {
    connector: Arc<Connector>,
    keys: Keys,
    seen: Arc<Seen>,
    lease_lane: Lane,
    read_lane: Lane,
    write_lane: Lane,
    watch_lane: Lane,
    ids: LeaseIds,
    keep_alive: Mutex<Option<KeepAlive>>,
    announced: Mutex<Option<Announced>>,
    watch: Mutex<Option<Watch>>,
}

impl Etcd {
    /// Creates a handle, without connecting.
    ///
    /// # Errors
    /// `Refused` when the options cannot be used: no endpoint and no domain to ask for them, an
    /// address that is none, a certificate that cannot be read.
    pub fn new(options: EtcdOptions) -> Result<Self, DcsError> {
        let keys = Keys::new(&options.namespace, &options.scope);
        let connector = Arc::new(Connector::new(options)?);
        let seen = Arc::new(Seen::default());
        let lane = || Lane::new(Arc::clone(&connector), Arc::clone(&seen));
        Ok(Self {
            keys,
            seen: Arc::clone(&seen),
            lease_lane: lane(),
            read_lane: lane(),
            write_lane: lane(),
            watch_lane: lane(),
            ids: LeaseIds::default(),
            keep_alive: Mutex::default(),
            announced: Mutex::default(),
            watch: Mutex::default(),
            connector,
        })
    }

    fn request(&self, action: impl Into<String>, effect: Effect) -> Request {
        let deadline = Instant::now() + self.connector.request_timeout();
        Request {
            action: action.into(),
            deadline,
            effect,
        }
    }
}

#[async_trait]
impl Dcs for Etcd {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(NAME);
        // etcd lengthens shorter leases to one and a half of its election timeout, which is 1 s
        // by default, in whole seconds.
        capabilities.ttl_min = Duration::from_secs(2);
        // It looks for ended leases every half second, and may be busy.
        capabilities.release_slack = Duration::from_secs(1);
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
        self.settle_leases().await
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

    async fn lease_ended(&self, holder: &LeaderRecord) -> Result<bool, DcsError> {
        self.has_lease_ended(holder).await
    }

    async fn lease_left(&self, holder: &LeaderRecord) -> Result<Option<Duration>, DcsError> {
        self.time_left(holder).await
    }

    async fn changed(&self, since: Revision) -> Result<(), DcsError> {
        self.wait_for_change(since).await;
        Ok(())
    }
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd")
            .field("connector", &self.connector)
            .finish_non_exhaustive()
    }
}

const NAME: &str = "etcd";
