//! One connection to one endpoint.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[cfg(feature = "tls")]
use etcd_client::{Certificate, Identity, TlsOptions};
use etcd_client::{Client, ConnectOptions, Error, ResponseHeader};
use spilo_core::DcsError;
use spilo_core::dcs::DcsErrorKind;

use super::addresses::Addresses;
use super::endpoints::Endpoints;
use super::options::EtcdOptions;
use super::{NAME, failure};

/// Makes clients of single endpoints.
///
/// etcd-client balances over several by itself, but goes on using one that is frozen or cut off
/// from its peers, so each client here has one endpoint and the lane chooses.
pub(super) struct Connector {
    options: EtcdOptions,
    endpoints: Endpoints,
    addresses: Arc<Addresses>,
}

impl Connector {
    /// Checks the options without connecting.
    pub(super) fn new(options: EtcdOptions) -> Result<Self, DcsError> {
        let bad = |problem: String| {
            DcsError::new(
                NAME,
                DcsErrorKind::Refused,
                "use the configuration",
                problem,
            )
        };
        if options.endpoints.is_empty() && !options.asks_dns() {
            return Err(bad("there is no endpoint".to_owned()));
        }
        let scheme = if options.prefers_tls() {
            "https"
        } else {
            "http"
        };
        let mut endpoints = Vec::new();
        for endpoint in &options.endpoints {
            let endpoint = endpoint.trim().trim_end_matches('/');
            let url = match endpoint.split_once("://") {
                None => format!("{scheme}://{endpoint}"),
                Some((given, _)) if given == scheme => endpoint.to_owned(),
                Some(("https", _)) if cfg!(not(feature = "tls")) => {
                    return Err(bad(format!("{endpoint} takes TLS, which is not built in")));
                }
                Some(("https", _)) => {
                    return Err(bad(format!("{endpoint} takes TLS, and no CA is given")));
                }
                Some(("http", _)) => {
                    return Err(bad(format!("{endpoint} is without TLS, and a CA is given")));
                }
                Some(_) => return Err(bad(format!("{endpoint} is neither http nor https"))),
            };
            if let Err(error) = url.parse::<http::Uri>() {
                return Err(bad(format!("{endpoint} is no address")).because(error));
            }
            endpoints.push(url);
        }
        let addresses = Arc::<Addresses>::default();
        let endpoints = Endpoints::new(endpoints, &options, &addresses);
        let connector = Self {
            options,
            endpoints,
            addresses,
        };
        connector
            .connect_options(true, None, Duration::ZERO)
            .map_err(|error| bad(failure::text(&error)).because(error))?;
        Ok(connector)
    }

    pub(super) fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    pub(super) fn request_timeout(&self) -> Duration {
        self.options.request_timeout
    }

    /// Creates a client, and logs in where there is a user; otherwise nothing is sent yet.
    pub(super) async fn connect(&self, url: &str, timeout: Duration) -> Result<Client, Error> {
        let deadline = Instant::now() + timeout;
        let uri: http::Uri = url.parse().map_err(Error::InvalidUri)?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let (url, host) = if host.parse::<IpAddr>().is_ok() {
            (url.to_owned(), None)
        } else {
            // Resolved here, so that a name which cannot be resolved now still leads somewhere, and
            // is known to have done nothing where it does not.
            let scheme = uri.scheme_str().unwrap_or("http");
            let port = uri
                .port_u16()
                .unwrap_or(if scheme == "https" { 443 } else { 80 });
            let instead = self.addresses.instead(host, port, timeout * 3 / 4).await;
            match instead.map_err(Error::IoError)? {
                Some(address) => (format!("{scheme}://{address}"), Some(host)),
                None => (url.to_owned(), None),
            }
        };
        let timeout = deadline.saturating_duration_since(Instant::now());
        match Client::connect([&url], Some(self.connect_options(true, host, timeout)?)).await {
            // Authentication may be switched on later, so a user is no error before.
            Err(error) if failure::auth_is_off(&error) => {
                Client::connect([&url], Some(self.connect_options(false, host, timeout)?)).await
            }
            result => result,
        }
    }

    /// Asks a member which etcd it belongs to; a member that may not tell says nothing.
    pub(super) async fn who(&self, client: &Client) -> Result<Option<ResponseHeader>, Error> {
        use failure::Verdict::{Refused, StaleToken};
        match client.maintenance_client().status().await {
            Ok(answer) => Ok(answer.header().cloned()),
            Err(error) if matches!(failure::judge(&error), Refused | StaleToken) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the options of a connection; a host is what the certificate must be of, where it does
    /// not stand in the URL.
    fn connect_options(
        &self,
        login: bool,
        host: Option<&str>,
        timeout: Duration,
    ) -> Result<ConnectOptions, Error> {
        let mut options = ConnectOptions::new()
            // A member that is cut off from its peers says so at once instead of letting us wait.
            .with_require_leader(true)
            // Less than the request's time: then a host that is gone fails as "not connected",
            // which is known to have done nothing, and not as "no answer", which is not.
            .with_connect_timeout(timeout * 3 / 4);
        // No HTTP/2 pings: each request has its time, and a quiet watch is asked whether it lives.
        if let Some((name, password)) = self.options.user.as_ref().filter(|_| login) {
            options = options.with_user(name, password);
        }
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.options.tls {
            let mut files = TlsOptions::new().ca_certificate(Certificate::from_pem(read(&tls.ca)?));
            if let Some(host) = host {
                files = files.domain_name(host);
            }
            if let Some((certificate, key)) = &tls.identity {
                files = files.identity(Identity::from_pem(read(certificate)?, read(key)?));
            }
            options = options.with_tls(files);
        }
        #[cfg(not(feature = "tls"))]
        let _ = host;
        Ok(options)
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("options", &self.options)
            .field("endpoints", &self.endpoints.names())
            .finish()
    }
}

#[cfg(feature = "tls")]
fn read(path: &std::path::Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path)
        .map_err(|error| Error::InvalidArgs(format!("cannot read {}: {error}", path.display())))
}
