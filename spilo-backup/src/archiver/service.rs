//! Answers on the socket of an archiver.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use spilo_core::backup::{BackupError, BackupErrorKind};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::archiver::workplace::is_same;
use crate::archiver::{Archiver, Inner};
use crate::blocking;
use crate::request::{Answer, LONGEST, Request};

/// How many are answered at the same time. PostgreSQL asks for one file after the other.
const MOST: usize = 32;

/// How long it may take to ask, and to take the answer.
const NOTICE: Duration = Duration::from_secs(5);

impl Archiver {
    /// Answers whoever asks on the socket, until `until` is ready. Those that wait then are told
    /// that nothing was done.
    ///
    /// # Errors
    /// It cannot listen.
    ///
    /// # Cancellation
    /// Those that wait are told nothing, from which a [`Resident`](crate::Resident) concludes the
    /// same.
    pub async fn serve(&self, until: impl Future<Output = ()> + Send) -> Result<(), BackupError> {
        let listener = UnixListener::from_std(self.workplace.listen()?);
        let listener = listener.map_err(|error| self.workplace.failed(error))?;
        let (stop, stopping) = watch::channel(false);
        let mut until = pin!(until);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = &mut until => break,
                Some(_) = connections.join_next() => {}
                accepted = listener.accept(), if connections.len() < MOST => match accepted {
                    Ok((stream, _)) => {
                        let inner = Arc::clone(&self.inner);
                        connections.spawn(inner.converse(stream, stopping.clone()));
                    }
                    Err(error) => {
                        tracing::warn!("cannot take a connection: {error}");
                        // There are no descriptors left, and will not be for a moment.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
        self.workplace.close();
        drop(listener);
        stop.send_replace(true);
        let ended = async { while connections.join_next().await.is_some() {} };
        tokio::time::timeout(NOTICE, ended).await.ok();
        Ok(())
    }
}

impl Inner {
    async fn converse(self: Arc<Self>, stream: UnixStream, mut stopping: watch::Receiver<bool>) {
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let answer = tokio::select! {
            answer = self.answer(&mut reader) => answer,
            _ = stopping.wait_for(|stopping| *stopping) => Some(Answer::Stopping),
        };
        let Some(answer) = answer else {
            return;
        };
        let line = answer.line();
        let written = writer.write_all(line.as_bytes());
        // One that does not take it has given up.
        drop(tokio::time::timeout(NOTICE, written).await);
    }

    /// Returns the answer to a request, or `None` when nobody waits for it any more: a server that
    /// was killed and started again asks anew, for another file perhaps at the same path.
    async fn answer(self: &Arc<Self>, reader: &mut BufReader<OwnedReadHalf>) -> Option<Answer> {
        let mut line = Vec::new();
        let most = u64::try_from(LONGEST).unwrap_or(u64::MAX);
        let mut limited = (&mut *reader).take(most);
        let read = tokio::time::timeout(NOTICE, limited.read_until(b'\n', &mut line));
        read.await.ok()?.ok()?;
        let line = line.strip_suffix(b"\n")?;
        let mut more = [0];
        tokio::select! {
            answer = self.carry_out_request(line) => Some(answer),
            _ = reader.read(&mut more) => None,
        }
    }

    async fn carry_out_request(self: &Arc<Self>, line: &[u8]) -> Answer {
        match Request::read(line) {
            Ok(Request::Push { name, path }) => self.answer_push(&name, path.as_deref()).await,
            Ok(Request::Fetch { name, into }) => match Self::fetch(self, &name, &into).await {
                Ok(()) => Answer::Done,
                Err(error) => {
                    // That log ends is told every second, and no news.
                    if error.kind() != BackupErrorKind::NotFound {
                        tracing::warn!("{error}");
                    }
                    Answer::Failed(error.kind(), error.to_string())
                }
            },
            Ok(Request::Status) => match serde_json::to_string(&self.status().await) {
                Ok(json) => Answer::Status(json),
                Err(error) => Answer::Failed(BackupErrorKind::Unavailable, error.to_string()),
            },
            Err(problem) => Answer::Failed(BackupErrorKind::Refused, problem),
        }
    }

    async fn answer_push(self: &Arc<Self>, name: &str, path: Option<&Path>) -> Answer {
        if let Some(path) = path {
            // Another server that asks by mistake would lose its log: the file of the same name
            // here is archived, and not its own.
            let (own, given) = (self.options.pg_wal().join(name), path.to_owned());
            let compared = blocking(move || Ok(is_same(&own, &given))).await;
            if !matches!(compared, Ok(true)) {
                let data_dir = self.options.data_dir.display();
                let problem = format!("it is no file of the server in {data_dir}");
                return Answer::Failed(BackupErrorKind::Refused, problem);
            }
        }
        match Self::push(self, name).await {
            Ok(()) => Answer::Done,
            Err((kind, problem)) => {
                tracing::warn!("{problem}");
                Answer::Failed(kind, problem)
            }
        }
    }
}
