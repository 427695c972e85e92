//! A server process that is started, stopped, frozen and started again.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use tokio::time::sleep;

use crate::net::Place;
use crate::procs;

/// A program with its arguments, which runs at most once at a time; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Service {
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    process: Mutex<Option<Child>>,
}

impl Service {
    pub(crate) fn new(program: PathBuf, arguments: Vec<String>, log: PathBuf) -> Self {
        Self {
            program,
            arguments,
            log,
            process: Mutex::new(None),
        }
    }

    /// Has it run where a place says.
    pub(crate) fn inside(mut self, place: &Place) -> Self {
        if let Some(namespace) = &place.namespace {
            let program = std::mem::replace(&mut self.program, PathBuf::from("ip"));
            let line = ["netns", "exec", &namespace.name].map(str::to_owned);
            let line = line.into_iter().chain([program.display().to_string()]);
            self.arguments.splice(0..0, line);
        }
        self
    }

    /// Adds an argument for the next start.
    pub(crate) fn argument(&mut self, argument: String) {
        self.arguments.push(argument);
    }

    /// Starts it, on whatever it left behind.
    pub(crate) fn spawn(&self) -> Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let child = Command::new(&self.program)
            .args(&self.arguments)
            // Found by the reaper although nothing else of it may name the sandbox.
            .envs(self.log.parent().map(|dir| ("SPILO_HARNESS", dir)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        let old = self
            .process
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(child);
        if let Some(mut old) = old {
            old.kill().ok();
            old.wait().ok();
        }
        Ok(())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(child) = self
            .process
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
        {
            procs::signal(
                i32::try_from(child.id()).expect("process ids are small"),
                signal,
            );
        }
    }

    /// Waits for its end.
    pub(crate) async fn reap(&self) {
        loop {
            let ended = match self
                .process
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .as_mut()
            {
                None => true,
                Some(child) => !matches!(child.try_wait(), Ok(None)),
            };
            if ended {
                return;
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
}
