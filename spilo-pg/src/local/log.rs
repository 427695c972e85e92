//! What the server says before, and without, a logging of its own.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::LocalOptions;

use super::files::{self, Owner};

/// The log of one run of the server.
pub(super) struct Log {
    path: PathBuf,
    from: u64,
    owner: Owner,
}

impl Log {
    /// Finds where the log of a server begins that is started now.
    pub(super) fn open(options: &LocalOptions) -> io::Result<Self> {
        let path = path(options);
        let mut from = fs::symlink_metadata(&path).map_or(0, |metadata| metadata.len());
        if from > LIMIT_AT_START {
            fs::rename(&path, before(&path))?;
            from = 0;
        }
        let owner = options.uid_gid;
        Ok(Self { path, from, owner })
    }

    /// Returns the file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the line that says why the server ended.
    pub(super) fn problem(&self) -> Option<String> {
        let mut file =
            files::open_own(&self.path, OpenOptions::new().read(true), self.owner).ok()?;
        file.seek(SeekFrom::Start(self.from)).ok()?;
        let mut bytes = Vec::new();
        file.take(READ_LIMIT).read_to_end(&mut bytes).ok()?;
        worst_lines(&String::from_utf8_lossy(&bytes))
    }
}

/// Keeps the log of a server that runs for long from filling the disk.
#[derive(Debug)]
pub(super) struct Rotation {
    limit: u64,
    turn: Mutex<Turn>,
}

#[derive(Debug, Default)]
struct Turn {
    looked: Option<Instant>,
    work: JoinSet<()>,
}

impl Rotation {
    /// Creates what has not looked yet.
    pub(super) fn new() -> Self {
        Self {
            limit: LIMIT,
            turn: Mutex::default(),
        }
    }

    /// Looks at the log's length now and then, on a thread of its own; never waits.
    pub(super) fn tend(&self, options: &Arc<LocalOptions>) {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        while turn.work.try_join_next().is_some() {}
        let due = turn.looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY);
        if !due || !turn.work.is_empty() {
            return;
        }
        turn.looked = Some(Instant::now());
        let options = Arc::clone(options);
        let limit = self.limit;
        turn.work.spawn_blocking(move || {
            let path = path(&options);
            if let Err(error) = shorten(&path, limit, options.uid_gid) {
                tracing::warn!(path = %path.display(), %error, "cannot shorten the server's log");
            }
        });
    }
}

/// Moves the end of a log that has become longer than `limit` to its predecessor's file. Returns
/// whether it had.
///
/// The server keeps the file open and is not asked to open another. It writes to the end, wherever
/// that is (the guard opens the file so), which is why it can be cut. What is said between the
/// last byte read and the cut, some microseconds, is lost.
fn shorten(path: &Path, limit: u64, owner: Owner) -> io::Result<bool> {
    let opened = files::open_own(path, OpenOptions::new().read(true).write(true), owner);
    let mut log = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened?,
    };
    let length = log.metadata()?.len();
    if length <= limit {
        return Ok(false);
    }
    let before = before(path);
    let mut copy = files::create(&before, owner)?;
    log.seek(SeekFrom::Start(length - limit))?;
    // A server that writes as fast as this reads must not be followed for ever.
    let copied = io::copy(&mut (&mut log).take(limit.saturating_mul(2)), &mut copy);
    if let Err(error) = copied {
        // On a disk that is full, half a copy is worth less than its room.
        fs::remove_file(&before)?;
        return Err(error);
    }
    log.set_len(0)?;
    Ok(true)
}

fn path(options: &LocalOptions) -> PathBuf {
    options.state_dir().join("postmaster.log")
}

/// Returns the file of what was said before.
fn before(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

/// Picks the lines that say why a server ended. That a port is taken is said in a line before the
/// last one.
fn worst_lines(text: &str) -> Option<String> {
    let clients = "the database system is";
    let picked: Vec<&str> = ["could not bind", "PANIC:", "FATAL:", "postgres:"]
        .iter()
        .filter_map(|mark| {
            text.lines()
                .rev()
                .find(|line| line.contains(mark) && !line.contains(clients))
        })
        .map(str::trim)
        .collect();
    (!picked.is_empty()).then(|| picked.join("; "))
}

/// The log is rotated at a start when it is longer than this.
const LIMIT_AT_START: u64 = 10 << 20;
/// The log is shortened while the server runs when it is longer than this. Copying it takes the
/// disk a second; ten times what a start leaves is what a server says that has something to say.
const LIMIT: u64 = 100 << 20;
const LOOK_EVERY: Duration = Duration::from_secs(60);
const READ_LIMIT: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn the_lines_that_say_why_are_picked() {
        let text = "\
1 LOG:  starting PostgreSQL
1 LOG:  could not bind IPv4 address \"127.0.0.1\": Address already in use
1 HINT:  Is another postmaster already running on port 1?
1 FATAL:  could not create any TCP/IP sockets
1 FATAL:  the database system is starting up
1 LOG:  database system is shut down";
        let why = worst_lines(text).unwrap();
        assert_eq!(
            why,
            "1 LOG:  could not bind IPv4 address \"127.0.0.1\": Address already in use; \
             1 FATAL:  could not create any TCP/IP sockets"
        );
        assert_eq!(worst_lines("1 LOG:  ready"), None);
    }

    #[test]
    fn a_log_that_is_written_is_bounded_and_its_end_is_kept_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("postmaster.log");
        assert!(!shorten(&path, 8, None).unwrap());
        let mut server = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .unwrap();
        server.write_all(b"12345678").unwrap();
        assert!(!shorten(&path, 8, None).unwrap());
        for (said, kept) in [("9\n", "3456789\n"), ("abcdefghij", "cdefghij")] {
            server.write_all(said.as_bytes()).unwrap();
            assert!(shorten(&path, 8, None).unwrap());
            assert_eq!(fs::read_to_string(before(&path)).unwrap(), kept);
            assert_eq!(fs::read_to_string(&path).unwrap(), "");
        }
        server.write_all(b"goes on").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "goes on");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[tokio::test]
    async fn the_log_is_looked_at_again_after_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let name = spilo_core::MemberName::new("a").unwrap();
        let scope = spilo_core::Scope::new("s").unwrap();
        let mut options = LocalOptions::new(scope, name, dir.path(), 1);
        options.state_dir = Some(dir.path().to_owned());
        let options = Arc::new(options);
        let path = path(&options);
        let mut rotation = Rotation::new();
        rotation.limit = 8;
        let turn = async || {
            fs::write(&path, "123456789").unwrap();
            rotation.tend(&options);
            let mut work = std::mem::take(&mut rotation.turn.lock().unwrap().work);
            while work.join_next().await.is_some() {}
            fs::read_to_string(&path).unwrap()
        };
        assert_eq!(turn().await, "");
        assert_eq!(turn().await, "123456789");
        tokio::time::pause();
        tokio::time::advance(LOOK_EVERY).await;
        assert_eq!(turn().await, "");
    }
}
