//! Installing what is missing.

mod beside;
mod packages;
mod probe;
mod python;
mod rust;
mod sources;

use anyhow::{Context as _, Result, bail};

use crate::tools::{self, Tools};

/// How much is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// What the demo needs.
    Demo,
    /// What tests and benches need as well.
    Full,
}

/// Installs what is missing and returns where everything is.
///
/// When nothing is missing it says nothing and only looks at files, so that every command can
/// afford to begin with it.
///
/// # Errors
/// When something cannot be installed, or does not work once it is.
pub(crate) fn setup(extent: Extent) -> Result<Tools> {
    packages::install(extent)?;
    beside::install_postgres_15().context("PostgreSQL 15 could not be installed")?;
    if extent == Extent::Full {
        rust::install()?;
        beside::install_postgres_13().context("PostgreSQL 13 could not be installed")?;
        beside::install_consul().context("Consul could not be installed")?;
        python::install_postgres_16_and_18()
            .context("PostgreSQL 16 and 18 could not be installed")?;
        python::install_patroni().context("Patroni could not be installed")?;
        python::install_wal_e().context("WAL-E could not be installed")?;
        python::install_moto().context("moto could not be installed")?;
    }
    let found = Tools::find();
    let wanted = if extent == Extent::Full {
        tools::ALL
    } else {
        tools::OF_DEMO
    };
    if let Some(name) = wanted.iter().find(|name| !found.has(name)) {
        bail!("all is installed, and yet there is nothing to set {name} to");
    }
    found.write()?;
    Ok(found)
}

/// Returns whether the server programs of a version are there.
fn has_postgres(major: u32) -> bool {
    let bin = tools::postgres_bin(major);
    ["initdb", "pg_ctl", "pg_rewind", "postgres", "psql"]
        .iter()
        .all(|program| crate::shell::is_program(&bin.join(program)))
}
