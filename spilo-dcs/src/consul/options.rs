//! How to reach Consul.

use std::fmt;
use std::time::Duration;

use spilo_core::Scope;

use super::Registration;
#[cfg(feature = "tls")]
use crate::ClientTls;

/// Where Consul is, who we are to it, and how long a request may take.
///
/// # Examples
/// ```
/// use spilo_core::Scope;
/// use spilo_dcs::ConsulOptions;
///
/// let mut options = ConsulOptions::new(Scope::new("demo")?, "http://127.0.0.1:8500");
/// options.token = Some("a secret".to_owned());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct ConsulOptions {
    /// The cluster whose keys these are.
    pub scope: Scope,
    /// The Consul agent that is asked, as `http://host:port` or `https://host:port`: as a rule
    /// the one on this machine.
    pub url: String,
    /// What all clusters' keys begin with; Patroni's default is `service`.
    pub namespace: String,
    /// The token of the access control list, where Consul has one.
    pub token: Option<String>,
    /// The datacenter that has the keys, which is the agent's own: Consul makes no sessions on nodes
    /// of another. Naming it makes a wrong agent fail.
    pub datacenter: Option<String>,
    /// How long one call may take, all its requests together. A third of the lease or less leaves time for a second try.
    pub request_timeout: Duration,
    /// The shortest session that the servers grant, as their `session_ttl_min` says: 10 s where
    /// nobody has changed it.
    pub session_ttl_min: Duration,
    /// How members are registered as services; not at all if `None`.
    pub registration: Option<Registration>,
    /// TLS; without it only `http` works.
    #[cfg(feature = "tls")]
    pub tls: Option<ClientTls>,
}

impl ConsulOptions {
    /// Creates options with Patroni's namespace, no token, no service, no TLS and 3 s for a
    /// request.
    pub fn new(scope: Scope, url: impl Into<String>) -> Self {
        Self {
            scope,
            url: url.into(),
            namespace: "service".to_owned(),
            token: None,
            datacenter: None,
            request_timeout: Duration::from_secs(3),
            session_ttl_min: Duration::from_secs(10),
            registration: None,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }
}

impl fmt::Debug for ConsulOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the token.
        f.debug_struct("ConsulOptions")
            .field("scope", &self.scope)
            .field("url", &self.url)
            .field("namespace", &self.namespace)
            .field("datacenter", &self.datacenter)
            .field("request_timeout", &self.request_timeout)
            .finish_non_exhaustive()
    }
}
