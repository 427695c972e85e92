//! All clusters of a namespace: who leads, who follows how far behind, and how each is doing.
//!
//! A [`Directory`] is a store seen from above its clusters: every key below the namespace, and what
//! changes there. A [`Catalogue`] makes [`ClusterOverview`]s of that, one cluster at a time, so that
//! garbage below one scope hides no other. [`Discovery`] keeps a catalogue up to date.
//!
//! What it costs the store does not grow with the number of clusters that do not change: one
//! listing at the start, and a watch.
//!
//! # Examples
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use spilo_core::Scope;
//! use spilo_dcs::EtcdOptions;
//! use spilo_dcs::discovery::Discovery;
//! use spilo_dcs::etcd::EtcdDirectory;
//!
//! // The scope plays no part here.
//! let options = EtcdOptions::new(Scope::new("any")?, ["127.0.0.1:2379"]);
//! let mut discovery = Discovery::new(EtcdDirectory::new(options)?);
//! loop {
//!     for cluster in discovery.next().await?.iter() {
//!         println!("{}: {}", cluster.scope, cluster.health);
//!     }
//! }
//! # }
//! ```

mod catalogue;
mod follow;
pub mod haproxy;
mod overview;

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use spilo_core::{DcsError, Revision};

pub use catalogue::Catalogue;
pub use follow::Discovery;
pub use overview::{ClusterOverview, Health, MemberOverview};

/// A store, seen from above its clusters.
///
/// # Contract
/// - [`list`](Self::list) is one snapshot of every key below the namespace.
/// - [`changes`](Self::changes) leaves out nothing that happened after the revision it is given,
///   or fails; it may tell of a change again. Dropping its future loses nothing: the next call is
///   given the revision that was reached.
/// - Keys are told without the namespace: `SCOPE/leader`, `SCOPE/members/NAME`.
#[async_trait]
pub trait Directory: Send + Sync + fmt::Debug {
    /// Reads every key below the namespace.
    ///
    /// # Errors
    /// `Unavailable` when no answer came; `Refused` when a retry does not help.
    async fn list(&self) -> Result<Listing, DcsError>;

    /// Waits until something changes after `since`, and returns what did; after the first change it
    /// may wait a moment for what belongs to it.
    ///
    /// # Errors
    /// Any: the caller lists again.
    async fn changes(&self, since: Revision) -> Result<Vec<Change>, DcsError>;

    /// Writes `value` for other tools to read, below `root`, or deletes it where there is none. All
    /// of it goes by itself a minute after the last call, so that a publisher calls for everything
    /// every quarter of that; what is there already costs nothing then.
    ///
    /// # Errors
    /// As [`Dcs::put`](spilo_core::Dcs::put).
    async fn publish(&self, root: &str, name: &str, value: Option<Bytes>) -> Result<(), DcsError>;
}

/// Every key below a namespace at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The revision.
    pub revision: Revision,
    /// The keys that exist.
    pub keys: Vec<Change>,
}

/// What became of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key, without the namespace.
    pub key: Bytes,
    /// What stands there now; `None` if it was deleted.
    pub value: Option<Bytes>,
    /// When that happened.
    pub revision: Revision,
}
