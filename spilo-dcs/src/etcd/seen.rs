//! The newest state of etcd that this handle has seen.

use std::sync::{Mutex, PoisonError};

use etcd_client::ResponseHeader;

use super::failure::Verdict;

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

    /// Checks an answer against the floor of its request, and remembers it.
    ///
    /// # Errors
    /// What the answer is worth and why, where it is of another cluster or of the past.
    pub(super) fn check(
        &self,
        floor: Floor,
        header: &ResponseHeader,
    ) -> Result<(), (Verdict, String)> {
        let answer = Floor {
            cluster: header.cluster_id(),
            term: header.raft_term(),
            revision: header.revision(),
        };
        floor.check(answer)?;
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        newest.cluster = answer.cluster;
        newest.term = newest.term.max(answer.term);
        newest.revision = newest.revision.max(answer.revision);
        Ok(())
    }
}

impl Floor {
    fn check(self, answer: Self) -> Result<(), (Verdict, String)> {
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
        if answer.term < self.term || answer.revision < self.revision {
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
            Floor::default().check(floor),
            Ok(()),
            "the first answer is taken"
        );
        assert_eq!(floor.check(floor), Ok(()));
        assert_eq!(
            floor.check(Floor {
                term: 4,
                revision: 41,
                ..floor
            }),
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
            let (verdict, text) = floor.check(answer).unwrap_err();
            assert_eq!(verdict, Verdict::Unknown);
            assert!(text.starts_with(problem), "{text}");
        }
        let foreign = floor.check(Floor {
            cluster: 8,
            revision: 99,
            ..floor
        });
        assert_eq!(foreign.unwrap_err().0, Verdict::Foreign);
    }
}
