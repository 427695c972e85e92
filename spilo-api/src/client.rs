//! The client that asks other members.

mod answer;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value};
use spilo_core::peer::{ConsentRequest, PeerError, PeerStatus};
use spilo_core::{Lsn, Peers};
use tokio::net::TcpStream;

use crate::access::Credentials;
use crate::failsafe::{ACCEPTED, LSN_HEADER};
use crate::io::{Io, with_causes};
use crate::tls::{ClientTls, ClientTlsOptions, TlsError};

/// Asks members over HTTP and HTTPS, Patroni's and spilo's alike.
///
/// Each question is one attempt on a connection of its own, as members close theirs after each
/// answer, and without redirects. All of it, the name lookup included, is bounded by the timeout,
/// and the answer by 256 KiB.
pub struct HttpPeers {
    /// Shared with the questions under way, which end with what they began with.
    setup: RwLock<Arc<Setup>>,
}

/// How to ask members.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PeerOptions {
    /// How long a question may take, all of it.
    pub timeout: Duration,
    /// The user and password that the members' protected endpoints want.
    pub authentication: Option<Credentials>,
    /// The file with the roots of the members' certificates.
    pub ca: Option<PathBuf>,
    /// The file with the certificate to show to members.
    pub certificate: Option<PathBuf>,
    /// The file with its key; by default the certificate's.
    pub key: Option<PathBuf>,
    /// Whether any certificate of a member will do, as with Patroni. Without it and without `ca`,
    /// members on HTTPS cannot be asked.
    pub insecure: bool,
}

/// A client that cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerSetupError {
    /// A file cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The credentials cannot be put into a header.
    #[error("the user or password for the members' API cannot be sent in a header")]
    Credentials,
    /// A certificate or CA was given to a build that has no TLS.
    #[error("files for https are given, and https is not built into this program")]
    NoTls,
}

impl Default for PeerOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(1),
            authentication: None,
            ca: None,
            certificate: None,
            key: None,
            insecure: false,
        }
    }
}

impl HttpPeers {
    /// Creates a client; reads the files that the options name.
    ///
    /// # Errors
    /// A file that cannot be used, or options that do not fit together.
    pub fn new(options: PeerOptions) -> Result<Self, PeerSetupError> {
        let setup = RwLock::new(Arc::new(Setup::new(options)?));
        Ok(Self { setup })
    }

    /// Replaces the options for the questions that come from now on, and reads the files that they
    /// name, also if their names are the old ones.
    ///
    /// # Errors
    /// As [`new`](Self::new); the old options then stay.
    pub fn reconfigure(&self, options: PeerOptions) -> Result<(), PeerSetupError> {
        self.replace(Self::new(options)?);
        Ok(())
    }

    /// Goes on as `other`: [`reconfigure`](Self::reconfigure) for a caller that has more to prepare
    /// before anything may change.
    pub fn replace(&self, other: Self) {
        let setup = other
            .setup
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        *self.setup.write().unwrap_or_else(PoisonError::into_inner) = setup;
    }

