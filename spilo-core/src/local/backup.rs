//! Where backups are, and how a replica is made.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::error::{ConfigErrorKind, Problems};
use super::options::ToolOption;
use super::scalar::setting;
use super::section::Section;
use crate::backup::{BackupName, MadeFrom, RecoveryTarget};
use crate::config::boolean;
use crate::replica::{ReplicaCommand, ReplicaMethod, Thresholds};
use crate::wal::{BadLsn, Lsn};

/// The store of backups that the server archives to and replicas are made from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Backup {
    /// The program that reaches it.
    pub tool: BackupTool,
    /// Where the archive is, for `spilo-backup`: `s3://BUCKET/PREFIX`, or a directory.
    pub archive: Option<String>,
    /// Where the program is; beside the agent or in `PATH` if `None`.
    pub command: Option<PathBuf>,
    /// A directory with the program's environment, a file for each variable, as `envdir` reads it.
    pub env_dir: Option<PathBuf>,
    /// Further options of the program.
    pub options: Vec<ToolOption>,
    /// Until when a backup is better than a copy of the leader.
    pub thresholds: Thresholds,
    /// When base backups are made, as a cron expression; never by the agent if `None`.
    pub schedule: Option<String>,
    /// How many base backups are kept; all if `None`.
    pub retain: Option<usize>,
    /// Which members base backups are made of.
    pub made_from: MadeFrom,
}

/// A program of backups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupTool {
    /// Spilo's own.
    SpiloBackup,
    /// Stock WAL-E.
    WalE,
}

/// The backup that a new cluster is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovery {
    /// Where it is.
    pub store: Backup,
    /// Its name; the newest that fits if `None`.
    pub name: Option<BackupName>,
    /// Where the recovery ends.
    pub target: RecoveryTarget,
    /// Whether what is exactly there is recovered as well.
    pub inclusive: bool,
    /// The timeline to follow: `latest`, `current` or a number.
    pub timeline: String,
}

impl Backup {
    pub(super) fn read(section: &Section<'_>, problems: &mut Problems) -> Option<Self> {
        if !section.exists() {
            return None;
        }
        let tool = match section.words("store").as_deref() {
            Some("wal-e") => BackupTool::WalE,
            _ => BackupTool::SpiloBackup,
        };
        let archive = section.text("archive");
        match (tool, &archive) {
            (BackupTool::SpiloBackup, None) => {
                let what = "is missing: `s3://BUCKET/PREFIX`, or an absolute path";
                let path = section.path("archive");
                problems.error(&path, ConfigErrorKind::Missing, what.to_owned());
            }
            (BackupTool::SpiloBackup, Some(url)) if !is_place(url) => {
                let what =
                    format!("must be `s3://BUCKET/PREFIX` or an absolute path, found {url:?}");
                problems.error(&section.path("archive"), ConfigErrorKind::Invalid, what);
            }
            (BackupTool::WalE, Some(_)) => {
                let what = "has no effect: `wal-e` takes WALE_S3_PREFIX from `backup.env_dir`";
                problems.warn(&section.path("archive"), what);
            }
            (BackupTool::SpiloBackup, Some(_)) | (BackupTool::WalE, None) => {}
        }
        for name in ["command", "env_dir"] {
            if let Some(path) = section.text(name).filter(|path| !path.starts_with('/')) {
                let problem = format!("must be an absolute path, found {path:?}");
                problems.error(&section.path(name), ConfigErrorKind::Invalid, problem);
            }
        }
        let mut thresholds = Thresholds::default();
        if let Some(megabytes) = section.count::<u64>("threshold_megabytes") {
            thresholds.wal = megabytes << 20;
        }
        if let Some(percent) = section.count("threshold_backup_size_percentage") {
            thresholds.backup_percent = percent;
        }
        let schedule = section.text("schedule");
        if tool == BackupTool::WalE && schedule.is_some() {
            let what = "is for spilo's own backups; with `store: wal-e`, let a timer on the primary \
                        run `wal-e backup-push`";
            let path = section.path("schedule");
            problems.error(&path, ConfigErrorKind::Invalid, what.to_owned());
        }
        let retain = section.count("retain");
        if retain.is_some() && schedule.is_none() {
            let what = "has no effect without `backup.schedule`: what is not needed is deleted after \
                        a base backup was made";
            problems.warn(&section.path("retain"), what);
        }
        Some(Self {
            tool,
            archive,
            command: section.file("command"),
            env_dir: section.file("env_dir"),
            options: section.options("options"),
            thresholds,
            schedule,
            retain,
            made_from: match section.words("made_from").as_deref() {
                Some("primary") => MadeFrom::Primary,
                _ => MadeFrom::Replica,
            },
        })
    }
}

