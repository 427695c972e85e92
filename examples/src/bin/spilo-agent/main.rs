//! The production daemon: one PostgreSQL server of a cluster, configured by Patroni's YAML.
//!
//! It is thin: it reads the configuration, checks that this machine fits it, connects the library
//! to etcd, PostgreSQL and HTTP, and passes signals on.

#[cfg(feature = "backup")]
mod backups;
#[cfg(not(feature = "backup"))]
#[path = "no_backups.rs"]
mod backups;
mod cli;
mod doors;
mod journal;
mod load;
mod logging;
mod notify;
mod preflight;
mod reload;
mod run;
mod stores;
mod wiring;
mod yaml;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use spilo_core::local::Parsed;
use spilo_core::machine::Exit;

use cli::Arguments;
use load::{Faults, Source};

fn main() -> ExitCode {
    spilo_pg::run_if_guard();
    let arguments = Arguments::parse();
    match begin(&arguments) {
        Ok(code) => code,
        Err(faults) => {
            for fault in &faults.0 {
                eprintln!("spilo-agent: {fault}");
            }
            ExitCode::FAILURE
        }
    }
}

fn begin(arguments: &Arguments) -> Result<ExitCode, Faults> {
    let source = Source::new(arguments.config.as_deref()).map_err(fault)?;
    let journal = arguments.journal.as_deref().map(std::path::absolute);
    let journal = journal.transpose().context("--journal").map_err(fault)?;
    // An agent that stood in the data directory could be taken for a process of the server.
    std::env::set_current_dir("/")
        .context("cannot change to the directory /")
        .map_err(fault)?;
    let parsed = source.load()?;
    if arguments.print {
        say(&yaml::write(&parsed.shown).map_err(fault)?);
    }
    if arguments.validate_config {
        return validate(&parsed, !arguments.ignore_listen_port);
    }
    if arguments.print {
        return Ok(ExitCode::SUCCESS);
    }
    start(parsed, source, journal)
}

fn validate(parsed: &Parsed, ports: bool) -> Result<ExitCode, Faults> {
    for warning in &parsed.warnings {
        eprintln!("warning: {warning}");
    }
    let faults = preflight::check(&parsed.local, ports);
    if !faults.is_empty() {
        return Err(Faults(faults));
    }
    say("OK\n");
    Ok(ExitCode::SUCCESS)
}

fn start(parsed: Parsed, source: Source, journal: Option<PathBuf>) -> Result<ExitCode, Faults> {
    let faults = preflight::check(&parsed.local, true);
    if !faults.is_empty() {
        return Err(Faults(faults));
    }
    let (level, _written) = logging::start(&parsed.local.log).map_err(fault)?;
    for warning in &parsed.warnings {
        tracing::warn!("{warning}");
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        scope = %parsed.local.scope,
        name = %parsed.local.name,
        "spilo-agent starts"
    );
    if let Some(warning) = wiring::as_root(&parsed.local).map_err(fault)? {
        tracing::warn!("{warning}");
    }
    match run::run(parsed, source, level, journal) {
        Ok(Exit::Stopped) => tracing::info!("stopped, and PostgreSQL with it"),
        Ok(Exit::Detached) => tracing::info!("detached; PostgreSQL goes on under its guard"),
        Ok(Exit::Fatal(why)) => {
            tracing::error!("{why}");
            return Ok(ExitCode::FAILURE);
        }
        Err(error) => {
            tracing::error!("{error:#}");
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn fault(error: anyhow::Error) -> Faults {
    Faults(vec![format!("{error:#}")])
}

#[expect(
    clippy::print_stdout,
    reason = "what was asked for on the command line"
)]
fn say(text: &str) {
    print!("{text}");
}
