//! What is wrong with how a primary lived through an outage of the store.

use super::StoreRun;
use crate::chaos::run::FENCE_LIMIT_MS;
use crate::clock::ClockPair;
use crate::watch::LeaseSeen;
use crate::witness::Commit;

/// A fault of the store from its beginning to its end, and what the old primary said meanwhile.
#[derive(Debug)]
pub(super) struct Outage {
    /// When the fault began.
    pub(super) fault_ms: u64,
    /// When all of it was done: what leaves later is answered by nobody whom it has hit.
    pub(super) done_ms: u64,
    /// When it was begun to be undone.
    pub(super) restored_ms: u64,
    /// Every permission that the old primary named until then.
    pub(super) named: Vec<LeaseSeen>,
}

impl Outage {
    /// Returns whether the old primary went on by consent.
    pub(super) fn is_lived_by_consent(&self) -> bool {
        let mut since = self.named.iter().filter(|it| it.asked_ms > self.fault_ms);
        since.any(|it| it.by == "consent")
    }

    /// Adds what a primary has done that had to step down: it was permitted for longer than the
    /// lease that it had at the fault, or has written when that was over.
    pub(super) fn judge_step_down(&self, run: &mut StoreRun, commits: &[Commit], ttl: u64) {
        if self.is_lived_by_consent() {
            run.violations
                .push("the primary went on by consent, which a dead member cannot give".to_owned());
        }
        let hard_ms = match self.last_permission(ttl) {
            Ok(hard_ms) => hard_ms,
            Err(wrong) => return run.violations.push(wrong),
        };
        let clocks = ClockPair::read();
        let over = clocks.wall_us_at(hard_ms + FENCE_LIMIT_MS);
        let outage = over..clocks.wall_us_at(self.restored_ms);
        let late = commits.iter().filter(|it| outage.contains(&it.at_us));
        let late = late.count();
        if late > 0 {
            run.violations.push(format!(
                "{late} commits after the end of permission, with the store away"
            ));
        }
    }

    /// Returns the end of the permission that was named last, or what is wrong with it.
    ///
    /// A permission counts from when its request left, and none that was answered has left after
    /// the fault was done. Both moments are of one clock, so there is nothing to allow for.
    fn last_permission(&self, ttl: u64) -> Result<u64, String> {
        let last_ms = self.named.iter().map(|it| it.until_ms).max();
        let last_ms = last_ms.ok_or("the old primary never named the end of its permission")?;
        if last_ms < self.done_ms {
            return Err("the old primary was not permitted to write at the fault".to_owned());
        }
        let longest_ms = self.done_ms + lease_ms(ttl);
        if last_ms > longest_ms {
            let by_ms = last_ms - longest_ms;
            return Err(format!(
                "the last permission outlived the lease of the fault by {by_ms} ms"
            ));
        }
        if last_ms + FENCE_LIMIT_MS >= self.restored_ms {
            return Err("the permission did not end while the store was away".to_owned());
        }
        Ok(last_ms)
    }
}

/// Returns how long a lease permits to write from when its request left: 1 % is the greatest
/// difference between the rates of two clocks.
fn lease_ms(ttl: u64) -> u64 {
    990 * ttl - FENCE_LIMIT_MS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_primary_that_steps_down_lives_by_the_lease_of_the_fault_and_no_longer() {
        let longest_ms = DONE_MS + lease_ms(TTL);
        let last = |until_ms| outage(&[(990, until_ms, "lease")]).last_permission(TTL);
        assert_eq!(last(longest_ms), Ok(longest_ms));
        let longer = "the last permission outlived the lease of the fault by 1 ms";
        assert_eq!(last(longest_ms + 1), Err(longer.to_owned()));
        let before = "the old primary was not permitted to write at the fault";
        assert_eq!(last(DONE_MS - 1), Err(before.to_owned()));
        let never = "the old primary never named the end of its permission";
        assert_eq!(outage(&[]).last_permission(TTL), Err(never.to_owned()));
    }

    #[test]
    fn one_permission_by_consent_is_seen_among_others_and_none_of_before_the_fault() {
        let before = (990, 3000, "consent");
        let lease = (1100, 3000, "lease");
        assert!(!outage(&[before, lease]).is_lived_by_consent());
        let outage = outage(&[before, lease, (1200, 3000, "consent"), lease]);
        assert!(outage.is_lived_by_consent());
        let mut run = StoreRun::default();
        outage.judge_step_down(&mut run, &[], TTL);
        let wrong = "the primary went on by consent, which a dead member cannot give";
        assert_eq!(run.violations, [wrong]);
    }

    fn outage(named: &[(u64, u64, &str)]) -> Outage {
        let seen = |(asked_ms, until_ms, by): &(u64, u64, &str)| LeaseSeen {
            node: "n1".to_owned(),
            asked_ms: *asked_ms,
            epoch: 7,
            until_ms: *until_ms,
            by: (*by).to_owned(),
        };
        Outage {
            fault_ms: 1000,
            done_ms: DONE_MS,
            restored_ms: 10_000,
            named: named.iter().map(seen).collect(),
        }
    }

    const DONE_MS: u64 = 1010;
    const TTL: u64 = 3;
}
