//! Stores that the nodes of a spilo cluster agree through.
//!
//! Each is a [`Dcs`](spilo_core::Dcs) and passes the same conformance suite
//! (`spilo_core::conformance::dcs`).
//!
//! - [`memory`]: one process, for tests, examples and demonstrations;
//! - `etcd` (feature `etcd`; building it needs `protoc`): etcd v3.4 and later, byte-compatible
//!   with Patroni's `etcd3`. Feature `tls` adds TLS and client certificates.

#[cfg(feature = "etcd")]
pub mod etcd;
pub mod memory;

#[cfg(feature = "etcd")]
pub use etcd::{Etcd, EtcdOptions};
pub use memory::{MemoryDcs, MemoryStore};
