//! Asking the archiver that is resident beside a server.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf, absolute};
use std::time::Duration;

use spilo_core::backup::{BackupError, BackupErrorKind};

use crate::archiver::{SOCKET, UNDER_WAY};
use crate::request::{Answer, LONGEST, Request};

/// The [`Archiver`](crate::Archiver) of a working directory, as a program without a runtime asks it.
#[derive(Clone, Debug)]
pub struct Resident {
    work_dir: PathBuf,
}

/// What came of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "where nobody heard it, nothing was done"]
pub enum Heard {
    /// It is done.
    Done,
    /// Nobody listens, or not any more: whoever asks does it without a resident.
    Nobody,
}

/// What the archiver needs to take notice.
const NOTICE: Duration = Duration::from_secs(30);

impl Resident {
    /// Takes the working directory of the archiver.
    pub fn new(work_dir: impl Into<PathBuf>) -> Self {
        Self {
            work_dir: work_dir.into(),
        }
    }

    /// Asks that a file of the log be archived. It is durable in the store when this is done.
    ///
    /// # Errors
    /// As [`push_wal`](crate::Archive::push_wal). `Refused` also where the archiver is that of
    /// another server, whose file of the same name is another one.
    pub fn push(&self, path: &Path) -> Result<Heard, BackupError> {
        let action = format!("archive {}", path.display());
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let request = Request::Push {
            name: name.into_owned(),
            path: Some(self.whole(&action, path)?),
        };
        self.done(&action, &request)
    }

    /// Asks that a file of the log be fetched to a path.
    ///
    /// # Errors
    /// As [`fetch_wal`](crate::Archive::fetch_wal).
    pub fn fetch(&self, name: &str, into: &Path) -> Result<Heard, BackupError> {
        let action = format!("fetch {name}");
        let request = Request::Fetch {
            name: name.to_owned(),
            into: self.whole(&action, into)?,
        };
        self.done(&action, &request)
    }

    /// Asks what the archiver knows: an [`ArchiverStatus`](crate::ArchiverStatus) as JSON, or `None`
    /// where nobody listens.
    ///
    /// # Errors
    /// It does not answer.
    pub fn status(&self) -> Result<Option<String>, BackupError> {
        match self.ask("ask for its status", &Request::Status)? {
            Some(Answer::Status(json)) => Ok(Some(json)),
            Some(Answer::Stopping | Answer::Done) | None => Ok(None),
            Some(Answer::Failed(kind, text)) => Err(failed(kind, "ask for its status", text)),
        }
    }

    fn done(&self, action: &str, request: &Request) -> Result<Heard, BackupError> {
        match self.ask(action, request)? {
            Some(Answer::Done) => Ok(Heard::Done),
            Some(Answer::Failed(kind, text)) => Err(failed(kind, action, text)),
            Some(Answer::Stopping | Answer::Status(_)) | None => Ok(Heard::Nobody),
        }
    }

    fn ask(&self, action: &str, request: &Request) -> Result<Option<Answer>, BackupError> {
        let line = request.line().ok_or_else(|| {
            let problem = "its path is too long, or has a line break";
            failed(BackupErrorKind::Refused, action, problem)
        })?;
        match self.converse(&line) {
            Ok(answer) => Ok(answer),
            Err(error) if is_of_nobody(&error) => Ok(None),
            Err(error) => {
                let place = self.work_dir.display();
                let kind = match error.kind() {
                    io::ErrorKind::PermissionDenied => BackupErrorKind::Refused,
                    _ => BackupErrorKind::Unavailable,
                };
                let problem = format!("the archiver of {place} does not answer: {error}");
                Err(failed(kind, action, problem).because(error))
            }
        }
    }

    fn converse(&self, line: &[u8]) -> io::Result<Option<Answer>> {
        // The path of a socket has 108 bytes at most, which that of a directory may exceed.
        let folder = File::open(&self.work_dir)?;
        let short = format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd());
        let mut stream = UnixStream::connect(short)?;
        stream.set_write_timeout(Some(NOTICE))?;
        stream.set_read_timeout(Some(UNDER_WAY + NOTICE))?;
        stream.write_all(line)?;
        let mut answer = String::new();
        let most = u64::try_from(LONGEST).unwrap_or(u64::MAX);
        BufReader::new(stream.take(most)).read_line(&mut answer)?;
        Ok(Answer::read(&answer))
    }

    fn whole(&self, action: &str, path: &Path) -> Result<PathBuf, BackupError> {
        absolute(path).map_err(|error| {
            failed(BackupErrorKind::Refused, action, error.to_string()).because(error)
        })
    }
}

/// Whether nobody was there to hear, or has died before an answer.
fn is_of_nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
    )
}

fn failed(kind: BackupErrorKind, action: &str, problem: impl Into<String>) -> BackupError {
    BackupError::new("archiver", kind, action, problem)
}
