//! The least that has to be done: read, compress, and send, or the other way round, with every
//! processor at work, on open connections, in one process, and without any question or check.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use clap::Args;
use tokio::task::{JoinSet, spawn_blocking};

use super::contender::{FloorCodec, Row};
use super::http::Connection;
use super::plan::{Piece, Plan};

/// What the floor does, once.
#[derive(Args, Clone, Debug)]
pub struct FloorTask {
    /// What it is the floor of.
    #[arg(long)]
    pub row: Row,
    /// The port of the store.
    #[arg(long)]
    pub port: u16,
    /// The store's authority.
    #[arg(long)]
    pub authority: PathBuf,
    /// What the objects' names begin with.
    #[arg(long)]
    pub prefix: String,
    /// How they are compressed.
    #[arg(long)]
    pub codec: FloorCodec,
    /// How many are on their way at the same time.
    #[arg(long)]
    pub parallel: usize,
    /// The directory that is read or written.
    #[arg(long)]
    pub dir: PathBuf,
    /// Where it is written down what lies in which object.
    #[arg(long)]
    pub plan: PathBuf,
}

/// Does a task to its end.
///
/// # Errors
///
/// Fails where a file cannot be read or written, or the store cannot be used.
///
/// # Cancellation
///
/// What was done stays.
pub async fn floor(task: FloorTask) -> Result<()> {
    let plan = match task.row {
        Row::WalPush => of_log(&task.dir)?,
        Row::BackupPush => Plan::of(&task.dir)?,
        Row::WalFetch | Row::BackupFetch => {
            serde_json::from_slice(&fs::read(&task.plan).context("the push comes first")?)?
        }
    };
    let pushes = matches!(task.row, Row::WalPush | Row::BackupPush);
    if pushes {
        fs::write(&task.plan, serde_json::to_vec(&plan)?)?;
    } else {
        for directory in &plan.directories {
            fs::create_dir_all(task.dir.join(directory))?;
        }
    }
    let (task, plan) = (Arc::new(task), Arc::new(plan));
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..task.parallel {
        let (task, plan, next) = (Arc::clone(&task), Arc::clone(&plan), Arc::clone(&next));
        workers.spawn(async move {
            let mut connection = Connection::open(task.port, &task.authority).await?;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= plan.objects.len() {
                    return anyhow::Ok(());
                }
                let name = format!("/backups/{}/{number:08}", task.prefix);
                let (task, plan) = (Arc::clone(&task), Arc::clone(&plan));
                if pushes {
                    let packed = move || pack(&task, &plan.objects[number]);
                    let packed = spawn_blocking(packed).await??;
                    connection.put(&name, packed).await?;
                } else {
                    let packed = connection.get(&name).await?;
                    spawn_blocking(move || unpack(&task, &plan.objects[number], &packed)).await??;
                }
            }
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker??;
    }
    Ok(())
}

/// Returns the files of the log, an object each.
fn of_log(dir: &Path) -> Result<Plan> {
    let mut objects = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            objects.push(vec![Piece {
                file: PathBuf::from(entry.file_name()),
                offset: 0,
                bytes: entry.metadata()?.len(),
            }]);
        }
    }
    objects.sort_by(|one, other| one[0].file.cmp(&other[0].file));
    let directories = vec![PathBuf::new()];
    Ok(Plan {
        directories,
        objects,
    })
}

fn pack(task: &FloorTask, pieces: &[Piece]) -> Result<Bytes> {
    let whole: u64 = pieces.iter().map(|piece| piece.bytes).sum();
    let mut plain = vec![0; usize::try_from(whole)?];
    let mut rest = &mut plain[..];
    for piece in pieces {
        let (part, behind) = rest.split_at_mut(usize::try_from(piece.bytes)?);
        let file = File::open(task.dir.join(&piece.file))?;
        file.read_exact_at(part, piece.offset)
            .with_context(|| format!("cannot read {}", piece.file.display()))?;
        rest = behind;
    }
    Ok(match task.codec {
        FloorCodec::Zstd => zstd::bulk::compress(&plain, 1)?.into(),
        FloorCodec::Lzo => lzop(&["-c"], &plain)?.into(),
    })
}

fn unpack(task: &FloorTask, pieces: &[Piece], packed: &[u8]) -> Result<()> {
    let whole: u64 = pieces.iter().map(|piece| piece.bytes).sum();
    let plain = match task.codec {
        FloorCodec::Zstd => zstd::bulk::decompress(packed, usize::try_from(whole)?)?,
        FloorCodec::Lzo => lzop(&["-d", "-c"], packed)?,
    };
    let mut rest = &plain[..];
    for piece in pieces {
        let (part, behind) = rest.split_at(usize::try_from(piece.bytes)?);
        let path = task.dir.join(&piece.file);
        // Several may write parts of one file at the same time.
        let mut options = File::options();
        let opened = options.write(true).create(true).truncate(false).open(&path);
        let file = opened.with_context(|| format!("cannot write {}", path.display()))?;
        file.write_all_at(part, piece.offset)?;
        rest = behind;
    }
    Ok(())
}

/// Runs bytes through the program.
fn lzop(arguments: &[&str], bytes: &[u8]) -> Result<Vec<u8>> {
    let mut lzop = Command::new("lzop")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run lzop; cargo xtask setup --full installs it")?;
    let (stdin, stdout) = (lzop.stdin.take(), lzop.stdout.take());
    let (mut stdin, mut stdout) = stdin.zip(stdout).context("lzop has no pipes")?;
    let mut through = Vec::with_capacity(bytes.len());
    std::thread::scope(|scope| {
        let feeding = scope.spawn(move || stdin.write_all(bytes));
        stdout.read_to_end(&mut through)?;
        feeding
            .join()
            .map_err(|_| anyhow::anyhow!("cannot feed lzop"))??;
        anyhow::Ok(())
    })?;
    let status = lzop.wait()?;
    if !status.success() {
        bail!("lzop ended with {status}");
    }
    Ok(through)
}
