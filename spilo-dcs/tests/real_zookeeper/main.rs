//! ZooKeeper as it is: the conformance suite, its failures, and its layout, on servers that the
//! tests start. They take the server's classes from where `SPILO_ZOOKEEPER` says, or from where
//! Debian has them, and `java` from `PATH`.

#![expect(clippy::unwrap_used, reason = "what helps a test fails as a test does")]

mod answers;
mod faults;
mod layout;
#[path = "../ports/ports.rs"]
mod ports;
mod server;
#[path = "../signal/signal.rs"]
mod signal;
#[path = "../stranger/stranger.rs"]
mod stranger;

use server::ZooKeeperServer;

spilo_core::dcs_conformance!(async { Box::new(ZooKeeperServer::start().await) });
