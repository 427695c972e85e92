//! The store that the cluster agrees through.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::address::Address;
use super::error::{ConfigErrorKind, Problems};
use super::secret::Secret;
use super::section::Section;
use super::services::{ClientTls, Credentials};

/// The etcd that the cluster agrees through, version 3 of its protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Etcd3 {
    /// Its members' client URLs; empty only where DNS names them.
    pub endpoints: Vec<String>,
    /// Where DNS names them, if it does; `endpoints` count until it has.
    pub srv: Option<EtcdSrv>,
    /// Whom to log in as.
    pub credentials: Option<Credentials>,
    /// How to speak TLS; used where the URLs say `https`.
    pub tls: ClientTls,
}

/// The service records that name the members of etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EtcdSrv {
    /// The domain that has the records.
    pub domain: String,
    /// What the name of the service ends in, after a hyphen.
    pub suffix: Option<String>,
    /// Who is asked; the name servers of the system if it is empty.
    pub name_servers: Vec<SocketAddr>,
}

/// The Consul that the cluster agrees through.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Consul {
    /// The agent that is asked.
    pub url: String,
    /// What it is shown where it has an access control list.
    pub token: Option<Secret>,
    /// The datacenter that has the keys; the agent's own if `None`.
    pub datacenter: Option<String>,
    /// How to speak TLS; used where the URL says `https`.
    pub tls: ClientTls,
    /// How members are registered as services, if they are.
    pub service: Option<Service>,
}

/// The ZooKeeper that the cluster agrees through.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ZooKeeper {
    /// Its servers, each as `host:port`; never empty.
    pub hosts: Vec<String>,
    /// Who the node is to it, as `user:password` of the scheme `digest`.
    pub digest: Option<Secret>,
}

/// How members are registered as services in Consul.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Service {
    /// Tags beside those of the role.
    pub tags: Vec<String>,
    /// How often Consul asks the REST API.
    pub check_interval: Duration,
    /// The name that the REST API's certificate is checked against, if not that of its URL.
    pub tls_server_name: Option<String>,
}

impl Etcd3 {
    pub(super) fn read(section: &Section<'_>, problems: &mut Problems) -> Option<Self> {
        if !section.exists() {
            return None;
        }
        let tls = ClientTls::read(section, ["cacert", "cert", "key"], problems);
        let https = section.words("protocol").as_deref() == Some("https");
        let mut endpoints = Vec::new();
        for name in ["host", "hosts", "url", "proxy"] {
            for item in section.list(name).unwrap_or_default() {
                let parsed = endpoint(&item, https, ETCD_PORT);
                endpoints.extend(section.valid(name, parsed, problems));
            }
        }
        endpoints.dedup();
        let srv = EtcdSrv::read(section, problems);
        if endpoints.iter().any(|url| url.starts_with("https")) || (srv.is_some() && https) {
            needs_authority(section, &tls, problems);
        }
        let named = ["host", "hosts", "url", "proxy"].map(|name| section.value(name).is_some());
        if !named.contains(&true) && section.value("srv").is_none() {
            problems.error(
                &section.path("hosts"),
                ConfigErrorKind::Missing,
                "is missing: no endpoint of the store is named".to_owned(),
            );
        }
        let credentials = section.credentials(problems);
        (!endpoints.is_empty() || srv.is_some()).then_some(Self {
            endpoints,
            srv,
            credentials,
            tls,
        })
    }
}

impl EtcdSrv {
    fn read(section: &Section<'_>, problems: &mut Problems) -> Option<Self> {
        let mut name_servers = Vec::new();
        for item in section.list("name_servers").unwrap_or_default() {
            name_servers.extend(section.valid("name_servers", name_server(&item), problems));
        }
        for name in ["srv_suffix", "name_servers"] {
            if section.value(name).is_some() && section.value("srv").is_none() {
                problems.warn(&section.path(name), "has no effect without `etcd3.srv`");
            }
        }
        // As with Patroni, whoever names a proxy wants no other way.
        section
            .value("srv")
            .filter(|_| section.value("proxy").is_none())?;
        let domain = section.text("srv").map(|text| domain(&text));
        let domain = domain.and_then(|parsed| section.valid("srv", parsed, problems))?;
        let suffix = section.text("srv_suffix").filter(|text| !text.is_empty());
        let suffix = match suffix.map(|text| suffix_of_service(&text)) {
            Some(parsed) => Some(section.valid("srv_suffix", parsed, problems)?),
            None => None,
        };
        Some(Self {
            domain,
            suffix,
            name_servers,
        })
    }
}

impl Consul {
    pub(super) fn read(section: &Section<'_>, problems: &mut Problems) -> Option<Self> {
        if !section.exists() {
            return None;
        }
        let tls = ClientTls::read(section, ["cacert", "cert", "key"], problems);
        let https = section.words("scheme").as_deref() == Some("https");
        let port = section.count("port").unwrap_or(CONSUL_PORT);
        // As with Patroni, a URL says everything, and the other three count only without it.
        let (name, text) = match section.text("url") {
            Some(url) => ("url", url),
            None => ("host", section.text("host").unwrap_or_else(|| LOCAL.into())),
        };
        let url = endpoint(&text, https, port).map(|url| match section.count::<u16>("port") {
            // As Patroni has it, a port of its own counts more than one at the host.
            Some(port) if name == "host" => with_port(&url, port),
            _ => url,
        });
        let url = section.valid(name, url, problems)?;
        if url.starts_with("https") {
            needs_authority(section, &tls, problems);
            if section.flag("verify") == Some(false) {
                problems.error(
                    &section.path("verify"),
                    ConfigErrorKind::Refused,
                    "a certificate that nobody checks may be anybody's: name its authority in \
                     `consul.cacert`"
                        .to_owned(),
                );
            }
        }
        Some(Self {
            url,
            token: section.secret("token"),
            datacenter: section.text("dc"),
            tls,
            service: Service::read(section, problems),
        })
    }
}

