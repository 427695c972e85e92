//! The types of TLS in a build that has none.

use std::convert::Infallible;

use tokio::net::TcpStream;

use super::{ClientTlsOptions, TlsError};
use crate::io::Io;

/// The server's side of TLS; needs the feature `tls`.
#[derive(Clone, Debug)]
pub struct ServerTls(Infallible);

impl ServerTls {
    #[expect(clippy::unused_async, reason = "as with the feature")]
    pub(crate) async fn accept(self, _stream: TcpStream) -> std::io::Result<(Box<dyn Io>, bool)> {
        match self.0 {}
    }
}

/// The client's side of TLS: none.
#[derive(Debug)]
pub(crate) struct ClientTls;

impl ClientTls {
    /// Returns `None` if the options ask for TLS.
    pub(crate) fn new(options: &ClientTlsOptions) -> Option<Result<Self, TlsError>> {
        let asked = options.ca.is_some() || options.certificate.is_some() || options.key.is_some();
        (!asked).then_some(Ok(Self))
    }

    #[expect(clippy::unused_async, reason = "as with the feature")]
    pub(crate) async fn connect(
        &self,
        _host: &str,
        _stream: TcpStream,
    ) -> Result<Box<dyn Io>, String> {
        Err("https is not built into this program".to_owned())
    }
}
