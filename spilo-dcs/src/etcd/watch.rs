//! The watch: a hint that something changed.

use std::time::Duration;

use etcd_client::{Client, Error, WatchOptions, WatchResponse, WatchStream};
use spilo_core::Revision;
use spilo_core::cluster::is_news;
use spilo_core::dcs::Key;
use tokio::time::{sleep, timeout};

use super::Etcd;
use super::documents::revision;
use super::lane::{Effect, held};
use super::lease::Unchecked;
use super::seen::Seen;
use crate::keys::Keys;
use crate::place::Place;

/// A watch that stays open from one change to the next.
pub(super) struct Watch {
    stream: WatchStream,
    /// The watch tells of all changes after this one.
    from: Revision,
    /// The last change that it told of.
    told: Revision,
}

impl Etcd {
    /// Returns when something changed after `since`, or when the watch cannot tell any more.
    ///
    /// A watch may be cancelled, be compacted away, or go silent on a host that is gone. Each of
    /// these ends as a hint: the caller reads, and asks again.
    pub(super) async fn wait_for_change(&self, since: Revision) {
        // Taken out while it is in use; a caller that goes away closes it.
        let kept = held(&self.watch).take().filter(|watch| watch.from <= since);
        let watch = match kept {
            Some(watch) => watch,
            None => match self.open_watch(since).await {
                Some(watch) => watch,
                None => return sleep(PAUSE).await,
            },
        };
        match watch
            .next(
                &self.keys,
                &self.seen,
                since,
                self.connector.request_timeout(),
            )
            .await
        {
            Ok(watch) => *held(&self.watch) = Some(watch),
            Err(problem) => {
                tracing::debug!(problem, "the watch ended");
                self.watch_lane.disconnect();
                sleep(PAUSE).await;
            }
        }
    }

    async fn open_watch(&self, since: Revision) -> Option<Watch> {
        let request = self.request("watch the cluster", Effect::Read);
        let base = self.keys.base();
        let start = i64::try_from(since.0).unwrap_or(0) + 1;
        let opened = self
            .watch_lane
            .call(&request, |client| Box::pin(open(client, base, start)));
        match opened.await {
            Ok(Unchecked(stream)) => Some(Watch {
                stream,
                from: since,
                told: since,
            }),
            Err(error) => {
                tracing::debug!(%error, "there is no watch");
                None
            }
        }
    }
}

impl Watch {
    /// Waits for a change after `since` that somebody waits for.
    async fn next(
        mut self,
        keys: &Keys,
        seen: &Seen,
        since: Revision,
        patience: Duration,
    ) -> Result<Self, String> {
        let told = self.told;
        if told <= since {
            self.advance(keys, seen, since, patience).await?;
        } else if let Ok(result) = timeout(PAUSE, self.advance(keys, seen, told, patience)).await {
            result?;
        }
        // In the second case the caller was told before and has not seen it yet: its read is under
        // way, or fails. It is told of the next change at once and of this one again, but not in
        // a circle without a pause.
        Ok(self)
    }

    async fn advance(
        &mut self,
        keys: &Keys,
        seen: &Seen,
        after: Revision,
        patience: Duration,
    ) -> Result<(), String> {
        while self.told <= after {
            let message = match timeout(QUIET, self.stream.message()).await {
                Ok(message) => message,
                Err(_) => {
                    // Quiet for long: is anybody there?
                    let asked = timeout(patience, self.stream.request_progress()).await;
                    asked
                        .map_err(|_| SILENT)?
                        .map_err(|error| error.to_string())?;
                    timeout(patience, self.stream.message())
                        .await
                        .map_err(|_| SILENT)?
                }
            };
            let message = message
                .map_err(|error| error.to_string())?
                .ok_or_else(|| "the stream ended".to_owned())?;
            if message.canceled() {
                return Err(format!("cancelled: {}", message.cancel_reason()));
            }
            if message
                .header()
                .is_some_and(|header| seen.is_foreign(header))
            {
                return Err("it belongs to another etcd cluster".to_owned());
            }
            self.told = self.told.max(newest(keys, &message));
        }
        Ok(())
    }
}

async fn open(client: Client, base: &str, start: i64) -> Result<Unchecked<WatchStream>, Error> {
    let options = WatchOptions::new()
        .with_prefix()
        .with_prev_key()
        .with_start_revision(start);
    client
        .watch_client()
        .watch(base, Some(options))
        .await
        .map(Unchecked)
}

/// Returns the revision of the newest change in a message that a watcher is woken for: positions
/// change all the time, and nobody waits for them.
fn newest(keys: &Keys, message: &WatchResponse) -> Revision {
    let changed = message.events().iter().filter_map(|event| {
        let kv = event.kv()?;
        let noticed = match keys.place(kv.key())? {
            Place::Document(Key::Status | Key::LegacyOptime) => false,
            Place::Document(_) | Place::Leader => true,
            Place::Member(_) => event
                .prev_kv()
                .is_none_or(|before| is_news(before.value(), kv.value())),
        };
        noticed.then(|| revision(kv.mod_revision()))
    });
    changed.max().unwrap_or_default()
}

/// How long a watch may be quiet before it is asked whether it lives.
const QUIET: Duration = Duration::from_secs(30);

/// What keeps a watch that fails at once from turning into a storm of reads.
const PAUSE: Duration = Duration::from_millis(500);

const SILENT: &str = "no sign of life";
