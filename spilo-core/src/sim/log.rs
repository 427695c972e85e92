//! What is in a data directory: the log as PostgreSQL knows it, and as it is in truth.

use crate::history::History;
use crate::ids::SystemId;
use crate::wal::{Lsn, Timeline, WalPosition};

/// The log of a server.
///
/// PostgreSQL knows a branch by the number of its timeline, which two nodes may give to two
/// branches. Here each branch has a number of its own beside, so that the simulator sees when a
/// server follows what is not its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Log {
    pub(super) id: SystemId,
    pub(super) history: History,
    /// Each branch with the position at which the next one left it.
    branches: Vec<(u64, u64)>,
    pub(super) end: u64,
}

/// One place in the log of one branch: where a row that was written lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) branch: u64,
    pub(super) lsn: u64,
}

impl Log {
    /// Begins a database cluster.
    pub(super) fn new(id: SystemId, branch: u64) -> Self {
        Self {
            id,
            history: History::root(Timeline(1)),
            branches: vec![(branch, u64::MAX)],
            end: 0x100_0000,
        }
    }

    pub(super) fn position(&self) -> WalPosition {
        self.at(self.end)
    }

    pub(super) fn at(&self, lsn: u64) -> WalPosition {
        WalPosition {
            timeline: self.history.timeline(),
            lsn: Lsn(lsn),
        }
    }

    /// Writes something, and returns where it lies.
    pub(super) fn write(&mut self, bytes: u64) -> Place {
        self.end += bytes;
        Place {
            branch: self.branch(),
            lsn: self.end,
        }
    }

    fn branch(&self) -> u64 {
        self.branches.last().map_or(0, |(id, _)| *id)
    }

    /// Leaves the branch for a new one, as a promotion does. No two nodes (`seed`) leave at the
    /// same position: PostgreSQL itself could not tell such branches apart.
    pub(super) fn fork(&mut self, branch: u64, seed: u64) {
        self.end = self.end / 32 * 32 + 32 + seed;
        let next = Timeline(self.history.timeline().0 + 1);
        self.history = self.history.promoted(next, Lsn(self.end));
        if let Some(last) = self.branches.last_mut() {
            last.1 = self.end;
        }
        self.branches.push((branch, u64::MAX));
        self.end += 100;
    }

    /// Returns whether what was written at `place` is in this log.
    pub(super) fn has(&self, place: Place) -> bool {
        self.branches
            .iter()
            .any(|(id, left)| *id == place.branch && place.lsn <= (*left).min(self.end))
    }

    /// Returns whether everything in `other` is in this log.
    pub(super) fn has_all_of(&self, other: &Self) -> bool {
        is_prefix(&other.branches, other.end, &self.branches, self.end)
    }

    /// Receives what `source` has and this log has not, as a walreceiver does: by timelines, and
    /// then by the link of each record to the one before. Returns whether it streams.
    pub(super) fn receive(&mut self, source: &Self) -> bool {
        if !self.seems_prefix_of(source) || !source.has_all_of(self) {
            return false;
        }
        self.end = source.end;
        if self.history != source.history {
            self.history.clone_from(&source.history);
        }
        if self.branches != source.branches {
            self.branches.clone_from(&source.branches);
        }
        true
    }

    /// Returns whether PostgreSQL would begin to stream from `source`, by what it can tell of
    /// timelines.
    pub(super) fn seems_prefix_of(&self, source: &Self) -> bool {
        source.id == self.id && source.history.contains(self.position()) && source.end >= self.end
    }
}

/// Whether the log `mine` up to `lsn` is the beginning of `theirs` up to `end`.
fn is_prefix(mine: &[(u64, u64)], lsn: u64, theirs: &[(u64, u64)], end: u64) -> bool {
    for (n, (id, left)) in mine.iter().enumerate() {
        let Some((other, other_left)) = theirs.get(n) else {
            return false;
        };
        if id != other {
            return false;
        }
        if n + 1 == mine.len() {
            return lsn <= (*other_left).min(end);
        }
        if left != other_left {
            return false;
        }
    }
    true
}
