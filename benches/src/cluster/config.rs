//! The configuration file of a node, and the programs it names.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};

use super::{ClusterBuilder, Kind};
use crate::node::Node;
use crate::sandbox::Sandbox;
use crate::store::Store;

impl ClusterBuilder {
    /// Returns the directory of PostgreSQL's programs.
    pub(super) fn pg_programs(&self) -> PathBuf {
        let debian = || PathBuf::from("/usr/lib/postgresql/15/bin");
        self.pg_bin
            .clone()
            .or_else(|| std::env::var_os("SPILO_PG15_BIN").map(PathBuf::from))
            .unwrap_or_else(debian)
    }

    /// Returns a node's configuration: Patroni's keys, understood by both kinds of agent.
    pub(super) fn node_config(&self, index: usize, node: &Node, store: &Store) -> Value {
        let mut config = json!({
            "scope": self.scope,
            "name": node.name(),
            "restapi": {
                "listen": node.rest_address().to_string(),
                "connect_address": node.rest_address().to_string(),
            },
            "bootstrap": { "dcs": self.dcs_config(), "initdb": self.initdb_options() },
            "postgresql": postgresql(node),
        });
        let (section, leads_there) = store.config(index);
        merge(&mut config, &json!({ section: leads_there }));
        merge(&mut config, &self.overlay);
        for (_, values) in self
            .node_overlays
            .iter()
            .filter(|(target, _)| *target == index)
        {
            merge(&mut config, values);
        }
        config
    }

    fn dcs_config(&self) -> Value {
        let mut dcs = Map::new();
        dcs.insert("maximum_lag_on_failover".to_owned(), json!(1_048_576));
        dcs.extend(self.dcs.clone());
        dcs.insert(
            "postgresql".to_owned(),
            json!({ "use_pg_rewind": true, "use_slots": true, "parameters": self.parameters }),
        );
        Value::Object(dcs)
    }

    fn initdb_options(&self) -> Value {
        let mut options = vec![json!({ "encoding": "UTF8" }), json!("data-checksums")];
        options.extend(self.initdb.iter().cloned());
        Value::Array(options)
    }
}

fn postgresql(node: &Node) -> Value {
    json!({
        "listen": node.pg_address().to_string(),
        "connect_address": node.pg_address().to_string(),
        "data_dir": node.data_dir(),
        "bin_dir": node.pg_bin(),
        "pgpass": node.dir().join("pgpass"),
        "authentication": {
            "superuser": { "username": "postgres", "password": "harness-super" },
            "replication": { "username": "replicator", "password": "harness-repl" },
            "rewind": { "username": "rewinder", "password": "harness-rewind" },
        },
        "pg_hba": [
            "local all all trust",
            "host replication replicator 0.0.0.0/0 scram-sha-256",
            "host all all 0.0.0.0/0 scram-sha-256",
        ],
        "parameters": { "unix_socket_directories": node.socket_dir() },
    })
}

/// Lays `over` on `base`: objects are merged key by key, everything else is replaced.
pub(crate) fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (_, Value::Null) => {}
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over.clone(),
    }
}

/// Returns the agent's program, at a path that the servers' user can reach, as well as that of
/// backups if the configuration has any.
pub(super) fn agent_program(kind: Kind, sandbox: &Sandbox, backups: bool) -> Result<PathBuf> {
    match kind {
        Kind::Patroni => {
            let bin = std::env::var_os("SPILO_PATRONI_BIN")
                .context("SPILO_PATRONI_BIN must name the directory with patroni and patronictl")?;
            let program = Path::new(&bin).join("patroni");
            if !program.is_file() {
                bail!("{} does not exist", program.display());
            }
            Ok(program)
        }
        Kind::Spilo => {
            let program = std::env::var_os("SPILO_AGENT").map(PathBuf::from);
            let program = program.or_else(built_agent).context(
                "no spilo-agent: build it (`cargo build -p spilo-examples --bin spilo-agent`) \
                 or name it in SPILO_AGENT",
            )?;
            if reachable_for_all(&program) {
                return Ok(program);
            }
            // The daemon runs the guard that lies beside it, and itself as one where none does; and
            // the program of backups.
            let guard = program.with_file_name("spilo-guard");
            let backup = program.with_file_name("spilo-backup");
            let backup = backups.then_some(&backup);
            let programs = [Some(&guard), Some(&program), backup];
            for program in programs.into_iter().flatten().filter(|p| p.is_file()) {
                let copy = sandbox.dir().join(program.file_name().unwrap_or_default());
                std::fs::copy(program, &copy)
                    .with_context(|| format!("cannot copy {}", program.display()))?;
                std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755))?;
            }
            Ok(sandbox.dir().join("spilo-agent"))
        }
    }
}

/// Looks beside the running program, which Cargo puts in `target/PROFILE` or, for tests, in its
/// `deps`.
fn built_agent() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let beside = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("spilo-agent"));
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let built = ["release", "debug"].map(|profile| target.join(profile).join("spilo-agent"));
    beside.chain(built).find(|program| program.is_file())
}

fn reachable_for_all(program: &Path) -> bool {
    let Ok(program) = program.canonicalize() else {
        return false;
    };
    program.ancestors().all(|part| {
        part.metadata()
            .is_ok_and(|data| data.permissions().mode() & 0o001 != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_merges_objects_and_replaces_the_rest() {
        let mut base = json!({ "a": { "b": 1, "c": [1, 2] }, "d": 4 });
        merge(
            &mut base,
            &json!({ "a": { "c": [3], "e": 5 }, "d": { "f": 6 } }),
        );
        assert_eq!(
            base,
            json!({ "a": { "b": 1, "c": [3], "e": 5 }, "d": { "f": 6 } })
        );
    }
}
