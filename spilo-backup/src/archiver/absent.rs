//! The names that the archive was found not to have.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

/// A memory of names, so that a server that asks for the same ones again and again costs the store
/// next to nothing.
#[derive(Debug, Default)]
pub(crate) struct Absent {
    names: BTreeMap<String, Missed>,
    /// When the store was asked again, within the last second.
    again: VecDeque<Instant>,
}

/// What to do for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recall {
    /// Nothing is known of it: the store is asked.
    Unknown,
    /// It is not there.
    Absent,
    /// It was not there, and is looked for in one request.
    Again,
}

#[derive(Debug)]
struct Missed {
    /// When the store was asked last.
    checked: Instant,
    /// When the server did.
    asked: Instant,
    /// Whether it was asked for since, in vain, when it was time to look again.
    waits: bool,
}

/// For how long a name is not there for sure.
pub(crate) const FRESH: Duration = Duration::from_secs(1);

/// How often names are looked for again in a second, all together.
const AGAIN_PER_SECOND: usize = 2;

/// A server asks again after 5 s (`wal_retrieve_retry_interval`) if nobody told it otherwise.
const FORGOTTEN: Duration = Duration::from_secs(10);

/// How many names are kept. A server asks for a handful.
const MOST: usize = 256;

impl Absent {
    /// Returns what to do for a name, and takes note that it was asked for.
    pub(crate) fn recall(&mut self, name: &str, now: Instant) -> Recall {
        self.names
            .retain(|_, missed| now.duration_since(missed.asked) < FORGOTTEN);
        self.again
            .retain(|again| now.duration_since(*again) < Duration::from_secs(1));
        let Some(missed) = self.names.get_mut(name) else {
            return Recall::Unknown;
        };
        missed.asked = now;
        if now.duration_since(missed.checked) < FRESH {
            return Recall::Absent;
        }
        let checked = missed.checked;
        // The one that was looked for the longest ago comes first: otherwise those that are asked
        // for first in each round would leave nothing for the others.
        let before = self.names.values();
        let before = before.filter(|other| other.waits && other.checked < checked);
        let turn = before.count() + self.again.len() < AGAIN_PER_SECOND;
        if let Some(missed) = self.names.get_mut(name) {
            missed.waits = !turn;
        }
        if !turn {
            return Recall::Absent;
        }
        self.again.push_back(now);
        Recall::Again
    }

    /// Takes note that a name was not there when the store was asked.
    pub(crate) fn miss(&mut self, name: &str, checked: Instant) {
        if !self.names.contains_key(name) && self.names.len() >= MOST {
            let oldest = self.names.iter().min_by_key(|(_, missed)| missed.asked);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                self.names.remove(&oldest);
            }
        }
        let missed = Missed {
            checked,
            asked: checked,
            waits: false,
        };
        self.names.insert(name.to_owned(), missed);
    }

    /// Takes note that a name may be there.
    pub(crate) fn forget(&mut self, name: &str) {
        self.names.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks for names in turn every 100 ms, and returns when which of them was looked for.
    fn rounds(names: &[&str], seconds: u64) -> Vec<(u64, String)> {
        let begun = Instant::now();
        let mut absent = Absent::default();
        let mut looked = Vec::new();
        for millis in (0..seconds * 1000).step_by(100) {
            let now = begun + Duration::from_millis(millis);
            for name in names {
                if absent.recall(name, now) != Recall::Absent {
                    looked.push((millis, (*name).to_owned()));
                    absent.miss(name, now);
                }
            }
        }
        looked
    }

    #[test]
    fn what_was_never_asked_for_is_looked_for_at_once() {
        let looked = rounds(&["a", "b", "c", "d"], 1);
        assert_eq!(looked.len(), 4);
        assert!(looked.iter().all(|(at, _)| *at == 0));
    }

    #[test]
    fn one_name_is_looked_for_once_in_a_second() {
        let looked = rounds(&["a"], 4);
        let at: Vec<u64> = looked.into_iter().map(|(at, _)| at).collect();
        assert_eq!(at, [0, 1000, 2000, 3000]);
    }

    #[test]
    fn many_names_are_looked_for_twice_in_a_second_and_each_has_its_turn() {
        let names = ["a", "b", "c", "d", "e"];
        let looked = rounds(&names, 30);
        let later: Vec<_> = looked.iter().filter(|(at, _)| *at > 0).collect();
        for (from, _) in &later {
            let within = later
                .iter()
                .filter(|(at, _)| (*from..from + 1000).contains(at));
            assert!(within.count() <= 2, "{later:?}");
        }
        for name in names {
            let times = later.iter().filter(|(_, looked)| looked == name).count();
            assert!((9..=16).contains(&times), "{name}: {times} of {later:?}");
        }
    }

    #[test]
    fn a_name_that_is_not_asked_for_any_more_takes_no_turn() {
        let now = Instant::now();
        let mut absent = Absent::default();
        for name in ["a", "b", "c", "d"] {
            absent.miss(name, now);
        }
        let later = now + FRESH;
        assert_eq!(absent.recall("d", later), Recall::Again);
        let much_later = now + FORGOTTEN;
        assert_eq!(absent.recall("a", much_later), Recall::Unknown);
    }

    #[test]
    fn the_memory_has_an_end() {
        let now = Instant::now();
        let mut absent = Absent::default();
        for n in 0..10 * MOST {
            absent.miss(&n.to_string(), now + Duration::from_micros(n as u64));
        }
        assert_eq!(absent.names.len(), MOST);
        let last = (10 * MOST - 1).to_string();
        assert_eq!(absent.recall(&last, now), Recall::Absent);
    }
}
