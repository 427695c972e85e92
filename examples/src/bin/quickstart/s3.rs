//! A server of the protocol of S3, in this process.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// A server with one bucket, whose objects are files. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct S3 {
    address: SocketAddr,
    _serving: JoinSet<()>,
}

impl S3 {
    /// Starts it on a free port, for one user.
    pub(crate) async fn start(dir: &Path, id: &str, secret: &str) -> Result<Self> {
        std::fs::create_dir_all(dir.join(BUCKET)).context("cannot make the bucket")?;
        let files = FileSystem::new(dir).map_err(|error| anyhow!("{error:?}"))?;
        let mut service = S3ServiceBuilder::new(files);
        service.set_auth(SimpleAuth::from_single(id, secret));
        let service = service.build();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                let service = service.clone();
                connections.spawn(async move {
                    let server = Builder::new(TokioExecutor::new());
                    // A client that goes away is no failure of the server's.
                    drop(server.serve_connection(TokioIo::new(socket), service).await);
                });
            }
        });
        Ok(Self {
            address,
            _serving: serving,
        })
    }

    /// Returns its URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// The only bucket.
pub(crate) const BUCKET: &str = "backups";
