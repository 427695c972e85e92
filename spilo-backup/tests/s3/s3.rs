//! An S3 server for tests, in this process and on a directory.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// A server with one bucket. It ends when it is dropped.
pub(crate) struct S3Server {
    address: SocketAddr,
    root: TempDir,
    _serving: JoinSet<()>,
}

/// The only user.
pub(crate) const ACCESS_KEY: &str = "spilo";
pub(crate) const SECRET_KEY: &str = "not a secret";

/// The only bucket.
pub(crate) const BUCKET: &str = "backups";

impl S3Server {
    pub(crate) async fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join(BUCKET)).unwrap();
        let mut service = S3ServiceBuilder::new(FileSystem::new(root.path()).unwrap());
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = service.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let service = service.clone();
                connections.spawn(async move {
                    let server = Builder::new(TokioExecutor::new());
                    // A client that goes away is no failure of the server's.
                    drop(server.serve_connection(TokioIo::new(socket), service).await);
                });
            }
        });
        Self {
            address,
            root,
            _serving: serving,
        }
    }

    /// Returns its URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns where the objects lie.
    pub(crate) fn bucket(&self) -> PathBuf {
        Path::new(self.root.path()).join(BUCKET)
    }
}
