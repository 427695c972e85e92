//! Consul as it is: the conformance suite, its failures, and its layout, on servers that the tests
//! start. They take `consul` from where `SPILO_CONSUL` says, or from `PATH`.

#![expect(clippy::unwrap_used, reason = "what helps a test fails as a test does")]

mod answers;
#[cfg(feature = "tls")]
#[path = "../certificates/certificates.rs"]
mod certificates;
mod faults;
mod layout;
#[path = "../ports/ports.rs"]
mod ports;
mod server;
#[path = "../signal/signal.rs"]
mod signal;
#[path = "../stranger/stranger.rs"]
mod stranger;
#[cfg(feature = "tls")]
mod tls;

use server::ConsulServer;

spilo_core::dcs_conformance!(async { Box::new(ConsulServer::start().await) });
