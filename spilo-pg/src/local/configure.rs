//! Writing the configuration files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use spilo_core::pg::{PgError, PgErrorKind, PgOpKind, Upstream};
use spilo_core::{DynamicConfig, Revision};

use crate::LocalOptions;
use crate::guard::ServerSignal;

use super::conninfo::{self, Endpoint};
use super::controldata::ControlData;
use super::files::Mark;
use super::observe::Alive;
use super::settings::{self, Settings, Wiring};
use super::{LocalPostgres, failed_guard, files, refused};

impl LocalPostgres {
    /// Applies the dynamic configuration: to the files if there is a data directory, to the
    /// server if it runs.
    pub(super) async fn configure(
        &self,
        revision: Revision,
        config: Arc<DynamicConfig>,
    ) -> Result<(), PgError> {
        let seen = self.eye.look_at_disk().await?;
        let Some(control) = seen.control else {
            let mut state = self.state();
            state.config = Some(config);
            state.revision = Some(revision);
            return Ok(());
        };
        let use_slots = config.use_slots;
        let wiring = self.blocking("read the configuration", move |options| {
            Ok(present_wiring(options, use_slots))
        });
        let wiring = wiring.await?;
        Box::pin(self.write_config(&config, &wiring, Some(&control))).await?;
        // What the server's program refuses does not come into force for what is done next.
        self.state().config = Some(config);
        // Also when the files were right before: the server may not have read them.
        self.reload().await?;
        self.state().revision = Some(revision);
        Ok(())
    }

    /// Points the running standby at another server, or at none.
    pub(super) async fn follow(&self, upstream: Option<&Upstream>) -> Result<(), PgError> {
        let action = "follow";
        let data_dir = self.options.data_dir.clone();
        let is_standby = self
            .blocking(action, move |_| {
                Ok(data_dir.join("standby.signal").exists())
            })
            .await?;
        if !is_standby {
            return Err(refused(action, "the server is not a standby"));
        }
        let wiring = self.standby_of(upstream)?;
        let control = self.eye.look_at_disk().await?.control;
        Box::pin(self.write_files(&wiring, control.as_ref())).await?;
        // Also when the files were right before: the server may not have read them.
        self.reload().await
    }

    /// Returns the configuration that is in force: the one applied last, else the one that this
    /// data directory was run with before.
    pub(super) async fn config(&self) -> Result<Arc<DynamicConfig>, PgError> {
        if let Some(config) = self.state().config.clone() {
            return Ok(config);
        }
        let cached = self.cached_config().await?;
        Ok(cached.unwrap_or_else(|| Arc::new(DynamicConfig::absent())))
    }

    /// Returns the configuration that this data directory was run with before.
    async fn cached_config(&self) -> Result<Option<Arc<DynamicConfig>>, PgError> {
        let cached = self.blocking("read the cached configuration", |options| {
            Ok(fs::read_to_string(options.data_dir.join(CACHE)).ok())
        });
        let text = cached.await?;
        Ok(text.and_then(|text| match serde_json::from_str(&text) {
            Ok(Value::Object(map)) => DynamicConfig::parse(map).ok().map(Arc::new),
            _ => None,
        }))
    }

    /// Returns the wiring of a standby of `upstream`.
    pub(super) fn standby_of(&self, upstream: Option<&Upstream>) -> Result<Wiring, PgError> {
        let use_slots = self
            .state()
            .config
            .as_ref()
            .is_none_or(|config| config.use_slots);
        let Some(upstream) = upstream else {
            return Ok(Wiring::Standby {
                conninfo: None,
                slot: None,
            });
        };
        let endpoint = Endpoint::parse(&upstream.conn_url)
            .map_err(|problem| refused(&format!("follow {}", upstream.name), problem))?;
        let slot = use_slots.then(|| self.options.name.slot().to_string());
        let conninfo = primary_conninfo(&self.options, &endpoint);
        Ok(Wiring::Standby {
            conninfo: Some(conninfo),
            slot,
        })
    }

