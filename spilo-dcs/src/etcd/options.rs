//! How to reach etcd.

use std::fmt;
#[cfg(feature = "tls")]
use std::path::PathBuf;
use std::time::Duration;

use spilo_core::Scope;

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
    pub endpoints: Vec<String>,
    /// What all clusters' keys begin with; Patroni's default is `service`.
    pub namespace: String,
    /// The user and the password, where etcd has authentication switched on.
    pub user: Option<(String, String)>,
    /// How long one call may take, all endpoints together. A third of the lease or less leaves
    /// time for a second try.
    pub request_timeout: Duration,
    /// TLS; without it endpoints are spoken to in the clear.
    #[cfg(feature = "tls")]
    pub tls: Option<EtcdTls>,
}

/// The files of a TLS connection, in PEM; read again for each new connection, so that renewed
/// certificates are used without a restart.
#[cfg(feature = "tls")]
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EtcdTls {
    /// The certificates of the authorities that the servers' certificates are checked against.
    pub ca: PathBuf,
    /// Our own certificate and its key, where etcd asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl EtcdOptions {
    /// Creates options with Patroni's namespace, no user, no TLS and 3 s for a request.
    pub fn new<E: Into<String>>(scope: Scope, endpoints: impl IntoIterator<Item = E>) -> Self {
        Self {
            scope,
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            namespace: "service".to_owned(),
            user: None,
            request_timeout: Duration::from_secs(3),
            #[cfg(feature = "tls")]
            tls: None,
        }
    }

    /// Returns whether an endpoint without a scheme is spoken to over TLS.
    pub(super) fn prefers_tls(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.tls.is_some();
        #[cfg(not(feature = "tls"))]
        false
    }
}

#[cfg(feature = "tls")]
impl EtcdTls {
    /// Creates options that check the servers' certificates and show none of our own.
    pub fn new(ca: impl Into<PathBuf>) -> Self {
        Self {
            ca: ca.into(),
            identity: None,
        }
    }

    /// Shows a certificate of our own.
    #[must_use]
    pub fn with_identity(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.identity = Some((certificate.into(), key.into()));
        self
    }
}

impl fmt::Debug for EtcdOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the password.
        f.debug_struct("EtcdOptions")
            .field("scope", &self.scope)
            .field("endpoints", &self.endpoints)
            .field("namespace", &self.namespace)
            .field("user", &self.user.as_ref().map(|(name, _)| name))
            .field("request_timeout", &self.request_timeout)
            .finish_non_exhaustive()
    }
}
