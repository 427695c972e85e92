//! Backups of a PostgreSQL server, as a command: what `archive_command`, `restore_command` and a
//! timer run.

mod cli;
mod screen;

use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use spilo_backup::{
    Archive, ArchiveOptions, Archiver, ArchiverOptions, Directory, Encryption, Heard, Keep,
    Objects, Resident, S3, S3Options, Sealed, SealingKeys,
};
use spilo_core::backup::{BackupError, BackupErrorKind, BackupName, BackupStore as _};

use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{Arguments, Command, Place};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match begin(&arguments) {
        Ok(code) => code,
        Err(error) => {
            screen::clear();
            screen::tell(&format!("error: {error:#}"));
            ExitCode::from(status(&arguments.command, &error))
        }
    }
}

/// Does what a resident archiver did not do.
fn begin(arguments: &Arguments) -> Result<ExitCode> {
    // Before anything is prepared that takes longer than to ask.
    if ask_resident(&arguments.command)? == Heard::Done {
        return Ok(ExitCode::SUCCESS);
    }
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(run(arguments));
    // A thread that still reads from a store that hangs must not hold up the end.
    runtime.shutdown_background();
    outcome
}

fn ask_resident(command: &Command) -> Result<Heard, BackupError> {
    match command {
        Command::WalPush {
            path,
            resident: Some(work_dir),
        } => Resident::new(work_dir).push(path),
        Command::WalFetch {
            name,
            path,
            resident: Some(work_dir),
        } => match Resident::new(work_dir).fetch(name, path) {
            // Whether that is the end of the log is looked at more closely.
            Err(error) if recovers() && error.kind() == BackupErrorKind::NotFound => {
                Ok(Heard::Nobody)
            }
            heard => heard,
        },
        _ => Ok(Heard::Nobody),
    }
}

/// Returns the exit status of a failure, as PostgreSQL understands it.
///
/// It takes any status up to 125 of a `restore_command` for "there is no such file", which ends a
/// recovery to a moment early, and silently. One above 128 makes the server stop instead, which is
/// right unless it is a standby: that asks again.
fn status(command: &Command, error: &anyhow::Error) -> u8 {
    let Command::WalFetch { .. } = command else {
        return 1;
    };
    let kind = error.downcast_ref::<BackupError>().map(BackupError::kind);
    let absent = kind == Some(BackupErrorKind::NotFound);
    if recovers() && !absent { 255 } else { 1 }
}

/// Returns whether it is run by a server that recovers, and ends with the log. The server runs it in
/// its data directory.
fn recovers() -> bool {
    Path::new("recovery.signal").exists() && !Path::new("standby.signal").exists()
}

async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let archive = open(arguments).await?;
    if let Command::Archiver(_) = arguments.command {
        // It ends by itself when it is told to.
        return work(arguments, &archive).await;
    }
    let mut terminated = signal(SignalKind::terminate())?;
    let interrupted = tokio::select! {
        outcome = work(arguments, &archive) => return outcome,
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminated.recv() => Ok(()),
    };
    interrupted?;
    // An upload that was under way is being given up.
    tokio::time::sleep(Duration::from_secs(1)).await;
    bail!("interrupted; what was stored of a base backup goes with the next `delete`")
}

/// Answers those that ask, until somebody ends it.
async fn stay(archive: Archive, resident: &cli::Resident) -> Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut options = ArchiverOptions::new(&resident.data_dir, &resident.work_dir);
    options.ahead = resident.ahead;
    options.prefetch = resident.prefetch;
    let archiver = Archiver::open(archive, options)?;
    let (data_dir, work_dir) = (resident.data_dir.display(), resident.work_dir.display());
    tracing::info!("archives the log of {data_dir}, and works in {work_dir}");
    let ended = async {
        tokio::select! {
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
        }
    };
    archiver.serve(ended).await?;
    Ok(())
}

async fn work(arguments: &Arguments, archive: &Archive) -> Result<ExitCode> {
    match &arguments.command {
        Command::WalPush { path, .. } => {
            archive.push_wal(path).await?;
        }
        Command::WalFetch { name, path, .. } if recovers() => {
            archive.fetch_wal_to_the_end(name, path).await?;
        }
        Command::WalFetch { name, path, .. } => archive.fetch_wal(name, path).await?,
        Command::Archiver(resident) => stay(archive.clone(), resident).await?,
        Command::BackupPush(push) => {
            let info = archive
                .push_backup(&push.source(), screen::progress())
                .await?;
            screen::clear();
            if arguments.json {
                screen::json(&info)?;
            } else {
                screen::line(&info.name.0);
            }
        }
        Command::BackupFetch { name, data_dir } => {
            let name = named(archive, name).await?;
            archive.restore(&name, data_dir, screen::progress()).await?;
            screen::clear();
            screen::tell(&format!("{name} is in {}", data_dir.display()));
        }
        Command::BackupList => {
            let backups = archive.backups_by_age().await?;
            if arguments.json {
                screen::json(&backups)?;
            } else {
                screen::backups(&backups);
            }
        }
        Command::WalVerify => {
            let report = archive.verify_wal(None).await?;
            if arguments.json {
                screen::json(&report)?;
            } else {
                screen::report(&report);
            }
            if !report.is_whole() {
                return Ok(ExitCode::from(3));
            }
        }
        Command::Delete(delete) => {
            let keep = match (delete.retain, &delete.before) {
                (Some(count), _) => Keep::Newest(count),
                (None, Some(name)) => Keep::From(BackupName(name.clone())),
                (None, None) => bail!("say what is kept: --retain NUMBER or --before NAME"),
            };
            let expired = archive.expire(&keep, delete.dry_run).await?;
            if arguments.json {
                screen::json(&expired)?;
            } else {
                screen::expired(&expired, delete.dry_run);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Finds the backup that is meant.
async fn named(archive: &Archive, name: &str) -> Result<BackupName> {
    if name != "LATEST" {
        return Ok(BackupName(name.to_owned()));
    }
    let mut backups = archive.backups_by_age().await?;
    let latest = backups.pop().context("the archive has no backup")?;
    Ok(latest.name)
}

async fn open(arguments: &Arguments) -> Result<Archive> {
    let mut objects: Arc<dyn Objects> = match arguments.place()? {
        Place::Directory(path) => Arc::new(Directory::new(path)),
        Place::S3 { bucket, prefix } => {
            let mut options = S3Options::new(bucket, prefix);
            options.region.clone_from(&arguments.region);
            options.path_style = arguments.path_style;
            options.ca_file.clone_from(&arguments.ca_file);
            options.storage_class.clone_from(&arguments.storage_class);
            options.encryption = match arguments.encrypt.as_deref() {
                None => None,
                Some("AES256") => Some(Encryption::Aes256),
                Some("kms") => Some(Encryption::Kms(None)),
                Some(key) => Some(Encryption::Kms(Some(key.to_owned()))),
            };
            Arc::new(S3::new(options).await?)
        }
    };
    if let Some(path) = arguments.key_file() {
        objects = Arc::new(Sealed::new(objects, SealingKeys::read(&path)?));
    }
    let mut options = ArchiveOptions::default();
    options.codec = arguments.codec;
    options.level = arguments.level;
    options.parallel = arguments.parallel;
    Ok(Archive::new(objects, options))
}
