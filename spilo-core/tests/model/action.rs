//! What may happen next.

use std::fmt;

use super::world::{Cut, World, name};

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// The agent of a node takes the step of this quantum; one of its requests may go astray.
    Step(usize, Option<Lapse>),
    /// Nobody is there to take a step, and the quantum passes.
    Pass,
    /// The server of a node, told to become a primary, does.
    Obey(usize),
    /// Trouble begins.
    Begin(Incident),
    /// The agent of a node runs again, goes on, or reaches the store again.
    End(usize),
}

/// What may happen to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Incident {
    /// The agent dies.
    Kill(usize),
    /// The agent stands still.
    Pause(usize),
    /// The server dies.
    Crash(usize),
    /// The node does not reach the store.
    Cut(usize, Cut),
    /// Somebody deletes the leader key.
    DeleteLeader,
    /// Somebody deletes every key.
    Wipe,
}

/// Which incidents there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kinds {
    /// All of them.
    All,
    /// Agents die, reads are cut off, and the leader key is deleted: one each of what ends an
    /// agent's steps, its knowledge and its lock.
    Few,
}

/// What may happen to a request of the lease lane or the read lane: the first of a step, or a later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lapse {
    pub(crate) lane: Lane,
    pub(crate) nth: usize,
    pub(crate) fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    Lease,
    Read,
}

/// What becomes of a request that is not done and answered at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fate {
    /// It is never done.
    Lost,
    /// It is done at once, and answered a quantum later.
    AnsweredLate,
    /// It is done at once, and not answered.
    AnswerLost,
    /// It is done a quantum later, and answered then.
    DoneLate,
    /// It is done two quanta later, when its sender has given up waiting.
    Stray,
}

impl World {
    /// Adds what may happen next.
    pub(crate) fn actions(&self, actions: &mut Vec<Action>) {
        for (n, node) in self.nodes.iter().enumerate() {
            if node.steps() && !node.stepped {
                actions.push(Action::Step(n, None));
                if self.lapses > 0 {
                    self.lapses(n, actions);
                }
            }
            // At once or in the next quantum; or, without a choice, when patience ends.
            if node
                .server
                .order
                .as_ref()
                .is_some_and(|order| order.waited < 2)
            {
                actions.push(Action::Obey(n));
            }
            if !node.is_well() {
                actions.push(Action::End(n));
            }
            if self.incidents > 0 {
                self.incidents_of(n, actions);
            }
        }
        if self.incidents > 0 {
            actions.push(Action::Begin(Incident::DeleteLeader));
            if self.kinds == Kinds::All {
                actions.push(Action::Begin(Incident::Wipe));
            }
        }
        if self.is_idle() {
            actions.push(Action::Pass);
        }
    }

    fn incidents_of(&self, n: usize, actions: &mut Vec<Action>) {
        let node = &self.nodes[n];
        let all = self.kinds == Kinds::All;
        let mut begin = |incident| actions.push(Action::Begin(incident));
        if node.machine.is_some() {
            begin(Incident::Kill(n));
            if node.cut == Cut::Nothing {
                begin(Incident::Cut(n, Cut::Reads));
            }
            if all && !node.paused {
                begin(Incident::Pause(n));
            }
            if all && node.cut == Cut::Nothing {
                begin(Incident::Cut(n, Cut::Everything));
            }
        }
        if all && node.server.is_up() {
            begin(Incident::Crash(n));
        }
    }

    fn lapses(&self, n: usize, actions: &mut Vec<Action>) {
        let (mut leases, mut reads) = self.requests_of(n);
        // What is cut off is lost anyway.
        match self.nodes[n].cut {
            Cut::Nothing => {}
            Cut::Reads => reads = 0,
            Cut::Everything => (leases, reads) = (0, 0),
        }
        let of = |lane, nth, fate| Action::Step(n, Some(Lapse { lane, nth, fate }));
        for nth in 0..leases {
            actions.extend(LEASE_FATES.map(|fate| of(Lane::Lease, nth, fate)));
        }
        for nth in 0..reads {
            actions.extend(READ_FATES.map(|fate| of(Lane::Read, nth, fate)));
        }
    }
}

impl fmt::Display for Lapse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (lane, nth) = (self.lane, self.nth + 1);
        write!(f, "request {nth} of the {lane:?} lane is {:?}", self.fate)
    }
}

impl fmt::Display for Incident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(n) => write!(f, "{}'s agent is killed", name(*n)),
            Self::Pause(n) => write!(f, "{}'s agent stands still", name(*n)),
            Self::Crash(n) => write!(f, "{}'s server crashes", name(*n)),
            Self::Cut(n, cut) => write!(f, "{} does not reach the store: {cut:?}", name(*n)),
            Self::DeleteLeader => f.write_str("the leader key is deleted"),
            Self::Wipe => f.write_str("the store is wiped"),
        }
    }
}

const LEASE_FATES: [Fate; 5] = [
    Fate::Lost,
    Fate::AnsweredLate,
    Fate::AnswerLost,
    Fate::DoneLate,
    Fate::Stray,
];

/// A read does nothing at the store: whether it is lost or its answer is, is the same; and one that
/// is done late brings newer news, which count from when it left all the same.
const READ_FATES: [Fate; 2] = [Fate::Lost, Fate::AnsweredLate];
