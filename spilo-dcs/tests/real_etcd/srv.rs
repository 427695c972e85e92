//! The endpoints of etcd from service records, of a real DNS server. It takes `dnsmasq` from `PATH`,
//! or from where `SPILO_DNSMASQ` says.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use spilo_core::dcs::{DcsErrorKind, Expect, Key, Lease};
use spilo_core::{Dcs as _, MemberName, Scope};
use spilo_dcs::etcd::EtcdSrv;
use spilo_dcs::{Etcd, EtcdOptions};
use tempfile::TempDir;

use crate::ports::free_ports;
use crate::server::EtcdCluster;

#[tokio::test]
async fn a_lease_lives_through_every_change_of_the_records() {
    let mut cluster = EtcdCluster::start(3).await;
    let ports = ports(&cluster.endpoints());
    let mut dns = Dns::start(&[("client", ports[0])]);
    let etcd = Etcd::new(dns.options()).unwrap();
    let me = MemberName::new("a").unwrap();
    let lease = etcd.acquire(&me, Duration::from_secs(30)).await.unwrap();
    etcd.read().await.unwrap();

    // One member is taken out of the records, then away.
    dns.restart(&[("client", ports[1]), ("client", ports[2])]);
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        etcd.renew(&lease).await.unwrap();
        etcd.read().await.unwrap();
    }
    cluster.kill(0);
    renewed(&etcd, &lease).await;
    assert!(etcd.read().await.unwrap().leader.is_some());

    // The domain is gone, then the name server, and with each of them a member that was in use.
    cluster.start_member(0);
    cluster.until_ready(&cluster.etcd()).await;
    dns.restart(&[]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.kill(1);
    renewed(&etcd, &lease).await;
    etcd.read().await.unwrap();
    cluster.start_member(1);
    cluster.until_ready(&cluster.etcd()).await;
    dns.stop();
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.kill(2);
    renewed(&etcd, &lease).await;
    etcd.read().await.unwrap();
}

/// Renews a lease, over an election of etcd if the member that was killed led it. That the lease is
/// gone is never said.
async fn renewed(etcd: &Etcd, lease: &Lease) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = etcd.renew(lease).await {
        assert_ne!(error.kind(), DcsErrorKind::Conflict, "{error}");
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn records_that_lead_nowhere_leave_the_endpoint_that_answers() {
    let cluster = EtcdCluster::start(1).await;
    let ports = ports(&cluster.endpoints());
    let mut dns = Dns::start(&[("client", ports[0])]);
    let etcd = Etcd::new(dns.options()).unwrap();
    etcd.read().await.unwrap();
    let nobody = free_ports(2);
    dns.restart(&[("client", nobody[0]), ("client", nobody[1])]);
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        etcd.read().await.unwrap();
    }
    let shown = format!("{etcd:?}");
    assert!(
        shown.contains(&format!(":{}", nobody[1])),
        "it was told of: {shown}"
    );
}

#[tokio::test]
async fn members_are_asked_for_the_clients_endpoints_where_only_they_are_in_dns() {
    let cluster = EtcdCluster::start(3).await;
    let nobody = free_ports(1)[0];
    let peers = ports(&cluster.peers());
    let dns = Dns::start(&[("server", nobody), ("server", peers[1])]);
    let etcd = Etcd::new(dns.options()).unwrap();
    etcd.read().await.unwrap();
    let shown = format!("{etcd:?}");
    for endpoint in cluster.endpoints() {
        assert!(shown.contains(&endpoint), "{shown}");
    }
}

