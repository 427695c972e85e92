//! HTTP for a spilo node: the server that load balancers, operators and other members talk to,
//! and the client that asks other members.
//!
//! The interface is Patroni's, so that HAProxy and ELB checks, `patronictl` and dashboards work
//! unchanged; where Patroni answers from the lock alone, this server answers from what the node
//! may do *and* does now. [`Api`] makes an [`axum::Router`] to mount anywhere; [`serve`] runs it
//! with the bounds that an open port needs. [`HttpPeers`] implements [`spilo_core::Peers`].
//!
//! | request | answer |
//! |---|---|
//! | `GET`, `HEAD`, `OPTIONS` on `/`, `/primary`, `/replica`, `/leader`, `/read-only`, `/health`, … | 200 or 503, with the status document |
//! | `GET /liveness`, `/readiness` | 200 or 503 |
//! | `GET /patroni` | the status document, always 200 |
//! | `GET /cluster`, `/history`, `/config`, `/failsafe` | documents of the cluster |
//! | `PATCH`, `PUT /config` | changes the dynamic configuration |
//! | `POST /switchover` | moves the primary, and answers when it has moved |
//! | `POST /failsafe` | the consent of this node to a primary without the store |
//! | `POST /detach` | leaves PostgreSQL to the guard and ends the agent |
//!
//! A document that comes from what the agent saw last, because the store did not answer within a
//! second, carries its age in the header `spilo-age-ms`.
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
