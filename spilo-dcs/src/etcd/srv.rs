//! The endpoints of etcd, as service records in DNS name them.

use std::cmp::Reverse;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;
use serde::Deserialize;
use tokio::time::{Instant, timeout};

use super::options::EtcdOptions;

/// Where the endpoints of etcd stand in DNS.
///
/// Asked for is `_etcd-client._tcp.<domain>`, whose records name the endpoints; where there is none
/// `_etcd-server._tcp.<domain>`, whose records name what the members of etcd speak to each other
/// on: one of those is asked which clients' addresses its cluster has. With TLS it is
/// `_etcd-client-ssl` and `_etcd-server-ssl`, and only these: nobody who forges an answer gets us to
/// speak in the clear. A suffix is part of the service, as in `_etcd-client-<suffix>._tcp`.
///
/// Records are asked for again when they have expired, but not more often than every second, at
/// least every minute, and when an endpoint fails. As long as DNS names none, the last ones count.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EtcdSrv {
    /// The domain whose records these are.
    pub domain: String,
    /// What tells the services of several etcds in one domain apart.
    pub suffix: Option<String>,
    /// Who is asked, instead of the name servers of the system; as a Consul on the same machine
    /// may be.
    pub name_servers: Vec<SocketAddr>,
}

/// What DNS names.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Records {
    /// The endpoints as URLs, in the order in which they are asked; never empty.
    pub(super) urls: Vec<String>,
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
        format!("_etcd-{service}{tls}{suffix}._tcp.{domain}.")
    }

    fn resolver(&self) -> Result<TokioResolver, String> {
        let runtime = TokioRuntimeProvider::default();
        let mut builder = if self.name_servers.is_empty() {
            TokioResolver::builder(runtime)
                .map_err(|error| format!("the system's name servers cannot be read: {error}"))?
        } else {
            let servers = self.name_servers.iter().map(|&address| server(address));
            let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
            TokioResolver::builder_with_config(config, runtime)
        };
        let options = builder.options_mut();
        // Asked once and thrown away: what is to be remembered stands elsewhere.
        options.cache_size = 0;
        options.timeout = ONE_ANSWER;
        options.attempts = 2;
        builder.build().map_err(|error| error.to_string())
    }
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
    let resolver = srv.resolver()?;
    let tls = options.prefers_tls();
    let clients = srv.name("client", tls);
    let none = match services(&resolver, &clients).await? {
        Ok((services, expire)) => {
            let urls = services.iter().map(|service| service.url(tls)).collect();
            return Ok(Records { urls, expire });
        }
        Err(none) => none,
    };
    let peers = srv.name("server", tls);
    let (services, expire) = services(&resolver, &peers).await?.map_err(|also| {
        let why = if tls { "" } else { WITHOUT_TLS };
        format!("{none}; {also}{why}")
    })?;
    let http = http(options)?;
    let mut problems = Vec::new();
    for service in services {
        match members(&http, &service.url(tls), tls).await {
            Ok(urls) => return Ok(Records { urls, expire }),
            Err(problem) => problems.push(problem),
        }
    }
    Err(problems.join("; "))
}

/// Asks for the records of one service. That there is none is an answer as well, in words.
async fn services(
    resolver: &TokioResolver,
    name: &str,
) -> Result<Result<(Vec<Service>, Instant), String>, String> {
    let lookup = match resolver.srv_lookup(name).await {
        Ok(lookup) => lookup,
        Err(error) if error.is_no_records_found() => {
            return Ok(Err(format!("{name} has no SRV record")));
        }
        Err(error) => return Err(format!("{name} cannot be looked up: {error}")),
    };
    let mut services: Vec<_> = lookup
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            // The root is nobody: "the service is decidedly not available" (RFC 2782).
            RData::SRV(record) if !record.target.is_root() => Some(Service {
                priority: record.priority,
                weight: Reverse(record.weight),
                target: record.target.to_ascii().trim_end_matches('.').to_owned(),
                port: record.port,
            }),
            _ => None,
        })
        .collect();
    if services.is_empty() {
        return Ok(Err(format!("{name} says that nobody serves it")));
    }
    // By weight, and not by chance: all endpoints serve the same, and one is asked after another.
    services.sort();
    services.dedup();
    Ok(Ok((services, lookup.valid_until().into())))
}

impl Service {
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
    let mut urls = Vec::new();
    for url in members.iter().flat_map(|member| &member.client_urls) {
        let url = url.trim_end_matches('/');
        if url.starts_with(scheme) && url.parse::<http::Uri>().is_ok() && !urls.contains(&url) {
            urls.push(url);
        }
    }
    if urls.is_empty() {
        return Err(format!("no member serves clients on {scheme}…"));
    }
    Ok(urls.into_iter().map(str::to_owned).collect())
}

fn http(options: &EtcdOptions) -> Result<reqwest::Client, String> {
    let builder = reqwest::Client::builder()
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

const WITHOUT_TLS: &str = "; without a CA certificate the names with -ssl are not asked for";

/// How soon DNS is asked again.
pub(super) const SHORTEST: Duration = Duration::from_secs(1);

/// After what time it is asked again, however long its records are said to live.
pub(super) const LONGEST: Duration = Duration::from_secs(60);

/// How long one name server, or one member of etcd, may take.
const ONE_ANSWER: Duration = Duration::from_secs(2);

/// How long all of it may take.
const ALL: Duration = Duration::from_secs(10);

/// What the list of members may weigh; three members take half a kibibyte.
const LARGEST: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_named_as_etcd_and_patroni_name_them() {
        let mut srv = EtcdSrv::new("db.example.org.");
        assert_eq!(
            srv.name("client", false),
            "_etcd-client._tcp.db.example.org."
        );
        srv.suffix = Some("blue".to_owned());
        assert_eq!(
            srv.name("server", true),
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