#[tokio::test]
async fn what_is_not_in_dns_is_named_and_found_as_soon_as_it_is() {
    let cluster = EtcdCluster::start(1).await;
    let port = ports(&cluster.endpoints())[0];
    let mut dns = Dns::start(&[("client-ssl", port)]);
    let mut options = dns.options();
    options.srv.as_mut().unwrap().suffix = Some("blue".to_owned());
    let etcd = Etcd::new(options).unwrap();
    let error = etcd.read().await.unwrap_err();
    assert_eq!(error.kind(), DcsErrorKind::Unavailable);
    let said = error.to_string();
    for part in [
        "_etcd-client-blue._tcp.spilo.test. has no SRV record",
        "_etcd-server-blue._tcp.spilo.test. has no SRV record",
        "without a CA certificate the names with -ssl are not asked for",
    ] {
        assert!(said.contains(part), "{said}");
    }

    dns.stop();
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let said = etcd.read().await.unwrap_err().to_string();
        if said.contains("cannot be looked up") {
            break;
        }
        assert!(Instant::now() < deadline, "{said}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    dns.restart(&[("client-blue", port)]);
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = etcd.read().await {
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn endpoints_that_are_named_count_until_dns_names_others() {
    let cluster = EtcdCluster::start(1).await;
    let mut dns = Dns::start(&[]);
    let mut options = dns.options();
    options.endpoints = cluster.endpoints();
    let etcd = Etcd::new(options).unwrap();
    for _ in 0..3 {
        etcd.read().await.unwrap();
        tokio::time::sleep(Duration::from_millis(600)).await;
    }
    let port = ports(&cluster.endpoints())[0];
    dns.restart(&[("client", port)]);
    let named = format!("endpoints: [\"http://{HOST}:{port}\"]");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !format!("{etcd:?}").contains(&named) {
        assert!(Instant::now() < deadline, "{etcd:?} without {named}");
        etcd.read().await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Records that lead to another etcd, of which nothing is to be believed.
#[tokio::test]
async fn another_etcd_in_the_records_is_passed_over() {
    let (mut cluster, strangers) = (EtcdCluster::start(3).await, EtcdCluster::start(1).await);
    let own = ports(&cluster.endpoints());
    let stranger = ports(&strangers.endpoints())[0];
    let mut dns = Dns::start(&[("client", own[0]), ("client", own[1])]);
    let etcd = Etcd::new(dns.options()).unwrap();
    let me = MemberName::new("a").unwrap();
    let lease = etcd.acquire(&me, Duration::from_secs(30)).await.unwrap();
    dns.restart(&[("client", stranger)]);
    for round in 0..8 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        if round == 4 {
            // The stream of renewals breaks, and where it is opened anew the lease is unknown.
            cluster.kill(0);
        }
        renewed(&etcd, &lease).await;
        assert!(etcd.read().await.unwrap().leader.is_some());
        etcd.put(Key::Status, Bytes::new(), Expect::Leader(lease.epoch))
            .await
            .unwrap();
    }
    let shown = format!("{etcd:?}");
    assert!(
        shown.contains(&format!(":{stranger}")),
        "it was told of: {shown}"
    );
    assert_eq!(
        strangers.ctl(&["get", "--prefix", "/"]),
        "",
        "and told nothing"
    );
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn with_tls_only_the_records_of_tls_count() {
    let (cluster, certificates) = crate::tls::start().await;
    let port = ports(&cluster.endpoints())[0];
    let mut dns = Dns::start(&[("client", port)]);
    let at = |name: &str| certificates.path().join(name);
    let mut options = dns.options();
    options.tls = Some(
        spilo_dcs::ClientTls::new(at("ca.crt")).with_identity(at("client.crt"), at("client.key")),
    );
    let etcd = Etcd::new(options).unwrap();
    let said = etcd.read().await.unwrap_err().to_string();
    assert!(
        said.contains("_etcd-client-ssl._tcp.spilo.test. has no SRV record"),
        "{said}"
    );
    dns.restart(&[("client-ssl", port)]);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    cluster.until_ready(&etcd).await;
}

/// A DNS server of a test's own, gone when it is dropped.
struct Dns {
    process: Option<Child>,
    directory: TempDir,
    address: SocketAddr,
}

impl Dns {
    /// Starts a server with service records, each the name of etcd's service and a port.
    fn start(records: &[(&str, u16)]) -> Self {
        let mut dns = Self {
            process: None,
            directory: tempfile::tempdir().unwrap(),
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, free_ports(1)[0])),
        };
        dns.restart(records);
        dns
    }

    /// Starts it anew with other records; without any, there is no such domain.
    fn restart(&mut self, records: &[(&str, u16)]) {
        self.stop();
        let mut config = format!(
            "port={}\nlisten-address=127.0.0.1\nbind-interfaces\nno-resolv\nno-hosts\n\
             local=/{DOMAIN}/\nlocal-ttl=1\n",
            self.address.port()
        );
        for (service, port) in records {
            writeln!(
                config,
                "srv-host=_etcd-{service}._tcp.{DOMAIN},{HOST},{port}"
            )
            .unwrap();
        }
        // Which this server alone knows, and not even it when there is no such domain.
        if !records.is_empty() {
            writeln!(config, "host-record={HOST},127.0.0.1").unwrap();
        }
        let file = self.directory.path().join("dns.conf");
        std::fs::write(&file, config).unwrap();
        let binary = std::env::var_os("SPILO_DNSMASQ").unwrap_or_else(|| "dnsmasq".into());
        let process = Command::new(&binary)
            .arg("--no-daemon")
            .arg(format!("--conf-file={}", file.display()))
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!(
                    "cannot run {}: {error}; `cargo xtask setup --full` installs dnsmasq",
                    binary.display()
                )
            });
        self.process = Some(process);
        self.until_it_answers();
    }

    fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Asks for the root until something comes back.
    fn until_it_answers(&self) {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let question = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\0\0\x06\0\x01";
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            socket.send_to(question, self.address).unwrap();
            // What nobody listened to is asked again.
            if socket.recv(&mut [0; 512]).is_ok() {
                return;
            }
            assert!(Instant::now() < deadline, "dnsmasq does not answer");
        }
    }

    fn options(&self) -> EtcdOptions {
        let mut options = EtcdOptions::new(Scope::new("demo").unwrap(), Vec::<String>::new());
        let mut srv = EtcdSrv::new(DOMAIN);
        srv.name_servers = vec![self.address];
        options.srv = Some(srv);
        options
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop();
    }
}

fn ports(urls: &[String]) -> Vec<u16> {
    urls.iter()
        .map(|url| url.rsplit_once(':').unwrap().1.parse().unwrap())
        .collect()
}

const DOMAIN: &str = "spilo.test";
const HOST: &str = "etcd.spilo.test";