    /// Writes everything that the server reads at its start.
    ///
    /// A configuration that the server's program refuses keeps no server from starting, and no
    /// standby from following: the one that the data directory had before does then.
    pub(super) async fn write_files(
        &self,
        wiring: &Wiring,
        control: Option<&ControlData>,
    ) -> Result<(), PgError> {
        let config = self.config().await?;
        let error = match Box::pin(self.write_config(&config, wiring, control)).await {
            Err(error) if error.kind() == PgErrorKind::Refused => error,
            written => return written,
        };
        let before = self.cached_config().await?;
        let Some(before) = before.filter(|before| before.raw != config.raw) else {
            return Err(error);
        };
        tracing::warn!(%error, "going on with the data directory's last configuration");
        let written = Box::pin(self.write_config(&before, wiring, control)).await;
        // What cannot be written either way fails for the reason that somebody can mend.
        written.map_err(|_| error)
    }

    async fn write_config(
        &self,
        config: &Arc<DynamicConfig>,
        wiring: &Wiring,
        control: Option<&ControlData>,
    ) -> Result<(), PgError> {
        let action = "write the configuration";
        let config = Arc::clone(config);
        let mut decided = Settings::decide(&self.options, &config, wiring, control);
        let marker = self.marker();
        let marked = self.blocking(action, move |_| marker.read()).await?;
        if matches!(
            marked,
            Some(Mark::Provisional | Mark::Unfinished(PgOpKind::Bootstrap))
        ) {
            decided.hold_archive();
        }
        let work = |options: &LocalOptions| {
            prepare_directories(options)?;
            prepare_base(options)
        };
        self.blocking(action, work).await?;
        let settings = Box::pin(self.check(decided, wiring, control)).await?;
        let wiring = wiring.clone();
        self.blocking(action, move |options| {
            write_access_lists(options, &config)?;
            strip_automatic(options)?;
            let text = render(options, &settings, &wiring);
            files::replace(&conf_file(options), &text, options.uid_gid)?;
            let cache = Value::Object(config.raw.clone()).to_string();
            files::replace(&options.data_dir.join(CACHE), &cache, options.uid_gid)?;
            Ok(())
        })
        .await
    }

    /// Returns the settings that the next start would use.
    pub(super) fn checked_settings(&self) -> Option<Settings> {
        self.state()
            .checked
            .as_ref()
            .map(|(_, checked)| checked.clone())
    }

    /// Writes the passwords for PostgreSQL's programs, and makes the directories.
    pub(super) async fn prepare(&self) -> Result<(), PgError> {
        self.blocking("prepare the state directory", prepare_directories)
            .await
    }

    /// Makes the running server read its files again; nothing if none runs.
    pub(super) async fn reload(&self) -> Result<(), PgError> {
        let guard = self.guard();
        match self.eye.alive(&guard).await? {
            Alive::Nobody => Ok(()),
            Alive::Somebody { guarded: true } => guard
                .signal(ServerSignal::Reload)
                .await
                .map_err(|error| failed_guard("reload the server", error)),
            Alive::Somebody { guarded: false } => {
                let session = self.session("reload the server").await?;
                let reload = session
                    .value("SELECT pg_reload_conf()", Duration::from_secs(5))
                    .await;
                reload
                    .map(drop)
                    .map_err(|error| super::failed_query("reload the server", error))
            }
        }
    }
}

/// Returns how one of PostgreSQL's programs connects as this member to another server for
/// replication.
pub(super) fn replication_conninfo(options: &LocalOptions, endpoint: &Endpoint) -> String {
    conninfo::for_program(&primary_conninfo(options, endpoint))
}

/// Returns the `primary_conninfo` of a standby: exactly what Patroni writes.
fn primary_conninfo(options: &LocalOptions, endpoint: &Endpoint) -> String {
    conninfo::write(&[
        ("dbname", &options.database),
        ("user", &options.replication.username),
        ("passfile", &options.passfile().display().to_string()),
        ("host", &endpoint.host),
        ("port", &endpoint.port.to_string()),
        ("sslmode", "prefer"),
        ("application_name", options.name.as_str()),
    ])
}

