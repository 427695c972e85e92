//! The guard: the process that ends writes when the agent cannot.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::dcs::LeaseSecret;
use crate::ids::Epoch;
use crate::time::NodeTime;

/// The keeper of the write deadline, outside the agent's process.
///
/// # Contract
/// - PostgreSQL runs under it. When the soft deadline passes it stops the server fast; when the
///   hard deadline passes it kills every process of the server, and does so whether or not the
///   agent is alive.
/// - A deadline ends when no process of the server is left, and in no other way but by a later
///   deadline of the same or a greater epoch.
/// - Every method answers within a second, or fails.
#[async_trait]
pub trait Guard: Send + Sync + fmt::Debug {
    /// Sets or moves the deadline. Once it returned `Ok`, the guard enforces it; the status names
    /// it.
    ///
    /// # Errors
    /// `Refused` when the deadline in force is of a greater epoch or its hard time has passed.
    async fn arm(&self, deadline: Deadline) -> Result<GuardStatus, GuardError>;

    /// Takes the deadline away from a server that is a standby.
    ///
    /// The caller vouches that the server takes no writes. A guard refuses when the data
    /// directory has no `standby.signal`.
    async fn disarm(&self) -> Result<GuardStatus, GuardError>;

    /// Looks at the guard and what it guards.
    async fn status(&self) -> Result<GuardStatus, GuardError>;

    /// Returns when the server's processes changed (its death above all), as a hint.
    async fn changed(&self) -> Result<(), GuardError>;
}

/// Until when the server may take writes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Deadline {
    /// The holding of the lock that permits the writes.
    pub epoch: Epoch,
    /// What the next agent needs to take the lock over from this one.
    pub secret: LeaseSecret,
    /// When the server is stopped fast, so that the standbys still get everything.
    pub soft: NodeTime,
    /// When every process of the server is killed.
    pub hard: NodeTime,
}

/// What a guard says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GuardStatus {
    /// The process id of the postmaster under it, if there is one.
    pub postmaster: Option<u32>,
    /// Whether any process of the server may be alive: false only where the kernel has said that
    /// none is left.
    pub alive: bool,
    /// The deadline in force.
    pub deadline: Option<Deadline>,
    /// How long the slowest fence so far took, from the first kill to the proof: SIGKILL delivered
    /// to every process of the server, and no other one found.
    pub worst_fence: Duration,
    /// How many fences there were.
    pub fences: u64,
    /// Why the guard last fenced: `soft deadline`, `hard deadline`, `asked`, `postmaster died`, or
    /// `guard was told to end`.
    pub last_fence: Option<String>,
    /// Protections that this machine does not permit (locked memory, priority), each with why.
    pub weaknesses: Vec<String>,
}

/// A request to the guard that failed.
#[derive(Debug, thiserror::Error)]
#[error("guard: cannot {action}: {problem}")]
pub struct GuardError {
    action: String,
    problem: String,
    kind: GuardErrorKind,
}

/// What the caller of a failed request may conclude.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GuardErrorKind {
    /// There is no guard any more, and the server under it has been told to end.
    Gone,
    /// The guard did not answer in time: it may hang, and then nothing holds the deadline.
    Silent,
    /// The guard is there and said no.
    Refused,
}

impl GuardStatus {
    /// Returns the status of a guard with nothing under it.
    pub fn idle() -> Self {
        Self::default()
    }
}

impl GuardError {
    /// Creates an error of a guard that was about to `action` (in the infinitive).
    pub fn new(
        kind: GuardErrorKind,
        action: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        Self {
            action: action.into(),
            problem: problem.into(),
            kind,
        }
    }

    /// Returns what the caller may conclude.
    pub fn kind(&self) -> GuardErrorKind {
        self.kind
    }
}
