//! Requests to Consul's HTTP API.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, StatusCode, Url};
use spilo_core::DcsError;
use spilo_core::dcs::DcsErrorKind;
use tokio::time::{Instant, timeout_at};

use super::failure::{Failure, Verdict};
use super::{ConsulOptions, NAME};

/// A way to one Consul agent.
///
/// Requests that are under way at the same time have connections of their own; one that was given
/// up takes its connection along, since to a host that vanished it would look alive for minutes.
pub(super) struct Http {
    options: ConsulOptions,
    url: Url,
    client: Mutex<Client>,
}

/// An answer that is no error.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// The state of the store that it shows, where it says so.
    pub(super) index: Option<u64>,
    pub(super) body: Bytes,
}

/// One request.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) method: Method,
    /// The path below `/v1/`, in parts that may hold anything.
    pub(super) path: Vec<&'a str>,
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) body: Option<Vec<u8>>,
    /// Answers of error status that the caller understands.
    pub(super) expects: &'static [StatusCode],
}

impl Http {
    /// Creates a way without using it.
    ///
    /// # Errors
    /// `Refused` when the options cannot be used.
    pub(super) fn new(options: ConsulOptions) -> Result<Self, DcsError> {
        let refused =
            |problem: String| DcsError::new(NAME, DcsErrorKind::Refused, "be set up", problem);
        let url = Url::parse(&options.url)
            .map_err(|error| refused(format!("{} is no URL: {error}", options.url)))?;
        let is_tls = match url.scheme() {
            "http" => false,
            "https" => true,
            other => {
                return Err(refused(format!(
                    "{} has the scheme {other}: http and https are known",
                    options.url
                )));
            }
        };
        if is_tls && !has_tls(&options) {
            return Err(refused(format!(
                "{} needs TLS, and no certificate of an authority is given",
                options.url
            )));
        }
        let client = Mutex::new(client(&options).map_err(refused)?);
        Ok(Self {
            options,
            url,
            client,
        })
    }

    pub(super) fn options(&self) -> &ConsulOptions {
        &self.options
    }

    /// Returns when a call that begins now has to be over, with all its requests.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.options.request_timeout
    }

    /// Sends a request and returns what was answered until then.
    ///
    /// # Cancellation
    /// Safe; what was sent may be done.
    pub(super) async fn send(
        &self,
        request: Request<'_>,
        until: Instant,
    ) -> Result<Answer, Failure> {
        if until <= Instant::now() {
            return Err(Failure::new(Verdict::NotDone, "there was no time left"));
        }
        match timeout_at(until, self.exchange(request)).await {
            Ok(result) => {
                if result
                    .as_ref()
                    .is_err_and(|failure| failure.source.is_some())
                {
                    self.begin_anew();
                }
                result
            }
            Err(_) => Err(Failure::new(
                Verdict::Unknown,
                format!("{}: no answer in time", self.url),
            )),
        }
    }

    async fn exchange(&self, request: Request<'_>) -> Result<Answer, Failure> {
        let mut url = self.url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push("v1").extend(&request.path);
        }
        let client = self
            .client
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        {
            let mut query = url.query_pairs_mut();
            query.extend_pairs(&request.query);
            if let Some(datacenter) = &self.options.datacenter {
                query.append_pair("dc", datacenter);
            }
        }
        let mut builder = client.request(request.method, url);
        if let Some(token) = &self.options.token {
            builder = builder.header("X-Consul-Token", token);
        }
        if let Some(body) = request.body {
            builder = builder.header(CONTENT_TYPE, "application/json").body(body);
        }
        let mut response = builder.send().await.map_err(|error| {
            let mut failure = Failure::of_transport(error);
            failure.problem = format!("{}: {}", self.url, failure.problem);
            failure
        })?;
        let (status, index) = (response.status(), index(response.headers()));
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(Failure::of_transport)? {
            if body.len() + chunk.len() > LARGEST_ANSWER {
                let problem = format!("the answer is larger than {LARGEST_ANSWER} bytes");
                return Err(Failure::new(Verdict::Unknown, problem));
            }
            body.extend_from_slice(&chunk);
        }
        if !status.is_success() && !request.expects.contains(&status) {
            return Err(Failure::of_status(status, &body));
        }
        Ok(Answer {
            status,
            index,
            body: body.into(),
        })
    }

    /// Reads the certificates again: they may have been renewed. One of our own that the server does
    /// not take any more fails only after the handshake, as any broken connection does.
    fn begin_anew(&self) {
        if !has_tls(&self.options) {
            return;
        }
        match client(&self.options) {
            Ok(client) => {
                *self.client.lock().unwrap_or_else(PoisonError::into_inner) = client;
            }
            Err(problem) => tracing::debug!(problem, "the certificates stay as they were"),
        }
    }
}

impl<'a> Request<'a> {
    pub(super) fn get(path: impl IntoIterator<Item = &'a str>) -> Self {
        Self::new(Method::GET, path)
    }

    pub(super) fn put(path: impl IntoIterator<Item = &'a str>) -> Self {
        Self::new(Method::PUT, path)
    }

    fn new(method: Method, path: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            method,
            path: path.into_iter().collect(),
            query: Vec::new(),
            body: None,
            expects: &[],
        }
    }

    #[must_use]
    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    #[must_use]
    pub(super) fn with_body(mut self, body: Vec<u8>) -> Self {
        self.body = Some(body);
        self
    }

    #[must_use]
    pub(super) fn expecting(mut self, statuses: &'static [StatusCode]) -> Self {
        self.expects = statuses;
        self
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.options.fmt(f)
    }
}

fn client(options: &ConsulOptions) -> Result<Client, String> {
    let builder = Client::builder()
        .connect_timeout(options.request_timeout)
        .redirect(Policy::none())
        // Neither a proxy that the environment names for other things, nor what another crate has
        // switched on in reqwest, stands between us and the store: a renewal that waits for a
        // snapshot on a common connection would be late.
        .no_proxy()
        .http1_only();
    with_tls(builder, options)?
        .build()
        .map_err(|error| error.to_string())
}

#[cfg(feature = "tls")]
fn with_tls(
    builder: reqwest::ClientBuilder,
    options: &ConsulOptions,
) -> Result<reqwest::ClientBuilder, String> {
    match &options.tls {
        Some(tls) => tls.over_http(builder),
        None => Ok(builder),
    }
}

#[cfg(not(feature = "tls"))]
#[expect(clippy::unnecessary_wraps, reason = "as with TLS, which can fail")]
fn with_tls(
    builder: reqwest::ClientBuilder,
    _options: &ConsulOptions,
) -> Result<reqwest::ClientBuilder, String> {
    Ok(builder)
}

fn has_tls(options: &ConsulOptions) -> bool {
    #[cfg(feature = "tls")]
    return options.tls.is_some();
    #[cfg(not(feature = "tls"))]
    {
        let _ = options;
        false
    }
}

fn index(headers: &HeaderMap) -> Option<u64> {
    headers.get("X-Consul-Index")?.to_str().ok()?.parse().ok()
}

/// Every document may be as large as Consul takes (512 KiB), and there may be many members.
const LARGEST_ANSWER: usize = 64 << 20;
