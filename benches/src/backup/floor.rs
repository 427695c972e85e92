//! The least that has to be done: read, compress, and send, or the other way round, with every
//! processor at work, on open connections, in one process, and without any question or check.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use clap::Args;
use tokio::runtime::{Builder, Runtime};

use super::contender::{FloorCodec, Row};
use super::http::Connection;
use super::plan::{Piece, Plan};
use super::store::BUCKET;

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
pub fn floor(task: &FloorTask) -> Result<()> {
    let plan = match task.row {
        Row::WalPush => of_log(&task.dir)?,
        Row::BackupPush => Plan::of(&task.dir)?,
        Row::WalFetch | Row::BackupFetch => {
            serde_json::from_slice(&fs::read(&task.plan).context("the push comes first")?)?
        }
    };
    if task.pushes() {
        fs::write(&task.plan, serde_json::to_vec(&plan)?)?;
    } else {
        for directory in &plan.directories {
            fs::create_dir_all(task.dir.join(directory))?;
        }
    }
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..task.parallel)
            .map(|_| scope.spawn(|| Worker::new(task, &plan)?.work(&next)))
            .collect();
        for worker in workers {
            worker.join().map_err(|_| anyhow!("a worker failed"))??;
        }
        Ok(())
    })
}

impl FloorTask {
    fn pushes(&self) -> bool {
        matches!(self.row, Row::WalPush | Row::BackupPush)
    }
}

/// A thread with a connection, and memory that it keeps: to be given new pages for each object
/// would take as long as compressing it.
struct Worker<'a> {
    task: &'a FloorTask,
    plan: &'a Plan,
    runtime: Runtime,
    connection: Connection,
    piece: Vec<u8>,
    packed: Vec<u8>,
}

impl<'a> Worker<'a> {
    fn new(task: &'a FloorTask, plan: &'a Plan) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let connection = Connection::open(task.port, &task.authority);
        let connection = runtime.block_on(connection)?;
        Ok(Self {
            task,
            plan,
            runtime,
            connection,
            piece: vec![0; PIECE],
            packed: Vec::new(),
        })
    }

    fn work(&mut self, next: &AtomicUsize) -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(pieces) = self.plan.objects.get(number) else {
                return Ok(());
            };
            let name = format!("/{BUCKET}/{}/{number:08}", self.task.prefix);
            if self.task.pushes() {
                self.pack(pieces)?;
                let bytes = Bytes::from(std::mem::take(&mut self.packed));
                let sent = self.connection.put(&name, bytes.clone());
                self.runtime.block_on(sent)?;
                // The connection has let go of it by now.
                self.packed = bytes.try_into_mut().map(Vec::from).unwrap_or_default();
            } else {
                let packed = self.runtime.block_on(self.connection.get(&name))?;
                self.unpack(pieces, &packed)?;
            }
        }
    }

    fn pack(&mut self, pieces: &[Piece]) -> Result<()> {
        self.packed.clear();
        match self.task.codec {
            FloorCodec::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(&mut self.packed, 1)?;
                copy_from(&self.task.dir, pieces, &mut self.piece, &mut encoder)?;
                encoder.finish()?;
            }
            FloorCodec::Lzo => {
                let (mut lzop, mut stdin, mut stdout) = lzop(&["-c"])?;
                let (dir, piece, packed) = (&self.task.dir, &mut self.piece, &mut self.packed);
                std::thread::scope(|scope| {
                    let reading = scope.spawn(move || stdout.read_to_end(packed));
                    copy_from(dir, pieces, piece, &mut stdin)?;
                    drop(stdin);
                    reading
                        .join()
                        .map_err(|_| anyhow!("cannot read from lzop"))??;
                    anyhow::Ok(())
                })?;
                ended(&mut lzop)?;
            }
        }
        Ok(())
    }

    fn unpack(&mut self, pieces: &[Piece], packed: &[u8]) -> Result<()> {
        match self.task.codec {
            FloorCodec::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)?;
                copy_to(&self.task.dir, pieces, &mut self.piece, &mut decoder)
            }
            FloorCodec::Lzo => {
                let (mut lzop, mut stdin, mut stdout) = lzop(&["-d", "-c"])?;
                let (dir, piece) = (&self.task.dir, &mut self.piece);
                std::thread::scope(|scope| {
                    let feeding = scope.spawn(move || stdin.write_all(packed));
                    copy_to(dir, pieces, piece, &mut stdout)?;
                    feeding.join().map_err(|_| anyhow!("cannot feed lzop"))??;
                    anyhow::Ok(())
                })?;
                ended(&mut lzop)
            }
        }
    }
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

fn copy_from(dir: &Path, pieces: &[Piece], buffer: &mut [u8], into: &mut impl Write) -> Result<()> {
    for piece in pieces {
        let path = dir.join(&piece.file);
        let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let (mut at, end) = (piece.offset, piece.offset + piece.bytes);
        while at < end {
            let part = &mut buffer[..length(end - at)];
            file.read_exact_at(part, at)?;
            into.write_all(part)?;
            at += part.len() as u64;
        }
    }
    Ok(())
}

fn copy_to(dir: &Path, pieces: &[Piece], buffer: &mut [u8], from: &mut impl Read) -> Result<()> {
    for piece in pieces {
        let path = dir.join(&piece.file);
        // Several may write parts of one file at the same time.
        let mut options = File::options();
        let opened = options.write(true).create(true).truncate(false).open(&path);
        let file = opened.with_context(|| format!("cannot write {}", path.display()))?;
        let (mut at, end) = (piece.offset, piece.offset + piece.bytes);
        while at < end {
            let part = &mut buffer[..length(end - at)];
            from.read_exact(part)?;
            file.write_all_at(part, at)?;
            at += part.len() as u64;
        }
    }
    Ok(())
}

/// Returns how much of so many bytes goes at once.
fn length(bytes: u64) -> usize {
    usize::try_from(bytes).map_or(PIECE, |bytes| bytes.min(PIECE))
}

fn lzop(arguments: &[&str]) -> Result<(Child, ChildStdin, ChildStdout)> {
    let mut lzop = Command::new("lzop")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run lzop; `cargo xtask setup --full` installs it")?;
    let (stdin, stdout) = (lzop.stdin.take(), lzop.stdout.take());
    let (stdin, stdout) = stdin.zip(stdout).context("lzop has no pipes")?;
    Ok((lzop, stdin, stdout))
}

fn ended(lzop: &mut Child) -> Result<()> {
    let status = lzop.wait()?;
    if !status.success() {
        bail!("lzop ended with {status}");
    }
    Ok(())
}

/// Fits into the nearer caches together with what it is compressed to.
const PIECE: usize = 128 << 10;
