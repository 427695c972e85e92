//! The least of an HTTP client: one request, one answer, one connection.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::net;

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body as it came.
    pub body: String,
}

impl Answer {
    /// Returns the body as JSON, `Null` where it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }
}

/// Where to send requests: an address, seen from this process or from inside a network namespace.
#[derive(Clone, Debug)]
pub struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) namespace: Option<String>,
}

impl Target {
    /// Sends a request and waits for the whole answer, off the runtime's threads.
    ///
    /// # Errors
    ///
    /// Fails where there is no connection, no whole answer within `limit`, or an answer that is not
    /// HTTP.
    pub async fn request(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Answer> {
        let target = self.clone();
        let (method, path) = (method.to_owned(), path.to_owned());
        let body = body.map(Value::to_string).unwrap_or_default();
        tokio::task::spawn_blocking(move || target.request_blocking(&method, &path, &body, limit))
            .await?
    }

    /// Sends a `GET` and waits for the whole answer, off the runtime's threads.
    ///
    /// # Errors
    ///
    /// As for [`Self::request`].
    pub async fn get(&self, path: &str, limit: Duration) -> Result<Answer> {
        self.request("GET", path, None, limit).await
    }

    /// Does the same as [`Self::request`] on the calling thread.
    pub(crate) fn request_blocking(
        &self,
        method: &str,
        path: &str,
        body: &str,
        limit: Duration,
    ) -> Result<Answer> {
        match &self.namespace {
            None => exchange(self.address, method, path, body, limit),
            Some(namespace) => net::inside(namespace, || {
                exchange(self.address, method, path, body, limit)
            })?,
        }
    }
}

impl From<SocketAddr> for Target {
    /// Reaches an address from where the harness is.
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            namespace: None,
        }
    }
}

/// HTTP/1.0, so that the answer's end is the connection's end and no chunks have to be put
/// together.
fn exchange(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
    limit: Duration,
) -> Result<Answer> {
    let end = Instant::now() + limit;
    let mut stream = TcpStream::connect_timeout(&address, limit)
        .with_context(|| format!("cannot reach {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(limit))?;
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    let mut chunk = [0; 8192];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match stream
            .read(&mut chunk)
            .with_context(|| format!("{address} does not answer {path}"))?
        {
            0 => break,
            length => answer.extend_from_slice(&chunk[..length]),
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer has no header")?;
    let status = head
        .split_whitespace()
        .nth(1)
        .context("the answer has no status")?
        .parse()?;
    Ok(Answer {
        status,
        body: body.to_owned(),
    })
}
