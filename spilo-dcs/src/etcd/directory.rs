//! Every cluster below a namespace.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{
    EventType, GetOptions, GetResponse, KeyValue, Txn, TxnOp, WatchOptions, WatchResponse,
    WatchStream,
};
use spilo_core::dcs::DcsErrorKind;
use spilo_core::{DcsError, Revision};
use tokio::time::{Instant, timeout, timeout_at};

use super::NAME;
use super::connect::Connector;
use super::documents::{revision, transact};
use super::lane::{Effect, Lane, Request, held};
use super::lease::{LeaseIds, Unchecked, lease_put};
use super::options::EtcdOptions;
use super::seen::Seen;
use crate::discovery::{Change, Directory, Listing};

/// Every cluster below a namespace in etcd.
pub struct EtcdDirectory {
    connector: Arc<Connector>,
    /// What every key of the namespace begins with.
    base: String,
    seen: Arc<Seen>,
    read_lane: Lane,
    write_lane: Lane,
    watch_lane: Lane,
    ids: LeaseIds,
    watch: Mutex<Option<Watch>>,
    published: Mutex<Published>,
}

/// A watch that stays open from one change to the next.
struct Watch {
    stream: WatchStream,
    /// It tells of all changes after this one that it has not told of yet.
    from: Revision,
}

/// What this directory wrote for others, all on one lease.
#[derive(Debug, Default)]
struct Published {
    /// The lease, and when it was renewed.
    lease: Option<(i64, Instant)>,
    keys: BTreeMap<String, Bytes>,
}

impl EtcdDirectory {
    /// Creates a directory of the clusters below `options.namespace`, without connecting; the scope
    /// plays no part.
    ///
    /// # Errors
    /// As [`Etcd::new`](super::Etcd::new).
    pub fn new(options: EtcdOptions) -> Result<Self, DcsError> {
        let base = crate::keys::root(&options.namespace);
        let connector = Arc::new(Connector::new(options)?);
        let seen = Arc::new(Seen::default());
        let lane = || Lane::new(Arc::clone(&connector), Arc::clone(&seen));
        Ok(Self {
            base,
            seen: Arc::clone(&seen),
            read_lane: lane(),
            write_lane: lane(),
            watch_lane: lane(),
            ids: LeaseIds::default(),
            watch: Mutex::default(),
            published: Mutex::default(),
            connector,
        })
    }

    fn request(&self, action: &str, effect: Effect) -> Request {
        let deadline = Instant::now() + self.connector.request_timeout();
        Request {
            action: action.to_owned(),
            deadline,
            effect,
        }
    }

    fn change(&self, kv: &KeyValue, is_there: bool) -> Option<Change> {
        let key = kv.key().strip_prefix(self.base.as_bytes())?;
        Some(Change {
            key: Bytes::copy_from_slice(key),
            value: is_there.then(|| Bytes::copy_from_slice(kv.value())),
            revision: revision(kv.mod_revision()),
        })
    }

    /// Adds what a message of the watch tells.
    fn take_in(
        &self,
        message: Result<Option<WatchResponse>, etcd_client::Error>,
        since: Revision,
        changes: &mut Vec<Change>,
    ) -> Result<(), String> {
        let message = message.map_err(|error| error.to_string())?;
        let message = message.ok_or("the stream ended")?;
        if message.canceled() {
            return Err(format!("cancelled: {}", message.cancel_reason()));
        }
        let header = message.header();
        if header.is_some_and(|header| self.seen.is_foreign(header)) {
            return Err("it belongs to another etcd cluster".to_owned());
        }
        let told = message.events().iter().filter_map(|event| {
            let is_there = event.event_type() == EventType::Put;
            self.change(event.kv()?, is_there)
        });
        changes.extend(told.filter(|change| change.revision > since));
        Ok(())
    }

    async fn open_watch(&self, since: Revision) -> Result<Watch, DcsError> {
        let request = self.request("watch the clusters", Effect::Read);
        let start = i64::try_from(since.0).unwrap_or(0) + 1;
        let base = self.base.as_str();
        let Unchecked(stream) = self
            .watch_lane
            .call(&request, |client| {
                Box::pin(async move {
                    let options = WatchOptions::new().with_prefix().with_start_revision(start);
                    let mut watch = client.watch_client();
                    watch.watch(base, Some(options)).await.map(Unchecked)
                })
            })
            .await?;
        Ok(Watch {
            stream,
            from: since,
        })
    }

