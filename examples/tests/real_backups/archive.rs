//! Archives in a directory, and clusters that use them.

use std::path::{Path, PathBuf};

use serde_json::json;
use spilo_benches::node::Node;
use spilo_benches::{Cluster, ClusterBuilder};
use tempfile::TempDir;

use crate::LIMIT;

/// An archive in a directory of the servers' user.
pub(crate) struct Archive {
    pub(crate) dir: TempDir,
}

impl Archive {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let archive = Self { dir };
        std::fs::create_dir(archive.path()).unwrap();
        for path in [archive.dir.path(), &archive.path()] {
            spilo_benches::give_to_server_user(path).unwrap();
        }
        archive
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("archive")
    }

    pub(crate) fn place(&self) -> String {
        self.path().display().to_string()
    }

    /// Makes a base backup, and returns its name.
    pub(crate) async fn back_up(&self, node: &Node) -> String {
        let place = format!("--archive={}", self.place());
        back_up(node, &[], &[&place]).await
    }

    /// Returns the names of the backups that are whole.
    pub(crate) fn backups(&self) -> Vec<String> {
        let listed = std::fs::read_dir(self.path().join("basebackups_005"));
        let names = listed.into_iter().flatten().filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            Some(name.strip_suffix("_backup_stop_sentinel.json")?.to_owned())
        });
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// Damages a part of a backup.
    pub(crate) fn spoil(&self, name: &str) {
        let parts = self.path().join("basebackups_005").join(name);
        let part = first_file(&parts.join("tar_partitions"));
        let mut bytes = std::fs::read(&part).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x55;
        std::fs::write(&part, bytes).unwrap();
    }
}

/// Makes a base backup of a node, and returns its name.
pub(crate) async fn back_up(node: &Node, variables: &[(&str, String)], options: &[&str]) -> String {
    let data_dir = node.data_dir().display().to_string();
    let conninfo = format!(
        "--conninfo=host={} port={} user=postgres dbname=postgres",
        node.socket_dir().display(),
        node.pg_address().port()
    );
    let arguments = [options, &["backup-push", &data_dir, &conninfo]].concat();
    let pushed = node.spilo_backup_with(variables, &arguments, LIMIT).await;
    pushed.unwrap().trim().to_owned()
}

fn first_file(directory: &Path) -> PathBuf {
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.remove(0)
}

/// Files of the log are small, so that a backup of little has little log since it.
pub(crate) fn builder(archive: &Archive) -> ClusterBuilder {
    Cluster::builder()
        .ttl(3)
        .initdb(json!({"wal-segsize": 1}))
        .overlay(&json!({"backup": {
            "archive": archive.place(),
            "threshold_backup_size_percentage": 50,
        }}))
}
