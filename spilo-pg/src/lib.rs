//! One local PostgreSQL server for spilo: bootstrap, clone, follow, promote, rewind, stop, and the
//! guard that fences it.
//!
//! [`LocalPostgres`] implements [`spilo_core::Postgres`] for a server on this machine, of version
//! 13 to 18, whose data directory is interchangeable with Patroni's. [`guard::GuardClient`]
//! implements [`spilo_core::Guard`]: every server runs under a guard process, which ends it when
//! the agent cannot.
//!
//! What belongs to a data directory but may not lie in it (the marker of an unfinished operation,
//! passwords for the programs, the server's first log, the record of diverged log) is kept in a
//! directory beside it; see [`LocalOptions::state_dir`].

mod clock;
pub mod guard;
mod keeper;
mod local;
mod options;
mod server;

pub use clock::BootClock;
pub use guard::{GuardClient, GuardOptions, run_if_guard, tethered};
pub use keeper::GuardKeeper;
pub use local::LocalPostgres;
pub use options::{Backups, Credentials, LocalOptions, Recovery};
pub use server::LocalServer;