    /// Returns the lease that everything published hangs on, renewed or new.
    async fn lease(&self) -> Result<i64, DcsError> {
        let request = self.request("keep what is published", Effect::Repeatable);
        let known = held(&self.published).lease;
        if let Some((id, renewed)) = known {
            if renewed.elapsed() < PUBLISHED_FOR / 4 {
                return Ok(id);
            }
            let now = Instant::now();
            if self.write_lane.renewed(&request, id).await? {
                held(&self.published).lease = Some((id, now));
                return Ok(id);
            }
        }
        let now = Instant::now();
        let id = self
            .write_lane
            .grant(&request, PUBLISHED_FOR, || self.ids.next())
            .await?;
        *held(&self.published) = Published {
            lease: Some((id, now)),
            keys: BTreeMap::new(),
        };
        Ok(id)
    }
}

#[async_trait]
impl Directory for EtcdDirectory {
    async fn list(&self) -> Result<Listing, DcsError> {
        let request = self.request("list the clusters", Effect::Read);
        let base = self.base.as_str();
        let answer: GetResponse = self
            .read_lane
            .call(&request, |client| {
                Box::pin(async move {
                    let mut kv = client
                        .kv_client()
                        .max_decoding_message_size(LARGEST_LISTING);
                    kv.get(base, Some(GetOptions::new().with_prefix())).await
                })
            })
            .await?;
        let keys = answer.kvs().iter();
        Ok(Listing {
            revision: revision(answer.header().map_or(0, |header| header.revision())),
            keys: keys.filter_map(|kv| self.change(kv, true)).collect(),
        })
    }

    async fn changes(&self, since: Revision) -> Result<Vec<Change>, DcsError> {
        let kept = held(&self.watch).take().filter(|watch| watch.from <= since);
        let mut watch = match kept {
            Some(watch) => watch,
            None => self.open_watch(since).await?,
        };
        let gone = |problem: String| {
            let action = "watch the clusters";
            DcsError::new(NAME, DcsErrorKind::Unavailable, action, problem)
        };
        let silent = || gone("no sign of life".to_owned());
        let mut changes = Vec::new();
        while changes.is_empty() {
            let message = match timeout(QUIET, watch.stream.message()).await {
                Ok(message) => message,
                Err(_) => {
                    // Quiet for long: is anybody there?
                    let patience = self.connector.request_timeout();
                    let asked = timeout(patience, watch.stream.request_progress()).await;
                    asked
                        .map_err(|_| silent())?
                        .map_err(|error| gone(error.to_string()))?;
                    timeout(patience, watch.stream.message())
                        .await
                        .map_err(|_| silent())?
                }
            };
            self.take_in(message, since, &mut changes).map_err(gone)?;
        }
        // A failover is a handful of changes within a second.
        let until = Instant::now() + TOGETHER;
        while let Ok(message) = timeout_at(until, watch.stream.message()).await {
            self.take_in(message, since, &mut changes).map_err(gone)?;
        }
        let newest = changes.iter().map(|change| change.revision).max();
        watch.from = newest.unwrap_or(since);
        *held(&self.watch) = Some(watch);
        Ok(changes)
    }

    async fn publish(&self, root: &str, name: &str, value: Option<Bytes>) -> Result<(), DcsError> {
        let lease_id = self.lease().await?;
        let key = format!("{}{name}", crate::keys::root(root));
        {
            let mut published = held(&self.published);
            let known = published.keys.get(&key);
            if known.is_some() && known == value.as_ref() {
                return Ok(());
            }
            // Until the answer is here, what stands there is not known.
            published.keys.remove(&key);
        }
        let request = self.request("publish a cluster", Effect::Repeatable);
        let op = match &value {
            Some(value) => lease_put(key.as_str(), value.to_vec(), lease_id),
            None => TxnOp::delete(key.as_str(), None),
        };
        transact(&self.write_lane, &request, Txn::new().and_then([op])).await?;
        if let Some(value) = value {
            held(&self.published).keys.insert(key, value);
        }
        Ok(())
    }
}

impl fmt::Debug for EtcdDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdDirectory")
            .field("connector", &self.connector)
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

/// Hundreds of clusters take a megabyte or two.
const LARGEST_LISTING: usize = 256 << 20;

/// How long a watch may be quiet before it is asked whether it lives.
const QUIET: Duration = Duration::from_secs(30);

/// How long changes are waited for that belong together.
const TOGETHER: Duration = Duration::from_millis(100);

/// How long what is published stays after the last word of its publisher.
const PUBLISHED_FOR: Duration = Duration::from_secs(60);
