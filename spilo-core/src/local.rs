//! The local configuration of a node: Patroni's YAML and environment variables, as typed settings.
//!
//! Nothing here reads a file, an environment or a clock: a program parses the YAML into a
//! [`serde_json::Value`], collects its environment, and gets either every setting with its type,
//! or everything that is wrong, in one go.
//!
//! Every key that Patroni knows is known. One that is not built here is either without danger,
//! which gives a warning, or it decides who may write, be promoted or connect, which is an error:
//! it is never ignored silently. A key that Patroni does not know either is an error that names
//! the nearest known one.

mod address;
mod backup;
mod bootstrap;
mod check;
mod env;
mod error;
mod flow;
mod judge;
mod keys;
mod mask;
mod options;
mod postgresql;
mod scalar;
mod secret;
mod section;
mod services;
mod stores;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

pub use address::{Address, Listen};
pub use backup::{Backup, BackupTool, Recovery};
pub use bootstrap::Bootstrap;
pub use error::{ConfigError, ConfigErrorKind};
pub use options::ToolOption;
pub use postgresql::{Postgresql, Role};
pub use secret::Secret;
pub use services::{
    ClientTls, Credentials, Ctl, Log, LogFormat, LogLevel, RestApi, ServerTls, ServerTokens,
    VerifyClient,
};
pub use stores::{Consul, Etcd3, EtcdSrv, Service, ZooKeeper};

use crate::config::boolean;
use crate::ids::{BadName, MemberName, Scope};
use crate::replica::ReplicaMethod;
use error::Problems;
use section::Section;

/// Everything that a node is told by its own files and environment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Local {
    /// The cluster's name.
    pub scope: Scope,
    /// This node's name.
    pub name: MemberName,
    /// The path that clusters are kept under in the store: a slash before, none behind.
    pub namespace: String,
    /// The log.
    pub log: Log,
    /// The REST API.
    pub restapi: RestApi,
    /// How other members' REST API is called.
    pub ctl: Ctl,
    /// The store, where it is etcd.
    pub etcd3: Option<Etcd3>,
    /// The store, where it is Consul.
    pub consul: Option<Consul>,
    /// The store, where it is ZooKeeper.
    pub zookeeper: Option<ZooKeeper>,
    /// How a new cluster is made.
    pub bootstrap: Bootstrap,
    /// The store of backups, if there is one.
    pub backup: Option<Backup>,
    /// The server.
    pub postgresql: Postgresql,
    /// The ways to make a replica, in their order. If none are given: from a backup where there is
    /// a store, then as a copy of the leader.
    pub replica_methods: Vec<ReplicaMethod>,
    /// The tags that this node publishes, in their order and with their types.
    pub tags: Map<String, Value>,
}

/// A configuration that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Parsed {
    /// The settings.
    pub local: Local,
    /// What has no effect here, one sentence a key.
    pub warnings: Vec<String>,
    /// The document after the environment was laid over it, with secrets masked.
    pub shown: Value,
}

impl Local {
    /// Reads `document`, with the `PATRONI_*` variables of `env` laid over it.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of the document, then what is missing.
    ///
    /// # Examples
    /// ```
    /// use std::collections::BTreeMap;
    ///
    /// use serde_json::json;
    /// use spilo_core::local::Local;
    ///
    /// let document = json!({
    ///     "scope": "demo",
    ///     "name": "a",
    ///     "restapi": {"listen": "127.0.0.1:8008"},
    ///     "postgresql": {"listen": "127.0.0.1:5432", "data_dir": "/srv/a"},
    /// });
    /// let local = Local::parse(document.clone(), &BTreeMap::new()).unwrap().local;
    /// assert_eq!(local.postgresql.connect.to_string(), "127.0.0.1:5432");
    ///
    /// let env = BTreeMap::from([("PATRONI_RESTAPI_LISTEN".to_owned(), "nowhere".to_owned())]);
    /// let errors = Local::parse(document, &env).unwrap_err();
    /// assert_eq!(
    ///     errors[0].to_string(),
    ///     "restapi.listen: must be HOST:PORT, found \"nowhere\" (from PATRONI_RESTAPI_LISTEN)",
    /// );
    /// ```
    pub fn parse(
        document: Value,
        env: &BTreeMap<String, String>,
    ) -> Result<Parsed, Vec<ConfigError>> {
        let mut document = match document {
            Value::Object(document) => document,
            // An empty file, all settings being in the environment.
            Value::Null => Map::new(),
            other => {
                let problem = judge::expected("a map of sections", &other);
                let kind = ConfigErrorKind::WrongType;
                return Err(vec![ConfigError::new(kind, "configuration", problem)]);
            }
        };
        let mut problems = Problems::default();
        env::overlay(&mut document, env, &mut problems);
        check::document(&document, &mut problems);
        let local = Self::read(&Section::root(&document), &mut problems);
        match local {
            Some(local) if problems.errors.is_empty() => Ok(Parsed {
                local,
                warnings: problems.warnings,
                shown: Value::Object(mask::document(&document)),
            }),
            _ => Err(problems.errors),
        }
    }

