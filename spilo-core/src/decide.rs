//! What a node does, as a pure function of what it knows.
//!
//! Every branch is a named [`Rule`]. They are asked in the order of this module's parts: safety
//! first, then the duties of an empty data directory, of the holder of the lock, of a follower,
//! and last the race for a free lock. The first that applies decides, and says why with numbers.

mod bootstrap;
mod following;
mod holding;
mod race;
mod rule;
mod safety;
mod switchover;
mod view;

use serde::{Deserialize, Serialize};

use crate::dcs::Expect;
use crate::machine::duties::{FENCE_AGAIN, RETRY};
use crate::machine::{Exit, LeaseRequest};
use crate::mutant::{Mutant, planted};
use crate::pg::{PgOp, Upstream};

pub(crate) use race::waits_until;
pub use rule::Rule;
pub use view::View;

/// What was decided, and why.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Decision {
    /// The rule that decided.
    pub rule: Rule,
    /// What to do.
    pub action: Action,
    /// Why, for people: names and numbers.
    pub why: String,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Action {
    /// Nothing but what goes on regardless.
    Wait,
    /// Send this on the lease lane, as soon as it is free.
    Lease(LeaseRequest),
    /// Start this operation.
    Run(PgOp),
    /// Stop the operation under way.
    Cancel,
    /// End the server.
    Fence,
    /// Stop the operation under way and end the server.
    CancelAndFence,
    /// Clear the `failover` key.
    ClearFailover(Expect),
    /// Ask for the history of another server, or read that of this one.
    ReadHistory(Option<Upstream>),
    /// Ask every peer anew.
    AskPeers,
    /// End the agent.
    Exit(Exit),
}

/// Decides.
pub fn decide(view: &View<'_>) -> Decision {
    paced(view, wanted(view))
}

/// Leaves a moment between fences that fail: the next may fail as fast.
fn paced(view: &View<'_>, decision: Decision) -> Decision {
    let action = match decision.action {
        Action::Fence => Action::Wait,
        Action::CancelAndFence => Action::Cancel,
        _ => return decision,
    };
    let alone = view.facts.guard_failing.is_some() || view.leadership().is_none();
    let pause = if alone { FENCE_AGAIN } else { RETRY };
    let rested = view.facts.ago(view.facts.lanes.fence_failed) >= pause;
    if rested || planted(Mutant::FenceHammered) {
        return decision;
    }
    let why = format!("{}; the last fence failed", decision.why);
    Decision::new(decision.rule, action, why)
}

fn wanted(view: &View<'_>) -> Decision {
    None.or_else(|| safety::decide(view))
        .or_else(|| safety::release_again(view))
        .or_else(|| bootstrap::decide(view))
        .or_else(|| {
            if view.is_holder() {
                holding::decide(view)
            } else {
                None
            }
        })
        .or_else(|| {
            if view.leader_is_other() {
                following::decide(view)
            } else {
                None
            }
        })
        .unwrap_or_else(|| race::decide(view))
}

impl Decision {
    /// Creates a decision.
    pub(crate) fn new(rule: Rule, action: Action, why: impl Into<String>) -> Self {
        Self {
            rule,
            action,
            why: why.into(),
        }
    }

    pub(crate) fn wait(rule: Rule, why: impl Into<String>) -> Self {
        Self::new(rule, Action::Wait, why)
    }

    pub(crate) fn run(rule: Rule, op: PgOp, why: impl Into<String>) -> Self {
        Self::new(rule, Action::Run(op), why)
    }

    /// Returns whether `other` is news after this one: another rule, or the same rule starting an
    /// operation. The text alone is no news, because its numbers move all the time.
    pub fn differs(&self, other: &Self) -> bool {
        self.rule != other.rule
            || (matches!(other.action, Action::Run(_)) && self.action != other.action)
    }
}

#[cfg(test)]
mod tests;
