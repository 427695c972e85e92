//! Taking a changed configuration over while the node runs.

use std::sync::Arc;

use spilo_core::local::Local;
use spilo_core::machine::Order;
use spilo_pg::LocalOptions;

use crate::doors::Renewed;
use crate::load::Source;
use crate::run::Running;
use crate::wiring;

/// A configuration that has been read again, with all that can fail done.
#[derive(Debug)]
pub(crate) struct Fresh {
    local: Local,
    postgres: LocalOptions,
    doors: Renewed,
}

/// Begins to read the configuration again, or if that is under way, remembers to do it once more.
///
/// It has a thread of its own: on a file system that hangs it stays for ever, and who renews a
/// lease or answers members may not wait for it. Two such threads would be no better than one.
pub(crate) fn begin(running: &mut Running) {
    if !running.reading.is_empty() {
        tracing::warn!(
            "the configuration is still being read, and will be read once more after that"
        );
        running.read_again = true;
        return;
    }
    running.notifier.reloading();
    let (source, old) = (Arc::clone(&running.source), running.local.clone());
    running.reading.spawn_blocking(move || read(&source, &old));
}

/// Applies what has been read, if it can be, and begins again if that was asked for meanwhile.
pub(crate) async fn finish(running: &mut Running, fresh: Option<Box<Fresh>>) {
    if let Some(fresh) = fresh {
        match apply(running, fresh).await {
            Ok(()) => tracing::info!("the configuration is reloaded"),
            Err(error) => tracing::error!("the configuration is not reloaded: {error:#}"),
        }
    }
    running.notifier.ready();
    if std::mem::take(&mut running.read_again) {
        begin(running);
    }
}

/// Reads the configuration and the files that it names; says what is wrong with a faulty one, which
/// changes nothing.
fn read(source: &Source, old: &Local) -> Option<Box<Fresh>> {
    let parsed = match source.load() {
        Ok(parsed) => parsed,
        Err(faults) => {
            for fault in faults.0 {
                tracing::error!("the configuration is not reloaded: {fault}");
            }
            return None;
        }
    };
    for warning in &parsed.warnings {
        tracing::warn!("{warning}");
    }
    for key in fixed(old, &parsed.local) {
        tracing::warn!("{key}: changed, but takes effect only when the agent is started again");
    }
    let fresh = prepare(with_fixed_of(old, parsed.local));
    fresh
        .inspect_err(|error| tracing::error!("the configuration is not reloaded: {error:#}"))
        .ok()
}

fn prepare(local: Local) -> anyhow::Result<Box<Fresh>> {
    Ok(Box::new(Fresh {
        postgres: wiring::postgres(&local)?,
        doors: Renewed::read(&local)?,
        local,
    }))
}

async fn apply(running: &mut Running, fresh: Box<Fresh>) -> anyhow::Result<()> {
    let (local, before) = (&fresh.local, &running.local);
    // What can fail comes first.
    running.doors.take_over(fresh.doors)?;
    running.level.set(local.log.level);
    if local.postgresql != before.postgresql || local.replica_methods != before.replica_methods {
        running.server.configure(fresh.postgres);
        running.handle.wake();
    }
    if local.tags != before.tags {
        running.handle.order(Order::Tags(local.tags.clone())).await;
    }
    running.local = fresh.local;
    Ok(())
}

/// Names what has changed and cannot change while the node runs.
fn fixed(old: &Local, new: &Local) -> Vec<&'static str> {
    let mut changed = Vec::new();
    let mut differs = |key, same: bool| {
        if !same {
            changed.push(key);
        }
    };
    differs("scope", old.scope == new.scope);
    differs("name", old.name == new.name);
    differs("namespace", old.namespace == new.namespace);
    differs("bootstrap", old.bootstrap == new.bootstrap);
    differs("log.dir", old.log.dir == new.log.dir);
    differs("log.mode", old.log.file_mode == new.log.file_mode);
    differs("log.file_num", old.log.file_count == new.log.file_count);
    differs("log.file_size", old.log.file_bytes == new.log.file_bytes);
    differs("log.type", old.log.format == new.log.format);
    differs("restapi.listen", old.restapi.listen == new.restapi.listen);
    differs(
        "restapi.connect_address",
        old.restapi.connect == new.restapi.connect,
    );
    differs("restapi.certfile", old.restapi.tls == new.restapi.tls);
    differs("etcd3", old.etcd3 == new.etcd3);
    differs("consul", old.consul == new.consul);
    differs("zookeeper", old.zookeeper == new.zookeeper);
    differs("backup", old.backup == new.backup);
    let (old, new) = (&old.postgresql, &new.postgresql);
    differs("postgresql.listen", old.listen == new.listen);
    differs("postgresql.connect_address", old.connect == new.connect);
    differs("postgresql.proxy_address", old.proxy == new.proxy);
    differs("postgresql.data_dir", old.data_dir == new.data_dir);
    differs("postgresql.config_dir", old.config_dir == new.config_dir);
    differs("postgresql.bin_dir", old.bin_dir == new.bin_dir);
    changed
}