    fn read(root: &Section<'_>, problems: &mut Problems) -> Option<Self> {
        let scope = root.required("scope", problems);
        let scope =
            scope.and_then(|name| root.valid("scope", Scope::new(name).map_err(why), problems));
        let name = root.required("name", problems);
        let name =
            name.and_then(|name| root.valid("name", MemberName::new(name).map_err(why), problems));
        let namespace = root
            .text("namespace")
            .unwrap_or_else(|| "service".to_owned());
        let namespace = root.valid("namespace", namespace_path(&namespace), problems);
        let log = Log::read(&root.inner("log"), problems);
        let restapi = RestApi::read(&root.inner("restapi"), problems);
        let ctl = Ctl::read(&root.inner("ctl"), problems);
        let stores = ["etcd3", "consul", "zookeeper"].map(|name| (name, root.inner(name)));
        let named = stores.each_ref();
        let named = named.map(|(name, section)| (*name, section.exists()));
        stores::only_one(&named, problems);
        let [(_, etcd3), (_, consul), (_, zookeeper)] = &stores;
        let etcd3 = Etcd3::read(etcd3, problems);
        let consul = Consul::read(consul, problems);
        let zookeeper = ZooKeeper::read(zookeeper, problems);
        let backup = root.inner("backup");
        let (has_store, backup) = (backup.exists(), Backup::read(&backup, problems));
        let bootstrap = Bootstrap::read(&root.inner("bootstrap"), backup.as_ref(), problems);
        let section = root.inner("postgresql");
        let postgresql = Postgresql::read(&section, problems);
        let methods = backup::replica_methods(&section, has_store, problems);
        let usual = vec![ReplicaMethod::Backup, ReplicaMethod::Basebackup];
        let replica_methods = methods.unwrap_or(usual);
        Some(Self {
            scope: scope?,
            name: name?,
            namespace: namespace?,
            log,
            restapi: restapi?,
            ctl,
            etcd3,
            consul,
            zookeeper,
            bootstrap,
            backup,
            postgresql: postgresql?,
            replica_methods,
            tags: published(root.map("tags").unwrap_or_default()),
        })
    }
}

/// Leaves out the tags that Patroni leaves out: its own, where they are off.
fn published(mut tags: Map<String, Value>) -> Map<String, Value> {
    const OWN: [&str; 5] = [
        "clonefrom",
        "nofailover",
        "noloadbalance",
        "nosync",
        "nostream",
    ];
    // `retain` of a map that keeps its order keeps it.
    tags.retain(|name, value| {
        let off = OWN.contains(&name.as_str()) && boolean(value) == Some(false);
        !value.is_null() && !off
    });
    tags
}

fn namespace_path(text: &str) -> Result<String, String> {
    let path = text.trim_matches('/');
    if path.chars().any(char::is_control) {
        return Err("has a control character".to_owned());
    }
    Ok(if path.is_empty() {
        String::new()
    } else {
        format!("/{path}")
    })
}

fn why(name: BadName) -> String {
    name.to_string()
}

#[cfg(test)]
mod tests;
