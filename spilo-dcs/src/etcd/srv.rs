//! The endpoints of etcd, as service records in DNS name them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::system_conf::read_system_conf;
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::options::EtcdOptions;

/// Where the endpoints of etcd stand in DNS.
///
/// Asked for is `_etcd-client._tcp.<domain>`, whose records name the endpoints; where there is none
/// `_etcd._tcp.<domain>`, which does the same; and where there is none of those either
/// `_etcd-server._tcp.<domain>`, whose records name what the members of etcd speak to each other
/// on: one of those is asked which clients' addresses its cluster has, and with TLS its certificate
/// must be of the same authority. With TLS the services are `_etcd-client-ssl` and so on, and only
/// these: nobody who forges an answer gets us to speak in the clear. A suffix is part of the
/// service, as in `_etcd-client-<suffix>._tcp`.
///
/// Records are asked for again when they have expired, but not more often than every second, at
/// least every minute, and when an endpoint fails. As long as DNS names none, the last ones count;
/// so do they until one of the new ones has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EtcdSrv {
    /// The domain whose records these are.
    pub domain: String,
    /// What tells the services of several etcds in one domain apart.
    pub suffix: Option<String>,
    /// Who is asked, instead of the name servers of the system, for the records and for the hosts
    /// that they name; as a Consul on the same machine may be.
    pub name_servers: Vec<SocketAddr>,
}

/// What DNS names.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Records {
    /// The endpoints as URLs, in the order in which they are asked; never empty.
    pub(super) urls: Vec<String>,
    /// The addresses of their hosts, where the system's name servers do not count.
    pub(super) addresses: Vec<(String, Vec<IpAddr>)>,
    pub(super) expire: Instant,
}

/// One service record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Service {
    priority: u16,
    weight: Reverse<u16>,
    target: String,
    port: u16,
}

/// A member of etcd, as its peers are told of it.
#[derive(Debug, Deserialize)]
struct Member {
    #[serde(rename = "clientURLs", default)]
    client_urls: Vec<String>,
}

impl EtcdSrv {
    /// Asks the name servers of the system for a domain's records.
    pub fn new(domain: impl Into<String>) -> Self {
        Self {
            domain: domain.into(),
            suffix: None,
            name_servers: Vec::new(),
        }
    }

    /// Returns the whole name of a service; its dot at the end keeps the search list of the system
    /// out.
    fn name(&self, service: &str, tls: bool) -> String {
        let tls = if tls { "-ssl" } else { "" };
        let suffix = self.suffix.as_ref().map(|suffix| format!("-{suffix}"));
        let suffix = suffix.unwrap_or_default();
        let domain = self.domain.trim_end_matches('.');
        format!("_etcd{service}{tls}{suffix}._tcp.{domain}.")
    }

    /// Returns a resolver for each name server: of several that are asked at once, one that answers
    /// wrongly or not at all would outweigh the others.
    fn resolvers(&self) -> Result<Vec<TokioResolver>, String> {
        let servers = if self.name_servers.is_empty() {
            let system = read_system_conf();
            let (config, _) = system
                .map_err(|error| format!("the system's name servers cannot be read: {error}"))?;
            config.name_servers().to_vec()
        } else {
            self.name_servers.iter().copied().map(server).collect()
        };
        servers.into_iter().map(resolver).collect()
    }
}

fn resolver(server: NameServerConfig) -> Result<TokioResolver, String> {
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    let options = builder.options_mut();
    // Asked once and thrown away: what is to be remembered stands elsewhere.
    options.cache_size = 0;
    options.timeout = ONE_ANSWER;
    // How often it is asked again.
    options.attempts = 0;
    builder.build().map_err(|error| error.to_string())
}

/// Asks DNS, and where it must a member of etcd, for the endpoints.
///
/// # Errors
/// What was asked and what came of it.
///
/// # Cancellation
/// Safe.
pub(super) async fn ask(options: &EtcdOptions) -> Result<Records, String> {
    let srv = options
        .srv
        .as_ref()
        .ok_or("there is no domain to ask for")?;
    let asked = timeout(ALL, ask_all(options, srv)).await;
    asked.unwrap_or_else(|_| Err(format!("no answer for {} within {ALL:?}", srv.domain)))
}

