//! How to reach etcd.

use std::fmt;
use std::time::Duration;

use spilo_core::Scope;

#[cfg(feature = "srv")]
use super::srv::EtcdSrv;
#[cfg(feature = "tls")]
use crate::ClientTls;

/// Where etcd is, who we are to it, and how long a request may take.
///
/// # Examples
/// ```
/// use spilo_core::Scope;
/// use spilo_dcs::EtcdOptions;
///
/// let mut options = EtcdOptions::new(Scope::new("demo")?, ["10.0.0.1:2379", "10.0.0.2:2379"]);
/// options.namespace = "db".to_owned();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct EtcdOptions {
    /// The cluster whose keys these are.
    pub scope: Scope,
    /// The members of etcd, as `host:port` or as a URL; tried in this order.
    ///
    /// With `srv` they may be none; those that are here count until DNS has named others.
    pub endpoints: Vec<String>,
    /// Where they stand in DNS, if they do.
    #[cfg(feature = "srv")]
    pub srv: Option<EtcdSrv>,
    /// What all clusters' keys begin with; Patroni's default is `service`.
    pub namespace: String,
    /// The user and the password, where etcd has authentication switched on.
    pub user: Option<(String, String)>,
    /// How long one call may take, all endpoints together. A third of the lease or less leaves
    /// time for a second try.
    pub request_timeout: Duration,
    /// TLS; without it endpoints are spoken to in the clear.
    #[cfg(feature = "tls")]
    pub tls: Option<ClientTls>,
}

impl EtcdOptions {
    /// Creates options with Patroni's namespace, no user, no TLS and 3 s for a request.
    pub fn new<E: Into<String>>(scope: Scope, endpoints: impl IntoIterator<Item = E>) -> Self {
        Self {
            scope,
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            #[cfg(feature = "srv")]
            srv: None,
            namespace: "service".to_owned(),
            user: None,
            request_timeout: Duration::from_secs(3),
            #[cfg(feature = "tls")]
            tls: None,
        }
    }

    /// Returns whether DNS is asked for the endpoints.
    pub(super) fn asks_dns(&self) -> bool {
        #[cfg(feature = "srv")]
        return self.srv.is_some();
        #[cfg(not(feature = "srv"))]
        false
    }

    /// Returns whether an endpoint without a scheme is spoken to over TLS.
    pub(super) fn prefers_tls(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.tls.is_some();
        #[cfg(not(feature = "tls"))]
        false
    }
}

impl fmt::Debug for EtcdOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the password.
        let mut options = f.debug_struct("EtcdOptions");
        options
            .field("scope", &self.scope)
            .field("endpoints", &self.endpoints);
        #[cfg(feature = "srv")]
        options.field("srv", &self.srv);
        options
            .field("namespace", &self.namespace)
            .field("user", &self.user.as_ref().map(|(name, _)| name))
            .field("request_timeout", &self.request_timeout)
            .finish_non_exhaustive()
    }
}
