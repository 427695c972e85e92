//! Writing the configuration files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use spilo_core::pg::{PgError, Upstream};
use spilo_core::{DynamicConfig, Revision};

use crate::LocalOptions;
use crate::guard::ServerSignal;

use super::child::Program;
use super::conninfo::{self, Endpoint};
use super::files;
use super::observe::Alive;
use super::settings::{self, Settings, Wiring};
use super::{LocalPostgres, failed_guard, failed_io, refused};

impl LocalPostgres {
    /// Applies the dynamic configuration: to the files if there is a data directory, to the
    /// server if it runs.
    pub(super) async fn configure(
        &self,
        revision: Revision,
        config: Arc<DynamicConfig>,
    ) -> Result<(), PgError> {
        {
            let mut state = self.state();
            state.config = Some(Arc::clone(&config));
        }
        let seen = self.eye.look_at_disk().await?;
        if let Some(control) = seen.control {
            let wiring = self.blocking("read the configuration", move |options| {
                Ok(present_wiring(options, config.use_slots))
            });
            let changed = Box::pin(self.write_files(&wiring.await?, Some(&control))).await?;
            if changed.files {
                self.reload().await?;
            }
        }
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
        let cached = self.blocking("read the cached configuration", |options| {
            Ok(fs::read_to_string(options.data_dir.join(CACHE)).ok())
        });
        let config = cached
            .await?
            .and_then(|text| match serde_json::from_str(&text) {
                Ok(Value::Object(map)) => DynamicConfig::parse(map).ok(),
                _ => None,
            })
            .unwrap_or_else(DynamicConfig::absent);
        Ok(Arc::new(config))
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
        let conninfo = replication_conninfo(&self.options, &endpoint);
        Ok(Wiring::Standby {
            conninfo: Some(conninfo),
            slot,
        })
    }

    /// Writes everything that the server reads at its start. Returns what changed.
    pub(super) async fn write_files(
        &self,
        wiring: &Wiring,
        control: Option<&super::controldata::ControlData>,
    ) -> Result<Changed, PgError> {
        let action = "write the configuration";
        let config = self.config().await?;
        let decided = Settings::decide(&self.options, &config, wiring, control);
        let work = |options: &LocalOptions| {
            prepare_directories(options)?;
            prepare_base(options)
        };
        self.blocking(action, work).await?;
        let settings = Box::pin(self.check(decided, wiring)).await?;
        let wiring = wiring.clone();
        let files = self.blocking(action, move |options| {
            let mut changed = write_access_lists(options, &config)?;
            changed |= strip_automatic(options)?;
            let text = render(options, &settings, &wiring);
            changed |= files::replace(&conf_file(options), &text, options.uid_gid)?;
            let cache = Value::Object(config.raw.clone()).to_string();
            files::replace(&options.data_dir.join(CACHE), &cache, options.uid_gid)?;
            Ok(changed)
        });
        Ok(Changed {
            files: files.await?,
        })
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

    /// Lets the server's own program read the settings, and leaves out what it does not take.
    async fn check(&self, decided: Settings, wiring: &Wiring) -> Result<Settings, PgError> {
        if let Some((before, checked)) = &self.state().checked
            && *before == decided
        {
            return Ok(checked.clone());
        }
        let trial = self.options.conf_dir().join("postgresql.conf.spilo-trial");
        let mut settings = decided.clone();
        for _ in 0..MOST_PROBLEMS {
            let text = render(&self.options, &settings, wiring);
            let path = trial.clone();
            self.blocking("check the configuration", move |options| {
                files::replace(&path, &text, options.uid_gid)
            })
            .await?;
            let said = self.try_configuration(&trial).await?;
            let mut dropped = false;
            for (name, why) in problems(&said) {
                dropped |= settings.drop_parameter(&name, &why);
            }
            if !dropped {
                if !said.is_empty() {
                    tracing::warn!(%said, "the server does not like its configuration");
                }
                break;
            }
        }
        self.blocking("check the configuration", move |_| files::remove(&trial))
            .await?;
        for warning in &settings.warnings {
            tracing::warn!(%warning, "a parameter is not used as it was set");
        }
        self.state().checked = Some((decided, settings.clone()));
        Ok(settings)
    }

    /// Returns what the server's program says against a configuration file; nothing if it is fine.
    async fn try_configuration(&self, file: &Path) -> Result<String, PgError> {
        let action = "check the configuration";
        let ended = Program::new(&self.options, "postgres")
            .arg("-D")
            .arg(&self.options.data_dir)
            .arg(format!("--config-file={}", file.display()))
            .args(["-C", "data_directory"])
            .within(Duration::from_secs(20))
            .run(|_| {})
            .await
            .map_err(|error| failed_io(action, error))?;
        Ok(if ended.status.success() {
            String::new()
        } else {
            ended.stderr
        })
    }
}

/// What a write of the files changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Changed {
    /// Whether a file has another text than before.
    pub(super) files: bool,
}

/// Returns how this member connects to another server for replication.
pub(super) fn replication_conninfo(options: &LocalOptions, endpoint: &Endpoint) -> String {
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

fn render(options: &LocalOptions, settings: &Settings, wiring: &Wiring) -> String {
    let dir = options.conf_dir();
    let base = match &options.custom_conf {
        Some(custom) => custom.display().to_string(),
        None => BASE.to_owned(),
    };
    let file = |name: &str| dir.join(name).display().to_string();
    settings.render(&base, &file("pg_hba.conf"), &file("pg_ident.conf"), wiring)
}

/// Finds what parameters the server's program complains of, and how.
fn problems(said: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for line in said.lines() {
        let Some((_, rest)) = line.split_once("parameter \"") else {
            continue;
        };
        let Some((name, _)) = rest.split_once('"') else {
            continue;
        };
        let why = line.split_once(":  ").map_or(line, |(_, why)| why);
        found.push((name.to_owned(), why.trim().to_owned()));
    }
    found
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
    files::replace(to, &fs::read_to_string(from)?, options.uid_gid).map(drop)
}

/// Writes `pg_hba.conf` and `pg_ident.conf` if the configuration has their lines.
fn write_access_lists(options: &LocalOptions, config: &DynamicConfig) -> io::Result<bool> {
    let section = config.postgresql();
    let mut changed = false;
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
        changed |= files::replace(&path, &settings::lines(&lines), options.uid_gid)?;
    }
    Ok(changed)
}

/// Takes out of `postgresql.auto.conf` what decides whom the server follows: it is read after
/// `postgresql.conf` and would win.
fn strip_automatic(options: &LocalOptions) -> io::Result<bool> {
    let path = options.data_dir.join("postgresql.auto.conf");
    let Ok(text) = fs::read_to_string(&path) else {
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
/// Each round of the check finds at least one problem, so this bounds its length.
const MOST_PROBLEMS: usize = 50;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_name_their_parameter() {
        let said = "\
2026 GMT [1] LOG:  unrecognized configuration parameter \"foo\" in file \"/x.conf\" line 1
2026 GMT [1] LOG:  invalid value for parameter \"work_mem\": \"banana\"
2026 GMT [1] HINT:  Valid units for this parameter are \"B\", \"kB\".
2026 GMT [1] LOG:  1 kB is outside the valid range for parameter \"wal_keep_size\" (2 .. 3)
2026 GMT [1] FATAL:  configuration file \"/x.conf\" contains errors";
        let names: Vec<_> = problems(said).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["foo", "work_mem", "wal_keep_size"]);
        assert_eq!(
            problems(said)[1].1,
            "invalid value for parameter \"work_mem\": \"banana\""
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
