//! Stores that the nodes of a spilo cluster agree through.
//!
//! Each is a [`Dcs`](spilo_core::Dcs) and passes the same conformance suite
//! (`spilo_core::conformance::dcs`).
//!
//! - [`memory`]: one process, for tests, examples and demonstrations;
//! - `etcd` (feature `etcd`; building it needs `protoc`): etcd v3.4 and later, byte-compatible
//!   with Patroni's `etcd3`;
//! - `consul` (feature `consul`): Consul 1.8 and later, byte-compatible with Patroni's `consul`.
//!
//! Feature `discovery` lists and follows all clusters of a namespace.
//!
//! Feature `tls` adds TLS and client certificates to both.

#[cfg(feature = "consul")]
pub mod consul;
#[cfg(feature = "discovery")]
pub mod discovery;
#[cfg(feature = "etcd")]
pub mod etcd;
#[cfg(any(feature = "consul", feature = "etcd"))]
mod keys;
pub mod memory;
#[cfg(any(feature = "consul", feature = "discovery", feature = "etcd"))]
mod place;

#[cfg(feature = "consul")]
pub use consul::{Consul, ConsulOptions};
#[cfg(feature = "etcd")]
pub use etcd::{Etcd, EtcdOptions};
pub use memory::{MemoryDcs, MemoryStore};
