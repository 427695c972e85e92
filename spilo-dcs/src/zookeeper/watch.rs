//! The watch: a hint that something changed.

use std::time::Duration;

use spilo_core::dcs::Key;
use spilo_core::{DcsError, Revision};
use tokio::time::{sleep, timeout};
use zookeeper_client::{AddWatchMode, Client, PersistentWatcher};

use super::ZooKeeper;
use super::failure::{Effect, Failure};

/// A watch over everything of the cluster.
#[derive(Debug)]
pub(super) struct Watch {
    watcher: PersistentWatcher,
    /// Its session, which ends with the last client.
    _client: Client,
}

impl ZooKeeper {
    /// Returns when something changed after `since`, or when nobody can tell any more.
    pub(super) async fn wait_for_change(&self, since: Revision) -> Result<(), DcsError> {
        let mut kept = self.watch.lock().await;
        let mut watch = match kept.take() {
            Some(watch) => watch,
            None => {
                let watch = match self.watch_all().await {
                    Ok(watch) => watch,
                    Err(failure) => {
                        drop(kept);
                        // What keeps a watch that fails at once from turning into a storm.
                        sleep(PAUSE).await;
                        return Err(failure.while_about_to("watch the cluster", Effect::Read));
                    }
                };
                // What changed before there was a watch is seen by nobody else.
                if self.read_snapshot().await?.revision != since {
                    *kept = Some(watch);
                    return Ok(());
                }
                watch
            }
        };
        loop {
            let event = watch.watcher.changed().await;
            // The session's own: what happens while the connection is away is not told, and the
            // watch is not set anew with the next one.
            if event.path.is_empty() {
                return Ok(());
            }
            if !self.is_routine(&event.path) {
                break;
            }
        }
        // One transaction changes several nodes.
        while let Ok(event) = timeout(TOGETHER, watch.watcher.changed()).await {
            if event.path.is_empty() {
                return Ok(());
            }
        }
        *kept = Some(watch);
        Ok(())
    }

    async fn watch_all(&self) -> Result<Watch, Failure> {
        let until = self.link.deadline();
        let client = self.link.client(until).await?;
        let base = self.base();
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

const PAUSE: Duration = Duration::from_millis(500);

/// How long the events of one transaction take to come.
const TOGETHER: Duration = Duration::from_millis(5);
