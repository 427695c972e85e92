//! The deciding core of spilo: high availability for PostgreSQL as a pure state machine.
//!
//! [`machine::Machine`] takes an event and the time, and gives back a decision and the commands
//! that follow from it. It does no IO, reads no clock and draws no chance, so the code that runs
//! in production is the code that a unit test drives. The traits [`Dcs`], [`Postgres`], [`Guard`],
//! [`Peers`] and [`Clock`] are what it is connected to; the feature `agent` adds the driver that
//! connects them on tokio.
//!
//! Where to begin reading: [`decide`] (what a node does, as named rules), then [`machine::lease`]
//! (when it may write), then [`machine`] (how events become facts).

#[cfg(feature = "agent")]
pub mod agent;
pub mod backup;
pub mod cluster;

pub mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod dcs;
pub mod decide;
pub mod guard;
pub mod history;
pub mod ids;
pub mod journal;
pub mod local;
pub mod machine;
#[cfg(spilo_mutants)]
pub mod mutant;
#[cfg(not(spilo_mutants))]
mod mutant;
pub mod peer;
pub mod pg;
pub mod replica;
pub mod segment;
#[cfg(feature = "sim")]
pub mod sim;
pub mod status;
pub mod store;
pub mod time;
pub mod wal;

/// What an `impl` of this crate's traits is marked with.
#[doc(no_inline)]
pub use async_trait::async_trait;
/// What this crate's traits pass values in.
#[doc(no_inline)]
pub use bytes::Bytes;

pub use backup::{BackupError, BackupStore};
pub use cluster::{Cluster, Member};
pub use config::DynamicConfig;
pub use dcs::{Dcs, DcsError};
pub use guard::{Deadline, Guard, GuardError};
pub use history::History;
pub use ids::{Epoch, MemberName, Revision, Scope, SystemId};
pub use peer::Peers;
pub use pg::{PgError, PgOp, PgStatus, Postgres};
pub use time::{Clock, NodeTime};
pub use wal::{Lsn, Timeline, WalPosition};