/// Returns `new` with everything of `old` that [`fixed`] names.
fn with_fixed_of(old: &Local, mut new: Local) -> Local {
    new.scope = old.scope.clone();
    new.name = old.name.clone();
    new.namespace.clone_from(&old.namespace);
    new.bootstrap = old.bootstrap.clone();
    let level = std::mem::replace(&mut new.log, old.log.clone()).level;
    new.log.level = level;
    new.restapi.listen = old.restapi.listen.clone();
    new.restapi.connect = old.restapi.connect.clone();
    new.restapi.tls.clone_from(&old.restapi.tls);
    new.etcd3.clone_from(&old.etcd3);
    new.consul.clone_from(&old.consul);
    new.zookeeper.clone_from(&old.zookeeper);
    new.backup.clone_from(&old.backup);
    let (from, to) = (&old.postgresql, &mut new.postgresql);
    to.listen = from.listen.clone();
    to.connect = from.connect.clone();
    to.proxy.clone_from(&from.proxy);
    to.data_dir.clone_from(&from.data_dir);
    to.config_dir.clone_from(&from.config_dir);
    to.bin_dir.clone_from(&from.bin_dir);
    new
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};
    use spilo_core::local::LogLevel;

    use super::*;

    fn local(change: impl FnOnce(&mut Value)) -> Local {
        let mut document = json!({
            "scope": "demo",
            "name": "a",
            "restapi": {"listen": "127.0.0.1:8008"},
            "etcd3": {"host": "127.0.0.1"},
            "postgresql": {"listen": "127.0.0.1:5432", "data_dir": "/srv/pg"},
        });
        change(&mut document);
        Local::parse(document, &BTreeMap::new()).unwrap().local
    }

    #[test]
    fn what_cannot_change_is_named_and_kept() {
        let old = local(|_| {});
        let new = local(|it| {
            it["name"] = json!("b");
            it["etcd3"]["host"] = json!("10.0.0.1");
            it["backup"] = json!({"archive": "/srv/archive"});
            it["postgresql"]["data_dir"] = json!("/srv/other");
            it["postgresql"]["parameters"] = json!({"work_mem": "8MB"});
            it["tags"] = json!({"zone": "x"});
            it["log"] = json!({"level": "DEBUG", "mode": 0o640, "file_num": 9, "file_size": 9});
            it["ctl"] = json!({"insecure": true});
            it["bootstrap"] = json!({"dcs": {"ttl": 20}});
        });
        let named = [
            "name",
            "bootstrap",
            "log.mode",
            "log.file_num",
            "log.file_size",
            "etcd3",
            "backup",
            "postgresql.data_dir",
        ];
        assert_eq!(fixed(&old, &new), named);
        let applied = with_fixed_of(&old, new);
        assert_eq!(fixed(&old, &applied), [""; 0]);
        assert_eq!(applied.name, old.name);
        assert_eq!(applied.log.level, LogLevel::Debug);
        assert!(applied.ctl.insecure);
        assert_eq!(Value::Object(applied.tags), json!({"zone": "x"}));
        assert_eq!(
            Value::Object(applied.postgresql.parameters),
            json!({"work_mem": "8MB"})
        );
    }

    #[test]
    fn nothing_is_named_when_nothing_changed() {
        assert_eq!(fixed(&local(|_| {}), &local(|_| {})), [""; 0]);
    }
}
