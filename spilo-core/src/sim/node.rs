//! A node: an agent, the guard, the server, and the clock that they share.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::server::FakeServer;
use crate::dcs::Lease;
use crate::guard::{Deadline, GuardStatus};
use crate::ids::OpId;
use crate::machine::{Event, Exit, Identity, Machine};
use crate::status::Status;
use crate::time::NodeTime;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) identity: Identity,
    pub(super) mind: Mind,
    /// Whether something outside drives it while its agent runs.
    pub(super) outside: bool,
    /// Counts the lives of the agent: what an earlier one asked for reaches nobody.
    pub(super) life: u64,
    pub(super) guard: FakeGuard,
    pub(super) server: FakeServer,
    /// Whether the fences that its agent asks for fail at once. The guard's own do not.
    pub(super) fence_fails: bool,
    pub(super) clock: LocalClock,
    /// When the machine wants to step, in true time.
    pub(super) wake_at: u64,
    pub(super) op: Option<OpId>,
    pub(super) exit: Option<Exit>,
    /// Whether the agent stands still, and what it has not seen yet.
    pub(super) paused: bool,
    pub(super) held: Vec<Event>,
    /// The ids of leases that requests with an unknown outcome were made with.
    pub(super) attempts: Vec<u64>,
    /// The commands of this second by what they are, and which second that is.
    pub(super) work: (u64, BTreeMap<&'static str, u32>),
}

/// What runs a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mind {
    /// Nobody.
    None,
    /// A machine, stepped by the simulator.
    Machine(Box<Machine>),
    /// Something outside, which takes events from here and says what it is.
    Outside {
        events: Vec<Event>,
        status: Option<Arc<Status>>,
    },
}

/// The process that ends writes when the agent cannot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FakeGuard {
    pub(super) deadline: Option<Deadline>,
    /// Whether it stands still.
    pub(super) frozen: bool,
    pub(super) fences: u64,
    pub(super) last_fence: Option<&'static str>,
}

/// A clock that began at some time and runs a little too fast or too slowly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LocalClock {
    pub(super) origin: u64,
    /// How many millionths it runs too fast.
    pub(super) rate: i64,
}

impl Node {
    pub(super) fn new(identity: Identity, seed: u64) -> Self {
        Self {
            identity,
            mind: Mind::None,
            outside: false,
            life: 0,
            guard: FakeGuard::default(),
            server: FakeServer::new(seed),
            fence_fails: false,
            clock: LocalClock::default(),
            wake_at: 0,
            op: None,
            exit: None,
            paused: false,
            held: Vec::new(),
            attempts: Vec::new(),
            work: (0, BTreeMap::new()),
        }
    }

    /// Returns whether its agent answers others.
    pub(super) fn answers(&self) -> bool {
        !self.paused && !matches!(self.mind, Mind::None)
    }

    pub(super) fn is_alive(&self) -> bool {
        !matches!(self.mind, Mind::None)
    }

    pub(super) fn status(&self) -> Option<Arc<Status>> {
        match &self.mind {
            Mind::None => None,
            Mind::Machine(machine) => Some(Arc::new(machine.status())),
            Mind::Outside { status, .. } => status.clone(),
        }
    }

    /// Strikes out an attempt whose outcome is known: it needs no settling.
    pub(super) fn forget_attempt(&mut self, lease: &Lease) {
        // The reference store's secrets begin with the id of the lease.
        let id = lease.secret.0.split('@').next();
        let id = id.and_then(|id| id.parse().ok());
        self.attempts.retain(|attempt| Some(*attempt) != id);
    }

    /// Returns the name.
    pub(super) fn name(&self) -> &str {
        self.identity.name.as_str()
    }

    pub(super) fn guard_status(&self) -> GuardStatus {
        GuardStatus {
            deadline: self.guard.deadline.clone(),
            postmaster: self.server.is_up().then_some(1),
            alive: self.server.is_up(),
            fences: self.guard.fences,
            last_fence: self.guard.last_fence.map(str::to_owned),
            ..GuardStatus::idle()
        }
    }

    /// Returns when the guard does something next, in true time.
    pub(super) fn deadline_at(&self) -> Option<u64> {
        if self.guard.frozen {
            return None;
        }
        let deadline = self.guard.deadline.as_ref()?;
        let next = if self.server.is_up() && !self.server.is_stalled() {
            deadline.soft.min(deadline.hard)
        } else {
            deadline.hard
        };
        Some(self.clock.true_time(next))
    }
}

impl FakeGuard {
    /// Sets or moves the deadline, at this time on the node's clock; returns why it does not.
    pub(super) fn arm(&mut self, mut new: Deadline, now: NodeTime) -> Option<&'static str> {
        if new.hard <= now {
            return Some("it has passed");
        }
        if let Some(old) = &self.deadline {
            if old.epoch > new.epoch {
                return Some("a later epoch has it");
            }
            // It may be one that a later one of its epoch has overtaken.
            if old.epoch == new.epoch {
                (new.soft, new.hard) = (new.soft.max(old.soft), new.hard.max(old.hard));
            }
        }
        self.deadline = Some(new);
        None
    }
}

impl LocalClock {
    /// Returns what the clock says at a true time.
    pub(super) fn local(self, now: u64) -> NodeTime {
        let drift = i128::from(now) * i128::from(self.rate) / 1_000_000;
        let local = i128::from(self.origin) + i128::from(now) + drift;
        NodeTime(u64::try_from(local).unwrap_or(0))
    }

    /// Returns the first true time at which the clock says at least `local`.
    pub(super) fn true_time(self, local: NodeTime) -> u64 {
        if local.0 == u64::MAX {
            return u64::MAX;
        }
        let since = i128::from(local.0) - i128::from(self.origin);
        let estimate = since * 1_000_000 / (1_000_000 + i128::from(self.rate));
        let mut now = u64::try_from(estimate).unwrap_or(0).saturating_sub(1);
        while self.local(now) < local {
            now += 1;
        }
        now
    }
}
