//! HTTPS between the server and the client.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

use super::sockets::start_api;
use super::*;
use crate::serve::Limits;
use crate::tls::{ServerTls, ServerTlsOptions, VerifyClient};
use crate::{HttpPeers, PeerOptions};

/// A root, and certificates that it signed, as files.
struct Authority {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { dir, issuer }
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Makes a certificate for 127.0.0.1 with its key in the same file.
    fn sign(&self, file: &str) -> PathBuf {
        let path = self.dir.path().join(file);
        self.sign_into(&path);
        path
    }

    fn sign_into(&self, path: &Path) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(
            path,
            format!("{}{}", certificate.pem(), key.serialize_pem()),
        )
        .unwrap();
    }

    fn server(&self, verify_client: VerifyClient) -> ServerTls {
        let mut options = ServerTlsOptions::new(self.sign("server.pem"));
        options.ca = Some(self.ca());
        options.verify_client = verify_client;
        ServerTls::load(options).unwrap()
    }
}

fn client(change: impl FnOnce(&mut PeerOptions)) -> HttpPeers {
    let mut options = PeerOptions {
        timeout: Duration::from_secs(5),
        ..PeerOptions::default()
    };
    change(&mut options);
    HttpPeers::new(options).unwrap()
}

#[tokio::test]
async fn certificates_are_verified_by_the_ca_or_not_at_all() {
    let ours = Authority::new();
    let theirs = Authority::new();
    let server = start_api(
        &Fake::new(primary()).api(),
        Limits::default(),
        Some(ours.server(VerifyClient::None)),
    );
    let url = format!("https://{}/patroni", server.address);
    assert!(
        client(|o| o.ca = Some(ours.ca()))
            .ask(&url)
            .await
            .unwrap()
            .primary
    );
    assert!(
        client(|o| o.insecure = true)
            .ask(&url)
            .await
            .unwrap()
            .primary
    );
    let error = client(|o| o.ca = Some(theirs.ca()))
        .ask(&url)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("invalid peer certificate"),
        "{error}"
    );
    let error = client(|_| {}).ask(&url).await.unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("https needs a CA file, or `insecure`"),
        "{error}"
    );
}

#[tokio::test]
async fn clients_are_asked_for_certificates_as_configured() {
    let ours = Authority::new();
    let theirs = Authority::new();
    let (own, foreign) = (ours.sign("client.pem"), theirs.sign("client.pem"));
    for (verify, without, with_foreign) in [
        (VerifyClient::None, true, true),
        (VerifyClient::Optional, true, false),
        (VerifyClient::Required, false, false),
    ] {
        let api = Fake::new(standby()).api();
        let server = start_api(&api, Limits::default(), Some(ours.server(verify)));
        let url = format!("https://{}/patroni", server.address);
        let ask = async |certificate: Option<&PathBuf>| {
            let peers = client(|o| {
                o.ca = Some(ours.ca());
                o.certificate = certificate.cloned();
            });
            peers.ask(&url).await.is_ok()
        };
        assert_eq!(ask(None).await, without, "{verify:?}");
        assert_eq!(ask(Some(&foreign)).await, with_foreign, "{verify:?}");
        assert!(ask(Some(&own)).await, "{verify:?}");
    }
}

#[tokio::test]
async fn orders_are_let_in_by_certificate() {
    let ours = Authority::new();
    let mut options = ApiOptions::default();
    options.access.certificate = true;
    let api = Api::new(Fake::new(standby()), options).unwrap();
    let tls = ours.server(VerifyClient::Optional);
    let server = start_api(&api, Limits::default(), Some(tls));
    let url = format!("https://{}/patroni", server.address);
    let request = ConsentRequest {
        scope: None,
        name: name("b"),
        conn_url: "x".to_owned(),
        api_url: "y".to_owned(),
        slots: BTreeMap::new(),
    };
    let without = client(|o| o.ca = Some(ours.ca()));
    let error = without.ask_consent(&url, &request).await.unwrap_err();
    assert!(
        error.to_string().contains("client certificate required"),
        "{error}"
    );
    let with = client(|o| {
        o.ca = Some(ours.ca());
        o.certificate = Some(ours.sign("client.pem"));
    });
    assert_eq!(
        with.ask_consent(&url, &request).await.unwrap(),
        Some(Lsn(77))
    );
}

#[tokio::test]
async fn a_renewed_certificate_is_served_after_a_reload() {
    let (old, new) = (Authority::new(), Authority::new());
    let tls = old.server(VerifyClient::None);
    let file = old.dir.path().join("server.pem");
    let server = start_api(
        &Fake::new(primary()).api(),
        Limits::default(),
        Some(tls.clone()),
    );
    let url = format!("https://{}/patroni", server.address);
    let (by_old, by_new) = (
        client(|o| o.ca = Some(old.ca())),
        client(|o| o.ca = Some(new.ca())),
    );
    std::fs::write(&file, "garbage").unwrap();
    let error = tls.reload().unwrap_err().to_string();
    assert!(error.contains("server.pem"), "{error}");
    assert!(by_old.ask(&url).await.is_ok());
    new.sign_into(&file);
    tls.reload().unwrap();
    assert!(by_old.ask(&url).await.is_err());
    assert!(by_new.ask(&url).await.is_ok());
}

#[tokio::test]
async fn a_renewed_client_certificate_is_shown_after_a_reconfiguration() {
    let (old, new) = (Authority::new(), Authority::new());
    let mut options = ServerTlsOptions::new(new.sign("server.pem"));
    options.ca = Some(new.ca());
    options.verify_client = VerifyClient::Required;
    let tls = ServerTls::load(options).unwrap();
    let server = start_api(&Fake::new(primary()).api(), Limits::default(), Some(tls));
    let url = format!("https://{}/patroni", server.address);
    let certificate = old.sign("client.pem");
    let options = || PeerOptions {
        ca: Some(new.ca()),
        certificate: Some(certificate.clone()),
        ..PeerOptions::default()
    };
    let peers = HttpPeers::new(options()).unwrap();
    assert!(peers.ask(&url).await.is_err());
    std::fs::write(&certificate, "garbage").unwrap();
    let error = peers.reconfigure(options()).unwrap_err().to_string();
    assert!(error.contains("client.pem"), "{error}");
    new.sign_into(&certificate);
    peers.reconfigure(options()).unwrap();
    assert!(peers.ask(&url).await.is_ok());
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let authority = Authority::new();
    let missing = ServerTlsOptions::new(authority.dir.path().join("missing.pem"));
    let error = ServerTls::load(missing).unwrap_err().to_string();
    assert!(error.contains("missing.pem"), "{error}");
    let error = ServerTls::load(ServerTlsOptions::new(authority.ca()))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("ca.pem: it has no private key that is not encrypted"),
        "{error}"
    );
    let mut options = ServerTlsOptions::new(authority.sign("a.pem"));
    options.key = Some(authority.sign("b.pem"));
    let error = ServerTls::load(options.clone()).unwrap_err().to_string();
    assert!(
        error.contains("b.pem: the key does not fit the certificate"),
        "{error}"
    );
    options.verify_client = VerifyClient::Required;
    options.key = None;
    let error = ServerTls::load(options).unwrap_err().to_string();
    assert!(
        error.contains("verifying clients needs a CA file"),
        "{error}"
    );
}
