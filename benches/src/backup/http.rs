//! A client of the store that does nothing but send and receive.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::certificate::{HOST, of_client};

/// One connection. The store asks for no signature, so there is none to compute.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    _driver: JoinSet<()>,
}

impl Connection {
    /// Connects to the store over TLS.
    ///
    /// # Errors
    ///
    /// Fails where it does not answer.
    pub(crate) async fn open(port: u16, authority: &Path) -> Result<Self> {
        let connected = TcpStream::connect(("127.0.0.1", port)).await;
        let socket = connected.with_context(|| format!("the store does not listen on {port}"))?;
        socket.set_nodelay(true)?;
        let connector = TlsConnector::from(of_client(authority)?);
        let name = ServerName::try_from(HOST)?;
        let (sender, connection) =
            handshake(TokioIo::new(connector.connect(name, socket).await?)).await?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // Whoever waits for the answer learns that it broke off.
            connection.await.ok();
        });
        Ok(Self {
            sender,
            _driver: driver,
        })
    }

    /// Stores an object.
    ///
    /// # Errors
    ///
    /// Fails where the store refuses it.
    pub(crate) async fn put(&mut self, path: &str, bytes: Bytes) -> Result<()> {
        self.send(Method::PUT, path, bytes).await.map(drop)
    }

    /// Returns an object.
    ///
    /// # Errors
    ///
    /// Fails where it is not there.
    pub(crate) async fn get(&mut self, path: &str) -> Result<Bytes> {
        self.send(Method::GET, path, Bytes::new()).await
    }

    async fn send(&mut self, method: Method, path: &str, body: Bytes) -> Result<Bytes> {
        let request = Request::builder()
            .method(method.clone())
            .uri(path)
            .header("host", HOST)
            .body(Full::new(body))?;
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            bail!("the store answers {status} to {method} {path}");
        }
        Ok(body)
    }
}
