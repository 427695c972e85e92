//! etcd that takes TLS, and wants a certificate of its clients.

use std::time::Duration;

use bytes::Bytes;
use spilo_core::dcs::DcsErrorKind;
use spilo_core::{Dcs as _, MemberName, Scope};
use spilo_dcs::{ClientTls, Etcd, EtcdOptions};

use crate::certificates::{authority, certificate};
use crate::server::EtcdCluster;

#[tokio::test]
async fn a_client_certificate_opens_the_door() {
    let (cluster, certificates) = start().await;
    let at = |name: &str| certificates.path().join(name);
    let etcd = Etcd::new(with(
        &cluster,
        ClientTls::new(at("ca.crt")).with_identity(at("client.crt"), at("client.key")),
    ))
    .unwrap();
    cluster.until_ready(&etcd).await;
    let me = MemberName::new("a").unwrap();
    let lease = etcd.acquire(&me, Duration::from_secs(30)).await.unwrap();
    etcd.renew(&lease).await.unwrap();
    etcd.release(&lease, Bytes::from_static(b"r"))
        .await
        .unwrap();

    for (tls, why) in [
        (ClientTls::new(at("ca.crt")), "no certificate of our own"),
        (
            ClientTls::new(at("other-ca.crt")).with_identity(at("client.crt"), at("client.key")),
            "the server's certificate is of another authority",
        ),
    ] {
        let etcd = Etcd::new(with(&cluster, tls)).unwrap();
        let error = etcd.read().await.expect_err(why);
        assert_eq!(error.kind(), DcsErrorKind::Unavailable, "{why}: {error}");
    }
}

#[test]
fn unusable_files_and_addresses_are_refused_before_connecting() {
    let directory = tempfile::tempdir().unwrap();
    let garbage = directory.path().join("garbage.crt");
    std::fs::write(&garbage, "no certificate").unwrap();
    let scope = || Scope::new("demo").unwrap();
    let mut missing = EtcdOptions::new(scope(), ["127.0.0.1:2379"]);
    missing.tls = Some(ClientTls::new("/nonexistent/ca.crt"));
    let mut mixed = EtcdOptions::new(scope(), ["http://127.0.0.1:2379"]);
    mixed.tls = Some(ClientTls::new(garbage));
    for (options, problem) in [
        (missing, "cannot read /nonexistent/ca.crt"),
        (mixed, "is without TLS, and a CA is given"),
        (
            EtcdOptions::new(scope(), ["https://127.0.0.1:2379"]),
            "takes TLS, and no CA is given",
        ),
        (
            EtcdOptions::new(scope(), ["ftp://127.0.0.1"]),
            "is neither http nor https",
        ),
        (EtcdOptions::new(scope(), ["a b"]), "is no address"),
        (
            EtcdOptions::new(scope(), Vec::<String>::new()),
            "there is no endpoint",
        ),
    ] {
        let error = Etcd::new(options).unwrap_err();
        assert_eq!(error.kind(), DcsErrorKind::Refused);
        assert!(error.to_string().contains(problem), "{error}");
    }
}

pub(crate) async fn start() -> (EtcdCluster, tempfile::TempDir) {
    let certificates = tempfile::tempdir().unwrap();
    let at = |name: &str| certificates.path().join(name).display().to_string();
    authority(certificates.path(), "ca");
    authority(certificates.path(), "other-ca");
    certificate(certificates.path(), "server");
    certificate(certificates.path(), "client");
    let mut cluster = EtcdCluster::prepare(
        1,
        "https",
        &[
            format!("--cert-file={}", at("server.crt")),
            format!("--key-file={}", at("server.key")),
            format!("--trusted-ca-file={}", at("ca.crt")),
            "--client-cert-auth=true".to_owned(),
        ],
    );
    cluster.start_all();
    (cluster, certificates)
}

fn with(cluster: &EtcdCluster, tls: ClientTls) -> EtcdOptions {
    let mut options = cluster.options();
    options.tls = Some(tls);
    options
}
