//! The black-box harness: a real etcd or Consul, real PostgreSQL servers and real agents, with faults,
//! writers and witnesses.
//!
//! A [`Cluster`] is a store and a few nodes, each an agent (`spilo-agent` or stock Patroni, from
//! the same configuration file) with its server, on free ports, in one temporary directory.
//! Everything in it ends with it, whatever ends the harness. [`Writers`] write to every node;
//! [`watch`] asks the nodes for their leases and follows the servers' processes; [`witness`] reads
//! the commits back from the servers' own write-ahead logs.
//!
//! Three sets of scenarios are built on these:
//! - [`failover`]: how long a cluster takes no writes, side by side with its peer;
//! - [`chaos`]: faults of agent, guard and server, after which nothing may be committed too late;
//! - [`store_faults`]: the same for faults of etcd.
//!
//! [`backup`] needs no cluster: it puts archiving tools side by side.
//!
//! The environment names what is not found by itself: `SPILO_AGENT` (the program `spilo-agent`),
//! `SPILO_PATRONI_BIN` (the directory of `patroni` and `patronictl`; its Python must be one that
//! the user `postgres` can run), `SPILO_CONSUL`, `SPILO_PG15_BIN` (PostgreSQL's programs),
//! `SPILO_BACKUP` (the program `spilo-backup`). `SPILO_KEEP` keeps every
//! directory; those of failed runs are kept anyway and named.
//!
//! # Examples
//!
//! A test of a few repetitions, and a cluster of one's own:
//!
//! ```no_run
//! use std::time::Duration;
//! use spilo_benches::{Cluster, chaos};
//!
//! # async fn example() -> anyhow::Result<()> {
//! let report = chaos::agent_killed(3).repeat(5).run().await?;
//! assert_eq!(report.violations(), Vec::<String>::new());
//!
//! let cluster = Cluster::builder().ttl(3).start().await?;
//! let primary = cluster.wait_streaming(2, Duration::from_secs(30)).await?;
//! primary.kill_everything();
//! # Ok(())
//! # }
//! ```

pub mod analysis;
pub mod backup;
pub mod chance;
pub mod chaos;
pub mod clock;
pub mod cluster;
pub mod consul;
mod deaf;
mod dns;
pub mod etcd;
mod exec;
pub mod failover;
pub mod http;
pub mod idle;
mod net;
pub mod node;
pub mod ports;
pub mod procs;
pub mod sandbox;
mod service;
pub mod store;
pub mod store_faults;
pub mod watch;
pub mod witness;
pub mod writers;
pub mod zookeeper;

pub use cluster::{Cluster, ClusterBuilder, Kind};
pub use consul::Consul;
pub use etcd::Etcd;
pub use exec::give_to_server_user;
pub use node::Node;
pub use store::{Store, StoreKind};
pub use writers::Writers;
pub use zookeeper::ZooKeeper;
