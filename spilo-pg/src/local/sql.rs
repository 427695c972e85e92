//! Connections to the local server.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage, SimpleQueryRow};

use crate::LocalOptions;

/// One connection as the superuser. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Session {
    client: Client,
    /// The task that moves the bytes.
    _driver: JoinSet<()>,
}

/// Why the server gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SqlError {
    /// Nothing listens there.
    #[error("nobody listens")]
    NobodyListens,
    /// It is there and takes no connections, or ended the connection for a reason of its own.
    #[error("{0}")]
    NotNow(String),
    /// It has no room for one more connection.
    #[error("{0}")]
    Full(String),
    /// It does not let this user in.
    #[error("{0}")]
    Denied(String),
    /// It did not answer in time.
    #[error("no answer within {0:?}")]
    Silent(Duration),
    /// It cancelled the statement, which took too long.
    #[error("{0}")]
    Cancelled(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// What a connection is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    /// To look, in bounded time.
    Look,
    /// To change something, however long it takes.
    Work,
}

impl Session {
    /// Connects to the local server.
    pub(crate) async fn connect(
        options: &LocalOptions,
        purpose: Purpose,
        limit: Duration,
    ) -> Result<Self, SqlError> {
        let mut config = Config::new();
        config
            .host(options.own_host())
            .port(options.port)
            .user(&options.superuser.username)
            .dbname(&options.database)
            .application_name("spilo")
            .options(settings(purpose))
            .connect_timeout(limit)
            // Where the address is not of this machine any more, nobody answers.
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3)
            .tcp_user_timeout(Duration::from_secs(30));
        if let Some(password) = &options.superuser.password {
            config.password(password);
        }
        let attempt = timeout(limit, config.connect(NoTls)).await;
        let (client, connection) = attempt
            .map_err(|_| SqlError::Silent(limit))?
            .map_err(refusal)?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the local server ended");
            }
        });
        Ok(Self {
            client,
            _driver: driver,
        })
    }

    /// Runs statements and returns the rows of them all.
    ///
    /// # Cancellation
    /// The statement goes on until the connection is dropped too.
    pub(crate) async fn rows(
        &self,
        statements: &str,
        limit: Duration,
    ) -> Result<Vec<SimpleQueryRow>, SqlError> {
        let answer = timeout(limit, self.client.simple_query(statements)).await;
        let messages = answer
            .map_err(|_| SqlError::Silent(limit))?
            .map_err(classify)?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row),
                _ => None,
            })
            .collect())
    }

    /// Runs a query that returns one row with one column.
    pub(crate) async fn value(&self, query: &str, limit: Duration) -> Result<String, SqlError> {
        let rows = self.rows(query, limit).await?;
        let value = rows.first().and_then(|row| row.try_get(0).ok().flatten());
        value
            .map(str::to_owned)
            .ok_or_else(|| SqlError::Failed(format!("no value came back from {query:?}")))
    }

    /// Returns whether the connection has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }
}

/// Returns once the server has taken a connection and a process of it has answered, without logging
/// in: it is asked whether it speaks TLS, and left. Returns whether it does: then it has this in its
/// log as a client that broke off, and is better not asked again.
pub(crate) async fn knock(options: &LocalOptions, limit: Duration) -> io::Result<bool> {
    let asked = async {
        if let Some(directory) = &options.unix_socket_dir {
            let path = directory.join(format!(".s.PGSQL.{}", options.port));
            ask_for_tls(UnixStream::connect(path).await?).await
        } else {
            let address = (options.own_host(), options.port);
            ask_for_tls(TcpStream::connect(address).await?).await
        }
    };
    timeout(limit, asked).await?
}

async fn ask_for_tls(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<bool> {
    // `SSLRequest` of the protocol: its length and its code.
    stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await?;
    match stream.read_u8().await? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Writes text as a literal of SQL.
pub(crate) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''").replace('\\', "\\\\");
    format!(" E'{quoted}'")
}

/// Writes text as an identifier of SQL.
pub(crate) fn identifier(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// Returns the settings of a session, pinned against what an operator sets for users, databases
/// or the server: a search path of somebody's making must not answer in the catalog's place, and
/// no statement of ours may wait for a standby, or for ever.
fn settings(purpose: Purpose) -> String {
    let limit = match purpose {
        Purpose::Look => "900",
        Purpose::Work => "0",
    };
    format!(
        "-c search_path=pg_catalog -c statement_timeout={limit} -c lock_timeout=0 \
         -c synchronous_commit=local -c default_transaction_read_only=off \
         -c default_transaction_isolation=read\\ committed -c log_statement=none \
         -c log_min_duration_statement=-1 -c log_duration=off \
         -c pg_stat_statements.track=none -c client_min_messages=warning"
    )
}

/// Reads why there is no connection: a server that has no memory for one, or no such database, or
/// lets nobody into it, runs as well.
fn refusal(error: tokio_postgres::Error) -> SqlError {
    let code = error.as_db_error().map(|said| said.code().clone());
    match (classify(error), code) {
        (SqlError::Failed(text), Some(code)) if code.code().starts_with("53") => {
            SqlError::Full(text)
        }
        (SqlError::Failed(text), Some(code))
            if code == SqlState::INVALID_CATALOG_NAME
                || code == SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE =>
        {
            SqlError::Denied(text)
        }
        (error, _) => error,
    }
}

fn classify(error: tokio_postgres::Error) -> SqlError {
    if let Some(said) = error.as_db_error() {
        let text = said.message().to_owned();
        let code = said.code();
        return match code {
            c if *c == SqlState::CANNOT_CONNECT_NOW
                || *c == SqlState::ADMIN_SHUTDOWN
                || *c == SqlState::CRASH_SHUTDOWN =>
            {
                SqlError::NotNow(text)
            }
            c if *c == SqlState::QUERY_CANCELED => SqlError::Cancelled(text),
            c if *c == SqlState::TOO_MANY_CONNECTIONS => SqlError::Full(text),
            c if c.code().starts_with("28") => SqlError::Denied(text),
            _ => SqlError::Failed(text),
        };
    }
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            return match io.kind() {
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
                    SqlError::NobodyListens
                }
                io::ErrorKind::TimedOut => SqlError::Silent(Duration::ZERO),
                _ => SqlError::NotNow(io.to_string()),
            };
        }
        cause = inner.source();
    }
    if error.is_closed() {
        return SqlError::NotNow("it closed the connection".to_owned());
    }
    SqlError::Failed(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_cannot_leave_its_quotes() {
        assert_eq!(literal(r"a'b\"), r" E'a''b\\'");
        assert_eq!(identifier(r#"a"b"#), r#""a""b""#);
    }
}
