//! Which request goes where.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::{HeaderName, HeaderValue, Method, StatusCode, header, request};
use serde_json::Value;

use crate::access::Access;
use crate::node::Node;
use crate::query::Query;
use crate::reply::Refusal;
use crate::report::Report;
use crate::view::View;
use crate::{body, failsafe, health, members, metrics, reply, settings, switchover};

/// The HTTP interface of a node.
#[derive(Clone, Debug)]
pub struct Api(Arc<Inner>);

/// How the interface behaves.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ApiOptions {
    /// Who may use the endpoints that change something.
    pub access: Access,
    /// The `Server` header; `None` sends none.
    pub server: Option<String>,
    /// Further headers of every answer: name and value.
    pub headers: Vec<(String, String)>,
}

/// A header that cannot be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("header {name:?}: its name or value has characters that a header may not have")]
pub struct BadHeader {
    name: String,
}

impl Api {
    /// Creates the interface of `node`.
    ///
    /// # Errors
    /// A header in the options that cannot be one.
    pub fn new(node: Arc<dyn Node>, options: ApiOptions) -> Result<Self, BadHeader> {
        let options = RwLock::new(Arc::new(Prepared::new(options)?));
        Ok(Self(Arc::new(Inner {
            node,
            options,
            view: View::new(),
        })))
    }

    /// Replaces the options, for the requests that come from now on.
    ///
    /// # Errors
    /// A header in the options that cannot be one; the old options then stay.
    pub fn reconfigure(&self, options: ApiOptions) -> Result<(), BadHeader> {
        let options = Arc::new(Prepared::new(options)?);
        *self
            .0
            .options
            .write()
            .unwrap_or_else(PoisonError::into_inner) = options;
        Ok(())
    }

    /// Returns the router. It takes every path, because a path that is unknown is a health check
    /// that fails; an embedder with paths of its own nests or merges it last.
    pub fn router(&self) -> Router {
        let inner = self.0.clone();
        Router::new().fallback(move |request: Request| {
            let inner = inner.clone();
            async move { inner.answer(request).await }
        })
    }
}

impl ApiOptions {
    /// Checks what [`Api::new`] checks, before there is a node.
    ///
    /// # Errors
    /// A header that cannot be one.
    pub fn check(&self) -> Result<(), BadHeader> {
        Prepared::new(self.clone()).map(drop)
    }
}

impl Default for ApiOptions {
    /// Open to everybody, as Patroni is, and with spilo's name as the server.
    fn default() -> Self {
        let server = Some(concat!("spilo/", env!("CARGO_PKG_VERSION")).to_owned());
        Self {
            access: Access::default(),
            server,
            headers: Vec::new(),
        }
    }
}

struct Inner {
    node: Arc<dyn Node>,
    options: RwLock<Arc<Prepared>>,
    view: View,
}

struct Prepared {
    access: Access,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Prepared {
    fn new(options: ApiOptions) -> Result<Self, BadHeader> {
        let server = options
            .server
            .map(|value| (header::SERVER.to_string(), value));
        let mut headers = Vec::new();
        for (name, value) in options.headers.into_iter().chain(server) {
            match (HeaderName::try_from(&name), HeaderValue::try_from(value)) {
                (Ok(name), Ok(value)) => headers.push((name, value)),
                (Err(_), _) | (_, Err(_)) => return Err(BadHeader { name }),
            }
        }
        Ok(Self {
            access: options.access,
            headers,
        })
    }
}

impl Inner {
    async fn answer(&self, request: Request) -> Response {
        let options = self
            .options
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let (parts, body) = request.into_parts();
        let looks = [Method::GET, Method::HEAD, Method::OPTIONS].contains(&parts.method);
        let answer = if looks {
            self.show(&parts).await
        } else {
            self.order(&options.access, &parts, body).await
        };
        let mut response = answer.unwrap_or_else(Response::from);
        if looks && parts.method != Method::GET {
            // Such a check looks at the status line only; a body would be a surprise.
            response = reply::bare(response.status());
        }
        for (name, value) in &options.headers {
            response.headers_mut().insert(name.clone(), value.clone());
        }
        response
    }

