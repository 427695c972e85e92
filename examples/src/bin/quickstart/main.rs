//! Three PostgreSQL nodes in a terminal: elected, cloned, killed, failed over and brought back,
//! with a client that writes all the time and counts what survives.
//!
//! The agents run in this process, on the embedded store or on a real etcd; each has a guard
//! process, a PostgreSQL server and an HTTP API of its own. All of it lives in one temporary
//! directory and ends with the program.

mod archive;
mod backups;
mod cli;
mod http;
mod node;
mod place;
mod plot;
mod ports;
mod reap;
mod s3;
mod screen;
mod stage;
mod store;
mod told;
mod writer;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};

use cli::Arguments;
use place::Place;
use stage::Stage;

fn main() -> ExitCode {
    spilo_pg::run_if_guard();
    reap::run_if_reaper();
    let arguments = Arguments::parse();
    match begin(&arguments) {
        Ok(Ending::Done) => ExitCode::SUCCESS,
        // What a shell reports for a program that Ctrl-C has ended.
        Ok(Ending::Interrupted) => ExitCode::from(130),
        Err(error) => {
            eprintln!("quickstart: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// How it came to an end.
enum Ending {
    Done,
    Interrupted,
}

fn begin(arguments: &Arguments) -> Result<Ending> {
    let told = told::start(arguments.log.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start threads")?;
    // Outlives the runtime: what runs in the directory ends after the agents, and before us.
    let place = Place::new()?;
    let ending = runtime.block_on(async {
        // Before anything is started: the default of these is to end the process.
        let mut interrupted = Interrupts::new()?;
        let mut stage = Stage::new(arguments, &place, told)?;
        let result = tokio::select! {
            () = interrupted.wait() => None,
            result = play(&mut stage) => Some(result),
        };
        let ending = match result {
            Some(Err(error)) => Err(error),
            Some(Ok(())) => Ok(Ending::Done),
            None if stage.is_held() => Ok(Ending::Done),
            None => Ok(Ending::Interrupted),
        };
        stage.end().await;
        ending
    });
    // What blocks still, such as a look-up of a name, is not waited for.
    runtime.shutdown_timeout(Duration::from_millis(100));
    place.clear();
    ending
}

async fn play(stage: &mut Stage<'_>) -> Result<()> {
    if stage.arguments.backup {
        Box::pin(backups::play(stage)).await
    } else {
        Box::pin(plot::play(stage)).await
    }
}

struct Interrupts([tokio::signal::unix::Signal; 3]);

impl Interrupts {
    fn new() -> Result<Self> {
        let take = |kind| signal(kind).context("cannot handle signals");
        Ok(Self([
            take(SignalKind::interrupt())?,
            take(SignalKind::terminate())?,
            take(SignalKind::hangup())?,
        ]))
    }

    /// Returns when one has come.
    ///
    /// # Cancellation
    /// Safe to drop.
    async fn wait(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
