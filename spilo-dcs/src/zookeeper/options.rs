//! How to reach ZooKeeper.

use std::fmt;
use std::time::Duration;

use spilo_core::Scope;

/// Where ZooKeeper is, who we are to it, and how long a request may take.
///
/// # Examples
/// ```
/// use spilo_core::Scope;
/// use spilo_dcs::ZooKeeperOptions;
///
/// let mut options = ZooKeeperOptions::new(Scope::new("demo")?, ["10.0.0.1:2181", "10.0.0.2:2181"]);
/// options.digest = Some("spilo:a secret".to_owned());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct ZooKeeperOptions {
    /// The cluster whose nodes these are.
    pub scope: Scope,
    /// The servers, each as `host:port`. All are tried.
    pub hosts: Vec<String>,
    /// What all clusters' paths begin with; Patroni's default is `service`.
    pub namespace: String,
    /// Who we are, as `user:password` of the scheme `digest`. With it, what is made here is for
    /// this user alone; without, for everybody.
    pub digest: Option<String>,
    /// How long one call may take, all its requests together. A third of the lease or less leaves
    /// time for a second try.
    pub request_timeout: Duration,
    /// The servers' `tickTime`: 2 s where nobody has changed it. They grant sessions of 2 to 20 of
    /// it, unless `minSessionTimeout` and `maxSessionTimeout` say otherwise, and end one up to a
    /// tick late.
    pub tick_time: Duration,
}

impl ZooKeeperOptions {
    /// Creates options with Patroni's namespace, no user, 3 s for a request and ticks of 2 s.
    pub fn new<H: Into<String>>(scope: Scope, hosts: impl IntoIterator<Item = H>) -> Self {
        Self {
            scope,
            hosts: hosts.into_iter().map(Into::into).collect(),
            namespace: "service".to_owned(),
            digest: None,
            request_timeout: Duration::from_secs(3),
            tick_time: Duration::from_secs(2),
        }
    }
}

impl fmt::Debug for ZooKeeperOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the password.
        f.debug_struct("ZooKeeperOptions")
            .field("scope", &self.scope)
            .field("hosts", &self.hosts)
            .field("namespace", &self.namespace)
            .field("request_timeout", &self.request_timeout)
            .field("tick_time", &self.tick_time)
            .finish_non_exhaustive()
    }
}
