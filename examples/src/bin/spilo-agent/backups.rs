//! The store of backups, through the program that reaches it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use spilo_backup::{CommandOptions, Schedule, Scheduler, Separate, Tether, Turn, WalE};
use spilo_core::BackupStore;
use spilo_core::agent::AgentHandle;
use spilo_core::backup::{BackupSource, MadeFrom};
use spilo_core::local::{self, Backup, BackupTool, ToolOption};
use spilo_core::pg::PgStatus;
use spilo_core::status::Status;
use spilo_pg::{Backups, LocalOptions, Recovery};
use tokio::task::JoinSet;

use crate::wiring::beside_this_program;

/// Returns what is wrong with the section that only its use shows.
pub(crate) fn check(section: &Backup) -> Result<()> {
    scheduler(section).map(drop)
}

/// Returns the store of backups and when a replica is made from it.
pub(crate) fn backups(section: &Backup, postgres: &LocalOptions) -> Result<Backups> {
    Ok(store(section, postgres)?.0)
}

/// Returns the store as well as what stays beside the server to archive its log.
fn store(section: &Backup, postgres: &LocalOptions) -> Result<(Backups, Option<Separate>)> {
    let options = command(section, postgres)?;
    let (store, resident): (Arc<dyn BackupStore>, _) = match section.tool {
        BackupTool::SpiloBackup => {
            let resident = postgres.state_dir().join("archiver");
            let separate = Separate::new(options, Some(resident));
            (Arc::new(separate.clone()), Some(separate))
        }
        // It pushes several files at once by itself.
        BackupTool::WalE => (Arc::new(WalE::new(options)), None),
    };
    let backups = Backups::new(store).with_strategy(section.thresholds);
    Ok((backups, resident))
}

/// Returns the backup that a new cluster is made from.
pub(crate) fn recovery(from: &local::Recovery, postgres: &LocalOptions) -> Result<Recovery> {
    let options = command(&from.store, postgres)?;
    let store: Arc<dyn BackupStore> = match from.store.tool {
        BackupTool::SpiloBackup => Arc::new(Separate::new(options, None)),
        BackupTool::WalE => Arc::new(WalE::new(options)),
    };
    let mut recovery = Recovery::new(store);
    recovery.backup.clone_from(&from.name);
    recovery.target.clone_from(&from.target);
    recovery.inclusive = from.inclusive;
    recovery.timeline.clone_from(&from.timeline);
    Ok(recovery)
}

/// Returns what makes base backups at their times, if the configuration has any.
fn scheduler(section: &Backup) -> Result<Option<Scheduler>> {
    let Some(text) = &section.schedule else {
        return Ok(None);
    };
    let schedule: Schedule = text.parse().context("backup.schedule")?;
    let scheduler = Scheduler::new(schedule);
    Ok(Some(match section.retain {
        Some(count) => scheduler.with_retention(count),
        None => scheduler,
    }))
}

/// Starts what is done about backups beside the agent: the archiver of the server's log, and the base
/// backups at their times. It ends when it is dropped.
pub(crate) fn beside(
    section: Option<&Backup>,
    postgres: LocalOptions,
    handle: &AgentHandle,
) -> Result<JoinSet<()>> {
    let mut beside = JoinSet::new();
    let Some(section) = section else {
        return Ok(beside);
    };
    let (backups, resident) = store(section, &postgres)?;
    if let Some(resident) = resident {
        let data_dir = postgres.data_dir.clone();
        beside.spawn(async move { resident.archive(&data_dir).await });
    }
    if let Some(scheduler) = scheduler(section)? {
        let (made_from, handle) = (section.made_from, handle.clone());
        beside.spawn(async move {
            let turn = |late| {
                // Who is to make it cannot.
                let made_from = match (made_from, late) {
                    (MadeFrom::Replica, false) | (MadeFrom::Primary, true) => MadeFrom::Replica,
                    (MadeFrom::Primary, false) | (MadeFrom::Replica, true) => MadeFrom::Primary,
                };
                whose(&handle.status(), made_from, &postgres)
            };
            match scheduler.run(&*backups.store, turn).await {}
        });
    }
    Ok(beside)
}

/// Returns whose turn it is by what this member knows of the cluster.
fn whose(status: &Status, made_from: MadeFrom, postgres: &LocalOptions) -> Turn {
    let Some(cluster) = &status.cluster else {
        return Turn::Nobody;
    };
    let Some(name) = spilo_core::backup::turn(cluster, made_from) else {
        return Turn::Nobody;
    };
    if *name != status.name {
        return Turn::Of(name.clone());
    }
    let running = status.postgres.as_ref().and_then(PgStatus::running);
    let mut source = BackupSource::new(&postgres.data_dir, postgres.conninfo().expose());
    source.version = running.map(|running| running.version);
    let leader = cluster
        .leader
        .as_ref()
        .and_then(|leader| leader.name.as_ref());
    if let Some(leader) = leader.filter(|leader| **leader != status.name) {
        let member = cluster.members.get(leader);
        let url = member.and_then(|member| member.conn_url.as_deref());
        source.primary = url.and_then(|url| postgres.conninfo_of(url).ok());
    }
    Turn::Own(source)
}

/// Returns how the program of backups is run.
fn command(section: &Backup, postgres: &LocalOptions) -> Result<CommandOptions> {
    let mut options = CommandOptions::new(program(section)?);
    if section.tool == BackupTool::SpiloBackup
        && let Some(archive) = &section.archive
    {
        options.arguments.push(format!("--archive={archive}"));
    }
    let further = section.options.iter().map(ToolOption::argument);
    options.arguments.extend(further);
    options.env_dir.clone_from(&section.env_dir);
    options.working_dir = Some(postgres.state_dir());
    options.user = postgres.uid_gid;
    let this = std::env::current_exe().context("cannot find this program")?;
    let guard = beside_this_program("spilo-guard").unwrap_or(this);
    let (program, name, arguments) = spilo_pg::guard::tethered(&guard);
    options.tether = Some(Tether {
        program,
        name: name.to_owned(),
        arguments,
    });
    Ok(options)
}

/// Returns the program of backups: the one that the configuration names, the one beside this
/// program, or the first one in `PATH`.
fn program(section: &Backup) -> Result<PathBuf> {
    let name = match section.tool {
        BackupTool::SpiloBackup => "spilo-backup",
        BackupTool::WalE => "wal-e",
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = || {
        std::env::split_paths(&path)
            .map(|directory| directory.join(name))
            .find(|program| program.is_file())
    };
    let found = match &section.command {
        Some(command) => Some(command.clone()).filter(|command| Path::is_file(command)),
        None => beside_this_program(name).or_else(in_path),
    };
    found.with_context(|| match &section.command {
        Some(command) => format!("backup.command: there is no program {}", command.display()),
        None => format!(
            "backup.command: not given, and there is no {name} beside the agent or in PATH: \
             install it, or name its path"
        ),
    })
}
