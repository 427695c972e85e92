//! The store of backups, through the program that reaches it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use spilo_backup::{CommandOptions, Separate, Tether, WalE};
use spilo_core::BackupStore;
use spilo_core::local::{self, Backup, BackupTool, ToolOption};
use spilo_pg::{Backups, LocalOptions, Recovery};

use crate::wiring::beside_this_program;

/// Returns the store of backups and when a replica is made from it, and what stays beside the server
/// to archive its log.
pub(crate) fn backups(
    section: &Backup,
    postgres: &LocalOptions,
) -> Result<(Backups, Option<Separate>)> {
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
