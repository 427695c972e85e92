//! A configuration of HAProxy for one cluster or all of them.
//!
//! Every member stands in both lists; which of them takes connections, HAProxy finds out by asking
//! their agents (`OPTIONS /primary`, `OPTIONS /replica`). So the file changes only when members come
//! and go, and a failover needs no reload.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::ClusterOverview;

/// How the configuration is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// The address that is listened on.
    pub bind: String,
    /// The ports of each cluster: for the primary, and for the replicas.
    pub ports: BTreeMap<String, (u16, u16)>,
    /// Where statistics are served, such as `127.0.0.1:7000`; nowhere if `None`.
    pub stats: Option<String>,
}

impl Options {
    /// Creates options without a cluster, on all addresses.
    pub fn new() -> Self {
        Self {
            bind: "*".to_owned(),
            ports: BTreeMap::new(),
            stats: None,
        }
    }

    /// Gives each cluster of `scopes` that has no ports yet two of its own, from `first` on, in the
    /// order of their names. Those of the others stay what they are: clients know them.
    ///
    /// # Errors
    /// There are more clusters than ports.
    pub fn add<'a>(
        &mut self,
        first: u16,
        scopes: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), String> {
        let scopes: BTreeSet<&str> = scopes.into_iter().collect();
        let taken = self
            .ports
            .values()
            .map(|(_, replicas)| u32::from(*replicas));
        let mut next = taken.map(|port| port + 1).max().unwrap_or(0);
        next = next.max(u32::from(first));
        for scope in scopes {
            if self.ports.contains_key(scope) {
                continue;
            }
            let pair = (u16::try_from(next), u16::try_from(next + 1));
            let (Ok(primary), Ok(replicas)) = pair else {
                return Err(format!("there are no ports left for {scope}"));
            };
            self.ports.insert(scope.to_owned(), (primary, replicas));
            next += 2;
        }
        Ok(())
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

/// Renders a whole configuration for the clusters that have ports.
///
/// A member that says neither where its server nor where its agent is, or in a way that a line of
/// the file cannot hold, is left out with a comment.
pub fn render(clusters: &[ClusterOverview], options: &Options) -> String {
    let mut text = HEAD.to_owned();
    if let Some(stats) = &options.stats {
        let _ = write!(
            text,
            "\nlisten stats\n    mode http\n    bind {stats}\n    stats enable\n    stats uri /\n"
        );
    }
    for cluster in clusters {
        let Some((primary, replicas)) = options.ports.get(&cluster.scope) else {
            continue;
        };
        for (role, port) in [("primary", primary), ("replica", replicas)] {
            section(&mut text, cluster, role, &options.bind, *port);
        }
    }
    text
}

fn section(text: &mut String, cluster: &ClusterOverview, role: &str, bind: &str, port: u16) {
    let name = word(&cluster.scope);
    let _ = write!(
        text,
        "\nlisten {name}_{role}\n    bind {bind}:{port}\n    option httpchk OPTIONS /{role}\n    \
         http-check expect status 200\n    default-server inter 3s fastinter 1s fall 3 rise 2 \
         on-marked-down shutdown-sessions init-addr last,libc,none\n"
    );
    for member in &cluster.members {
        let name = word(&member.name);
        let api = member.api_url.as_deref().and_then(agent);
        let _ = match (&member.host, member.port, api) {
            (Some(host), Some(port), Some((tls, agent_port))) if is_address(host) => {
                let tls = if tls { " check-ssl verify none" } else { "" };
                writeln!(
                    text,
                    "    server {name} {host}:{port} maxconn 100 check port {agent_port}{tls}"
                )
            }
            _ => writeln!(text, "    # {name} does not say where it is"),
        };
    }
}

/// Returns whether the agent speaks TLS, and its port.
fn agent(api_url: &str) -> Option<(bool, u16)> {
    let (scheme, rest) = api_url.split_once("://")?;
    let address = rest.split('/').next()?;
    let tls = scheme == "https";
    let default = if tls { 443 } else { 80 };
    match address.rsplit_once(':') {
        Some((_, port)) if !port.ends_with(']') => Some((tls, port.parse().ok()?)),
        _ => Some((tls, default)),
    }
}

/// Whether it is a name or address that stands in a line without changing its meaning.
fn is_address(host: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_:[]%".contains(c);
    !host.is_empty() && host.chars().all(plain)
}

/// Returns a name of HAProxy's: what is no letter, digit, `-` or `.` becomes its number between
/// `_` and `_`, so that no two names become one.
fn word(name: &str) -> String {
    let mut word = String::new();
    for c in name.chars() {
        if c.is_ascii_alphanumeric() || "-.".contains(c) {
            word.push(c);
        } else {
            let _ = write!(word, "_{:x}_", u32::from(c));
        }
    }
    word
}

const HEAD: &str = "\
global
    maxconn 1000

defaults
    log global
    mode tcp
    retries 2
    timeout client 30m
    timeout connect 4s
    timeout server 30m
    timeout check 5s
";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Health, MemberOverview};
    use super::*;

    fn member(name: &str, host: &str, api: &str) -> MemberOverview {
        MemberOverview {
            name: name.to_owned(),
            role: "replica".to_owned(),
            state: "streaming".to_owned(),
            host: Some(host.to_owned()),
            port: Some(5432),
            api_url: Some(api.to_owned()),
            timeline: Some(1),
            position: None,
            lag_bytes: None,
        }
    }

    fn cluster(scope: &str, members: Vec<MemberOverview>) -> ClusterOverview {
        ClusterOverview {
            scope: scope.to_owned(),
            health: Health::Healthy,
            leader: None,
            timeline: None,
            members,
            led_for: Duration::ZERO,
            changed_before: Duration::ZERO,
            problems: Vec::new(),
        }
    }

    #[test]
    fn both_lists_hold_every_member() {
        let clusters = [
            cluster(
                "b c",
                vec![
                    member("n1", "10.0.0.1", "http://10.0.0.1:8008/patroni"),
                    member("n2", "10.0.0.2", "https://10.0.0.2:8009/patroni"),
                    member("n3", "10.0.0.3\n    server evil 1.2.3.4:1", "http://x:1/"),
                ],
            ),
            cluster("without-ports", Vec::new()),
        ];
        let mut options = Options::new();
        options.add(5000, ["b c", "a"]).unwrap();
        assert_eq!(options.ports["a"], (5000, 5001));
        let text = render(&clusters, &options);
        let expected = "
listen b_20_c_primary
    bind *:5002
    option httpchk OPTIONS /primary
    http-check expect status 200
    default-server inter 3s fastinter 1s fall 3 rise 2 on-marked-down shutdown-sessions init-addr last,libc,none
    server n1 10.0.0.1:5432 maxconn 100 check port 8008
    server n2 10.0.0.2:5432 maxconn 100 check port 8009 check-ssl verify none
    # n3 does not say where it is

listen b_20_c_replica
    bind *:5003
    option httpchk OPTIONS /replica
";
        assert!(text.contains(expected), "{text}");
        assert!(
            !text.contains("evil") && !text.contains("without-ports"),
            "{text}"
        );
    }

    #[test]
    fn there_may_be_more_clusters_than_ports() {
        let mut options = Options::new();
        options.add(65_532, ["b", "c"]).unwrap();
        let full = options.add(65_532, ["a", "b", "c"]).unwrap_err();
        assert_eq!(full, "there are no ports left for a");
        assert_eq!(options.ports["b"], (65_532, 65_533), "clients know it");
    }
}
