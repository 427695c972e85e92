//! Objects on their way into files.

use std::io::{self, Read, Write};
use std::path::Path;

use spilo_core::backup::{BackupError, BackupErrorKind};
use tokio::task::JoinSet;

use crate::archive::Archive;
use crate::body::{Body, BodyReader, Failed, PIECE};
use crate::codec::Codec;

/// The unpacked bytes of an object, as a thread reads them.
pub(crate) struct Unpacked {
    bytes: Box<dyn Read>,
    failed: Failed,
    archive: Archive,
    key: String,
}

impl Archive {
    /// Fetches an object and lets `work` read what it holds, in a thread of its own that ends when
    /// the future is dropped.
    ///
    /// # Errors
    /// Those of the store, and of `work`.
    pub(crate) async fn unpack<T: Send + 'static>(
        &self,
        key: &str,
        codec: Codec,
        work: impl FnOnce(Unpacked) -> Result<T, BackupError> + Send + 'static,
    ) -> Result<T, BackupError> {
        let mut body = self.objects.get(key).await?;
        let (sender, fed) = Body::channel();
        let reader = fed.into_reader();
        let (archive, name) = (self.clone(), key.to_owned());
        let mut thread = JoinSet::new();
        thread.spawn_blocking(move || {
            let unpacked = Unpacked::new(archive, name, codec, reader)?;
            work(unpacked)
        });
        loop {
            match body.next().await {
                Ok(Some(bytes)) => {
                    if !sender.send(bytes).await {
                        break;
                    }
                }
                Ok(None) => {
                    sender.end().await;
                    break;
                }
                Err(error) => {
                    sender.fail(error).await;
                    break;
                }
            }
        }
        let done = thread.join_next().await;
        let done = done.and_then(Result::ok);
        done.unwrap_or_else(|| {
            let action = format!("unpack {}", self.objects.place(key));
            let problem = "the thread that does it failed";
            Err(self.error(BackupErrorKind::Unavailable, action, problem))
        })
    }
}

impl Unpacked {
    fn new(
        archive: Archive,
        key: String,
        codec: Codec,
        reader: BodyReader,
    ) -> Result<Self, BackupError> {
        let failed = reader.failed();
        let begun = codec.decoder(reader);
        let mut this = Self {
            bytes: Box::new(io::empty()),
            failed,
            archive,
            key,
        };
        this.bytes = begun.map_err(|error| this.broken(&error))?;
        Ok(this)
    }

    /// Returns why reading failed: what the store said, or that what it holds is damaged.
    pub(crate) fn broken(&self, error: &io::Error) -> BackupError {
        self.failed
            .take()
            .unwrap_or_else(|| self.damaged(error.to_string()))
    }

    /// Returns the error of an object that is not what was stored.
    pub(crate) fn damaged(&self, problem: impl Into<String>) -> BackupError {
        let action = format!("unpack {}", self.archive.objects.place(&self.key));
        self.archive
            .error(BackupErrorKind::Damaged, action, problem)
    }

    /// Returns the error of a file that cannot be read or written here.
    pub(crate) fn local(&self, does: &str, path: &Path, error: io::Error) -> BackupError {
        let action = format!("{does} {}", path.display());
        self.archive
            .error(BackupErrorKind::Unavailable, action, error.to_string())
            .because(error)
    }

    /// Writes all of it, and returns how long it is.
    pub(crate) fn write_to(
        &mut self,
        mut file: impl Write,
        path: &Path,
    ) -> Result<u64, BackupError> {
        let mut piece = vec![0; PIECE];
        let mut length = 0;
        loop {
            let read = match self.bytes.read(&mut piece) {
                Ok(0) => return Ok(length),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.broken(&error)),
            };
            let written = file.write_all(&piece[..read]);
            written.map_err(|error| self.local("write", path, error))?;
            length += read as u64;
        }
    }
}

impl Read for Unpacked {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.bytes.read(into)
    }
}
