//! The line of timelines that a server's log has come along.

use serde::{Deserialize, Serialize};

use crate::mutant::{Mutant, planted};
use crate::wal::{Lsn, Timeline, WalPosition};

/// The history of one timeline: its ancestors, oldest first, with where each was left.
///
/// This is what a `.history` file says. Positions on different timelines can only be compared
/// through it: a greater timeline number is not a longer history.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct History {
    timeline: Timeline,
    ancestors: Vec<Ancestor>,
}

/// A timeline that was left for a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ancestor {
    /// The timeline.
    pub timeline: Timeline,
    /// Where the next one begins.
    pub end: Lsn,
}

/// A history file that cannot be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("history of timeline {timeline}, line {line}: {problem}")]
pub struct BadHistory {
    timeline: Timeline,
    line: usize,
    problem: String,
}

impl History {
    /// Creates the history of `timeline` without ancestors, as of a cluster never promoted.
    pub fn root(timeline: Timeline) -> Self {
        Self {
            timeline,
            ancestors: Vec::new(),
        }
    }

    /// Creates a history from its parts.
    ///
    /// # Errors
    /// Timelines that do not increase, or ends that go back.
    pub fn new(timeline: Timeline, ancestors: Vec<Ancestor>) -> Result<Self, BadHistory> {
        let bad = |line: usize, problem: String| BadHistory {
            timeline,
            line: line + 1,
            problem,
        };
        for (line, pair) in ancestors.windows(2).enumerate() {
            if pair[0].timeline.0 >= pair[1].timeline.0 {
                return Err(bad(line + 1, "timelines do not increase".to_owned()));
            }
            if pair[0].end > pair[1].end {
                return Err(bad(line + 1, "positions go back".to_owned()));
            }
        }
        if let Some(last) = ancestors.last()
            && last.timeline.0 >= timeline.0
        {
            let problem = format!("timeline {} is not before its child", last.timeline);
            return Err(bad(ancestors.len() - 1, problem));
        }
        Ok(Self {
            timeline,
            ancestors,
        })
    }

    /// Reads the text of the `.history` file of `timeline`.
    ///
    /// # Errors
    /// The first line that is not `timeline, position, reason` in order.
    pub fn parse(timeline: Timeline, text: &str) -> Result<Self, BadHistory> {
        let mut ancestors = Vec::new();
        for (line, content) in text.lines().enumerate() {
            let content = content.trim();
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let bad = |problem: String| BadHistory {
                timeline,
                line: line + 1,
                problem,
            };
            let mut words = content.split_whitespace();
            let tl = words.next().unwrap_or_default();
            let end = words.next().unwrap_or_default();
            ancestors.push(Ancestor {
                timeline: Timeline(
                    tl.parse()
                        .map_err(|_| bad(format!("timeline {tl:?} is no number")))?,
                ),
                end: end
                    .parse()
                    .map_err(|e: crate::wal::BadLsn| bad(e.to_string()))?,
            });
        }
        Self::new(timeline, ancestors)
    }

    /// Returns the timeline whose history this is.
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// Returns the ancestors, oldest first.
    pub fn ancestors(&self) -> &[Ancestor] {
        &self.ancestors
    }

    /// Returns whether everything up to `position` on its timeline is part of this history, so
    /// that a server at `position` can go on along it without losing anything of its own.
    pub fn contains(&self, position: WalPosition) -> bool {
        if planted(Mutant::TimelineByNumber) {
            return position.timeline.0 <= self.timeline().0;
        }
        match self.end_of(position.timeline) {
            Some(End::Open) => true,
            Some(End::At(end)) => position.lsn <= end,
            None => false,
        }
    }

    /// Returns where `timeline` was left in this history, or `None` if it is not part of it.
    pub fn end_of(&self, timeline: Timeline) -> Option<End> {
        if timeline == self.timeline {
            return Some(End::Open);
        }
        self.ancestors
            .iter()
            .find(|a| a.timeline == timeline)
            .map(|a| End::At(a.end))
    }

    /// Returns whether this history reached the timeline of `other` the same way as `other` did.
    pub fn came_through(&self, other: &Self) -> bool {
        let before = self
            .ancestors
            .iter()
            .take_while(|a| a.timeline.0 < other.timeline.0);
        before.eq(&other.ancestors)
    }

    /// Returns the last position that this history has in common with `other`.
    pub fn fork_from(&self, other: &Self) -> Option<WalPosition> {
        let mine = self.line();
        let theirs = other.line();
        mine.iter()
            .zip(&theirs)
            .take_while(|(a, b)| a.0 == b.0)
            .map(|(a, b)| WalPosition {
                timeline: a.0,
                lsn: a.1.min(b.1),
            })
            .last()
    }

    /// Returns the history of the timeline `next` that leaves this one at `end`.
    #[must_use]
    pub fn promoted(&self, next: Timeline, end: Lsn) -> Self {
        let mut ancestors = self.ancestors.clone();
        ancestors.push(Ancestor {
            timeline: self.timeline,
            end,
        });
        Self {
            timeline: next,
            ancestors,
        }
    }

    fn line(&self) -> Vec<(Timeline, Lsn)> {
        let mut line: Vec<_> = self.ancestors.iter().map(|a| (a.timeline, a.end)).collect();
        line.push((self.timeline, Lsn(u64::MAX)));
        line
    }
}

/// Where a timeline ends in a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// It is the current one.
    Open,
    /// It was left here.
    At(Lsn),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(timeline: u32, lsn: u64) -> WalPosition {
        WalPosition {
            timeline: Timeline(timeline),
            lsn: Lsn(lsn),
        }
    }

    #[test]
    fn f31_timeline_number_is_not_ancestry() {
        // Timeline 2 left 1 at 100; timeline 3 left 1 at 50. 3 is greater and yet no descendant of 2.
        let two = History::root(Timeline(1)).promoted(Timeline(2), Lsn(100));
        let three = History::root(Timeline(1)).promoted(Timeline(3), Lsn(50));
        assert!(!three.contains(at(2, 101)));
        assert!(!three.contains(at(2, 1)));
        assert!(!three.contains(at(1, 51)));
        assert!(three.contains(at(1, 50)));
        assert!(two.contains(at(1, 100)));
        assert!(!two.contains(at(3, 60)));
        assert_eq!(two.fork_from(&three), Some(at(1, 50)));
    }

    #[test]
    fn five_thousand_timelines_are_read() {
        let text: String = (1..=5000)
            .map(|n| format!("{n}\t0/{n:X}\tno recovery target specified\n"))
            .collect();
        let history = History::parse(Timeline(5001), &text).unwrap();
        assert_eq!(history.ancestors().len(), 5000);
        assert!(history.contains(at(4999, 4999)));
    }

    #[test]
    fn a_bad_line_is_named() {
        for (text, line) in [
            ("x\t0/1\n", 1),
            ("1\t0/5\n2\tzz\n", 2),
            ("2\t0/5\n1\t0/6\n", 2),
            ("1\t0/6\n2\t0/5\n", 2),
        ] {
            let error = History::parse(Timeline(9), text).unwrap_err();
            assert_eq!(error.line, line, "{error}");
        }
    }
}
