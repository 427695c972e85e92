//! Stores that the nodes of a spilo cluster agree through.
//!
//! Each is a [`Dcs`](spilo_core::Dcs) and passes the same conformance suite
//! (`spilo_core::conformance::dcs`).
//!
//! - [`memory`]: one process, for tests, examples and demonstrations;
//! - `etcd` (feature `etcd`; building it needs `protoc`): etcd v3.4 and later, byte-compatible
//!   with Patroni's `etcd3`;
//! - `consul` (feature `consul`): Consul 1.8 and later, byte-compatible with Patroni's `consul`;
//! - `zookeeper` (feature `zookeeper`): ZooKeeper 3.6 and later, with the nodes of Patroni's
//!   `zookeeper`.
//!
//! Feature `discovery` lists and follows all clusters of a namespace in etcd.
//!
//! Feature `srv` finds the endpoints of etcd in DNS.
//!
//! Feature `tls` adds TLS and client certificates to etcd and Consul.

#[cfg(feature = "consul")]
pub mod consul;
#[cfg(feature = "discovery")]
pub mod discovery;
#[cfg(feature = "etcd")]
pub mod etcd;
#[cfg(any(feature = "consul", feature = "etcd", feature = "zookeeper"))]
mod keys;
pub mod memory;
#[cfg(any(feature = "consul", feature = "discovery", feature = "etcd"))]
mod place;
#[cfg(feature = "tls")]
mod tls;
#[cfg(any(feature = "consul", feature = "zookeeper"))]
mod verdict;
#[cfg(feature = "zookeeper")]
pub mod zookeeper;

#[cfg(feature = "consul")]
pub use consul::{Consul, ConsulOptions};
#[cfg(feature = "etcd")]
pub use etcd::{Etcd, EtcdOptions};
pub use memory::{MemoryDcs, MemoryStore};
#[cfg(feature = "tls")]
pub use tls::ClientTls;
#[cfg(feature = "zookeeper")]
pub use zookeeper::{ZooKeeper, ZooKeeperOptions};
