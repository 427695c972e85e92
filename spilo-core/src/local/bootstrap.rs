//! How a new cluster is made.

use serde_json::{Map, Value};

use super::backup::{Backup, Recovery};
use super::error::{ConfigError, ConfigErrorKind, Problems};
use super::options::ToolOption;
use super::section::Section;
use crate::config::DynamicConfig;

/// What the node that makes a new cluster does; a node of an existing one never looks at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bootstrap {
    /// The cluster's first dynamic configuration, as written.
    pub dcs: Map<String, Value>,
    /// The backup to make it from, instead of by `initdb`.
    pub recovery: Option<Recovery>,
    /// Options of `initdb`.
    pub initdb: Vec<ToolOption>,
    /// Lines that are added to `pg_hba.conf` once.
    pub pg_hba: Vec<String>,
    /// A command that is run once, with a connection string as its last argument; the cluster is
    /// given up if it fails.
    pub post_bootstrap: Option<String>,
}

impl Bootstrap {
    /// Reads the section; a backup to begin with is in the store of `backup` if no other is named.
    pub(super) fn read(
        section: &Section<'_>,
        backup: Option<&Backup>,
        problems: &mut Problems,
    ) -> Self {
        let [first, second] = ["post_bootstrap", "post_init"].map(|name| section.text(name));
        if first.is_some() && second.is_some() {
            problems.error(
                &section.path("post_init"),
                ConfigErrorKind::Invalid,
                "is another name for `bootstrap.post_bootstrap`: keep one".to_owned(),
            );
        }
        let dcs = section.map("dcs").unwrap_or_default();
        match DynamicConfig::seed(&dcs) {
            Ok(config) => {
                for name in config.unsupported {
                    let problem = "decides who may write or be promoted, and is not built";
                    let path = section.path(&format!("dcs.{name}"));
                    problems.error(&path, ConfigErrorKind::Refused, problem.to_owned());
                }
                problems.warnings.extend(
                    config
                        .adjusted
                        .iter()
                        .map(|why| format!("bootstrap.dcs.{why}")),
                );
            }
            Err(why) => problems.errors.push(dynamic(&section.path("dcs"), &why)),
        }
        let recovers = section.words("method").as_deref() == Some("backup");
        let recovery = section.inner("backup");
        if recovery.exists() && !recovers {
            let what = "has no effect: `bootstrap.method` is not `backup`";
            problems.warn(&section.path("backup"), what);
        }
        let recovery = match recovers {
            true => Recovery::read(&recovery, backup, problems),
            false => None,
        };
        Self {
            dcs,
            recovery,
            initdb: section.options("initdb"),
            pg_hba: section.lines("pg_hba").unwrap_or_default(),
            post_bootstrap: first.or(second),
        }
    }
}

/// The parser of the dynamic configuration names the key first, then what is wrong with it.
fn dynamic(path: &str, why: &str) -> ConfigError {
    let (key, problem) = why.split_once(": ").unwrap_or(("", why));
    let path = if key.is_empty() {
        path.to_owned()
    } else {
        format!("{path}.{key}")
    };
    ConfigError::new(ConfigErrorKind::Invalid, path, problem)
}