/// Returns the path of the configuration file that the server is started with.
pub(super) fn conf_file(options: &LocalOptions) -> PathBuf {
    options.conf_dir().join("postgresql.conf")
}

pub(super) fn render(options: &LocalOptions, settings: &Settings, wiring: &Wiring) -> String {
    let dir = options.conf_dir();
    let base = match &options.custom_conf {
        Some(custom) => custom.display().to_string(),
        None => BASE.to_owned(),
    };
    let file = |name: &str| dir.join(name).display().to_string();
    settings.render(&base, &file("pg_hba.conf"), &file("pg_ident.conf"), wiring)
}

/// Returns the wiring that the files have now.
fn present_wiring(options: &LocalOptions, use_slots: bool) -> Wiring {
    if !options.data_dir.join("standby.signal").exists() {
        return Wiring::Primary;
    }
    let conf = fs::read_to_string(conf_file(options)).unwrap_or_default();
    let conninfo = settings::find(&conf, "primary_conninfo").filter(|text| !text.is_empty());
    let slot = (use_slots && conninfo.is_some()).then(|| options.name.slot().to_string());
    Wiring::Standby { conninfo, slot }
}

fn prepare_directories(options: &LocalOptions) -> io::Result<()> {
    files::private_directory(&options.state_dir(), options.uid_gid)?;
    let mut lines = String::new();
    let mut users = vec![&options.replication, &options.superuser];
    users.extend(options.rewind.as_ref());
    for user in users {
        if let Some(password) = &user.password {
            // For every host: the file is not written again while a walreceiver reads it, and
            // the members' addresses come and go.
            let line = format!("*:*:*:{}:{}\n", escape(&user.username), escape(password));
            lines.push_str(&line);
        }
    }
    files::replace(&options.passfile(), &lines, options.uid_gid).map(drop)
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace(':', "\\:")
}

/// Moves the file that initdb made out of the way, once, as Patroni does. A configuration
/// directory of its own gets what it lacks from the data directory, where initdb and a clone put it.
fn prepare_base(options: &LocalOptions) -> io::Result<()> {
    let dir = options.conf_dir();
    if options.config_dir.is_some() {
        if !dir.exists() {
            files::private_directory(dir, options.uid_gid)?;
        }
        for name in ["pg_hba.conf", "pg_ident.conf"] {
            copy_missing(&options.data_dir.join(name), &dir.join(name), options)?;
        }
    }
    if options.custom_conf.is_some() {
        return Ok(());
    }
    let base = dir.join(BASE);
    let conf = conf_file(options);
    // A file that includes the base file was never one; as its own base it would include itself.
    let original = fs::read_to_string(&conf).is_ok_and(|text| !text.contains(BASE));
    if !base.exists() && original {
        fs::rename(&conf, &base)?;
        return files::sync_directory_of(&base);
    }
    if options.config_dir.is_some() {
        for name in [BASE, "postgresql.conf"] {
            copy_missing(&options.data_dir.join(name), &base, options)?;
        }
    }
    if base.exists() {
        return Ok(());
    }
    files::replace(&base, "", options.uid_gid).map(drop)
}

fn copy_missing(from: &Path, to: &Path, options: &LocalOptions) -> io::Result<()> {
    if to.exists() || !from.exists() {
        return Ok(());
    }
    let text = files::read_own(from, options.uid_gid)?;
    files::replace(to, &text, options.uid_gid).map(drop)
}

