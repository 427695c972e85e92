//! The directory that one archiver has to itself.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use spilo_core::backup::{BackupError, BackupErrorKind};

use crate::archiver::{ArchiverOptions, SOCKET};

/// The working directory, while it is this archiver's. The system takes it back when it dies.
#[derive(Debug)]
pub(crate) struct Workplace {
    path: PathBuf,
    folder: File,
    _lock: File,
}

impl Workplace {
    /// Takes it, and empties it of what a dead archiver left.
    pub(crate) fn open(options: &ArchiverOptions) -> Result<Self, BackupError> {
        let path = &options.work_dir;
        let action = format!("work in {}", path.display());
        let refused =
            |problem: String| BackupError::new(STORE, BackupErrorKind::Refused, &action, problem);
        let failed = |error: io::Error| refused(error.to_string()).because(error);
        let place = whole(path).map_err(failed)?;
        for (what, outer) in [
            ("the data directory", options.data_dir.clone()),
            ("pg_wal", options.pg_wal()),
        ] {
            let outer = fs::canonicalize(&outer).map_err(|error| {
                let problem = format!("there is no {}: {error}", outer.display());
                refused(problem).because(error)
            })?;
            if place.starts_with(&outer) {
                let problem =
                    format!("it lies in {what}, which is copied, rewound and backed up as a whole");
                return Err(refused(problem));
            }
        }
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.map_err(failed)?,
        }
        if fs::metadata(path).map_err(failed)?.mode() & 0o077 != 0 {
            let remedy = format!("others may look into it; chmod 700 {}", path.display());
            return Err(refused(remedy));
        }
        let path = place;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join(LOCK));
        let lock = lock.map_err(failed)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(refused("another archiver works in it".to_owned()));
            }
            locked => locked.map_err(|error| failed(error.into()))?,
        }
        let this = Self {
            folder: File::open(&path).map_err(failed)?,
            path,
            _lock: lock,
        };
        remove(fs::remove_dir_all(this.fetched())).map_err(failed)?;
        let made = DirBuilder::new().mode(0o700).create(this.fetched());
        made.map_err(failed)?;
        Ok(this)
    }

    /// Returns where files lie until they are handed over.
    pub(crate) fn fetched(&self) -> PathBuf {
        self.path.join("fetched")
    }

    /// Listens on the socket, in the place of one that a dead archiver left.
    pub(crate) fn listen(&self) -> Result<UnixListener, BackupError> {
        let listen = || {
            remove(fs::remove_file(self.path.join(SOCKET)))?;
            // The path of a socket has 108 bytes at most, which that of a directory may exceed.
            let short = format!("/proc/self/fd/{}/{SOCKET}", self.folder.as_raw_fd());
            let listener = UnixListener::bind(short)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        listen().map_err(|error: io::Error| self.failed(error))
    }

    /// Takes the socket away, so that nobody waits for an answer that will not come.
    pub(crate) fn close(&self) {
        fs::remove_file(self.path.join(SOCKET)).ok();
    }

    pub(crate) fn failed(&self, error: io::Error) -> BackupError {
        let action = format!("listen in {}", self.path.display());
        let kind = BackupErrorKind::Unavailable;
        BackupError::new(STORE, kind, action, error.to_string()).because(error)
    }
}

/// Returns where a directory is, or will be.
fn whole(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let path = std::path::absolute(path)?;
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(error);
            };
            Ok(fs::canonicalize(parent)?.join(name))
        }
        place => place,
    }
}

fn remove(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Returns whether two paths lead to the same file.
pub(crate) fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    let (one, other) = (identity(one), identity(other));
    one.is_some() && one == other
}

const STORE: &str = "archiver";

const LOCK: &str = "lock";
