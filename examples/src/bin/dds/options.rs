//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use clap::{Parser, ValueEnum};
use spilo_dcs::discovery::{ClusterOverview, haproxy};

/// Shows all clusters of an etcd: who leads, who follows how far behind, and how each is doing.
#[derive(Debug, Parser)]
#[command(name = "dds", after_help = MANUAL)]
pub(crate) struct Arguments {
    /// The members of etcd, as `host:port` or as URLs.
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1:2379")]
    pub(crate) etcd: Vec<String>,
    /// The domain whose service records in DNS name them (`_etcd-client._tcp`, or with a CA
    /// `_etcd-client-ssl._tcp`, and so on).
    #[arg(long, value_name = "DOMAIN", conflicts_with = "etcd")]
    pub(crate) srv: Option<String>,
    /// What the keys of all clusters begin with.
    #[arg(long, default_value = "service")]
    pub(crate) namespace: String,
    /// The certificates of the authorities that etcd's is checked against (PEM).
    #[arg(long)]
    pub(crate) ca: Option<PathBuf>,
    /// The file with whom to log in as, `NAME:PASSWORD`.
    #[arg(long)]
    pub(crate) user_file: Option<PathBuf>,
    /// How to print, where nothing is served.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
    /// Stays, follows all changes, and serves them over HTTP here.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) serve: Option<SocketAddr>,
    /// Writes each cluster as JSON below this root of etcd for other tools, as long as it is served.
    #[arg(long, value_name = "ROOT", requires = "serve")]
    pub(crate) publish: Option<String>,
    /// The first of the ports that HAProxy listens on: two a cluster, in the order of their names as
    /// long as this runs; a cluster that comes later gets the next ones.
    #[arg(long, default_value_t = 5000)]
    first_port: u16,
    /// The ports of one cluster, `SCOPE=PRIMARY,REPLICAS`, so that they stay what they are when
    /// clusters come and go; clusters that are not named are then left out.
    #[arg(long = "ports", value_name = "SCOPE=PORT,PORT", value_parser = ports)]
    ports: Vec<(String, (u16, u16))>,
}

/// How clusters are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A line a member.
    Table,
    /// Everything.
    Json,
    /// A configuration of HAProxy.
    Haproxy,
}

/// What the configuration of HAProxy is made with.
#[derive(Clone, Debug)]
pub(crate) struct Haproxy {
    first_port: u16,
    /// Whether clusters that have no ports are given some.
    counts: bool,
    /// The ports so far: a cluster keeps those that it once had.
    options: Arc<Mutex<haproxy::Options>>,
}

impl Arguments {
    pub(crate) fn haproxy(&self) -> Haproxy {
        let mut options = haproxy::Options::new();
        options.ports.extend(self.ports.iter().cloned());
        Haproxy {
            first_port: self.first_port,
            counts: self.ports.is_empty(),
            options: Arc::new(Mutex::new(options)),
        }
    }
}

impl Haproxy {
    /// Renders the configuration of one cluster, or of all; its ports are the same in both.
    pub(crate) fn render(
        &self,
        clusters: &[ClusterOverview],
        only: Option<&str>,
    ) -> Result<String, String> {
        let mut options = {
            let mut options = self.options.lock().unwrap_or_else(PoisonError::into_inner);
            if self.counts {
                let scopes = clusters.iter().map(|cluster| cluster.scope.as_str());
                options.add(self.first_port, scopes)?;
            }
            options.clone()
        };
        options
            .ports
            .retain(|scope, _| only.is_none_or(|only| only == scope));
        Ok(haproxy::render(clusters, &options))
    }
}

fn ports(text: &str) -> Result<(String, (u16, u16)), String> {
    let wrong = || format!("wanted SCOPE=PRIMARY,REPLICAS, found {text}");
    let (scope, ports) = text.split_once('=').ok_or_else(wrong)?;
    let (primary, replicas) = ports.split_once(',').ok_or_else(wrong)?;
    let port = |text: &str| text.trim().parse().map_err(|_| wrong());
    Ok((scope.to_owned(), (port(primary)?, port(replicas)?)))
}

const MANUAL: &str = "\
Served are, with --serve:
  /                 a page of all clusters, which keeps itself up to date
  /clusters         all of them as JSON
  /clusters/SCOPE   one of them
  /haproxy          a configuration of HAProxy for all, /haproxy/SCOPE for one

Examples:
  dds --etcd 10.0.0.1:2379,10.0.0.2:2379
  dds --format json | jq '.[] | select(.health.state != \"healthy\") | .scope'
  dds --format haproxy --ports demo=5000,5001 > /etc/haproxy/haproxy.cfg
  dds --serve 127.0.0.1:8080 --publish /spilo/clusters
";

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn ports_are_read_or_explained() {
        assert_eq!(
            ports("demo=5000,5001"),
            Ok(("demo".to_owned(), (5000, 5001)))
        );
        for text in ["demo", "demo=1", "demo=a,b", "demo=1,70000"] {
            assert!(ports(text).unwrap_err().contains(text));
        }
    }
}