async fn ask_all(options: &EtcdOptions, srv: &EtcdSrv) -> Result<Records, String> {
    let resolvers = srv.resolvers()?;
    let tls = options.prefers_tls();
    let name = |service| srv.name(service, tls);
    let (clients, plain, servers) = (name("-client"), name(""), name("-server"));
    // At once: a name server that does not answer would take its time for each.
    let (clients, plain, servers) = tokio::join!(
        services(&resolvers, &clients),
        services(&resolvers, &plain),
        services(&resolvers, &servers)
    );
    let mut problems = Vec::new();
    for found in [clients, plain] {
        match found {
            Ok((services, expire)) => {
                let addresses = if srv.name_servers.is_empty() {
                    Vec::new()
                } else {
                    addresses(&resolvers, &services).await
                };
                return Ok(Records {
                    urls: services.iter().map(|service| service.url(tls)).collect(),
                    addresses,
                    expire,
                });
            }
            Err(problem) => problems.push(problem),
        }
    }
    match servers {
        Ok((services, expire)) => {
            let http = http(options, &addresses(&resolvers, &services).await)?;
            for service in services {
                match members(&http, &service.url(tls), tls).await {
                    Ok(urls) => {
                        return Ok(Records {
                            urls,
                            addresses: Vec::new(),
                            expire,
                        });
                    }
                    Err(problem) => problems.push(problem),
                }
            }
        }
        Err(problem) => problems.push(problem),
    }
    if !tls {
        problems.push(WITHOUT_TLS.to_owned());
    }
    Err(problems.join("; "))
}

/// Asks all name servers for the records of one service. One that knows them counts most, then one
/// that knows that there are none.
async fn services(
    resolvers: &[TokioResolver],
    name: &str,
) -> Result<(Vec<Service>, Instant), String> {
    let (mut none, mut wrong) = (None, None);
    let mut asked = JoinSet::new();
    for resolver in resolvers {
        let (resolver, name) = (resolver.clone(), name.to_owned());
        asked.spawn(async move { resolver.srv_lookup(name).await });
    }
    while let Some(answer) = asked.join_next().await {
        let lookup = match answer {
            Ok(Ok(lookup)) => lookup,
            Ok(Err(error)) if error.is_no_records_found() => {
                none = Some(format!("{name} has no SRV record"));
                continue;
            }
            Ok(Err(error)) => {
                wrong = Some(format!("{name} cannot be looked up: {error}"));
                continue;
            }
            Err(panic) => {
                wrong = Some(format!("{name} cannot be looked up: {panic}"));
                continue;
            }
        };
        let records = lookup
            .answers()
            .iter()
            .filter_map(|record| match &record.data {
                RData::SRV(record) => Service::read(record),
                _ => None,
            });
        // By weight, and not by chance: all endpoints serve the same, and one is asked after
        // another.
        let services: BTreeSet<_> = records.take(MOST).collect();
        if !services.is_empty() {
            let services = services.into_iter().collect();
            return Ok((services, lookup.valid_until().into()));
        }
        none = Some(format!("{name} names nobody who could be asked"));
    }
    let why = none.or(wrong);
    Err(why.unwrap_or_else(|| "the system has no name server".to_owned()))
}

/// Asks all name servers for the addresses of the hosts of services, of all at once; what has none
/// is left out.
async fn addresses(
    resolvers: &[TokioResolver],
    services: &[Service],
) -> Vec<(String, Vec<IpAddr>)> {
    let mut asked = JoinSet::new();
    for service in services {
        for resolver in resolvers {
            let (resolver, target) = (resolver.clone(), service.target.clone());
            asked.spawn(async move {
                let lookup = resolver.lookup_ip(format!("{target}.")).await.ok()?;
                let addresses: Vec<IpAddr> = lookup.iter().collect();
                (!addresses.is_empty()).then_some((target, addresses))
            });
        }
    }
    let mut found: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    let hosts: BTreeSet<_> = services.iter().map(|service| &service.target).collect();
    while found.len() < hosts.len()
        && let Some(answer) = asked.join_next().await
    {
        if let Ok(Some((host, addresses))) = answer {
            found.entry(host).or_insert(addresses);
        }
    }
    found.into_iter().collect()
}

impl Service {
    /// Takes a record, unless it names nobody: the root ("the service is decidedly not available",
    /// RFC 2782), or what is no host.
    fn read(record: &SRV) -> Option<Self> {
        let target = record.target.to_ascii();
        let service = Self {
            priority: record.priority,
            weight: Reverse(record.weight),
            target: target.trim_end_matches('.').to_owned(),
            port: record.port,
        };
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let host = service.target.as_bytes();
        (!host.is_empty() && host.iter().copied().all(is_host)).then_some(service)
    }

    fn url(&self, tls: bool) -> String {
        let scheme = if tls { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.target, self.port)
    }
}

/// Asks one member of etcd for the addresses that its cluster serves clients on.
async fn members(http: &reqwest::Client, peer: &str, tls: bool) -> Result<Vec<String>, String> {
    let url = format!("{peer}/members");
    let wrong = |error: reqwest::Error| format!("{url}: {}", innermost(&error));
    let answer = http.get(&url).send().await.map_err(wrong)?;
    let mut answer = answer.error_for_status().map_err(wrong)?;
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(wrong)? {
        body.extend_from_slice(&chunk);
        if body.len() > LARGEST {
            return Err(format!("{url}: its answer is longer than {LARGEST} bytes"));
        }
    }
    client_urls(&body, tls).map_err(|problem| format!("{url}: {problem}"))
}

