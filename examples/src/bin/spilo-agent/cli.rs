//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Keeps one PostgreSQL server of a cluster: elects, promotes, follows, clones, rewinds.
///
/// CONFIG is a Patroni configuration file, or a directory whose *.yml and *.yaml files are merged
/// in the order of their names. Environment variables PATRONI_* override it. Without CONFIG the
/// text in PATRONI_CONFIGURATION is the whole configuration; without that, the other variables
/// are.
#[derive(Debug, Parser)]
#[command(name = "spilo-agent", version, after_long_help = MANUAL, verbatim_doc_comment)]
pub(crate) struct Arguments {
    /// The configuration file or directory
    pub(crate) config: Option<PathBuf>,

    /// Check the configuration and what it names on this machine, and start nothing
    #[arg(long)]
    pub(crate) validate_config: bool,

    /// Do not check that the ports to listen on are free: the agent runs already
    #[arg(short, long, requires = "validate_config")]
    pub(crate) ignore_listen_port: bool,

    /// Print the configuration in effect, with secrets masked, and start nothing
    #[arg(short, long)]
    pub(crate) print: bool,

    /// Keep a journal of everything that the node was told and decided, for `explain`
    ///
    /// A new one is added to what is in FILE; at 64 MiB that is renamed to FILE.old. It holds the
    /// secrets of leases, so that nobody else may read it.
    #[arg(long, value_name = "FILE")]
    pub(crate) journal: Option<PathBuf>,
}

const MANUAL: &str = "\
Signals:
  TERM, INT  Hand over and stop. A primary makes a level standby the next one first. Ends with
             PostgreSQL stopped and the lock given up.
  USR1       Detach: leave the guard and PostgreSQL running, and exit. An agent that starts within
             the ttl takes them over without a failed write: this is how to restart or upgrade it.
  HUP        Read the configuration again. If it is faulty, say so and keep the one in effect.

Logs:
  The agent logs to standard error, or below `log.dir`. PostgreSQL logs to
  <data_dir>.spilo/postmaster.log, of which one predecessor is kept; for more, set
  `logging_collector: on` among the cluster's parameters, and PostgreSQL rotates its log itself, in
  `log_directory`.

Exit status:
  0  stopped or detached as asked, or the configuration is valid
  1  the configuration is not valid, something on this machine does not fit it, or the node cannot
     go on: the last line of the log says why and what to do
  2  the command line is wrong

Examples:
  spilo-agent --validate-config /etc/spilo/agent.yml
  spilo-agent /etc/spilo/agent.yml
  spilo-agent --journal /var/lib/spilo/journal /etc/spilo/agent.yml
  explain /var/lib/spilo/journal      # what the node decided, and why
  kill -USR1 $(pidof spilo-agent)     # then start the new version

A configuration for one node, complete but for certificates; instead of etcd3 it may say
consul: {host: 127.0.0.1:8500}, with token, scheme, cacert, cert and key, or
zookeeper: {hosts: [10.0.0.1:2181]}, with auth_data: {digest: user:password}:
  scope: demo
  name: node-1
  etcd3:
    hosts: [10.0.0.1:2379, 10.0.0.2:2379, 10.0.0.3:2379]
  restapi:
    listen: 0.0.0.0:8008
    connect_address: 10.0.0.11:8008
  postgresql:
    listen: 0.0.0.0:5432
    connect_address: 10.0.0.11:5432
    data_dir: /var/lib/postgresql/demo
    bin_dir: /usr/lib/postgresql/17/bin
    authentication:
      superuser: {username: postgres, password: change-me}
      replication: {username: replicator, password: change-me-too}
    pg_hba:
      - host all all all scram-sha-256
      - host replication replicator all scram-sha-256
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
    fn the_manual_shows_a_configuration_that_is_valid() {
        let start = MANUAL.find("  scope: demo").unwrap();
        let document = crate::yaml::parse("the manual", &MANUAL[start..]).unwrap();
        let parsed = spilo_core::local::Local::parse(document, &Default::default()).unwrap();
        assert_eq!(parsed.warnings, [""; 0]);
    }
}
