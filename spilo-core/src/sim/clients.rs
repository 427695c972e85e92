//! Clients that write all the time, and remember what was acknowledged.

use super::log::{Log, Place};

/// A row that a client committed, by where it lies in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row(Place);

impl super::Sim {
    /// Commits a row on the server of a node, if it takes writes, beside those that the clients
    /// commit all the time; its loss is for the caller to notice.
    pub fn commit(&mut self, node: usize) -> Option<Row> {
        let bytes = self.conditions.write_bytes;
        self.nodes[node].server.write(bytes).map(Row)
    }

    /// Returns whether the server of a node answers, and has a row.
    pub fn reads(&self, node: usize, row: Row) -> bool {
        let log = self.nodes[node].server.log();
        self.answers_queries(node) && log.is_some_and(|log| log.has(row.0))
    }
}

/// What the clients know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Clients {
    /// Rows that were acknowledged and are not known to be lost.
    rows: Vec<Place>,
    pub(super) acknowledged: u64,
    pub(super) lost: u64,
    /// When the last row was acknowledged, and the longest time without one.
    pub(super) last_at: Option<u64>,
}

impl Clients {
    /// Notes a row that was acknowledged at `now`.
    pub(super) fn acknowledge(&mut self, now: u64, row: Place) {
        self.rows.push(row);
        self.acknowledged += 1;
        self.last_at = Some(now);
    }

    /// Strikes out the rows that a new branch of the log leaves behind, and returns how many those
    /// are and how many bytes lie between its beginning and the last of them.
    pub(super) fn branched(&mut self, log: &Log, forked_at: u64) -> (u64, u64) {
        let before = self.rows.len();
        let mut furthest = 0;
        self.rows.retain(|row| {
            let kept = log.has(*row);
            if !kept {
                furthest = furthest.max(row.lsn.saturating_sub(forked_at));
            }
            kept
        });
        let lost = u64::try_from(before - self.rows.len()).unwrap_or(u64::MAX);
        self.lost += lost;
        (lost, furthest)
    }

    /// Returns how many rows a log lacks that were not struck out.
    pub(super) fn missing_from(&self, log: &Log) -> usize {
        self.rows.iter().filter(|row| !log.has(**row)).count()
    }
}
