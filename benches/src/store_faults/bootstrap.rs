//! The node that bootstraps a new cluster dies, and the cluster comes to be all the same.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;
use tokio::time::sleep;

use super::StoreRun;
use crate::cluster::Cluster;
use crate::node::Node;

/// Starts three nodes from nothing, kills the bootstrapping one a little later with each run, and
/// starts it again.
pub(super) async fn once(ttl: u64, number: usize) -> Result<StoreRun> {
    let builder = Cluster::builder()
        .ttl(ttl)
        .initdb(json!({ "wal-segsize": "1" }));
    let cluster = builder.without_starting().start().await?;
    cluster.start_agents()?;
    let delay = STEP * u32::try_from(number)?;
    sleep(delay).await;
    let victim = bootstrapper(&cluster)
        .await
        .context("a cluster has nodes")?;
    victim.kill_everything();
    sleep(Duration::from_secs(1)).await;
    victim.start_agent()?;
    let primary = cluster.wait_streaming(2, Duration::from_secs(120)).await;
    primary.with_context(|| format!("killed {} after {delay:?}", victim.name()))?;
    let mut run = StoreRun::default();
    let mut identifiers = BTreeSet::new();
    for node in cluster.nodes() {
        identifiers.extend(
            node.query_texts("SELECT system_identifier FROM pg_control_system()")
                .await?,
        );
    }
    if identifiers.len() != 1 {
        run.violations.push(format!(
            "{} clusters came to be: {identifiers:?}",
            identifiers.len()
        ));
        cluster.keep();
    }
    let mut writable = 0;
    for node in cluster.nodes() {
        writable += usize::from(node.takes_writes().await);
    }
    if writable != 1 {
        run.violations.push(format!("{writable} nodes take writes"));
        cluster.keep();
    }
    Ok(run)
}

/// Returns the node that has most of a data directory: first one with a server, then one with
/// files, then any.
async fn bootstrapper(cluster: &Cluster) -> Option<&Node> {
    if let Some(primary) = cluster.primary().await {
        return Some(primary);
    }
    let nodes = cluster.nodes();
    let with = |has: &dyn Fn(&&Node) -> bool| nodes.iter().find(has);
    with(&|node| node.postmaster_pid().is_some())
        .or_else(|| with(&|node| node.data_dir().exists()))
        .or_else(|| nodes.first())
}

/// What the kill comes later by, each time: twenty runs cover initdb, the first start, and the
/// clones.
const STEP: Duration = Duration::from_millis(250);
