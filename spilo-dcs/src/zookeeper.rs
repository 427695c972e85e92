//! ZooKeeper, 3.6 and later, with Patroni's nodes.
//!
//! Below `/<namespace>/<scope>/` stand the nodes of Patroni's `zookeeper` backend, byte for byte.
//! Three things differ: the leader node and the member node hang on sessions of their own, `release`
//! is an extra node, and so is `epoch`, which every holding of spilo's writes once.
//!
//! # How it is safe
//! - The epoch is the transaction that made the leader node (`czxid`). No transaction can compare
//!   that, and a node that is made anew begins at version 0, whoever makes it. So each holding
//!   raises the version of the `epoch` node, writes its own leader node once more, and has a node to
//!   itself below `epoch`, named after its session, which goes when somebody wipes the store. Every
//!   transaction that passes the lock on, gives it up or writes by it compares both versions and
//!   asks for that node; 0 is a version like any other. The name is never compared.
//! - A session ends when its leader has not heard of it for its time. The pings of a client would
//!   keep it alive for as long as the process lives, and they show no send time: a follower that has
//!   lost its leader goes on answering for up to `syncLimit` ticks, while the leader lets the session
//!   end. So the session of a lease has no connection between renewals. A renewal attaches to it,
//!   which no server permits without its leader's word, and then has a transaction done, which no
//!   leader can do without its quorum. The lease therefore lasts for its whole time from when the
//!   renewal left, and nothing has to be subtracted. (The connection of a renewal that had no answer
//!   may live on until the client has given it up, and so may the session, by up to its time.)
//! - That a session has ended counts only when the quorum says so too: a leader that was deposed in
//!   its sleep takes sessions for ended that its successor has begun anew.
//! - A session that nobody ends lasts for its time and up to a tick more: leaders look at them once
//!   a tick, and a new leader begins all of them anew.
//! - A lock is given up by deleting the leader node in the transaction that writes `release`; the
//!   session is ended after it.
//! - An acquire of unknown outcome is settled by ending its session: no request of an ended session
//!   is done, however late it arrives.
//! - A snapshot is one `multi` of reads, after a transaction on the same connection: `sync` alone is
//!   answered by a deposed leader too.
//!
//! # What is left
//! Versions repeat where a document is deleted and made anew. One that is, between the look of a
//! conditional write and its transaction, is written over; the look is no older than the write.
//!
//! # Ttl
//! Servers grant sessions of 2 to 20 ticks of 2 s, so that a ttl of 4 to 40 s works as they are
//! ([`ZooKeeperOptions::tick_time`]). A longer one is refused, with the setting that helps.

mod documents;
mod failure;
mod link;
mod lock;
mod member;
mod options;
mod session;
mod watch;

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use spilo_core::dcs::{Capabilities, Expect, Key, Lease, LeaseSecret, RawSnapshot};
use spilo_core::{Dcs, DcsError, MemberName, Revision};

pub use options::ZooKeeperOptions;

use documents::Holding;
use link::Link;
use member::Announced;
use session::Sessions;
use watch::Watch;

use crate::keys::Keys;

/// One cluster in ZooKeeper.
///
/// Connects when it is first used, and again whenever it must. Needs a tokio runtime.
///
/// # Contract
/// - One lease request (`acquire`, `succeed`, `settle`) at a time: `settle` ends whatever session
///   the lock is being acquired in.
/// - `renew` and `claim_initialize` work with the leases that this handle took: after a restart a
///   lease is passed on by `succeed`.
///
/// # Examples
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use spilo_core::{Dcs, Scope};
/// use spilo_dcs::{ZooKeeper, ZooKeeperOptions};
///
/// let options = ZooKeeperOptions::new(Scope::new("demo")?, ["127.0.0.1:2181"]);
/// println!("{:?}", ZooKeeper::new(options)?.read().await?.leader);
/// # Ok(())
/// # }
/// ```
pub struct ZooKeeper {
    link: Link,
    keys: Keys,
    /// The sessions that the lock was asked for in and of which nobody knows whether they hold it.
    unsettled: Sessions,
    leases: Sessions,
    /// The holding that was seen last.
    seen: Mutex<Option<Holding>>,
    announced: Mutex<Option<Announced>>,
    watch: tokio::sync::Mutex<Option<Watch>>,
}

impl ZooKeeper {
    /// Creates a handle, without connecting.
    ///
    /// # Errors
    /// `Refused` when no host is named.
    pub fn new(options: ZooKeeperOptions) -> Result<Self, DcsError> {
        if options.hosts.is_empty() {
            let kind = spilo_core::dcs::DcsErrorKind::Refused;
            return Err(DcsError::new(
                NAME,
                kind,
                "use the options",
                "no host is named",
            ));
        }
        Ok(Self {
            keys: Keys::new(&options.namespace, &options.scope),
            link: Link::new(options),
            unsettled: Sessions::default(),
            leases: Sessions::default(),
            seen: Mutex::default(),
            announced: Mutex::default(),
            watch: tokio::sync::Mutex::default(),
        })
    }
}

#[async_trait]
impl Dcs for ZooKeeper {
    fn capabilities(&self) -> Capabilities {
        let tick = self.link.options().tick_time;
        let mut capabilities = Capabilities::new(NAME);
        capabilities.ttl_min = tick * 2;
        // A tick for the leader's rounds, and a second for what follows on a busy machine.
        capabilities.release_slack = tick + Duration::from_secs(1);
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
        self.wait_for_change(since).await
    }
}

impl fmt::Debug for ZooKeeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZooKeeper")
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}

/// Locks, and goes on after a panic elsewhere: each change under these locks is whole.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const NAME: &str = "zookeeper";