    /// Answers a request that changes nothing.
    async fn show(&self, parts: &request::Parts) -> Result<Response, Refusal> {
        let node = &*self.node;
        let query = Query::parse(parts.uri.query());
        let report = Report::of(node);
        let ok = |value: &Value| reply::document(StatusCode::OK, value);
        let none = |problem: &str| Refusal::no_document(StatusCode::BAD_GATEWAY, problem);
        Ok(match endpoint(parts) {
            "patroni" => ok(&report.to_json(node)),
            "metrics" => metrics::metrics(node, &report),
            "liveness" => reply::bare(reply::verdict(health::is_alive(&report))),
            "readiness" => reply::bare(reply::verdict(health::is_ready(&query, &report))),
            "cluster" => {
                let shown = self.view.show(node).await?;
                shown.mark(ok(&members::cluster(&shown.cluster, &report.status.scope)))
            }
            "history" => {
                let shown = self.view.show(node).await?;
                let entries = shown.cluster.history.as_deref().unwrap_or_default();
                shown.mark(ok(&members::history(entries)))
            }
            "config" => {
                let shown = self.view.show(node).await?;
                let document = shown.cluster.config.as_ref();
                let document = document.ok_or_else(|| none("the store has no configuration"))?;
                shown.mark(ok(&Value::Object(document.config.raw.clone())))
            }
            "failsafe" => {
                let members = report
                    .status
                    .cluster
                    .as_ref()
                    .and_then(|c| c.failsafe.as_ref());
                let members = members.ok_or_else(|| none("the store has no failsafe members"))?;
                ok(&members
                    .iter()
                    .map(|(name, url)| (name.as_str(), url.as_str()))
                    .collect())
            }
            _ => {
                let passes = health::passes(parts.uri.path(), &query, &report);
                reply::document(reply::verdict(passes), &report.to_json(node))
            }
        })
    }

    /// Answers a request that changes something, if whoever sent it may.
    async fn order(
        &self,
        access: &Access,
        parts: &request::Parts,
        body: Body,
    ) -> Result<Response, Refusal> {
        let node = &*self.node;
        let endpoint = endpoint(parts);
        let method = &parts.method;
        let known = [
            (Method::POST, "switchover"),
            (Method::POST, "failsafe"),
            (Method::POST, "detach"),
            (Method::PATCH, "config"),
            (Method::PUT, "config"),
        ];
        if !known.iter().any(|(m, e)| m == method && *e == endpoint) {
            return Err(Refusal::unsupported());
        }
        if endpoint == "failsafe" {
            // A member that lost its address must still be able to ask; see the contract.
            access.check_identity(parts)?;
        } else {
            access
                .check(parts, node.status().cluster.as_deref())
                .await?;
        }
        if endpoint == "detach" {
            body::nothing(&parts.headers, body).await?;
            if !node.detach() {
                let problem = "the agent is gone, or too busy to take the order; ask again";
                return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, problem));
            }
            return Ok(reply::text(StatusCode::ACCEPTED, "detach requested"));
        }
        let map = body::object(&parts.headers, body).await?;
        match endpoint {
            "switchover" => switchover::answer(node, &self.view, &map).await,
            "failsafe" => failsafe::answer(node, &map).await,
            _ if *method == Method::PUT => settings::put(node, &self.view, map).await,
            _ => settings::patch(node, &self.view, &map).await,
        }
    }
}

/// Returns the first segment of the path, which alone chooses the endpoint.
fn endpoint(parts: &request::Parts) -> &str {
    parts
        .uri
        .path()
        .trim_start_matches('/')
        .split('/')
        .next()
        .unwrap_or_default()
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner")
            .field("view", &self.view)
            .finish_non_exhaustive()
    }
}
