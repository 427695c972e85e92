//! HTTPS: certificates from files, and the rules by which the other end's is judged.
//!
//! The types without the feature `tls` have no values, so that no signature changes with it.

#[cfg(feature = "tls")]
mod with;
#[cfg(not(feature = "tls"))]
mod without;

use std::path::{Path, PathBuf};

#[cfg(feature = "tls")]
pub(crate) use with::ClientTls;
#[cfg(feature = "tls")]
pub use with::{ServerTls, ServerTlsOptions, VerifyClient};
#[cfg(not(feature = "tls"))]
pub(crate) use without::ClientTls;
#[cfg(not(feature = "tls"))]
pub use without::ServerTls;

/// TLS that cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("tls: cannot use {}: {problem}", path.display())]
pub struct TlsError {
    path: PathBuf,
    problem: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl TlsError {
    #[cfg_attr(
        not(feature = "tls"),
        expect(
            dead_code,
            reason = "nothing that could fail is built without the feature"
        )
    )]
    fn new(path: &Path, problem: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            problem: problem.into(),
            source: None,
        }
    }

    #[cfg(feature = "tls")]
    fn because(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }
}

/// What a client needs for HTTPS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClientTlsOptions {
    pub(crate) ca: Option<PathBuf>,
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) insecure: bool,
}
