//! Signals to the servers of tests.

use std::process::{Child, Command};

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

/// Sends a child a signal, as in `kill -STOP`.
pub(crate) fn send(process: &Child, signal: &str) {
    let id = process.id();
    let mut kill = Command::new("kill");
    let sent = kill.arg(signal).arg(id.to_string()).status().unwrap();
    assert!(sent.success());
    if signal == "-STOP" {
        // A thread that runs on another processor goes on for a moment, long enough for an answer.
        // The kernel tells the parent when all of them have stopped.
        let id = i32::try_from(id).ok().and_then(Pid::from_raw).unwrap();
        waitid(WaitId::Pid(id), WaitIdOptions::STOPPED).unwrap();
    }
}
