//! Archiving tools side by side: the same log and the same server, one store, each tool in turn.
//!
//! A [`Site`] holds what is measured: a server with data of pgbench, some of its log laid out as a
//! server's that waits to be archived, and a [store] that all tools share. A [`Trial`] runs
//! one [`Row`] of one [`Contender`] there, checks what came of it, and takes its [`Cost`].
//!
//! The loop that calls `archive_command` and `restore_command` is [ours](drive): it does what the
//! server's archiver does, and is as small for each tool as for any other.

mod calls;
mod certificate;
mod compare;
mod contender;
mod driver;
mod floor;
mod http;
mod load;
mod meter;
mod plan;
mod server;
mod site;
pub mod store;
mod table;
mod trial;

pub use contender::{Contender, FloorCodec, Row};
pub use driver::drive;
pub use floor::{FloorTask, floor};
pub use load::{Backlog, Load};
pub use meter::Cost;
pub use site::{Site, SiteOptions};
pub use table::{Sample, Summary, Verdict};
pub use trial::Trial;
