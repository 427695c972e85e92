//! A catalogue that is kept up to date.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use spilo_core::DcsError;
use spilo_core::dcs::DcsErrorKind;
use tokio::time::{Instant, sleep};

use super::overview::ClusterOverview;
use super::{Catalogue, Directory};

/// Follows the clusters of a namespace.
#[derive(Debug)]
pub struct Discovery {
    directory: Arc<dyn Directory>,
    catalogue: Catalogue,
    started: Instant,
    /// Whether the catalogue shows what the directory showed at its revision.
    is_listed: bool,
    changed: BTreeSet<String>,
}

impl Discovery {
    /// Creates a follower that has asked nothing yet.
    pub fn new(directory: impl Directory + 'static) -> Self {
        Self {
            directory: Arc::new(directory),
            catalogue: Catalogue::default(),
            started: Instant::now(),
            is_listed: false,
            changed: BTreeSet::new(),
        }
    }

    /// Returns all clusters, first as they are, and then each time when something has changed.
    ///
    /// Changes that come in quick succession are told of together. An outage of the store is waited out: the last good view stays what it was.
    ///
    /// # Errors
    /// `Refused` when no retry helps; and whatever fails before there is a first view.
    ///
    /// # Cancellation
    /// Safe: the next call begins where the last one ended, with a watch of its own.
    pub async fn next(&mut self) -> Result<Arc<[ClusterOverview]>, DcsError> {
        loop {
            match self.advance().await {
                Ok(()) => break,
                Err(error) => {
                    let has_view = self.catalogue.revision().0 > 0;
                    self.is_listed = false;
                    if error.kind() == DcsErrorKind::Refused || !has_view {
                        return Err(error);
                    }
                    tracing::warn!(%error, "the clusters are shown as they were");
                    sleep(PAUSE).await;
                }
            }
        }
        self.changed = self.catalogue.refresh(self.now());
        Ok(self.overview())
    }

    /// Returns all clusters as they were seen last, with their ages at this moment.
    pub fn overview(&self) -> Arc<[ClusterOverview]> {
        self.catalogue.overview(self.now()).into()
    }

    /// Returns the scopes that [`next`](Self::next) returned for, those that are gone among them.
    pub fn changed(&self) -> &BTreeSet<String> {
        &self.changed
    }

    /// Returns the store that is followed.
    pub fn directory(&self) -> Arc<dyn Directory> {
        Arc::clone(&self.directory)
    }

    async fn advance(&mut self) -> Result<(), DcsError> {
        if !self.is_listed {
            let listing = self.directory.list().await?;
            self.catalogue.replace(listing, self.now());
            self.is_listed = true;
            return Ok(());
        }
        let since = self.catalogue.revision();
        for change in self.directory.changes(since).await? {
            self.catalogue.apply(change, self.now());
        }
        Ok(())
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

/// How long a store is left alone that did not answer.
const PAUSE: Duration = Duration::from_secs(1);
