//! etcd as it is: the conformance suite, its failures, and its layout, on servers that the tests
//! start. They take `etcd` and `etcdctl` from `PATH`, or from where `SPILO_ETCD` says.

#![expect(clippy::unwrap_used, reason = "what helps a test fails as a test does")]

mod answers;
#[cfg(feature = "tls")]
#[path = "../certificates/certificates.rs"]
mod certificates;
#[cfg(feature = "discovery")]
mod clusters;
mod faults;
mod layout;
mod login;
#[path = "../ports/ports.rs"]
mod ports;
mod server;
#[path = "../signal/signal.rs"]
mod signal;
#[cfg(feature = "srv")]
mod srv;
#[path = "../stranger/stranger.rs"]
mod stranger;
#[cfg(feature = "tls")]
mod tls;

use server::EtcdCluster;

spilo_core::dcs_conformance!(async { Box::new(EtcdCluster::start(1).await) });
