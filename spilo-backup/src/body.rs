//! Bytes on their way between a store and whoever makes or takes them, a few at a time.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex};

use bytes::{Buf as _, Bytes, BytesMut};
use spilo_core::backup::{BackupError, BackupErrorKind};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// The bytes of one object, as they come.
///
/// One that breaks off is an error and never a short object: whoever makes it says when it ends.
pub struct Body {
    pieces: mpsc::Receiver<Piece>,
    ended: bool,
    /// What makes it. Ends with it.
    makers: JoinSet<()>,
}

/// The end of a [`Body`] that makes it. Dropping it without [`end`](Self::end) breaks the body off.
#[derive(Clone, Debug)]
pub struct BodySender(mpsc::Sender<Piece>);

#[derive(Debug)]
enum Piece {
    Bytes(Bytes),
    End,
    Failed(BackupError),
}

/// How many pieces of at most [`PIECE`] bytes wait to be taken.
const WAITING: usize = 4;

/// The greatest piece that is made here.
pub(crate) const PIECE: usize = 256 << 10;

impl Body {
    /// Creates a body of which at most four pieces wait to be taken.
    pub fn channel() -> (BodySender, Self) {
        let (sender, pieces) = mpsc::channel(WAITING);
        let body = Self {
            pieces,
            ended: false,
            makers: JoinSet::new(),
        };
        (BodySender(sender), body)
    }

    /// Creates a body of bytes that are there.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        let (sender, body) = Self::channel();
        for piece in [Piece::Bytes(bytes.into()), Piece::End] {
            sender.0.try_send(piece).expect("two fit");
        }
        body
    }

    /// Creates a body that a task makes, which ends with it.
    pub fn made_by<F>(make: impl FnOnce(BodySender) -> F) -> Self
    where
        F: Future<Output = Result<(), BackupError>> + Send + 'static,
    {
        let (sender, mut body) = Self::channel();
        let making = make(sender.clone());
        body.makers.spawn(async move {
            match making.await {
                Ok(()) => sender.end().await,
                Err(error) => sender.fail(error).await,
            }
        });
        body
    }

    /// Creates a body that a thread writes.
    pub(crate) fn written_by(
        write: impl FnOnce(BodyWriter) -> Result<(), BackupError> + Send + 'static,
    ) -> Self {
        let (sender, mut body) = Self::channel();
        let writer = BodyWriter {
            sender: sender.clone(),
            gathered: BytesMut::new(),
        };
        body.makers.spawn_blocking(move || {
            let last = match write(writer) {
                Ok(()) => Piece::End,
                Err(error) => Piece::Failed(error),
            };
            // Nobody takes it any more.
            drop(sender.0.blocking_send(last));
        });
        body
    }

    /// Takes the next bytes, or `None` at the end.
    ///
    /// # Errors
    /// What its maker failed with, or that it broke off.
    ///
    /// # Cancellation
    /// Safe: nothing is lost.
    pub async fn next(&mut self) -> Result<Option<Bytes>, BackupError> {
        if self.ended {
            return Ok(None);
        }
        let piece = self.pieces.recv().await;
        self.take(piece)
    }

    /// Takes all of it, if that is not more than `most` bytes.
    ///
    /// # Errors
    /// As [`next`](Self::next), and that it is longer.
    ///
    /// # Cancellation
    /// What was taken is lost.
    pub async fn all(mut self, most: usize) -> Result<Bytes, BackupError> {
        let mut all = BytesMut::new();
        while let Some(bytes) = self.next().await? {
            if all.len() + bytes.len() > most {
                let problem = format!("it has more than {most} bytes");
                return Err(failure(BackupErrorKind::Damaged, problem));
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all.freeze())
    }

    /// Gives it to a thread that reads.
    pub(crate) fn into_reader(self) -> BodyReader {
        BodyReader {
            body: self,
            rest: Bytes::new(),
            failed: Failed::default(),
        }
    }

    fn take(&mut self, piece: Option<Piece>) -> Result<Option<Bytes>, BackupError> {
        match piece {
            Some(Piece::Bytes(bytes)) => Ok(Some(bytes)),
            Some(Piece::End) => {
                self.ended = true;
                Ok(None)
            }
            Some(Piece::Failed(error)) => Err(error),
            None => Err(failure(
                BackupErrorKind::Unavailable,
                "it broke off before its end".to_owned(),
            )),
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").finish_non_exhaustive()
    }
}

impl BodySender {
    /// Gives bytes. Returns whether anybody wants more.
    ///
    /// # Cancellation
    /// The bytes may or may not have been given.
    pub async fn send(&self, bytes: Bytes) -> bool {
        bytes.is_empty() || self.0.send(Piece::Bytes(bytes)).await.is_ok()
    }

    /// Says that it was all.
    ///
    /// # Cancellation
    /// The body breaks off.
    pub async fn end(&self) {
        drop(self.0.send(Piece::End).await);
    }

    /// Says why there is no more.
    ///
    /// # Cancellation
    /// The body breaks off.
    pub async fn fail(&self, error: BackupError) {
        drop(self.0.send(Piece::Failed(error)).await);
    }
}

/// A body as a thread writes it.
#[derive(Debug)]
pub(crate) struct BodyWriter {
    sender: BodySender,
    gathered: BytesMut,
}

impl Write for BodyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PIECE - self.gathered.len();
        let taken = bytes.len().min(room);
        self.gathered.extend_from_slice(&bytes[..taken]);
        if self.gathered.len() == PIECE {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let bytes = self.gathered.split().freeze();
        let sent = self.sender.0.blocking_send(Piece::Bytes(bytes));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

/// A body as a thread reads it.
#[derive(Debug)]
pub(crate) struct BodyReader {
    body: Body,
    rest: Bytes,
    failed: Failed,
}

/// What a body failed with, while something that knows only [`io::Error`] reads it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Failed(Arc<Mutex<Option<BackupError>>>);

impl Failed {
    /// Returns what the body failed with, which led to the error that its reader gave.
    pub(crate) fn take(&self) -> Option<BackupError> {
        self.0.lock().ok()?.take()
    }
}

impl BodyReader {
    /// Returns where to ask why it failed.
    pub(crate) fn failed(&self) -> Failed {
        self.failed.clone()
    }
}

impl Read for BodyReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            if self.body.ended {
                return Ok(0);
            }
            let piece = self.body.pieces.blocking_recv();
            match self.body.take(piece) {
                Ok(Some(bytes)) => self.rest = bytes,
                Ok(None) => return Ok(0),
                Err(error) => {
                    let text = error.to_string();
                    if let Ok(mut failed) = self.failed.0.lock() {
                        *failed = Some(error);
                    }
                    return Err(io::Error::other(text));
                }
            }
        }
        let taken = self.rest.len().min(into.len());
        self.rest.copy_to_slice(&mut into[..taken]);
        Ok(taken)
    }
}

