//! The command line.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Parser;

/// Shows a PostgreSQL cluster that fails over by itself.
///
/// Starts the nodes on free ports of the loopback interface, writes a row every 10 ms to whichever
/// node is the primary, kills that node, shows who takes over, why and how long it took, brings
/// the old node back, and counts the acknowledged rows that survived. Everything lives in a
/// temporary directory; Ctrl-C ends it at any moment and leaves nothing behind.
#[derive(Debug, Parser)]
#[command(name = "quickstart", version, after_help = AFTER)]
pub(crate) struct Arguments {
    /// Keep the cluster's state in a real etcd, not in the embedded store
    #[arg(long)]
    pub(crate) etcd: bool,

    /// Archive log and a base backup to a store of the protocol of S3 in this process, make replicas
    /// from it or as copies, whichever the rule says, and recover to a named moment
    #[arg(long, conflicts_with = "etcd")]
    pub(crate) backup: bool,

    /// Leave the cluster running in the end, and print how to connect
    #[arg(long)]
    pub(crate) hold: bool,

    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=7))]
    pub(crate) nodes: u8,

    /// How many seconds the lease of a primary lasts; a dead one is replaced when it ends
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(3..=300))]
    pub(crate) ttl: u32,

    /// How many seconds to write before the kill, and again when the old node is back
    #[arg(long, value_name = "SECONDS", default_value_t = 4)]
    pub(crate) seconds: u32,

    /// The directory of PostgreSQL's programs [default: $SPILO_PG15_BIN, else the newest in
    /// /usr/lib/postgresql]
    #[arg(long, value_name = "DIR")]
    pub(crate) pg_bin: Option<PathBuf>,

    /// Write what the agents log to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
}

impl Arguments {
    /// Returns the directory of PostgreSQL's programs.
    pub(crate) fn bin_dir(&self) -> Result<PathBuf> {
        let given = self.pg_bin.clone().or_else(|| {
            std::env::var_os("SPILO_PG15_BIN")
                .filter(|dir| !dir.is_empty())
                .map(PathBuf::from)
        });
        if let Some(dir) = given {
            if dir.join("postgres").is_file() {
                return Ok(dir);
            }
            bail!("there is no PostgreSQL in {}", dir.display());
        }
        newest(Path::new(DEBIAN)).ok_or_else(|| {
            anyhow::anyhow!(
                "found no PostgreSQL in {DEBIAN}: `cargo xtask demo` installs one, and --pg-bin \
                 names another"
            )
        })
    }
}

fn newest(root: &Path) -> Option<PathBuf> {
    let versions = std::fs::read_dir(root).ok()?.flatten();
    versions
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|version| (13..=18).contains(version))
        .map(|version| (version, root.join(version.to_string()).join("bin")))
        .filter(|(_, bin)| bin.join("postgres").is_file())
        .max()
        .map(|(_, bin)| bin)
}

const DEBIAN: &str = "/usr/lib/postgresql";

const AFTER: &str = "\
Exit status:
  0    the cluster failed over, and what became of every acknowledged row is told
  1    something did not work: the last line says what
  130  interrupted";
