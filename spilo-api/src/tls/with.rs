//! TLS by rustls.

use std::io::Error as IoError;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{ClientTlsOptions, TlsError};
use crate::io::{Io, with_causes};

/// The server's side of TLS: its certificate, and what it asks of clients.
///
/// Clones share the certificate, also after a [`reload`](Self::reload) or
/// [`replace`](Self::replace).
#[derive(Clone, Debug)]
pub struct ServerTls(Arc<RwLock<Loaded>>);

/// A certificate that was read, and where from.
#[derive(Clone, Debug)]
struct Loaded {
    options: ServerTlsOptions,
    config: Arc<ServerConfig>,
}

/// Where the server's certificate is, and what it asks of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerTlsOptions {
    /// The file with the certificate and those between it and the root, in PEM.
    pub certificate: PathBuf,
    /// The file with the private key, in PEM and not encrypted; by default the certificate's.
    pub key: Option<PathBuf>,
    /// The file with the roots of clients' certificates.
    pub ca: Option<PathBuf>,
    /// What is asked of clients.
    pub verify_client: VerifyClient,
}

/// What a server asks of its clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VerifyClient {
    /// Nothing.
    #[default]
    None,
    /// A certificate where something is changed.
    Optional,
    /// A certificate, always.
    Required,
}

impl ServerTlsOptions {
    /// Creates the options of a server that asks nothing of its clients.
    pub fn new(certificate: impl Into<PathBuf>) -> Self {
        let certificate = certificate.into();
        Self {
            certificate,
            key: None,
            ca: None,
            verify_client: VerifyClient::None,
        }
    }
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// A file that cannot be read or has not what it should have.
    pub fn load(options: ServerTlsOptions) -> Result<Self, TlsError> {
        let config = server_config(&options)?;
        let loaded = Loaded { options, config };
        Ok(Self(Arc::new(RwLock::new(loaded))))
    }

    /// Reads the files again, for the connections that come from now on.
    ///
    /// # Errors
    /// As [`load`](Self::load); the old certificate then stays.
    pub fn reload(&self) -> Result<(), TlsError> {
        let options = self.loaded().options;
        self.replace(&Self::load(options)?);
        Ok(())
    }

    /// Goes on with the certificate of `other`, for the connections that come from now on:
    /// [`reload`](Self::reload) for a caller that has more to prepare before anything may change.
    pub fn replace(&self, other: &Self) {
        let loaded = other.loaded();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = loaded;
    }

    fn loaded(&self) -> Loaded {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Does the handshake. Returns as well whether the client showed a certificate.
    pub(crate) async fn accept(self, stream: TcpStream) -> std::io::Result<(Box<dyn Io>, bool)> {
        let config = self.loaded().config;
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let (_, session) = stream.get_ref();
        let certificate = session
            .peer_certificates()
            .is_some_and(|chain| !chain.is_empty());
        Ok((Box::new(stream), certificate))
    }
}

/// The client's side of TLS.
#[derive(Debug)]
pub(crate) struct ClientTls(Option<Arc<ClientConfig>>);

impl ClientTls {
    /// Reads the files; never `None`.
    #[expect(
        clippy::unnecessary_wraps,
        reason = "without the feature it can be asked in vain"
    )]
    pub(crate) fn new(options: &ClientTlsOptions) -> Option<Result<Self, TlsError>> {
        Some(client_config(options).map(Self))
    }

    pub(crate) async fn connect(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> Result<Box<dyn Io>, String> {
        let config = self
            .0
            .clone()
            .ok_or("https needs a CA file, or `insecure`")?;
        let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
        let connected = TlsConnector::from(config).connect(name, stream).await;
        Ok(Box::new(
            connected.map_err(|error: IoError| with_causes(&error))?,
        ))
    }
}

fn server_config(options: &ServerTlsOptions) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates(&options.certificate)?;
    let key_path = options.key.as_deref().unwrap_or(&options.certificate);
    let key = private_key(key_path)?;
    let provider = Arc::new(ring::default_provider());
    let versions = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::new(&options.certificate, error.to_string()))?;
    let with_clients = match (options.verify_client, &options.ca) {
        (VerifyClient::None, _) => versions.with_no_client_auth(),
        (VerifyClient::Optional | VerifyClient::Required, None) => {
            let problem = "verifying clients needs a CA file";
            return Err(TlsError::new(&options.certificate, problem));
        }
        (VerifyClient::Optional | VerifyClient::Required, Some(ca)) => {
            let roots = Arc::new(roots(ca)?);
            let builder = WebPkiClientVerifier::builder_with_provider(roots, provider);
            let builder = if options.verify_client == VerifyClient::Optional {
                builder.allow_unauthenticated()
            } else {
                builder
            };
            let verifier = builder.build().map_err(|error| {
                TlsError::new(ca, "no verifier can be made of it").because(error)
            })?;
            versions.with_client_cert_verifier(verifier)
        }
    };
    let config = with_clients.with_single_cert(chain, key).map_err(|error| {
        TlsError::new(key_path, "the key does not fit the certificate").because(error)
    })?;
    Ok(Arc::new(config))
}

fn client_config(options: &ClientTlsOptions) -> Result<Option<Arc<ClientConfig>>, TlsError> {
    let identity = match (&options.certificate, &options.key) {
        (None, None) => None,
        (None, Some(key)) => {
            return Err(TlsError::new(
                key,
                "a key is of no use without a certificate",
            ));
        }
        (Some(certificate), key) => {
            let key = private_key(key.as_deref().unwrap_or(certificate))?;
            Some((certificate, certificates(certificate)?, key))
        }
    };
    let provider = Arc::new(ring::default_provider());
    let path = options
        .ca
        .as_deref()
        .unwrap_or_else(|| Path::new("the built-in ciphers"));
    let versions = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::new(path, error.to_string()))?;
    let judged = match &options.ca {
        _ if options.insecure => versions
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider))),
        Some(ca) => versions.with_root_certificates(roots(ca)?),
        None => return Ok(None),
    };
    let config = match identity {
        None => judged.with_no_client_auth(),
        Some((path, chain, key)) => judged.with_client_auth_cert(chain, key).map_err(|error| {
            TlsError::new(path, "the key does not fit the certificate").because(error)
        })?,
    };
    Ok(Some(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |error| TlsError::new(path, format!("{error}")).because(error);
    let chain: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(unreadable)?
        .collect::<Result<_, _>>()
        .map_err(unreadable)?;
    if chain.is_empty() {
        return Err(TlsError::new(path, "it has no certificate"));
    }
    Ok(chain)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| {
        TlsError::new(
            path,
            format!("it has no private key that is not encrypted: {error}"),
        )
        .because(error)
    })
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| {
            TlsError::new(path, "a certificate in it cannot be a root").because(error)
        })?;
    }
    Ok(roots)
}

/// Takes any certificate, but still has the other end prove that it holds the key.
///
/// Patroni never looks at its peers' certificates, and clusters live with ones that nobody could
/// verify; whoever can must say so with a CA file.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let schemes = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, schemes)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let schemes = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
