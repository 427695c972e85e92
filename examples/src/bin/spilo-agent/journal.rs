//! The file that the agent's journal is kept in.
//!
//! The agent never waits for it: lines go through a bounded queue to a thread of their own. What
//! does not fit, or cannot be written, is missing, and the journal says so and begins anew.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use spilo_core::journal::{Taken, is_header};

/// Where the agent's lines go in.
#[derive(Debug)]
pub(crate) struct Sink {
    lines: SyncSender<String>,
    state: Arc<State>,
    /// Whether a new file was asked for and has not begun yet.
    turning: bool,
}

/// The thread that writes them.
#[derive(Debug)]
pub(crate) struct Writer {
    ended: Receiver<()>,
}

/// What the thread tells the sink.
#[derive(Debug, Default)]
struct State {
    /// How much is in the file.
    size: AtomicU64,
    /// Whether a line could not be written, so that nothing is before the next header.
    broken: AtomicBool,
}

/// Begins to keep a journal at `path`, in a thread that ends with the sink.
pub(crate) fn keep(path: PathBuf) -> Result<(Sink, Writer)> {
    let (sink, queue, mut shelf) = parts(path);
    let (end, ended) = sync_channel(0);
    thread::Builder::new()
        .name("journal".to_owned())
        .spawn(move || {
            for line in queue {
                shelf.put(line);
            }
            drop(end);
        })
        .context("journal: cannot start its thread")?;
    Ok((sink, Writer { ended }))
}

fn parts(path: PathBuf) -> (Sink, Receiver<String>, Shelf) {
    let (lines, queue) = sync_channel(QUEUE);
    let state = Arc::new(State::default());
    let shelf = Shelf {
        path,
        file: None,
        state: Arc::clone(&state),
        warned: false,
    };
    let sink = Sink {
        lines,
        state,
        turning: false,
    };
    (sink, queue, shelf)
}

impl Sink {
    /// Takes a line without waiting.
    pub(crate) fn take(&mut self, line: &str) -> Taken {
        // After a failure the next header is the next try.
        let broken = if is_header(line) {
            self.state.broken.store(false, Ordering::Relaxed);
            false
        } else {
            self.state.broken.load(Ordering::Relaxed)
        };
        if broken || self.lines.try_send(line.to_owned()).is_err() {
            return Taken::Lost;
        }
        let full = self.state.size.load(Ordering::Relaxed) >= LIMIT_BYTES;
        if full && !self.turning {
            self.turning = true;
            return Taken::Full;
        }
        self.turning = full;
        Taken::Kept
    }
}

impl Writer {
    /// Returns once everything is written, or after a while if it cannot be.
    ///
    /// The sink must have been dropped.
    pub(crate) fn finish(self) {
        // Nothing is ever sent: the channel ends with the thread.
        self.ended.recv_timeout(FINISH).unwrap_or_default();
    }
}

/// The file, and the one before it.
#[derive(Debug)]
struct Shelf {
    path: PathBuf,
    /// The file; none before the first header, and after a failure.
    file: Option<File>,
    state: Arc<State>,
    /// Whether it was said that the journal cannot be written: once is enough.
    warned: bool,
}

impl Shelf {
    fn put(&mut self, line: String) {
        if !is_header(&line) && self.file.is_none() {
            return;
        }
        if let Err(error) = self.write(line) {
            self.file = None;
            self.state.broken.store(true, Ordering::Relaxed);
            if !self.warned {
                self.warned = true;
                let path = self.path.display();
                tracing::warn!("the journal {path} cannot be written: {error}");
            }
        }
    }

