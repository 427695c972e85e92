//! A store that speaks as much of S3 as archiving tools ask for, in a process of its own.
//!
//! It keeps everything in memory, checks no signature and computes no checksum: whatever a remote
//! store does for its clients it does elsewhere, and must not take the processors away from those
//! that are measured. It answers over TLS, which pgBackRest insists on, and on another port without.

mod bucket;
mod request;
mod xml;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream as Socket};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::certificate;
use bucket::Bucket;

/// A store that runs. It ends when this is dropped, and with its parent.
#[derive(Debug)]
pub(crate) struct Store {
    process: Child,
    plain_port: u16,
    tls_port: u16,
    authority: PathBuf,
    _stdin: ChildStdin,
}

impl Store {
    /// Starts a store as a process of this program, with new certificates in `dir`.
    ///
    /// # Errors
    ///
    /// Fails where it cannot be started or does not say where it listens.
    pub(crate) fn start(program: &Path, dir: &Path, latency: Duration) -> Result<Self> {
        certificate::write(dir)?;
        let mut process = Command::new(program)
            .arg("serve-store")
            .arg("--certificates")
            .arg(dir)
            .args(["--latency-ms", &latency.as_millis().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start the store, {}", program.display()))?;
        let stdin = process.stdin.take().context("the store has no stdin")?;
        let stdout = process.stdout.take().context("the store has no stdout")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let mut ports = line.split_whitespace().map(str::parse);
        let (Some(Ok(plain_port)), Some(Ok(tls_port))) = (ports.next(), ports.next()) else {
            bail!("the store says {line:?} instead of its two ports");
        };
        Ok(Self {
            process,
            plain_port,
            tls_port,
            authority: certificate::authority_file(dir),
            _stdin: stdin,
        })
    }

    /// Returns the port on which it speaks TLS.
    pub(crate) fn tls_port(&self) -> u16 {
        self.tls_port
    }

    /// Returns the file of the authority that signed its certificate.
    pub(crate) fn authority(&self) -> &Path {
        &self.authority
    }

    /// Returns its process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Throws away everything whose name begins with a prefix, and returns how many bytes it was.
    ///
    /// # Errors
    ///
    /// Fails where the store does not answer.
    pub(crate) fn forget(&self, prefix: &str) -> Result<u64> {
        let mut socket = TcpStream::connect(("127.0.0.1", self.plain_port))
            .context("the store does not listen any more")?;
        write!(
            socket,
            "POST /{BUCKET}?forget={prefix} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Length: 0\r\n\r\n"
        )?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        let body = answer.split("\r\n\r\n").nth(1);
        let bytes = body.and_then(|body| body.trim().parse().ok());
        bytes.with_context(|| format!("the store answers {answer:?}"))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Serves a store on two ports that it prints, without and with TLS, until its input ends.
///
/// # Errors
///
/// Fails where the certificates are missing or no port can be had.
///
/// # Cancellation
///
/// What it holds is lost.
pub async fn serve(certificates: &Path, latency: Duration) -> Result<()> {
    let tls = TlsAcceptor::from(certificate::of_server(certificates)?);
    let (plain, secure) = (bind().await?, bind().await?);
    let bucket = Arc::new(Bucket::default());
    // Whoever started this is gone when its pipe is closed.
    let parent = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    {
        let mut stdout = std::io::stdout();
        let ports = (plain.local_addr()?.port(), secure.local_addr()?.port());
        writeln!(stdout, "{} {}", ports.0, ports.1)?;
        stdout.flush()?;
    }
    tokio::select! {
        outcome = listen(&plain, None, &bucket, latency) => outcome,
        outcome = listen(&secure, Some(&tls), &bucket, latency) => outcome,
        _ = parent => Ok(()),
    }
}

async fn bind() -> Result<TcpListener> {
    let bound = TcpListener::bind("127.0.0.1:0").await;
    bound.context("the store finds no port")
}

async fn listen(
    listener: &TcpListener,
    tls: Option<&TlsAcceptor>,
    bucket: &Arc<Bucket>,
    latency: Duration,
) -> Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        connections.spawn(converse(socket, tls.cloned(), Arc::clone(bucket), latency));
        while connections.try_join_next().is_some() {}
    }
}

/// Answers until the client goes away, which is no failure however it does it.
async fn converse(
    socket: Socket,
    tls: Option<TlsAcceptor>,
    bucket: Arc<Bucket>,
    latency: Duration,
) {
    let service = service_fn(move |request| {
        let bucket = Arc::clone(&bucket);
        async move {
            if !latency.is_zero() {
                tokio::time::sleep(latency).await;
            }
            request::answer(&bucket, request).await
        }
    });
    let mut server = http1::Builder::new();
    server.max_buf_size(BUFFER);
    match tls {
        None => drop(server.serve_connection(TokioIo::new(socket), service).await),
        Some(tls) => {
            if let Ok(socket) = tls.accept(socket).await {
                drop(server.serve_connection(TokioIo::new(socket), service).await);
            }
        }
    }
}

/// The only bucket.
pub(crate) const BUCKET: &str = "backups";

/// Files come in a few large reads instead of many small ones.
const BUFFER: usize = 1 << 20;
