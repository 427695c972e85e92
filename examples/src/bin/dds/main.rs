//! All clusters of an etcd: a table, JSON, a page, and a configuration of HAProxy.

mod options;
mod page;
mod serve;
mod table;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use spilo_dcs::EtcdOptions;
use spilo_dcs::discovery::{ClusterOverview, Discovery};
use spilo_dcs::etcd::{EtcdDirectory, EtcdTls};
use tokio::sync::watch;

use options::{Arguments, Format};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
    match run(&Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dds: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<()> {
    let mut discovery = Discovery::new(EtcdDirectory::new(etcd(arguments)?)?);
    let first = discovery.next().await?;
    let Some(listen) = arguments.serve else {
        return show(arguments, &first);
    };
    if let Some(root) = &arguments.publish {
        publish(&discovery, root, &[], &first).await;
    }
    let (tell, told) = watch::channel(Arc::clone(&first));
    let server = serve::start(listen, told, arguments.haproxy()).await?;
    let follow = async {
        let mut last = first;
        loop {
            let all = discovery.next().await?;
            if let Some(root) = &arguments.publish {
                publish(&discovery, root, &last, &all).await;
            }
            last = Arc::clone(&all);
            if tell.send(all).is_err() {
                return anyhow::Ok(());
            }
        }
    };
    tokio::select! {
        result = server => result.context("the HTTP server ended"),
        result = follow => result,
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

#[expect(clippy::print_stdout, reason = "what was asked for")]
fn show(arguments: &Arguments, clusters: &[ClusterOverview]) -> Result<()> {
    match arguments.format {
        Format::Table => print!("{}", table::render(clusters)),
        Format::Json => println!("{}", serde_json::to_string_pretty(clusters)?),
        Format::Haproxy => {
            let text = arguments.haproxy().render(clusters, None);
            print!("{}", text.map_err(anyhow::Error::msg)?);
        }
    }
    let broken = clusters
        .iter()
        .filter(|cluster| !cluster.problems.is_empty());
    for cluster in broken {
        for problem in &cluster.problems {
            tracing::warn!(scope = cluster.scope, problem, "not readable");
        }
    }
    Ok(())
}

/// Writes what is new into the store, for other tools; a failure is tried again with the next
/// change.
async fn publish(
    discovery: &Discovery,
    root: &str,
    last: &[ClusterOverview],
    all: &[ClusterOverview],
) {
    let directory = discovery.directory();
    let find = |clusters: &[ClusterOverview], scope: &str| {
        let at = clusters.binary_search_by(|cluster| cluster.scope.as_str().cmp(scope));
        at.ok().map(|at| clusters[at].clone())
    };
    for scope in discovery.changed() {
        let now = find(all, scope);
        if let (Some(old), Some(new)) = (find(last, scope), &now)
            && old.is_like(new)
        {
            continue;
        }
        let value = now.map(|cluster| serde_json::to_vec(&cluster).unwrap_or_default().into());
        if let Err(error) = directory.publish(root, scope, value).await {
            tracing::warn!(%error, scope, "it is not published");
        }
    }
}

fn etcd(arguments: &Arguments) -> Result<EtcdOptions> {
    // A directory has no cluster of its own; the options have a place for one all the same.
    let any = spilo_core::Scope::new("any")?;
    let mut options = EtcdOptions::new(any, arguments.etcd.iter().cloned());
    options.namespace.clone_from(&arguments.namespace);
    options.tls = arguments.ca.as_ref().map(EtcdTls::new);
    if let Some(file) = &arguments.user_file {
        let user = std::fs::read_to_string(file);
        let user = user.with_context(|| format!("cannot read {}", file.display()))?;
        let (name, password) = user
            .trim_end()
            .split_once(':')
            .with_context(|| format!("{}: wanted NAME:PASSWORD", file.display()))?;
        options.user = Some((name.to_owned(), password.to_owned()));
    }
    Ok(options)
}
