//! All clusters of an etcd: a table, JSON, a page, and a configuration of HAProxy.

mod options;
mod page;
mod publish;
mod serve;
mod table;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use spilo_dcs::discovery::{ClusterOverview, Discovery};
use spilo_dcs::etcd::{EtcdDirectory, EtcdSrv};
use spilo_dcs::{ClientTls, EtcdOptions};
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
    let (tell, told) = watch::channel((Instant::now(), first));
    let server = serve::start(listen, told.clone(), arguments.haproxy()).await?;
    let directory = discovery.directory();
    let publish = async {
        match &arguments.publish {
            Some(root) => publish::run(directory.as_ref(), root, told).await,
            None => std::future::pending().await,
        }
    };
    let follow = async {
        loop {
            let all = discovery.next().await?;
            if tell.send((Instant::now(), all)).is_err() {
                return anyhow::Ok(());
            }
        }
    };
    tokio::select! {
        result = server => result.context("the HTTP server ended"),
        result = follow => result,
        () = publish => Ok(()),
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

fn etcd(arguments: &Arguments) -> Result<EtcdOptions> {
    // A directory has no cluster of its own; the options have a place for one all the same.
    let any = spilo_core::Scope::new("any")?;
    let named = arguments.etcd.iter().filter(|_| arguments.srv.is_none());
    let mut options = EtcdOptions::new(any, named.cloned());
    options.srv = arguments.srv.as_ref().map(EtcdSrv::new);
    options.namespace.clone_from(&arguments.namespace);
    options.tls = arguments.ca.as_ref().map(ClientTls::new);
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