    fn write(&mut self, mut line: String) -> io::Result<()> {
        let mut size = self.state.size.load(Ordering::Relaxed);
        if is_header(&line) {
            if self.file.is_none() {
                let (file, found) = open(&self.path)?;
                self.file = Some(file);
                size = found;
            }
            if size >= LIMIT_BYTES {
                self.file = None;
                fs::rename(&self.path, old(&self.path))?;
                let (file, found) = open(&self.path)?;
                self.file = Some(file);
                size = found;
            }
        }
        if let Some(file) = &mut self.file {
            line.push('\n');
            file.write_all(line.as_bytes())?;
            size = size.saturating_add(u64::try_from(line.len()).unwrap_or(u64::MAX));
        }
        self.state.size.store(size, Ordering::Relaxed);
        Ok(())
    }
}

/// Opens the file to add to it, and returns how much is in it.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(SECRET)
        .open(path)?;
    // The mode above is for a file that is made now.
    file.set_permissions(fs::Permissions::from_mode(SECRET))?;
    let mut size = file.metadata()?.len();
    if size > 0 {
        // An agent that was killed may have left half a line.
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
            size += 1;
        }
    }
    Ok((file, size))
}

fn old(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".old");
    PathBuf::from(name)
}

/// The lines that wait: some ten seconds of a busy node.
const QUEUE: usize = 256;

/// About a day of a leader to which nothing happens, at a `ttl` of 10 s.
const LIMIT_BYTES: u64 = 64 * 1024 * 1024;

/// The secrets of leases are in it.
const SECRET: u32 = 0o600;

/// Long enough for any disk that works, and an agent that ends must end.
const FINISH: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "{\"journal\":1}";

    #[test]
    fn a_line_left_half_is_ended_before_the_next_journal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        fs::write(&path, "{\"journal\":1}\n{\"n\":1,\"no").unwrap();
        let (mut sink, writer) = keep(path.clone()).unwrap();
        assert_eq!(sink.take(HEADER), Taken::Kept);
        assert_eq!(sink.take("{\"n\":1}"), Taken::Kept);
        drop(sink);
        writer.finish();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "{\"journal\":1}\n{\"n\":1,\"no\n{\"journal\":1}\n{\"n\":1}\n"
        );
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, SECRET);
    }

    #[test]
    fn a_full_file_is_put_aside_with_the_next_header() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut sink, _queue, mut shelf) = parts(path.clone());
        shelf.put(HEADER.to_owned());
        assert_eq!(sink.take("{\"n\":1}"), Taken::Kept);
        sink.state.size.store(LIMIT_BYTES, Ordering::Relaxed);
        assert_eq!(sink.take("{\"n\":2}"), Taken::Full);
        shelf.put("{\"n\":2}".to_owned());
        // The thread is behind: once is enough.
        assert_eq!(sink.take(HEADER), Taken::Kept);
        shelf.put(HEADER.to_owned());
        assert_eq!(sink.take("{\"n\":1}"), Taken::Kept);
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"journal\":1}\n");
        assert_eq!(
            fs::read_to_string(old(&path)).unwrap(),
            "{\"journal\":1}\n{\"n\":2}\n"
        );
    }

    #[test]
    fn a_queue_that_is_full_loses_the_line() {
        let (mut sink, queue, _shelf) = parts(PathBuf::from("/nowhere"));
        for _ in 0..QUEUE {
            assert_eq!(sink.take(HEADER), Taken::Kept);
        }
        assert_eq!(sink.take("{\"n\":1}"), Taken::Lost);
        queue.recv().unwrap();
        assert_eq!(sink.take(HEADER), Taken::Kept);
    }

    #[test]
    fn a_file_that_cannot_be_written_loses_lines_until_a_header_finds_it_writable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing").join("journal");
        let (mut sink, _queue, mut shelf) = parts(path.clone());
        shelf.put(HEADER.to_owned());
        assert_eq!(sink.take("{\"n\":1}"), Taken::Lost);
        fs::create_dir(path.parent().unwrap()).unwrap();
        shelf.put("{\"n\":1}".to_owned());
        assert!(!path.exists(), "a turn without a header is of no use");
        shelf.put(HEADER.to_owned());
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"journal\":1}\n");
    }
}