impl ZooKeeper {
    pub(super) fn read(section: &Section<'_>, problems: &mut Problems) -> Option<Self> {
        if !section.exists() {
            return None;
        }
        let named = section.list("hosts");
        if named.as_ref().is_none_or(Vec::is_empty) {
            problems.error(
                &section.path("hosts"),
                ConfigErrorKind::Missing,
                "is missing: no server of the store is named".to_owned(),
            );
        }
        let mut hosts = Vec::new();
        for item in named.unwrap_or_default() {
            let parsed = Address::parse(&item, Some(ZOOKEEPER_PORT));
            let host = section.valid("hosts", parsed, problems);
            hosts.extend(host.map(|host| host.to_string()));
        }
        let digest = section.inner("auth_data").secret("digest");
        if digest.as_ref().is_some_and(|it| !it.expose().contains(':')) {
            problems.error(
                &section.path("auth_data.digest"),
                ConfigErrorKind::Invalid,
                "must be `user:password`".to_owned(),
            );
        }
        (!hosts.is_empty()).then_some(Self { hosts, digest })
    }
}

impl Service {
    fn read(section: &Section<'_>, problems: &mut Problems) -> Option<Self> {
        let name = "service_check_interval";
        let interval = section.text(name).map(|text| interval(&text));
        let interval = interval.and_then(|parsed| section.valid(name, parsed, problems));
        let is_wanted = section.flag("register_service").unwrap_or(false);
        is_wanted.then(|| Self {
            tags: section.list("service_tags").unwrap_or_default(),
            check_interval: interval.unwrap_or(CHECK_INTERVAL),
            tls_server_name: section.text("service_check_tls_server_name"),
        })
    }
}

/// Reads a span as Consul writes it, in the units that make sense between two checks.
fn interval(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(['s', 'm']);
    let factor = match &text[digits.len()..] {
        "" | "s" => Some(1),
        "m" => Some(60),
        _ => None,
    };
    match (digits.parse::<u32>(), factor) {
        (Ok(number), Some(factor)) if number > 0 => {
            Ok(Duration::from_secs(u64::from(number) * factor))
        }
        _ => Err(format!(
            "must be a span such as `5s` or `1m`, found {text:?}"
        )),
    }
}

/// Objects to a second store: nobody would know which of them the cluster agrees through.
pub(super) fn only_one(named: &[(&str, bool)], problems: &mut Problems) {
    let mut named = named.iter().filter(|(_, is_there)| *is_there);
    if let (Some((first, _)), Some((second, _))) = (named.next(), named.next()) {
        problems.error(
            second,
            ConfigErrorKind::Invalid,
            format!("is a second store beside `{first}`: a cluster agrees through one"),
        );
    }
}

fn needs_authority(section: &Section<'_>, tls: &ClientTls, problems: &mut Problems) {
    if tls.authorities.is_none() {
        problems.error(
            &section.path("cacert"),
            ConfigErrorKind::Missing,
            "is missing, and https needs it: the authorities of the system are not asked"
                .to_owned(),
        );
    }
}

fn with_port(url: &str, port: u16) -> String {
    let host = url.rsplit_once(':').map_or(url, |(host, _)| host);
    format!("{host}:{port}")
}

/// Reads `host`, `host:port` or a URL.
fn endpoint(text: &str, https: bool, port: u16) -> Result<String, String> {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => (scheme, rest),
        Some((other, _)) => return Err(format!("has the scheme {other:?}, not http or https")),
        None => (if https { "https" } else { "http" }, text),
    };
    if rest.contains('@') {
        return Err("has a user in it, which an address may not have".to_owned());
    }
    let address = Address::parse(rest.trim_end_matches('/'), Some(port))?;
    Ok(format!("{scheme}://{address}"))
}

/// Reads a domain as DNS has it: labels of at most 63 bytes, 253 in all less what the names of the
/// services take.
fn domain(text: &str) -> Result<String, String> {
    let domain = text.trim().trim_end_matches('.');
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    if domain.len() <= 200 && domain.split('.').all(is_label) {
        Ok(domain.to_owned())
    } else {
        Err(format!(
            "must be a domain such as `example.org`, found {text:?}"
        ))
    }
}

/// Reads what a service's name ends in: with what stands before it, it makes one label.
fn suffix_of_service(text: &str) -> Result<String, String> {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if text.len() <= 40 && text.bytes().all(is_part) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "must be at most 40 letters, digits and hyphens, found {text:?}"
        ))
    }
}

/// Reads the address of a name server.
fn name_server(text: &str) -> Result<SocketAddr, String> {
    let bare = |ip: IpAddr| SocketAddr::new(ip, DNS_PORT);
    let address = text.parse().or_else(|_| text.parse().map(bare));
    address.map_err(|_| format!("must be an IP address, with or without a port, found {text:?}"))
}

/// The port that DNS is served on.
const DNS_PORT: u16 = 53;

/// The port that etcd serves clients on.
const ETCD_PORT: u16 = 2379;

/// Patroni's default.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// The port that Consul serves HTTP on.
const CONSUL_PORT: u16 = 8500;

/// The port that ZooKeeper serves clients on.
const ZOOKEEPER_PORT: u16 = 2181;

/// Where Consul's agent is: as a rule there is one on every machine.
const LOCAL: &str = "127.0.0.1";