fn failure(kind: BackupErrorKind, problem: String) -> BackupError {
    BackupError::new("archive", kind, "move an object's bytes", problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_written_is_what_comes() {
        let bytes: Vec<u8> = (0..251).cycle().take(PIECE * 3 + 17).collect();
        let source = bytes.clone();
        let body = Body::written_by(move |mut writer| {
            writer.write_all(&source).unwrap();
            writer.flush().unwrap();
            Ok(())
        });
        let mut reader = body.into_reader();
        let read = tokio::task::spawn_blocking(move || {
            let mut read = Vec::new();
            reader.read_to_end(&mut read).unwrap();
            read
        });
        assert!(read.await.unwrap() == bytes);
    }

    #[tokio::test]
    async fn one_that_breaks_off_is_an_error() {
        let (sender, mut body) = Body::channel();
        sender.send(Bytes::from_static(b"half")).await;
        drop(sender);
        assert_eq!(body.next().await.unwrap().unwrap(), "half");
        let error = body.next().await.unwrap_err();
        assert_eq!(error.kind(), BackupErrorKind::Unavailable);

        let panics = Body::written_by(|_| panic!("on purpose"));
        assert!(panics.all(10).await.is_err());
    }

    #[tokio::test]
    async fn one_that_is_too_long_is_not_taken() {
        let error = Body::whole("123456").all(5).await.unwrap_err();
        assert_eq!(error.kind(), BackupErrorKind::Damaged);
        assert_eq!(Body::whole("12345").all(5).await.unwrap(), "12345");
    }
}
