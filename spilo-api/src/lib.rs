//! HTTP for a spilo node: the server that load balancers, operators and other members talk to,
//! and the client that asks other members.
//!
//! The interface is Patroni's as far as it goes, so that HAProxy and ELB checks, dashboards, and
//! `patronictl list`, `switchover` and `edit-config` work unchanged; other requests of Patroni's
//! answer 501. Where Patroni answers from the lock alone, this server answers from what the node
//! may do *and* does now. [`Api`] makes an [`axum::Router`] to mount anywhere; [`serve`] runs it
//! with the bounds that an open port needs. [`HttpPeers`] implements [`spilo_core::Peers`].
//!
//! | request | answer |
//! |---|---|
//! | `GET`, `HEAD`, `OPTIONS` on `/`, `/primary`, `/replica`, `/leader`, `/read-only`, `/health`, … | 200 or 503; with `GET`, the status document |
//! | `GET /liveness`, `/readiness` | 200 or 503 |
//! | `GET /patroni` | the status document, always 200 |
//! | `GET /metrics` | the same in numbers, in the format of Prometheus |
//! | `GET /cluster`, `/history`, `/config`, `/failsafe` | documents of the cluster; 502 where there is none, 503 where none has been seen |
//! | `PATCH`, `PUT /config` | changes the dynamic configuration |
//! | `POST /switchover` | moves the primary, and answers when it has moved |
//! | `POST /failsafe` | the consent of this node to a primary without the store |
//! | `POST /detach` | leaves PostgreSQL to the guard and ends the agent |
//!
//! `/cluster`, `/history` and `/config` are read from the store. Where that fails or takes longer
//! than a second, they are what the agent saw last, with its age in the header `spilo-age-ms`;
//! `/failsafe` always is that, without the header.
//!
//! # Examples
//! ```
//! use std::net::TcpListener;
//! use std::sync::Arc;
//!
//! use spilo_api::{Api, ApiOptions, Credentials, Node, serve};
//!
//! async fn run(node: Arc<dyn Node>) -> Result<(), Box<dyn std::error::Error>> {
//!     let mut options = ApiOptions::default();
//!     options.access.authentication =
//!         Some(Credentials { username: "admin".to_owned(), password: "secret".to_owned() });
//!     let api = Api::new(node, options)?;
//!     let listener = TcpListener::bind("127.0.0.1:8008")?;
//!     serve(listener, api.router(), None, std::future::pending()).await?;
//!     Ok(())
//! }
//! ```

mod access;
mod body;
mod client;
mod failsafe;
mod health;
mod io;
mod members;
mod metrics;
mod node;
mod python;
mod query;
mod reply;
mod report;
mod router;
mod serve;
mod settings;
mod switchover;
mod tls;
mod view;

#[cfg(test)]
mod tests;

pub use access::{Access, Allowed, BadAllowed, Caller, Credentials};
pub use client::{HttpPeers, PeerOptions, PeerSetupError};
pub use node::Node;
pub use router::{Api, ApiOptions, BadHeader};
pub use serve::serve;
pub use tls::{ServerTls, TlsError};
#[cfg(feature = "tls")]
pub use tls::{ServerTlsOptions, VerifyClient};