impl Recovery {
    pub(super) fn read(
        section: &Section<'_>,
        usual: Option<&Backup>,
        problems: &mut Problems,
    ) -> Option<Self> {
        let named = ["store", "archive", "command", "env_dir", "options"];
        let own = named.iter().any(|key| section.value(key).is_some());
        let store = match (own, usual) {
            (false, Some(usual)) => Some(usual.clone()),
            (true, _) => Backup::read(section, problems),
            (false, None) => {
                let what = "is missing: `bootstrap.method` is `backup`, and neither this nor a section \
                            `backup` says where backups are";
                let path = section.path("archive");
                problems.error(&path, ConfigErrorKind::Missing, what.to_owned());
                None
            }
        };
        let timeline = section.text("target_timeline");
        let timeline = timeline.unwrap_or_else(|| "latest".to_owned());
        let is_number = timeline.parse::<u32>().is_ok_and(|number| number > 0);
        if !is_number && !["latest", "current"].contains(&&*timeline) {
            let what = format!("must be `latest`, `current` or a number, found {timeline:?}");
            let path = section.path("target_timeline");
            problems.error(&path, ConfigErrorKind::Invalid, what);
        }
        Some(Self {
            target: target(section, problems)?,
            store: store?,
            name: section.text("name").map(BackupName),
            inclusive: section.flag("target_inclusive").unwrap_or(true),
            timeline,
        })
    }
}

/// Reads where a recovery ends; more than one end is none.
fn target(section: &Section<'_>, problems: &mut Problems) -> Option<RecoveryTarget> {
    let mut targets = Vec::new();
    let mut found = |key: &'static str, target: Option<RecoveryTarget>| {
        targets.extend(target.map(|target| (key, target)));
    };
    let immediate = section.flag("target_immediate") == Some(true);
    found(
        "target_immediate",
        immediate.then_some(RecoveryTarget::Immediate),
    );
    found(
        "target_time",
        section.text("target_time").map(RecoveryTarget::Time),
    );
    found(
        "target_name",
        section.text("target_name").map(RecoveryTarget::Name),
    );
    found(
        "target_xid",
        section.count("target_xid").map(RecoveryTarget::Xid),
    );
    if let Some(text) = section.text("target_lsn") {
        let lsn: Result<Lsn, _> = text.parse();
        let lsn = lsn.map_err(|error: BadLsn| error.to_string());
        let lsn = section.valid("target_lsn", lsn, problems)?;
        found("target_lsn", Some(RecoveryTarget::Lsn(lsn)));
    }
    if let [(first, _), (second, _), ..] = &targets[..] {
        let what = format!(
            "is a second end of the recovery beside `{}`",
            section.path(first)
        );
        problems.error(&section.path(second), ConfigErrorKind::Invalid, what);
        return None;
    }
    Some(
        targets
            .pop()
            .map_or(RecoveryTarget::Latest, |(_, target)| target),
    )
}

/// Reads the ways to make a replica, in their order; `None` where none is given.
pub(super) fn replica_methods(
    postgresql: &Section<'_>,
    has_store: bool,
    problems: &mut Problems,
) -> Option<Vec<ReplicaMethod>> {
    let key = ["create_replica_methods", "create_replica_method"]
        .into_iter()
        .find(|key| postgresql.value(key).is_some())?;
    let mut methods = Vec::new();
    for name in postgresql.list(key)? {
        methods.push(match &*name {
            "basebackup" => ReplicaMethod::Basebackup,
            "backup" if has_store => ReplicaMethod::Backup,
            "backup" => {
                let problem = "names `backup`, and there is no section `backup` that says where \
                               backups are";
                let path = postgresql.path(key);
                problems.error(&path, ConfigErrorKind::Missing, problem.to_owned());
                continue;
            }
            name => {
                let section = postgresql.map(name).unwrap_or_default();
                ReplicaMethod::Command(command(name, &section))
            }
        });
    }
    if methods.is_empty() {
        let problem = "names no way to make a replica".to_owned();
        problems.error(&postgresql.path(key), ConfigErrorKind::Invalid, problem);
    }
    Some(methods)
}

fn command(name: &str, section: &Map<String, Value>) -> ReplicaCommand {
    let flag = |key: &str| section.get(key).and_then(boolean) == Some(true);
    let text = |key: &str| section.get(key).and_then(Value::as_str);
    let no_params = flag("no_params");
    // What says how the command is run is passed on as well, as Patroni does.
    let hidden = |key: &str| {
        key == "command" || (no_params && ["no_params", "no_leader", "keep_data"].contains(&key))
    };
    let given = section.iter().filter(|(key, _)| !hidden(key));
    let arguments = given.filter_map(|(key, value)| Some((key.clone(), setting(value)?)));
    ReplicaCommand {
        name: name.to_owned(),
        command: text("command").unwrap_or(name).to_owned(),
        arguments: arguments.collect(),
        no_params,
        keep_data: flag("keep_data"),
    }
}

fn is_place(url: &str) -> bool {
    let bucket = url.strip_prefix("s3://").map(|rest| rest.split('/').next());
    match bucket {
        Some(bucket) => bucket.is_some_and(|bucket| !bucket.is_empty()),
        None => url.strip_prefix("file://").unwrap_or(url).starts_with('/'),
    }
}
