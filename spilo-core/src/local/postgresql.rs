//! The PostgreSQL of this node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use super::address::{Address, Listen};
use super::error::{ConfigErrorKind, Problems};
use super::judge::found;
use super::options::ToolOption;
use super::scalar::setting;
use super::secret::Secret;
use super::section::Section;
use super::services::listening;

/// The PostgreSQL of this node: where it is, whom it knows, how it is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Postgresql {
    /// Where it listens.
    pub listen: Listen,
    /// Where other members reach it.
    pub connect: Address,
    /// Where clients reach it through a pooler beside it, for the member record.
    pub proxy: Option<Address>,
    /// The data directory, without a slash at its end.
    pub data_dir: PathBuf,
    /// The directory of the configuration files; the data directory if `None`.
    pub config_dir: Option<PathBuf>,
    /// The directory of its programs; those in `PATH` if `None`.
    pub bin_dir: Option<PathBuf>,
    /// The password file that is written for replication.
    pub pgpass: Option<PathBuf>,
    /// The database that the agent connects to.
    pub database: String,
    /// The role that the agent is.
    pub superuser: Role,
    /// The role that standbys stream as.
    pub replication: Role,
    /// The role that `pg_rewind` reads the new leader as; the superuser if `None`.
    pub rewind: Option<Role>,
    /// The directory of the Unix socket that the agent connects through; over TCP if `None`.
    pub unix_socket_dir: Option<PathBuf>,
    /// Server settings of this node, over those of the cluster; `null` takes one away.
    pub parameters: Map<String, Value>,
    /// The lines of `pg_hba.conf`; the file is left alone if `None`.
    pub pg_hba: Option<Vec<String>>,
    /// The lines of `pg_ident.conf`; the file is left alone if `None`.
    pub pg_ident: Option<Vec<String>>,
    /// Recovery settings, `restore_command` among them.
    pub recovery_conf: Map<String, Value>,
    /// The configuration file to include in place of the one `initdb` wrote.
    pub custom_conf: Option<PathBuf>,
    /// How long a start or stop may take before it is reported.
    pub pg_ctl_timeout: Duration,
    /// Options of `pg_basebackup`.
    pub basebackup: Vec<ToolOption>,
}

/// A database role and how to connect as it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Role {
    /// Its name.
    pub username: String,
    /// Its password; if `None`, it has to get in without one.
    pub password: Option<Secret>,
}

impl Postgresql {
    pub(super) fn read(section: &Section<'_>, problems: &mut Problems) -> Option<Self> {
        let (listen, connect) = listening(section, Some(POSTGRES_PORT), problems);
        let data_dir = data_dir(section, problems);
        let proxy = section.address("proxy_address", problems);
        for name in ["data_dir", "config_dir", "bin_dir", "pgpass"] {
            absolute(section, name, problems);
        }
        for name in ["parameters", "recovery_conf"] {
            settings(section, name, problems);
        }
        let roles = section.inner("authentication");
        let read = Self {
            proxy,
            config_dir: section.file("config_dir"),
            bin_dir: section.file("bin_dir"),
            pgpass: section.file("pgpass"),
            database: section
                .text("database")
                .unwrap_or_else(|| "postgres".to_owned()),
            superuser: Role::read(&roles.inner("superuser"), "postgres", problems),
            replication: Role::read(&roles.inner("replication"), "replicator", problems),
            rewind: rewind(&roles.inner("rewind"), problems),
            unix_socket_dir: unix_socket_dir(section, problems),
            parameters: section.map("parameters").unwrap_or_default(),
            pg_hba: section.lines("pg_hba"),
            pg_ident: section.lines("pg_ident"),
            recovery_conf: section.map("recovery_conf").unwrap_or_default(),
            custom_conf: section.file("custom_conf"),
            pg_ctl_timeout: section.span("pg_ctl_timeout").unwrap_or(PG_CTL_TIMEOUT),
            basebackup: section.options("basebackup"),
            listen: listen?,
            connect: connect?,
            data_dir: data_dir?,
        };
        Some(read)
    }
}

impl Role {
    fn read(section: &Section<'_>, username: &str, problems: &mut Problems) -> Self {
        let password = section.secret("password");
        if password.is_none() {
            let way = "is missing: this role gets in only where `pg_hba` lets it in without one \
                       (trust, peer), and is made without one in a new cluster";
            problems.warn(&section.path("password"), way);
        }
        Self {
            username: section
                .text("username")
                .unwrap_or_else(|| username.to_owned()),
            password,
        }
    }
}

/// Reads the data directory, written in one way only: the names of what belongs to it are made by
/// appending to its own.
fn data_dir(section: &Section<'_>, problems: &mut Problems) -> Option<PathBuf> {
    let text = section.required("data_dir", problems)?;
    let path: PathBuf = Path::new(&text).components().collect();
    let named = match path.file_name() {
        None if path.is_absolute() => Err(format!(
            "must end in the name of a directory, found {text:?}"
        )),
        _ => Ok(path),
    };
    section.valid("data_dir", named, problems)
}

fn rewind(section: &Section<'_>, problems: &mut Problems) -> Option<Role> {
    if !section.exists() {
        return None;
    }
    section.required("username", problems)?;
    Some(Role::read(section, "", problems))
}

/// Takes the first of `unix_socket_directories`, whose default differs between builds.
fn unix_socket_dir(section: &Section<'_>, problems: &mut Problems) -> Option<PathBuf> {
    if section.flag("use_unix_socket") != Some(true) {
        return None;
    }
    let directories = section.inner("parameters").text("unix_socket_directories");
    let first = directories
        .as_deref()
        .and_then(|text| text.split(',').next())
        .map(str::trim);
    if let Some(dir) = first.filter(|dir| dir.starts_with('/')) {
        return Some(dir.into());
    }
    let path = section.path("parameters.unix_socket_directories");
    let problem = "must name a directory, since `postgresql.use_unix_socket` needs one";
    problems.error(&path, ConfigErrorKind::Missing, problem.to_owned());
    None
}

/// The agent and the server's own processes have different working directories.
fn absolute(section: &Section<'_>, name: &str, problems: &mut Problems) {
    if let Some(path) = section.text(name) {
        let home = name == "pgpass" && path.starts_with("~/");
        if !path.starts_with('/') && !home {
            let problem = format!("must be an absolute path, found {path:?}");
            problems.error(&section.path(name), ConfigErrorKind::Invalid, problem);
        }
    }
}

fn settings(section: &Section<'_>, name: &str, problems: &mut Problems) {
    for (key, value) in section.map(name).unwrap_or_default() {
        let path = section.path(&format!("{name}.{key}"));
        if !value.is_null() && setting(&value).is_none() {
            let problem = format!("must be a scalar, found {}", found(&value));
            problems.error(&path, ConfigErrorKind::WrongType, problem);
        }
        let fine = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        if key.is_empty() || !key.chars().all(fine) {
            let problem = "is not the name of a setting".to_owned();
            problems.error(&path, ConfigErrorKind::Invalid, problem);
        }
    }
}

/// The port that PostgreSQL serves on.
const POSTGRES_PORT: u16 = 5432;

/// Patroni's own.
const PG_CTL_TIMEOUT: Duration = Duration::from_secs(60);
