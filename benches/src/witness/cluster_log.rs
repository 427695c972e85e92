//! The logs of a whole cluster.

use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::Result;

use super::{WalSaver, save_wal};
use crate::cluster::Cluster;

/// Copies of every node's WAL, taken while faults are done to the cluster.
///
/// Segments of 1 MiB, which initdb makes if told `wal-segsize`, keep that cheap.
#[derive(Debug)]
pub struct ClusterLog {
    copies: PathBuf,
    started: SystemTime,
    savers: Vec<WalSaver>,
}

impl ClusterLog {
    /// Starts copying into a new directory of the cluster's own, in which a node need not have any
    /// data yet.
    pub fn start(cluster: &Cluster, name: &str) -> Self {
        let copies = cluster.dir().join(name);
        let started = SystemTime::now();
        let live = copies.join("live");
        let save = |node: &crate::Node| WalSaver::start(&node.data_dir(), live.join(node.name()));
        Self {
            savers: cluster.nodes().iter().map(save).collect(),
            copies,
            started,
        }
    }

    /// Takes what the nodes have now as well, stops, and returns the directories with the copies,
    /// for [`commits`](super::commits).
    ///
    /// # Errors
    ///
    /// Fails where a node has no WAL, or the copies cannot be written.
    pub fn finish(self, cluster: &Cluster) -> Result<Vec<PathBuf>> {
        let mut directories = Vec::new();
        for saver in self.savers {
            directories.extend(saver.finish()?);
        }
        for node in cluster.nodes() {
            let into = self.copies.join(node.name());
            save_wal(&node.data_dir().join("pg_wal"), &into, self.started)?;
            directories.push(into);
        }
        Ok(directories)
    }
}
