//! TLS to a store.

use std::path::PathBuf;

/// The files of a TLS connection, in PEM.
///
/// They are read again for each new connection to etcd, and to Consul after a connection failed, so
/// that renewed certificates are used without a restart.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientTls {
    /// The certificates of the authorities that the server's certificate is checked against.
    pub ca: PathBuf,
    /// Our own certificate and its key, where the store asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl ClientTls {
    /// Creates options that check the server's certificate and show none of our own.
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

    /// Has requests over HTTP use it.
    ///
    /// # Errors
    /// Names the file that cannot be read or holds something else.
    #[cfg(any(feature = "consul", feature = "srv"))]
    pub(crate) fn over_http(
        &self,
        builder: reqwest::ClientBuilder,
    ) -> Result<reqwest::ClientBuilder, String> {
        let read = |path: &std::path::Path| {
            std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
        };
        let authorities = reqwest::Certificate::from_pem_bundle(&read(&self.ca)?)
            .map_err(|error| format!("{} holds no certificate: {error}", self.ca.display()))?;
        if authorities.is_empty() {
            return Err(format!("{} holds no certificate", self.ca.display()));
        }
        let mut builder = builder.use_rustls_tls().tls_built_in_root_certs(false);
        for authority in authorities {
            builder = builder.add_root_certificate(authority);
        }
        if let Some((certificate, key)) = &self.identity {
            let mut pem = read(certificate)?;
            pem.push(b'\n');
            pem.extend(read(key)?);
            let identity = reqwest::Identity::from_pem(&pem).map_err(|error| {
                let (certificate, key) = (certificate.display(), key.display());
                format!("{certificate} and {key} are no certificate and its key: {error}")
            })?;
            builder = builder.identity(identity);
        }
        Ok(builder)
    }
}