/// Writes `pg_hba.conf` and `pg_ident.conf` if the configuration has their lines.
fn write_access_lists(options: &LocalOptions, config: &DynamicConfig) -> io::Result<()> {
    let section = config.postgresql();
    for (key, name, local) in [
        ("pg_hba", "pg_hba.conf", &options.pg_hba),
        ("pg_ident", "pg_ident.conf", &options.pg_ident),
    ] {
        let dynamic = || {
            let list = section.get(key)?.as_array()?;
            Some(
                list.iter()
                    .filter_map(|line| line.as_str().map(str::to_owned))
                    .collect(),
            )
        };
        let Some(lines) = local.clone().or_else(dynamic) else {
            continue;
        };
        if lines.is_empty() {
            continue;
        }
        let path = options.conf_dir().join(name);
        files::replace(&path, &settings::lines(&lines), options.uid_gid)?;
    }
    Ok(())
}

/// Takes out of `postgresql.auto.conf` what decides whom the server follows: it is read after
/// `postgresql.conf` and would win.
fn strip_automatic(options: &LocalOptions) -> io::Result<bool> {
    let path = options.data_dir.join("postgresql.auto.conf");
    let Ok(text) = files::read_own(&path, options.uid_gid) else {
        return Ok(false);
    };
    let ours = |line: &str| {
        let name = line.split(['=', ' ', '\t']).next().unwrap_or_default();
        name == "primary_conninfo"
            || name == "primary_slot_name"
            || name.starts_with("recovery_target")
    };
    if !text.lines().any(|line| ours(line.trim_start())) {
        return Ok(false);
    }
    let kept: String = text
        .lines()
        .filter(|line| !ours(line.trim_start()))
        .flat_map(|line| [line, "\n"])
        .collect();
    files::replace(&path, &kept, options.uid_gid)
}

/// The configuration file that PostgreSQL came with, as Patroni names it.
const BASE: &str = "postgresql.base.conf";
/// The dynamic configuration that the server last ran with, as Patroni names it.
const CACHE: &str = "patroni.dynamic.json";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_notice_a_dead_peer_and_primary_conninfo_is_patronis() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = options(&dir);
        options.pgpass = Some("/p".into());
        let endpoint = Endpoint::parse("postgres://10.0.0.1:5433/postgres").unwrap();
        let standby = "dbname=postgres user=replicator passfile=/p host=10.0.0.1 port=5433 \
                       sslmode=prefer application_name=a";
        assert_eq!(primary_conninfo(&options, &endpoint), standby);
        assert_eq!(
            replication_conninfo(&options, &endpoint),
            format!(
                "{standby} keepalives_idle=10 keepalives_interval=5 keepalives_count=3 \
                 tcp_user_timeout=30000"
            )
        );
    }

    fn options(dir: &tempfile::TempDir) -> LocalOptions {
        let scope = spilo_core::Scope::new("s").unwrap();
        LocalOptions::new(
            scope,
            spilo_core::MemberName::new("a").unwrap(),
            dir.path(),
            1,
        )
    }

    #[test]
    fn alter_system_cannot_decide_whom_to_follow() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("postgresql.auto.conf");
        let text =
            "# auto\nwork_mem = '5MB'\nprimary_conninfo = 'host=x'\nrecovery_target_xid='1'\n";
        fs::write(&path, text).unwrap();
        assert!(strip_automatic(&options(&dir)).unwrap());
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "# auto\nwork_mem = '5MB'\n"
        );
        assert!(!strip_automatic(&options(&dir)).unwrap());
    }

    #[test]
    fn the_original_file_becomes_the_base_once_and_ours_never() {
        let dir = tempfile::tempdir().unwrap();
        let (conf, base) = (dir.path().join("postgresql.conf"), dir.path().join(BASE));
        fs::write(&conf, "# original\n").unwrap();
        for _ in 0..2 {
            prepare_base(&options(&dir)).unwrap();
            assert_eq!(fs::read_to_string(&base).unwrap(), "# original\n");
            fs::write(&conf, format!("include '{BASE}'\n")).unwrap();
        }
        fs::remove_file(&base).unwrap();
        prepare_base(&options(&dir)).unwrap();
        assert_eq!(fs::read_to_string(&base).unwrap(), "");
    }
}
