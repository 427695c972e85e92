//! How fast and how reliable everything is while nothing in particular goes wrong.

use super::chance::Chance;

/// The conditions under which a cluster runs. All spans are in milliseconds.
///
/// The default is a quiet data centre: everything takes its least, and nothing is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Conditions {
    /// What each way between two places may take on top of a millisecond.
    pub way_ms: u64,
    /// How many ways in a thousand take up to ten times as long, which lets messages overtake each
    /// other.
    pub slow_ways: u64,
    /// How many requests to the store in a thousand are lost before they take effect, and how many
    /// after: their sender does not know which.
    pub lost_requests: u64,
    /// Whether the store tells of changes at all.
    pub hints: bool,
    /// How many hints in a thousand are lost, and how many come twice.
    pub lost_hints: u64,
    /// How late a standby receives what was written.
    pub replication_ms: u64,
    /// How much longer than usual operations on a server take, in tenths; ten is as usual.
    pub operations: u64,
    /// How many operations in a thousand fail half-way.
    pub failing_operations: u64,
    /// How often a client writes.
    pub write_every_ms: u64,
    /// How much log one write makes, in bytes.
    pub write_bytes: u64,
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            way_ms: 0,
            slow_ways: 0,
            lost_requests: 0,
            hints: true,
            lost_hints: 0,
            replication_ms: 10,
            operations: 10,
            failing_operations: 0,
            write_every_ms: 50,
            write_bytes: 100,
        }
    }
}

impl Conditions {
    /// Draws conditions; each seed is harsh in its own way, and about some things not at all.
    pub fn drawn(chance: &mut Chance) -> Self {
        Self {
            way_ms: chance.pick(&[0, 2, 10, 40]),
            slow_ways: chance.pick(&[0, 10, 100]),
            lost_requests: chance.pick(&[0, 0, 10, 100]),
            hints: chance.happens(900),
            lost_hints: chance.pick(&[0, 100, 1000]),
            replication_ms: chance.pick(&[10, 50, 400]),
            operations: chance.pick(&[10, 10, 20, 60]),
            failing_operations: chance.pick(&[0, 0, 50, 300]),
            write_every_ms: chance.pick(&[40, 100, 300]),
            write_bytes: chance.pick(&[100, 100, 100_000]),
        }
    }

    /// Returns how long one way takes.
    pub(super) fn way(&self, chance: &mut Chance) -> u64 {
        let most = if chance.happens(self.slow_ways) {
            self.way_ms * 10
        } else {
            self.way_ms
        };
        1 + chance.below(most + 1)
    }
}
