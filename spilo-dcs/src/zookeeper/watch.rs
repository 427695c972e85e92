//! The watch: a hint that something changed.

use std::time::Duration;

use spilo_core::Revision;
use spilo_core::dcs::Key;
use tokio::time::sleep;
use zookeeper_client::{AddWatchMode, Client, PersistentWatcher};

use super::ZooKeeper;
use super::failure::Failure;

/// A watch over everything of the cluster.
#[derive(Debug)]
pub(super) struct Watch {
    watcher: PersistentWatcher,
    /// Its session, which ends with the last client.
    _client: Client,
}

impl ZooKeeper {
    /// Returns when something changed after `since`, or when nobody can tell any more.
    pub(super) async fn wait_for_change(&self, since: Revision) {
        let mut kept = self.watch.lock().await;
        let mut watch = match kept.take() {
            Some(watch) => watch,
            None => match self.watch_all().await {
                Ok(watch) => {
                    // What changed before there was a watch is seen by nobody else.
                    match self.read_snapshot().await {
                        Ok(snapshot) if snapshot.revision == since => watch,
                        _ => {
                            *kept = Some(watch);
                            drop(kept);
                            return sleep(PAUSE).await;
                        }
                    }
                }
                Err(Failure { problem, .. }) => {
                    tracing::debug!(problem, "there is no watch");
                    drop(kept);
                    return sleep(PAUSE).await;
                }
            },
        };
        let is_over = loop {
            let event = watch.watcher.changed().await;
            // An event of the session: what happened while the connection was away was not told.
            if event.path.is_empty() {
                break event.session_state.is_terminated();
            }
            if !self.is_routine(&event.path) {
                break false;
            }
        };
        if is_over {
            drop(kept);
            return sleep(PAUSE).await;
        }
        *kept = Some(watch);
    }

    async fn watch_all(&self) -> Result<Watch, Failure> {
        let until = self.link.deadline();
        let client = self.link.client(until).await?;
        let base = self.keys.base().trim_end_matches('/').to_owned();
        let watcher = tokio::time::timeout_at(
            until,
            client.watch(&base, AddWatchMode::PersistentRecursive),
        );
        let late = |_| Failure::of_request(zookeeper_client::Error::Timeout);
        let watcher = watcher.await.map_err(late)?.map_err(Failure::of_request)?;
        Ok(Watch {
            watcher,
            _client: client,
        })
    }

    /// Whether a node changes all the time and wakes nobody up for good reason.
    fn is_routine(&self, path: &str) -> bool {
        [Key::Status, Key::LegacyOptime]
            .into_iter()
            .any(|key| path == self.keys.document(key))
    }
}

/// What keeps a watch that fails at once from turning into a storm of reads.
const PAUSE: Duration = Duration::from_millis(500);
