//! The project's own commands. `cargo xtask --help` lists them.
//!
//! Kept to the standard library and `anyhow`, so that it compiles in seconds on a machine on which
//! nothing else has been built yet: it is what installs the rest.

mod arguments;
mod check;
mod mutants;
mod programs;
mod setup;
mod shell;
mod terminal;
mod tools;

use std::process::ExitCode;

use anyhow::Result;

use crate::arguments::{Task, help};
use crate::setup::Extent;

fn main() -> ExitCode {
    let task = match arguments::parse(std::env::args().skip(1)) {
        Ok(task) => task,
        Err(mistake) => {
            terminal::warn(&format!("error: {mistake}"));
            terminal::warn("try `cargo xtask --help`");
            return ExitCode::from(2);
        }
    };
    perform(task).unwrap_or_else(|failure| {
        terminal::warn(&format!("error: {failure:#}"));
        ExitCode::FAILURE
    })
}

fn perform(task: Task) -> Result<ExitCode> {
    match task {
        Task::Help { about } => terminal::say(help(about.as_deref())),
        Task::Setup { full } => {
            setup::setup(if full { Extent::Full } else { Extent::Demo })?;
        }
        Task::Demo { arguments } => programs::demo(&setup::setup(Extent::Demo)?, &arguments)?,
        // It has its own way to end, because its last line is read by machines.
        Task::Test { filter } if filter.is_empty() => return Ok(check::all()),
        Task::Test { filter } => check::filtered(&setup::setup(Extent::Full)?, &filter)?,
        Task::Chaos { arguments } => {
            programs::harness(&setup::setup(Extent::Full)?, "chaos", &arguments)?;
        }
        Task::Mutants => mutants::check()?,
        Task::Sim { arguments } => programs::simulate(&arguments)?,
        Task::Bench { name, arguments } if name == "sim" => {
            let mut all = vec!["--failover".to_owned()];
            all.extend(arguments);
            programs::simulate(&all)?;
        }
        Task::Bench { name, arguments } if name == "backup" => {
            programs::backup(&setup::setup(Extent::Full)?, &arguments)?;
        }
        Task::Bench { name, arguments } => {
            programs::harness(&setup::setup(Extent::Full)?, &name, &arguments)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
