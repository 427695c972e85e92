//! The settings of one local server.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use spilo_core::backup::{BackupName, BackupStore, RecoveryTarget};
use spilo_core::ids::{MemberName, Scope};
use spilo_core::local::Secret;
use spilo_core::replica::{ReplicaMethod, Strategy, Thresholds};

use crate::local::conninfo::{self, Endpoint};

/// Where the server is, as whom to talk to it, and what its configuration files get from the
/// local configuration.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LocalOptions {
    /// The name of the cluster, which becomes `cluster_name`.
    pub scope: Scope,
    /// The name of this member, which becomes its `application_name` in replication.
    pub name: MemberName,
    /// The data directory.
    pub data_dir: PathBuf,
    /// Where the configuration files are, if not in the data directory.
    pub config_dir: Option<PathBuf>,
    /// What is kept about the data directory outside it; `<data_dir>.spilo` if not given. It must
    /// be on a disk, because it has to be there after a restart of the machine.
    pub state_dir: Option<PathBuf>,
    /// Where PostgreSQL's programs are; those in `PATH` if not given.
    pub bin_dir: Option<PathBuf>,
    /// What the server listens on: `listen_addresses`.
    pub listen_addresses: String,
    /// The port that it listens on.
    pub port: u16,
    /// The directory of the unix socket that the agent connects through; over TCP if not given.
    pub unix_socket_dir: Option<PathBuf>,
    /// The database that the agent connects to.
    pub database: String,
    /// The superuser that the agent connects as.
    pub superuser: Credentials,
    /// The user that replicas stream as.
    pub replication: Credentials,
    /// The user that pg_rewind connects as; the superuser if not given.
    pub rewind: Option<Credentials>,
    /// Where the passwords are written for PostgreSQL's programs; in the state directory if not
    /// given.
    pub pgpass: Option<PathBuf>,
    /// The local `postgresql.parameters`, which override the dynamic ones.
    pub parameters: Map<String, Value>,
    /// The lines of `pg_hba.conf`, which override the dynamic ones.
    pub pg_hba: Option<Vec<String>>,
    /// The lines of `pg_ident.conf`, which override the dynamic ones.
    pub pg_ident: Option<Vec<String>>,
    /// The local `postgresql.recovery_conf`.
    pub recovery_conf: Map<String, Value>,
    /// What `postgresql.conf` includes first instead of `postgresql.base.conf`.
    pub custom_conf: Option<PathBuf>,
    /// Further arguments of initdb, such as `--wal-segsize=64`.
    pub initdb: Vec<String>,
    /// The backup that a new cluster is made from, instead of by initdb.
    pub recovery: Option<Recovery>,
    /// Lines that are appended once to the `pg_hba.conf` that initdb made.
    pub bootstrap_pg_hba: Vec<String>,
    /// A command to run once in a new cluster; gets a connection string as its last argument.
    pub post_bootstrap: Option<String>,
    /// Further arguments of pg_basebackup, such as `--max-rate=100M`.
    pub basebackup: Vec<String>,
    /// The ways in which this node's data directory is made as a replica, in the order in which they
    /// are tried.
    pub replica_methods: Vec<ReplicaMethod>,
    /// The store of backups, if there is one. Its `archive_command` and `restore_command` become
    /// the server's, on every member and over what the configuration says; a server that did not
    /// archive before has to be restarted for it.
    pub backups: Option<Backups>,
    /// A program whose `main` begins with [`run_if_guard`](crate::run_if_guard), through which
    /// PostgreSQL's programs are started so that they end when the agent is killed. Without it the
    /// next agent ends what the last one left.
    pub tether: Option<PathBuf>,
    /// The user and group that PostgreSQL runs as, when the agent is root.
    pub uid_gid: Option<(u32, u32)>,
    /// How long a start or a stop may take.
    pub pg_ctl_timeout: Duration,
}

/// Where the log goes, and where replicas come from beside running servers.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Backups {
    /// The store.
    pub store: Arc<dyn BackupStore>,
    /// What decides between a backup and a copy of the leader.
    pub strategy: Arc<dyn Strategy>,
}

/// How a new cluster is made from a backup: of another cluster, or of this one at an earlier time.
///
/// It has the roles and passwords of the backup; the superuser's has to be the one that this node
/// is configured with, unless `pg_hba.conf` lets it in without.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Recovery {
    /// Where the backup and the log since it are.
    pub store: Arc<dyn BackupStore>,
    /// The backup to begin with; the newest one from which a position can be reached if not given.
    /// Of a time or a name nobody knows beforehand which backup is before it.
    pub backup: Option<BackupName>,
    /// Where the recovery ends.
    pub target: RecoveryTarget,
    /// Whether what is exactly at the target is recovered as well.
    pub inclusive: bool,
    /// The timeline to follow: `latest`, `current` or a number.
    pub timeline: String,
}

/// A user of the server.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Credentials {
    /// Its name.
    pub username: String,
    /// Its password; none if the server's `pg_hba.conf` needs none.
    pub password: Option<String>,
}

