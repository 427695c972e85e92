//! Backups for [spilo](spilo_core): base backups and archived log, and replicas made from them.
//!
//! An [`Archive`] keeps both in a store of [`Objects`], in the layout of WAL-E: in a
//! [`Directory`], or in S3 with the feature `s3`. It is a
//! [`BackupStore`](spilo_core::backup::BackupStore), so that
//! [`choose_method`](spilo_core::replica::choose_method) can choose between it and a copy.
//!
//! With the feature `commands`, [`Separate`] is such an archive through the command `spilo-backup`,
//! in processes of their own, and [`WalE`] the one of a stock WAL-E.
//!
//! With the feature `schedule`, a [`Scheduler`] makes the base backups of a cluster at their times.
//!
//! [`Sealed`] encrypts all objects before they leave this machine.
//!
//! What it gives back are the bytes that were put there, or an error: every codec but `none` has a
//! checksum, a file of the log is compared with its name, and the parts of a base backup with what
//! its sentinel says of them. It never replaces an object: a file of the log that is there with
//! other bytes is an error that says whose it is.
//!
//! An [`Archiver`] is resident beside a server: it pushes files of the log before PostgreSQL asks
//! for them, and fetches those that it will ask for next. A [`Resident`] asks it, without a runtime,
//! from the command that PostgreSQL runs.
//!
//! # Memory
//! Objects pass through in pieces of 256 KiB, of which a handful wait at a time. What S3 wants to
//! know the length of is gathered in parts, of 20 MiB by default, of which six are in memory at most. A list of
//! the data directory's files is kept while a backup is made, about 150 bytes for each.

mod archive;
mod archiver;
mod body;
mod codec;
#[cfg(feature = "commands")]
mod command;
mod digest;
mod directory;
mod expire;
mod fetch;
mod files;
mod forks;
mod layout;
mod lzop;
mod meter;
mod objects;
mod page;
mod part;
mod push;
mod request;
mod resident;
#[cfg(feature = "s3")]
mod s3;
#[cfg(feature = "schedule")]
mod schedule;
#[cfg(feature = "schedule")]
mod scheduler;
mod sealed;
mod sentinel;
#[cfg(feature = "commands")]
mod separate;
mod session;
mod unpack;
mod verify;
mod wal;
#[cfg(feature = "commands")]
mod wal_e;

use std::io;

pub use archive::{Archive, ArchiveOptions};
pub use archiver::{Archiver, ArchiverOptions, ArchiverStatus};
pub use body::{Body, BodySender};
pub use codec::{BadCodec, Codec};
#[cfg(feature = "commands")]
pub use command::{CommandOptions, Tether};
pub use directory::Directory;
pub use expire::{Expired, Keep};
pub use objects::{Object, Objects};
pub use resident::{Heard, Resident};
#[cfg(feature = "s3")]
pub use s3::{Encryption, S3, S3Options};
#[cfg(feature = "schedule")]
pub use schedule::{BadSchedule, Schedule};
#[cfg(feature = "schedule")]
pub use scheduler::{Scheduler, Turn};
pub use sealed::{BadSealingKeys, Sealed, SealingKeys};
#[cfg(feature = "commands")]
pub use separate::Separate;
pub use verify::{Branch, Hole, Report};
pub use wal::Pushed;
#[cfg(feature = "commands")]
pub use wal_e::WalE;

/// Runs what blocks beside the tasks.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(io::Error::other(error)))
}