    fn setup(&self) -> Arc<Setup> {
        Arc::clone(&self.setup.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What one set of options comes to.
struct Setup {
    timeout: Duration,
    authorization: Option<HeaderValue>,
    tls: ClientTls,
}

impl Setup {
    fn new(options: PeerOptions) -> Result<Self, PeerSetupError> {
        let tls = ClientTlsOptions {
            ca: options.ca,
            certificate: options.certificate,
            key: options.key,
            insecure: options.insecure,
        };
        let tls = ClientTls::new(&tls).ok_or(PeerSetupError::NoTls)??;
        let authorization = match options.authentication {
            None => None,
            Some(credentials) => {
                let mut value = HeaderValue::try_from(credentials.to_header())
                    .map_err(|_| PeerSetupError::Credentials)?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Self {
            timeout: options.timeout,
            authorization,
            tls,
        })
    }

    async fn exchange(
        &self,
        url: &str,
        method: Method,
        path: Option<&'static str>,
        body: Bytes,
    ) -> Result<(HeaderMap, Bytes), PeerError> {
        let whole = self.attempt(url, method, path, body);
        tokio::time::timeout(self.timeout, whole)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {:?}", self.timeout)))
            .map_err(|problem| PeerError::new(url, problem))
    }

    async fn attempt(
        &self,
        url: &str,
        method: Method,
        path: Option<&'static str>,
        body: Bytes,
    ) -> Result<(HeaderMap, Bytes), String> {
        let target = Target::parse(url)?;
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = match path {
            Some(path) => Uri::from_static(path),
            None => target.path.clone(),
        };
        let headers = request.headers_mut();
        headers.insert(header::HOST, target.authority.clone());
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if let Some(value) = &self.authorization {
            headers.insert(header::AUTHORIZATION, value.clone());
        }
        let io = self.connect(&target).await?;
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD_BYTES)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| with_causes(&error))?;
        // It ends with its sender. What is wrong with it is told by the answer that does not come.
        tokio::spawn(async move { drop(connection.await) });
        receive(&mut sender, request).await
    }

    async fn connect(&self, target: &Target) -> Result<Box<dyn Io>, String> {
        let stream = TcpStream::connect((target.host.as_str(), target.port))
            .await
            .map_err(|error| error.to_string())?;
        stream
            .set_nodelay(true)
            .map_err(|error| error.to_string())?;
        if target.encrypted {
            self.tls.connect(&target.host, stream).await
        } else {
            Ok(Box::new(stream))
        }
    }
}

#[async_trait]
impl Peers for HttpPeers {
    async fn ask(&self, api_url: &str) -> Result<PeerStatus, PeerError> {
        let (_, body) = self
            .setup()
            .exchange(api_url, Method::GET, None, Bytes::new())
            .await?;
        answer::read(&body).map_err(|problem| PeerError::new(api_url, problem))
    }

    async fn ask_consent(
        &self,
        api_url: &str,
        request: &ConsentRequest,
    ) -> Result<Option<Lsn>, PeerError> {
        let mut map = Map::new();
        if let Some(scope) = &request.scope {
            map.insert("scope".to_owned(), scope.as_str().into());
        }
        map.insert("name".to_owned(), request.name.as_str().into());
        map.insert("conn_url".to_owned(), request.conn_url.clone().into());
        map.insert("api_url".to_owned(), request.api_url.clone().into());
        let slots = request
            .slots
            .iter()
            .map(|(slot, lsn)| (slot.clone(), lsn.0.into()))
            .collect();
        map.insert("slots".to_owned(), Value::Object(slots));
        let body = Bytes::from(Value::Object(map).to_string());
        let (headers, answer) = self
            .setup()
            .exchange(api_url, Method::POST, Some("/failsafe"), body)
            .await?;
        if answer != ACCEPTED {
            return Err(PeerError::new(
                api_url,
                format!("answered {}", excerpt(&answer)),
            ));
        }
        let lsn = headers
            .get(LSN_HEADER)
            .and_then(|value| value.to_str().ok());
        Ok(lsn.and_then(|text| text.trim().parse().ok()).map(Lsn))
    }
}

/// Where a member's API is.
struct Target {
    encrypted: bool,
    host: String,
    port: u16,
    authority: HeaderValue,
    path: Uri,
}

impl Target {
    fn parse(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|error| format!("is no URL: {error}"))?;
        let encrypted = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            Some(_) | None => return Err("is not an http or https URL".to_owned()),
        };
        let authority = uri.authority().ok_or("has no host")?;
        if authority.as_str().contains('@') {
            return Err("has a user in it, which is not supported".to_owned());
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            encrypted,
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority
                .port_u16()
                .unwrap_or(if encrypted { 443 } else { 80 }),
            authority: HeaderValue::try_from(authority.as_str()).map_err(|e| e.to_string())?,
            path: path
                .parse()
                .map_err(|error| format!("is no URL: {error}"))?,
        })
    }
}

/// Sends the request and reads the answer, all of it, if it is one of 200.
async fn receive(
    sender: &mut http1::SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Result<(HeaderMap, Bytes), String> {
    sender.ready().await.map_err(|error| with_causes(&error))?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| with_causes(&error))?;
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_BODY_BYTES)
        .collect()
        .await
        .map_err(|error| with_causes(&*error))?
        .to_bytes();
    match head.status {
        StatusCode::OK => Ok((head.headers, body)),
        status => Err(format!("answered {status}: {}", excerpt(&body))),
    }
}

/// Returns the beginning of an answer, for a message.
fn excerpt(body: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(body).chars().take(80).collect();
    format!("{text:?}")
}

impl fmt::Debug for HttpPeers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpPeers")
            .field("timeout", &self.setup().timeout)
            .finish_non_exhaustive()
    }
}

const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Ten times the status of a primary with a hundred standbys.
const MAX_BODY_BYTES: usize = 256 * 1024;