impl LocalOptions {
    /// Creates options that have the defaults of the local configuration in all but what has none.
    pub fn new(scope: Scope, name: MemberName, data_dir: impl Into<PathBuf>, port: u16) -> Self {
        Self {
            scope,
            name,
            data_dir: data_dir.into(),
            config_dir: None,
            state_dir: None,
            bin_dir: None,
            listen_addresses: "127.0.0.1".to_owned(),
            port,
            unix_socket_dir: None,
            database: "postgres".to_owned(),
            superuser: Credentials::new("postgres", None),
            replication: Credentials::new("replicator", None),
            rewind: None,
            pgpass: None,
            parameters: Map::new(),
            pg_hba: None,
            pg_ident: None,
            recovery_conf: Map::new(),
            custom_conf: None,
            initdb: Vec::new(),
            recovery: None,
            bootstrap_pg_hba: Vec::new(),
            post_bootstrap: None,
            basebackup: Vec::new(),
            replica_methods: vec![ReplicaMethod::Backup, ReplicaMethod::Basebackup],
            backups: None,
            tether: None,
            uid_gid: None,
            pg_ctl_timeout: Duration::from_secs(60),
        }
    }

    /// Returns the directory of what is kept about the data directory outside it.
    pub fn state_dir(&self) -> PathBuf {
        self.state_dir
            .clone()
            .unwrap_or_else(|| beside(&self.data_dir, "spilo"))
    }

    /// Returns the directory beside the data directory that its guard lives in, so that one server
    /// cannot get two.
    pub fn guard_dir(&self) -> PathBuf {
        beside(&self.data_dir, "guard")
    }

    /// Returns the directory of the configuration files.
    pub(crate) fn conf_dir(&self) -> &Path {
        self.config_dir.as_deref().unwrap_or(&self.data_dir)
    }

    /// Returns the file that has the passwords.
    pub(crate) fn passfile(&self) -> PathBuf {
        self.pgpass
            .clone()
            .unwrap_or_else(|| self.state_dir().join("pgpass"))
    }

    /// Returns one of PostgreSQL's programs.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        match &self.bin_dir {
            Some(dir) => dir.join(name),
            None => PathBuf::from(name),
        }
    }

    /// Returns the user that pg_rewind connects as.
    pub(crate) fn rewinder(&self) -> &Credentials {
        self.rewind.as_ref().unwrap_or(&self.superuser)
    }

    /// Returns how the superuser reaches this server, the password included.
    pub fn conninfo(&self) -> Secret {
        self.superuser_at(&self.own_host(), self.port)
    }

    /// Returns how the superuser reaches the server of another member, the password included.
    ///
    /// # Errors
    /// What is wrong with its `conn_url`.
    pub fn conninfo_of(&self, conn_url: &str) -> Result<Secret, String> {
        let endpoint = Endpoint::parse(conn_url)?;
        Ok(self.superuser_at(&endpoint.host, endpoint.port))
    }

    fn superuser_at(&self, host: &str, port: u16) -> Secret {
        let port = port.to_string();
        let mut keywords = vec![
            ("host", host),
            ("port", &*port),
            ("user", &self.superuser.username),
            ("dbname", &self.database),
        ];
        if let Some(password) = &self.superuser.password {
            keywords.push(("password", password));
        }
        Secret::new(conninfo::write(&keywords))
    }

    /// Returns the host that the agent reaches the server on, as libpq writes it.
    pub(crate) fn own_host(&self) -> String {
        if let Some(dir) = &self.unix_socket_dir {
            return dir.display().to_string();
        }
        match self.listen_addresses.split(',').map(str::trim).next() {
            None | Some("" | "*" | "0.0.0.0" | "localhost") => "127.0.0.1".to_owned(),
            Some("::") => "::1".to_owned(),
            Some(host) => host.to_owned(),
        }
    }
}

impl Backups {
    /// Takes the store, and the thresholds of 10 GiB and 30 percent.
    pub fn new(store: Arc<dyn BackupStore>) -> Self {
        Self {
            store,
            strategy: Arc::new(Thresholds::default()),
        }
    }

    /// Decides by another strategy.
    #[must_use]
    pub fn with_strategy(mut self, strategy: impl Strategy + 'static) -> Self {
        self.strategy = Arc::new(strategy);
        self
    }
}

impl Recovery {
    /// Takes the store; recovers from the newest backup to the end of the latest timeline.
    pub fn new(store: Arc<dyn BackupStore>) -> Self {
        Self {
            store,
            backup: None,
            target: RecoveryTarget::Latest,
            inclusive: true,
            timeline: "latest".to_owned(),
        }
    }
}

impl Credentials {
    /// Creates the credentials of a user.
    pub fn new(username: impl Into<String>, password: Option<String>) -> Self {
        Self {
            username: username.into(),
            password,
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let password = self.password.as_ref().map(|_| "***");
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .field("password", &password)
            .finish()
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(suffix);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_the_data_directory_lies_beside_it_however_it_is_written() {
        for data_dir in ["/srv/pg", "/srv/pg/", "/srv//pg//", "/srv/pg/."] {
            let scope = Scope::new("demo").unwrap();
            let name = MemberName::new("a").unwrap();
            let options = LocalOptions::new(scope, name, data_dir, 5432);
            assert_eq!(
                (options.guard_dir(), options.state_dir()),
                ("/srv/pg.guard".into(), "/srv/pg.spilo".into()),
                "{data_dir}"
            );
        }
    }
}
