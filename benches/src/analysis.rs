//! What the writers' acknowledgements say about a fault.

use std::collections::HashSet;

use serde::Serialize;

use crate::writers::{Ack, Failure};

/// Returns the longest time without an acknowledged write between two moments, all nodes together.
pub fn longest_gap_ms(acks: &[Ack], from_ms: u64, until_ms: u64) -> u64 {
    let mut moments: Vec<u64> = acks
        .iter()
        .map(|ack| ack.at_ms)
        .filter(|at| (from_ms..=until_ms).contains(at))
        .collect();
    moments.extend([from_ms, until_ms]);
    moments.sort_unstable();
    moments
        .windows(2)
        .map(|pair| pair[1] - pair[0])
        .max()
        .unwrap_or(0)
}

/// Returns how many rows the old primary acknowledged in a window that opens with another node's
/// first acknowledgement.
pub fn rows_of_two_primaries(acks: &[Ack], old: &str, fault_ms: u64, window_ms: u64) -> usize {
    let new_from = acks
        .iter()
        .filter(|ack| ack.node != old && ack.at_ms > fault_ms)
        .map(|ack| ack.at_ms)
        .min();
    let Some(new_from) = new_from else { return 0 };
    acks.iter()
        .filter(|ack| ack.node == old && ack.at_ms > new_from && ack.at_ms - new_from <= window_ms)
        .count()
}

/// Returns how many acknowledged rows a server does not hold.
pub fn lost(acks: &[Ack], surviving: &HashSet<(String, u64)>) -> usize {
    acks.iter()
        .filter(|ack| !surviving.contains(&(ack.node.clone(), ack.seq)))
        .count()
}

/// Returns how many writes failed on a node between two moments.
pub fn failed_writes(failures: &[Failure], node: &str, from_ms: u64, until_ms: u64) -> usize {
    let hit =
        |failure: &&Failure| failure.node == node && (from_ms..=until_ms).contains(&failure.at_ms);
    failures.iter().filter(hit).count()
}

/// Least, middle and greatest of a series.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct Spread {
    /// The least.
    pub min: u64,
    /// The middle; of an even number, the lower of the two.
    pub median: u64,
    /// The greatest.
    pub max: u64,
}

impl Spread {
    /// Returns the spread of a series, none where it is empty.
    pub fn of(series: impl IntoIterator<Item = u64>) -> Option<Self> {
        let mut series: Vec<u64> = series.into_iter().collect();
        series.sort_unstable();
        let median = *series.get(series.len().checked_sub(1)? / 2)?;
        Some(Self {
            min: *series.first()?,
            median,
            max: *series.last()?,
        })
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} / {} / {}", self.min, self.median, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(node: &str, at_ms: u64) -> Ack {
        Ack {
            node: node.to_owned(),
            seq: at_ms,
            at_ms,
        }
    }

    #[test]
    fn the_gap_reaches_from_the_last_write_to_the_first_of_any_node() {
        let acks = [ack("a", 100), ack("a", 110), ack("b", 900), ack("b", 910)];
        assert_eq!(longest_gap_ms(&acks, 100, 910), 790);
    }

    #[test]
    fn a_cluster_that_never_writes_again_has_a_gap_to_the_end() {
        assert_eq!(longest_gap_ms(&[ack("a", 100)], 100, 5000), 4900);
    }

    #[test]
    fn rows_of_the_old_primary_count_from_the_first_row_of_the_new_one() {
        let acks = [
            ack("a", 1),
            ack("a", 5),
            ack("b", 6),
            ack("a", 7),
            ack("b", 8),
            ack("a", 9),
        ];
        assert_eq!(rows_of_two_primaries(&acks, "a", 2, 8000), 2);
        assert_eq!(rows_of_two_primaries(&acks, "a", 2, 1), 1);
        assert_eq!(rows_of_two_primaries(&acks[..2], "a", 2, 8000), 0);
    }

    #[test]
    fn an_acknowledged_row_that_is_nowhere_is_lost() {
        let acks = [ack("a", 1), ack("b", 2)];
        assert_eq!(lost(&acks, &HashSet::from([("a".to_owned(), 1)])), 1);
    }

    #[test]
    fn the_spread_of_four_has_the_second_as_its_middle() {
        assert_eq!(
            Spread::of([4, 1, 3, 2]),
            Some(Spread {
                min: 1,
                median: 2,
                max: 4
            })
        );
        assert_eq!(Spread::of([]), None);
    }
}