fn client_urls(body: &[u8], tls: bool) -> Result<Vec<String>, String> {
    let members: Vec<Member> =
        serde_json::from_slice(body).map_err(|error| format!("is no list of members: {error}"))?;
    let scheme = if tls { "https://" } else { "http://" };
    let named = members.iter().flat_map(|member| &member.client_urls);
    let urls: BTreeSet<&str> = named
        .map(|url| url.trim_end_matches('/'))
        .filter(|url| url.starts_with(scheme) && url.parse::<http::Uri>().is_ok())
        .collect();
    if urls.len() > MOST {
        return Err(format!(
            "its members serve clients on {} addresses",
            urls.len()
        ));
    }
    if urls.is_empty() {
        return Err(format!("no member serves clients on {scheme}…"));
    }
    Ok(urls.into_iter().map(str::to_owned).collect())
}

fn http(
    options: &EtcdOptions,
    addresses: &[(String, Vec<IpAddr>)],
) -> Result<reqwest::Client, String> {
    let mut builder = reqwest::Client::builder();
    for (host, addresses) in addresses {
        let addresses: Vec<_> = addresses.iter().map(|ip| SocketAddr::new(*ip, 0)).collect();
        builder = builder.resolve_to_addrs(host, &addresses);
    }
    let builder = builder
        .timeout(ONE_ANSWER)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .http1_only();
    #[cfg(feature = "tls")]
    let builder = match &options.tls {
        Some(tls) => tls.over_http(builder)?,
        None => builder,
    };
    #[cfg(not(feature = "tls"))]
    let _ = options;
    builder.build().map_err(|error| error.to_string())
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn server(address: SocketAddr) -> NameServerConfig {
    let ip: IpAddr = address.ip();
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    // Another may know what one denies.
    NameServerConfig::new(ip, false, connections.into())
}

const WITHOUT_TLS: &str = "without a CA certificate the names with -ssl are not asked for";

/// How soon DNS is asked again.
pub(super) const SHORTEST: Duration = Duration::from_secs(1);

/// After what time it is asked again, however long its records are said to live.
pub(super) const LONGEST: Duration = Duration::from_secs(60);

/// How long one name server, or one member of etcd, may take.
const ONE_ANSWER: Duration = Duration::from_secs(2);

/// How long all of it may take.
pub(super) const ALL: Duration = Duration::from_secs(10);

/// How many endpoints there may be.
const MOST: usize = 100;

/// What the list of members may weigh; three members take half a kibibyte.
const LARGEST: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_named_as_etcd_and_patroni_name_them() {
        let mut srv = EtcdSrv::new("db.example.org.");
        assert_eq!(
            srv.name("-client", false),
            "_etcd-client._tcp.db.example.org."
        );
        srv.suffix = Some("blue".to_owned());
        assert_eq!(
            srv.name("-server", true),
            "_etcd-server-ssl-blue._tcp.db.example.org."
        );
    }

    #[test]
    fn members_are_asked_in_the_order_of_priority_and_weight() {
        let service = |priority, weight, target: &str| Service {
            priority,
            weight: Reverse(weight),
            target: target.to_owned(),
            port: 2379,
        };
        let mut services = [
            service(10, 5, "a"),
            service(1, 0, "b"),
            service(1, 7, "d"),
            service(1, 7, "c"),
        ];
        services.sort();
        assert_eq!(
            services.map(|service| service.url(false)),
            ["c", "d", "b", "a"].map(|target| format!("http://{target}:2379"))
        );
    }

    #[test]
    fn a_list_of_members_gives_the_addresses_that_fit_and_each_once() {
        let body = br#"[{"id": 1, "peerURLs": ["http://a:2380"], "name": "a",
                         "clientURLs": ["http://a:2379/", "https://a:2379", "http://a:2379"]},
                        {"id": 2, "clientURLs": ["http://b:2379", "unix://x", "http://b c"]},
                        {"id": 3}]"#;
        assert_eq!(
            client_urls(body, false).unwrap(),
            ["http://a:2379", "http://b:2379"]
        );
        assert_eq!(client_urls(body, true).unwrap(), ["https://a:2379"]);
    }

    #[test]
    fn what_is_no_list_of_members_is_an_error_that_says_so() {
        for (body, problem) in [
            (
                "",
                "is no list of members: EOF while parsing a value at line 1 column 0",
            ),
            ("[]", "no member serves clients on http://…"),
            ("[7]", "is no list of members: invalid type: integer `7`"),
            (
                r#"[{"clientURLs": "http://a:1"}]"#,
                "is no list of members: invalid type: string",
            ),
            (
                r#"[{"clientURLs": ["https://a:1"]}]"#,
                "no member serves clients on http://…",
            ),
        ] {
            let said = client_urls(body.as_bytes(), false).unwrap_err();
            assert!(said.starts_with(problem), "{body}: {said}");
        }
    }
}
