//! The newest state of etcd that this handle has seen.

use std::sync::{Mutex, PoisonError};

use etcd_client::ResponseHeader;

use super::failure::Verdict;
use super::lane::Answer;

/// The newest cluster, term and revision that any answer came from.
///
/// A member that was cut off, or restored from an old disk, may answer with the past. No answer
/// may be older than one that was received before its request left.
#[derive(Debug, Default)]
pub(super) struct Seen(Mutex<Floor>);

/// What an answer must not be older than.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Floor {
    cluster: u64,
    term: u64,
    revision: i64,
}

impl Seen {
    /// Returns the floor of a request that is about to leave.
    pub(super) fn floor(&self) -> Floor {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks an answer against the floor of its request, and remembers it; the revision only of
    /// one that is of keys.
    ///
    /// # Errors
    /// What the answer is worth and why, where it is of another cluster or of the past.
    pub(super) fn check(
        &self,
        floor: Floor,
        header: &ResponseHeader,
        of_keys: bool,
    ) -> Result<(), (Verdict, String)> {
        let answer = Floor {
            cluster: header.cluster_id(),
            term: header.raft_term(),
            revision: header.revision(),
        };
        self.note(floor, answer, of_keys)
    }

    fn note(&self, floor: Floor, answer: Floor, of_keys: bool) -> Result<(), (Verdict, String)> {
        floor.check(answer, of_keys)?;
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Of two first answers, the first one says which etcd it is.
        let first = *newest == Floor::default();
        if !first && newest.cluster != answer.cluster {
            let problem =
                "it belongs to another etcd cluster than an answer just before".to_owned();
            return Err((Verdict::Foreign, problem));
        }
        newest.cluster = answer.cluster;
        newest.term = newest.term.max(answer.term);
        newest.revision = newest.revision.max(answer.revision);
        Ok(())
    }

    /// Returns whether a message is of another etcd than the one that all earlier answers came from.
    pub(super) fn is_foreign(&self, header: &ResponseHeader) -> bool {
        let floor = self.floor();
        // What stands between may leave it out, as `etcd grpc-proxy` does in what it makes itself.
        let is_told = header.cluster_id() != 0;
        is_told && floor != Floor::default() && header.cluster_id() != floor.cluster
    }

    /// Returns whether nothing was seen yet, so that nobody is a stranger.
    pub(super) fn is_new(&self) -> bool {
        self.floor() == Floor::default()
    }

    /// Checks an answer, if it says which state of etcd it comes from.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub(super) fn check_answer(
        &self,
        floor: Floor,
        answer: &impl Answer,
    ) -> Result<(), (Verdict, String)> {
        match answer.header() {
            Some(header) => self.check(floor, header, answer.is_of_keys()),
            None => Ok(()),
        }
    }
}

impl Floor {
    fn check(self, answer: Self, of_keys: bool) -> Result<(), (Verdict, String)> {
        if self == Self::default() {
            return Ok(());
        }
        if answer.cluster != self.cluster {
            let problem = format!(
                "it belongs to another etcd cluster ({:x}, not {:x}): one that was created anew \
                 takes a restart",
                answer.cluster, self.cluster
            );
            return Err((Verdict::Foreign, problem));
        }
        if answer.term < self.term || (of_keys && answer.revision < self.revision) {
            let problem = format!(
                "it is behind: term {} and revision {}, after term {} and revision {} were seen; \
                 an etcd that was restored from a backup takes a restart",
                answer.term, answer.revision, self.term, self.revision
            );
            return Err((Verdict::Unknown, problem));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f15_an_answer_of_the_past_is_not_taken() {
        let floor = Floor {
            cluster: 7,
            term: 3,
            revision: 40,
        };
        assert_eq!(
            Floor::default().check(floor, true),
            Ok(()),
            "the first answer is taken"
        );
        assert_eq!(floor.check(floor, true), Ok(()));
        assert_eq!(
            floor.check(
                Floor {
                    term: 4,
                    revision: 41,
                    ..floor
                },
                true
            ),
            Ok(())
        );
        for (answer, problem) in [
            (
                Floor { term: 2, ..floor },
                "it is behind: term 2 and revision 40",
            ),
            (
                Floor {
                    revision: 39,
                    ..floor
                },
                "it is behind: term 3 and revision 39",
            ),
            (
                Floor {
                    term: 4,
                    revision: 39,
                    ..floor
                },
                "it is behind: term 4 and revision 39",
            ),
        ] {
            let (verdict, text) = floor.check(answer, true).unwrap_err();
            assert_eq!(verdict, Verdict::Unknown);
            assert!(text.starts_with(problem), "{text}");
        }
        let foreign = floor.check(
            Floor {
                cluster: 8,
                revision: 99,
                ..floor
            },
            true,
        );
        assert_eq!(foreign.unwrap_err().0, Verdict::Foreign);
    }

    #[test]
    fn a_renewal_by_a_leader_that_was_deposed_does_not_count() {
        let seen = Seen::default();
        let at = |term, revision| Floor {
            cluster: 7,
            term,
            revision,
        };
        seen.note(seen.floor(), at(3, 40), true).unwrap();
        // A member that has not caught up renews by the leader of the term that is.
        seen.note(seen.floor(), at(3, 38), false).unwrap();
        // A read has shown the next term; the old leader still answers renewals.
        seen.note(seen.floor(), at(4, 41), true).unwrap();
        let (verdict, _) = seen.note(seen.floor(), at(3, 41), false).unwrap_err();
        assert_eq!(verdict, Verdict::Unknown);
        assert_eq!(seen.floor(), at(4, 41));
    }
}
