//! What is served over HTTP.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{Html, IntoResponse as _, Json, Response};
use axum::routing::get;
use spilo_dcs::discovery::ClusterOverview;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::options::Haproxy;
use super::page;

/// The clusters as they are told of, and when.
pub(crate) type Clusters = watch::Receiver<(Instant, Arc<[ClusterOverview]>)>;

#[derive(Clone)]
struct Shown {
    clusters: Clusters,
    haproxy: Haproxy,
}

/// Listens, and returns what serves from then on.
pub(crate) async fn start(
    listen: SocketAddr,
    clusters: Clusters,
    haproxy: Haproxy,
) -> Result<impl Future<Output = Result<()>>> {
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen}"))?;
    let router = Router::new()
        .route("/", get(all_as_page))
        .route("/clusters", get(all))
        .route("/clusters/{scope}", get(one))
        .route("/haproxy", get(haproxy_of_all))
        .route("/haproxy/{scope}", get(haproxy_of_one))
        .with_state(Shown { clusters, haproxy });
    tracing::info!("serving on http://{}", listener.local_addr()?);
    Ok(async move { Ok(axum::serve(listener, router).await?) })
}

impl Shown {
    fn now(&self) -> Arc<[ClusterOverview]> {
        let told = self.clusters.borrow();
        let age = told.0.elapsed();
        told.1.iter().map(|cluster| cluster.aged(age)).collect()
    }

    fn one(&self, scope: &str) -> Option<ClusterOverview> {
        let clusters = self.now();
        clusters
            .iter()
            .find(|cluster| cluster.scope == scope)
            .cloned()
    }

    fn configuration(&self, only: Option<&str>) -> Response {
        match self.haproxy.render(&self.now(), only) {
            Ok(text) => ([(CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response(),
            Err(problem) => (StatusCode::INSUFFICIENT_STORAGE, problem).into_response(),
        }
    }
}

async fn all_as_page(State(shown): State<Shown>) -> Html<String> {
    Html(page::render(&shown.now()))
}

async fn all(State(shown): State<Shown>) -> Response {
    Json(shown.now().to_vec()).into_response()
}

async fn one(State(shown): State<Shown>, Path(scope): Path<String>) -> Response {
    match shown.one(&scope) {
        Some(cluster) => Json(cluster).into_response(),
        None => unknown(&scope),
    }
}

async fn haproxy_of_all(State(shown): State<Shown>) -> Response {
    shown.configuration(None)
}

async fn haproxy_of_one(State(shown): State<Shown>, Path(scope): Path<String>) -> Response {
    match shown.one(&scope) {
        Some(_) => shown.configuration(Some(&scope)),
        None => unknown(&scope),
    }
}

fn unknown(scope: &str) -> Response {
    let problem = format!("there is no cluster {scope}\n");
    (StatusCode::NOT_FOUND, problem).into_response()
}
