//! A daemon without backups refuses to be configured with any.

use anyhow::{Result, bail};
use spilo_core::agent::AgentHandle;
use spilo_core::local::{self, Backup};
use spilo_pg::{Backups, LocalOptions, Recovery};
use tokio::task::JoinSet;

pub(crate) fn check(_: &Backup) -> Result<()> {
    bail!("backup: {LACKS}")
}

pub(crate) fn backups(_: &Backup, _: &LocalOptions) -> Result<Backups> {
    bail!("backup: {LACKS}")
}

pub(crate) fn recovery(_: &local::Recovery, _: &LocalOptions) -> Result<Recovery> {
    bail!("bootstrap.backup: {LACKS}")
}

pub(crate) fn beside(
    section: Option<&Backup>,
    _: LocalOptions,
    _: &AgentHandle,
) -> Result<JoinSet<()>> {
    section.map_or(Ok(()), check)?;
    Ok(JoinSet::new())
}

const LACKS: &str = "this spilo-agent was built without the feature `backup`";
