//! Consul that takes TLS, and wants a certificate of its clients.

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use spilo_core::dcs::DcsErrorKind;
use spilo_core::{Dcs as _, MemberName, Scope};
use spilo_dcs::ClientTls;
use spilo_dcs::{Consul, ConsulOptions};

use crate::certificates::{authority, certificate};
use crate::server::ConsulServer;

#[tokio::test]
async fn a_client_certificate_opens_the_door() {
    let certificates = tempfile::tempdir().unwrap();
    let at = |name: &str| certificates.path().join(name);
    authority(certificates.path(), "ca");
    authority(certificates.path(), "other-ca");
    certificate(certificates.path(), "server");
    certificate(certificates.path(), "client");
    let server = ConsulServer::with(json!({
        "session_ttl_min": "1s",
        "ca_file": at("ca.crt"),
        "cert_file": at("server.crt"),
        "key_file": at("server.key"),
        "verify_incoming_https": true,
    }))
    .await;
    let with = |tls: ClientTls| {
        let mut options = server.options();
        options.url = server.tls_url();
        options.tls = Some(tls);
        Consul::new(options).unwrap()
    };
    let consul =
        with(ClientTls::new(at("ca.crt")).with_identity(at("client.crt"), at("client.key")));
    let me = MemberName::new("a").unwrap();
    let lease = consul.acquire(&me, Duration::from_secs(30)).await.unwrap();
    consul.renew(&lease).await.unwrap();
    consul
        .release(&lease, Bytes::from_static(b"r"))
        .await
        .unwrap();

    for (tls, why) in [
        (ClientTls::new(at("ca.crt")), "no certificate of our own"),
        (
            ClientTls::new(at("other-ca.crt")).with_identity(at("client.crt"), at("client.key")),
            "the server's certificate is of another authority",
        ),
    ] {
        let error = with(tls).read().await.expect_err(why);
        assert_eq!(error.kind(), DcsErrorKind::Unavailable, "{why}: {error}");
    }
}

#[test]
fn unusable_files_and_addresses_are_refused_before_connecting() {
    let directory = tempfile::tempdir().unwrap();
    let garbage = directory.path().join("garbage.crt");
    std::fs::write(&garbage, "no certificate").unwrap();
    let options = |url: &str| ConsulOptions::new(Scope::new("demo").unwrap(), url);
    let with_ca = |ca: &std::path::Path| {
        let mut options = options("https://127.0.0.1:8501");
        options.tls = Some(ClientTls::new(ca));
        options
    };
    for (options, problem) in [
        (
            with_ca("/nonexistent/ca.crt".as_ref()),
            "cannot read /nonexistent/ca.crt",
        ),
        (with_ca(&garbage), "garbage.crt holds no certificate"),
        (
            options("https://127.0.0.1:8501"),
            "needs TLS, and no certificate of an authority is given",
        ),
        (options("ftp://127.0.0.1"), "has the scheme ftp"),
        (options("127.0.0.1:8500"), "is no URL"),
    ] {
        let error = Consul::new(options).unwrap_err();
        assert_eq!(error.kind(), DcsErrorKind::Refused);
        assert!(error.to_string().contains(problem), "{error}");
    }
}
