//! The deadline in force: what may move it, and what is due when.

use spilo_core::guard::Deadline;
use spilo_core::time::NodeTime;

/// The deadline that the guard enforces, if there is one.
///
/// It ends when its hard time has passed and no process of the server is left, or when a standby
/// is disarmed. While the server is down it stays until its hard time, because with it goes the
/// secret that the next agent takes the lock over with.
#[derive(Debug, Default)]
pub(super) struct InForce {
    deadline: Option<Deadline>,
    /// Whether the fast stop of this deadline was sent.
    stopped: bool,
}

/// What a deadline asks for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    /// The soft time has passed: stop the server fast, once.
    Stop,
    /// The hard time has passed: kill everything.
    Kill,
}

impl InForce {
    /// Sets or moves the deadline.
    pub(super) fn arm(&mut self, mut new: Deadline, now: NodeTime) -> Result<(), String> {
        if new.hard <= now {
            return Err(format!("the deadline {} has passed, it is {now}", new.hard));
        }
        if let Some(old) = &self.deadline {
            if new.epoch < old.epoch {
                let problem = "the deadline in force is of the later epoch";
                return Err(format!("{problem} {}, not {}", old.epoch.0, new.epoch.0));
            }
            if old.hard <= now {
                return Err(format!("the deadline in force, {}, has passed", old.hard));
            }
            // A request may overtake an earlier one of the same lease. Both were true when they
            // were sent, so the later time holds.
            if new.epoch == old.epoch {
                new.soft = new.soft.max(old.soft);
                new.hard = new.hard.max(old.hard);
            }
        }
        new.soft = new.soft.min(new.hard);
        self.stopped &= new.soft <= now;
        self.deadline = Some(new);
        Ok(())
    }

    /// Takes the deadline away; whether that is safe is for the caller to know.
    pub(super) fn disarm(&mut self) {
        *self = Self::default();
    }

    /// Forgets a deadline that has passed, for when no process of the server is left.
    pub(super) fn server_is_gone(&mut self, now: NodeTime) {
        if self
            .deadline
            .as_ref()
            .is_some_and(|deadline| deadline.hard <= now)
        {
            self.disarm();
        }
    }

    /// Returns what is due, without doing it.
    pub(super) fn due(&self, now: NodeTime) -> Due {
        match &self.deadline {
            Some(deadline) if deadline.hard <= now => Due::Kill,
            Some(deadline) if deadline.soft <= now && !self.stopped => Due::Stop,
            _ => Due::Nothing,
        }
    }

    /// Notes that the fast stop was sent.
    pub(super) fn stop_was_sent(&mut self) {
        self.stopped = true;
    }

    /// Returns when the next thing falls due.
    pub(super) fn next(&self) -> Option<NodeTime> {
        let deadline = self.deadline.as_ref()?;
        Some(if self.stopped {
            deadline.hard
        } else {
            deadline.soft
        })
    }

    /// Returns whether writes are permitted now, by a deadline that lies ahead.
    pub(super) fn permits_writes(&self, now: NodeTime) -> bool {
        self.deadline
            .as_ref()
            .is_some_and(|deadline| now < deadline.soft)
    }

    pub(super) fn deadline(&self) -> Option<&Deadline> {
        self.deadline.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use spilo_core::dcs::LeaseSecret;
    use spilo_core::ids::Epoch;

    use super::*;

    fn deadline(epoch: u64, soft: u64, hard: u64) -> Deadline {
        let secret = LeaseSecret(format!("secret of {epoch}"));
        Deadline {
            epoch: Epoch(epoch),
            secret,
            soft: NodeTime(soft),
            hard: NodeTime(hard),
        }
    }

    fn armed(epoch: u64, soft: u64, hard: u64) -> InForce {
        let mut force = InForce::default();
        force.arm(deadline(epoch, soft, hard), NodeTime(0)).unwrap();
        force
    }

    #[test]
    fn soft_comes_once_and_hard_until_it_is_gone() {
        let mut force = armed(1, 100, 200);
        assert_eq!(force.due(NodeTime(99)), Due::Nothing);
        assert_eq!(force.due(NodeTime(100)), Due::Stop);
        force.stop_was_sent();
        assert_eq!(force.due(NodeTime(199)), Due::Nothing);
        assert_eq!(force.next(), Some(NodeTime(200)));
        assert_eq!(force.due(NodeTime(200)), Due::Kill);
        assert_eq!(force.due(NodeTime(999)), Due::Kill);
        force.server_is_gone(NodeTime(999));
        assert_eq!(force.due(NodeTime(999)), Due::Nothing);
    }

    #[test]
    fn lower_epoch_is_refused() {
        let mut force = armed(2, 100, 200);
        assert!(force.arm(deadline(1, 300, 400), NodeTime(1)).is_err());
        assert_eq!(force.deadline(), Some(&deadline(2, 100, 200)));
    }

    #[test]
    fn nothing_moves_a_deadline_that_has_passed() {
        let mut force = armed(2, 100, 200);
        assert!(force.arm(deadline(2, 900, 1000), NodeTime(200)).is_err());
        assert!(force.arm(deadline(3, 900, 1000), NodeTime(200)).is_err());
        assert_eq!(force.due(NodeTime(200)), Due::Kill);
    }

    #[test]
    fn overtaken_request_does_not_shorten_the_deadline() {
        let mut force = armed(1, 300, 400);
        force.arm(deadline(1, 100, 200), NodeTime(1)).unwrap();
        assert_eq!(force.deadline(), Some(&deadline(1, 300, 400)));
    }

    #[test]
    fn greater_epoch_brings_its_own_times_and_secret() {
        let mut force = armed(1, 300, 400);
        force.arm(deadline(2, 100, 200), NodeTime(1)).unwrap();
        assert_eq!(force.deadline(), Some(&deadline(2, 100, 200)));
    }

    #[test]
    fn deadline_in_the_past_is_refused() {
        let mut force = InForce::default();
        assert!(force.arm(deadline(1, 50, 100), NodeTime(100)).is_err());
        assert_eq!(force.deadline(), None);
    }

    #[test]
    fn moved_soft_time_stops_again() {
        let mut force = armed(1, 100, 200);
        force.stop_was_sent();
        force.arm(deadline(1, 300, 400), NodeTime(150)).unwrap();
        assert_eq!(force.due(NodeTime(150)), Due::Nothing);
        assert_eq!(force.due(NodeTime(300)), Due::Stop);
    }

    #[test]
    fn secret_outlives_the_server_until_the_hard_time() {
        let mut force = armed(1, 100, 200);
        force.server_is_gone(NodeTime(150));
        assert_eq!(force.deadline(), Some(&deadline(1, 100, 200)));
        force.server_is_gone(NodeTime(200));
        assert_eq!(force.deadline(), None);
    }

    #[test]
    fn writes_are_permitted_before_the_soft_time_only() {
        let force = armed(1, 100, 200);
        assert!(force.permits_writes(NodeTime(99)));
        assert!(!force.permits_writes(NodeTime(100)));
        assert!(!InForce::default().permits_writes(NodeTime(0)));
    }
}
