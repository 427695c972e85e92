//! The certificates of the store.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// The name that the store is reached by: the certificate holds no address, because the oldest of
/// the tools compares names only.
pub(crate) const HOST: &str = "localhost";

/// Writes an authority, and a certificate that it signed, to a directory.
///
/// # Errors
///
/// Fails where the directory cannot be written.
pub(crate) fn write(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let name = &mut authority.distinguished_name;
    name.push(DnType::CommonName, "the authority of this bench");
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let mut server = CertificateParams::new(vec![HOST.to_owned()])?;
    server.distinguished_name.push(DnType::CommonName, HOST);
    let server = server.signed_by(&key, &authority)?;
    for (path, text) in [
        (authority_file(dir), authority.pem()),
        (dir.join(SERVER), server.pem()),
        (dir.join(KEY), key.serialize_pem()),
    ] {
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Returns the file of the authority.
pub(crate) fn authority_file(dir: &Path) -> PathBuf {
    dir.join("ca.pem")
}

/// Returns what a server needs to speak TLS.
///
/// # Errors
///
/// Fails where [`write`] has not been there.
pub(crate) fn of_server(dir: &Path) -> Result<Arc<ServerConfig>> {
    let chain = vec![CertificateDer::from_pem_file(dir.join(SERVER))?];
    let key = PrivateKeyDer::from_pem_file(dir.join(KEY))?;
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    Ok(Arc::new(config))
}

/// Returns what a client needs to trust an authority.
///
/// # Errors
///
/// Fails where the file holds no certificate.
pub(crate) fn of_client(authority: &Path) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority)?)?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

const SERVER: &str = "server.pem";
const KEY: &str = "server.key";
