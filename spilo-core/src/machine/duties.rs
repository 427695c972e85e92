//! What goes on regardless of the decision: the lease, the looks, the guard's deadline, and what
//! others must know. Each request goes out on a lane of its own, one at a time, so that no long
//! work delays the lease.

use std::time::Duration;

use bytes::Bytes;

use super::facts::Sent;
use super::lease::{Holding, Predecessor, deadline, is_as_good, renew_every};
use super::report;
use super::{Command, GuardRequest, LeaseRequest, Machine, ReadRequest, Ticket, WriteRequest};
use crate::cluster::Initialize;
use crate::dcs::Key;
use crate::decide::{Decision, Rule, View};
use crate::guard::Deadline;
use crate::ids::MemberName;
use crate::mutant::{Mutant, planted};
use crate::pg::{PgErrorKind, Role, Server, Upstream};
use crate::time::NodeTime;

impl Machine {
    /// Sends what is due.
    pub(super) fn keep_up(&mut self, decision: &Decision, commands: &mut Vec<Command>) {
        if self.facts.exiting {
            return;
        }
        self.note_refusal(decision);
        self.arm(commands);
        self.renew(commands);
        self.read(commands);
        self.consent(commands);
        self.observe(commands);
        self.look_at_guard(commands);
        self.ask_peers(false, commands);
        if self.facts.own_history.is_none() && self.facts.pg_is_current() {
            let settled = self.view().control().is_some_and(|c| !c.provisional);
            if settled && self.facts.op.is_none() {
                self.ask_history(None, commands);
            }
        }
        if let Some(request) = report::next_write(&self.view(), !commands.is_empty()) {
            self.send_write(request, commands);
        }
    }

    /// Returns when to step again although nothing happens.
    pub(super) fn wake_at(&self, commands: &[Command]) -> NodeTime {
        let facts = &self.facts;
        let ttl = facts.config.ttl;
        let urgent = self.is_urgent();
        let pause = match (urgent, facts.moved) {
            (true, _) => URGENT,
            (false, true) => BUSY,
            (false, false) => renew_every(ttl).min(self.idle_every()),
        };
        let held = facts.holding.as_ref();
        let held = held.map(|held| {
            let every = renew_every(held.lease.ttl);
            [held.renewed + every, held.confirmed + every]
        });
        let clear = facts.holding.as_ref().and_then(|held| held.clear);
        let permission = self.view().leadership().map(|permission| permission.until);
        let predecessor = facts.predecessor.as_ref();
        let free = predecessor.and_then(Predecessor::may_write_until);
        let document = report::next_write_at(&self.view());
        // What a switchover may be waiting for.
        let asked = self.view().cluster().is_some_and(|c| c.failover.is_some());
        let peers = facts.peers.values().filter(|_| asked);
        let peers = peers.filter_map(|seen| Some(seen.at + seen.value.as_ref()?.waits));
        let lanes = &facts.lanes;
        let failed = [
            lanes.lease_failed,
            lanes.write_failed,
            lanes.guard_failed,
            lanes.fence_failed,
            lanes.observe_failed,
        ];
        let again = failed.into_iter().flatten().map(|at| at + RETRY);
        let fence = lanes.fence_failed.map(|at| at + FENCE_AGAIN);
        let read = lanes.read_at.map(|at| at + READ_URGENT);
        let left = lanes.left_at.map(|at| at + URGENT);
        let close = read.into_iter().chain(left).filter(|_| urgent);
        // What is overdue waits for its answer, or until it may be asked for again.
        let wake = held
            .into_iter()
            .flatten()
            .chain(again)
            .chain(fence)
            .chain(close)
            .chain(clear)
            .chain(permission)
            .chain(free)
            .chain(document)
            .chain(peers)
            .filter(|at| *at > facts.now)
            .fold(facts.now + pause, NodeTime::min);
        // Each command brings an event; stepping at once would only ask the same again.
        let soonest = if commands.is_empty() { 10 } else { 20 };
        wake.max(facts.now + Duration::from_millis(soonest))
    }

    pub(super) fn view(&self) -> View<'_> {
        View::new(&self.identity, &self.facts)
    }

    /// Whether something is going on that deserves a close look.
    fn is_urgent(&self) -> bool {
        let facts = &self.facts;
        let view = self.view();
        let settled = match view.pg().map(|pg| &pg.server) {
            Some(Server::Running(running)) => match &running.role {
                Role::Primary { .. } => view.is_holder(),
                Role::Standby { streaming, .. } => *streaming && view.leader_is_other(),
            },
            Some(
                Server::Down | Server::Busy { .. } | Server::Closed { .. } | Server::Hung { .. },
            )
            | None => false,
        };
        !settled
            || facts.op.is_some()
            || facts.fencing.is_some()
            || facts.shutdown
            || facts.detach.is_some()
            || facts.store_failing.is_some()
            || facts.handed_over.is_some()
            || view.failover().is_some()
            || self.suspects_leader()
    }

    /// Whether a follower has reason to think that the leader is gone.
    fn suspects_leader(&self) -> bool {
        let view = self.view();
        let Some(name) = view
            .cluster()
            .and_then(|c| c.leader.as_ref()?.name.as_ref())
            .filter(|name| **name != self.identity.name)
        else {
            return !view.is_holder();
        };
        let silent = self.facts.peers.get(name).is_some_and(|seen| {
            seen.value
                .as_ref()
                .is_none_or(|peer| peer.position.is_none())
        });
        silent || self.facts.not_streaming_since.is_some()
    }

    // Who may write.

    fn arm(&mut self, commands: &mut Vec<Command>) {
        let facts = &self.facts;
        if facts.lanes.guard.is_some() || facts.ago(facts.lanes.guard_failed) < RETRY {
            return;
        }
        let lease = match (&facts.holding, &facts.consent) {
            (Some(held), _) => &held.lease,
            (None, Some(consent)) => &consent.lease,
            (None, None) => return self.disarm(commands),
        };
        let Some(permission) = self.view().leadership() else {
            return;
        };
        let wanted = deadline(&permission, lease);
        let newer = facts.armed.as_ref().is_none_or(|armed| {
            armed.epoch <= wanted.epoch && !is_as_good(armed, &wanted, lease.ttl)
        });
        // Under a server that is down there is nothing to hold a deadline for, until one is to be
        // started; the guard takes a deadline then as well.
        if newer && wanted.epoch == lease.epoch {
            self.send_guard(GuardRequest::Arm(wanted), commands);
        }
    }

    /// A standby must not be killed for a deadline that is not its own any more.
    fn disarm(&mut self, commands: &mut Vec<Command>) {
        let facts = &self.facts;
        let standby = matches!(
            self.view().running().map(|r| &r.role),
            Some(Role::Standby { .. })
        );
        let idle = facts.op.is_none()
            && facts.fencing.is_none()
            && facts.pg_is_current()
            && !facts.promotion_ordered;
        let given_up = facts
            .armed
            .as_ref()
            .is_some_and(|d| facts.given_up >= Some(d.epoch));
        if standby && idle && given_up {
            self.send_guard(GuardRequest::Disarm, commands);
        }
    }

    fn renew(&mut self, commands: &mut Vec<Command>) {
        let facts = &self.facts;
        if facts.lanes.lease.is_some() {
            return;
        }
        if facts.unsettled {
            if facts.ago(facts.lanes.lease_failed) >= RETRY {
                self.send_lease(LeaseRequest::Settle, commands);
            }
            return;
        }
        let Some(held) = &facts.holding else { return };
        if self.is_left_unfenced() {
            return;
        }
        // Who hears nothing of its renewals does not write any more, and must not keep the lock from
        // others by renewals that arrive. A read that shows it to be ours still begins them again.
        let over = held.renewed + held.lease.ttl;
        if over <= facts.now && held.confirmed < over && !self.view().may_write() {
            return;
        }
        // The time to live is fixed when a lease is granted: another one takes a fresh lease.
        // While a bootstrap is claimed under the lease, the claim would go with it.
        // One that is not granted leaves the old one to be renewed.
        let changed = held.lease.ttl != facts.config.ttl && facts.config_known();
        let granted = facts.ungranted.as_ref().is_none_or(|ungranted| {
            let other = ungranted.ttl != facts.config.ttl;
            other || (!ungranted.refused && held.renewed > ungranted.at)
        });
        if changed
            && granted
            && self.is_initialized()
            && facts.ago(facts.lanes.lease_failed) >= RETRY
        {
            let request = LeaseRequest::Succeed(held.lease.secret.clone(), facts.config.ttl);
            return self.send_lease(request, commands);
        }
        let detaching = facts.detach.is_some_and(|ordered| held.renewed < ordered);
        let (renewed, confirmed) = self.ages(held);
        let due = is_due(renewed, confirmed, renew_every(held.lease.ttl));
        let retry = facts.ago(facts.lanes.lease_failed) >= RETRY;
        if (due || detaching) && retry {
            self.send_lease(LeaseRequest::Renew(held.lease.clone()), commands);
        }
    }

    /// Whether the server has to end and does not. The lock is for somebody who serves: it is let
    /// go of with the lease, and nobody is asked for consent.
    pub(super) fn is_left_unfenced(&self) -> bool {
        self.facts.unfenced_for() >= Some(FENCE_PATIENCE) && !planted(Mutant::UnfencedKeepsLock)
    }

    /// How long ago the lock was renewed, and confirmed.
    fn ages(&self, held: &Holding) -> (Duration, Duration) {
        let now = self.facts.now;
        (now.since(held.renewed), now.since(held.confirmed))
    }

    fn is_initialized(&self) -> bool {
        let initialize = self.view().cluster().map(|c| &c.initialize);
        matches!(initialize, Some(Initialize::Known(_)))
    }

    // Looking around.

    fn read(&mut self, commands: &mut Vec<Command>) {
        let facts = &self.facts;
        if facts.lanes.read.is_some() {
            return;
        }
        let spent = facts.ago(facts.lanes.read_at);
        let due = match &facts.holding {
            Some(held) => {
                let (renewed, confirmed) = self.ages(held);
                is_due(confirmed, renewed, renew_every(held.lease.ttl))
            }
            None if self.is_urgent() => spent >= READ_URGENT,
            // The watch tells of changes; this is for a watch that has gone silent.
            None => spent >= facts.config.loop_wait.min(facts.config.ttl * 3 / 5),
        };
        let detaching = match (&facts.detach, &facts.holding) {
            (Some(ordered), Some(held)) => held.confirmed < *ordered,
            (_, _) => false,
        };
        // A store that refuses does so at once; asking again at once would only add to its trouble.
        let rested = facts.store_failing.is_none() || spent >= RETRY;
        let wanted = facts.lanes.read_wanted || due;
        if (wanted && rested) || (detaching && spent >= RETRY) {
            self.facts.lanes.read_wanted = false;
            self.facts.lanes.read_at = Some(self.facts.now);
            return self.send_read(ReadRequest::Snapshot, commands);
        }
        if let Some(request) = self.lease_question() {
            self.facts.lanes.left_at = Some(self.facts.now);
            self.send_read(request, commands);
        }
    }

    /// What to ask the store about the lease of a holder that seems to be gone.
    fn lease_question(&self) -> Option<ReadRequest> {
        let facts = &self.facts;
        let before = facts.predecessor.as_ref()?;
        let record = before.record.clone()?;
        if facts.holding.is_some() || before.proof.is_some() || !self.suspects_leader() {
            return None;
        }
        if before.gone.is_none() {
            let due = facts.ago(facts.lanes.left_at) >= LEASE_LEFT_EVERY;
            return due.then_some(ReadRequest::LeaseLeft(record));
        }
        let due = facts.ago(facts.lanes.left_at) >= URGENT;
        (before.left.is_some() && due).then_some(ReadRequest::LeaseEnded(record))
    }

    /// Returns how often an idle server and its guard are looked at. Deaths come as events; a look
    /// now and then, in one go with a renewal, finds what has no event. That of a holder, which
    /// nobody asks how far it is before it hands over, may take its time.
    ///
    /// Health checks take a look for out of date five seconds after the next one was due by
    /// `loop_wait`; it may take two.
    fn idle_every(&self) -> Duration {
        let config = &self.facts.config;
        let renewals = if self.facts.holding.is_some() { 3 } else { 1 };
        let every = renew_every(config.ttl) * renewals;
        every
            .clamp(Duration::from_secs(5), Duration::from_millis(7500))
            .min(config.loop_wait + Duration::from_secs(3))
    }

    fn observe(&mut self, commands: &mut Vec<Command>) {
        let facts = &self.facts;
        if facts.lanes.observe.is_some() || facts.ago(facts.lanes.observe_failed) < RETRY {
            return;
        }
        let spent = facts.ago(facts.pg.as_ref().map(|seen| seen.at));
        let every = match (self.is_urgent(), facts.moved) {
            (true, _) => URGENT,
            (false, true) => BUSY,
            (false, false) => self.idle_every(),
        };
        let due = spent >= every || (!commands.is_empty() && spent >= every * 3 / 4);
        let outdated = facts.pg.as_ref().map(|seen| seen.at) < Some(facts.leader_since);
        if facts.lanes.observe_wanted || due || outdated {
            let ticket = self.facts.ticket();
            self.facts.lanes.observe_wanted = false;
            self.facts.lanes.observe = Some(Sent {
                ticket,
                at: self.facts.now,
                what: (),
            });
            commands.push(Command::Observe(ticket));
        }
    }

    fn look_at_guard(&mut self, commands: &mut Vec<Command>) {
        let facts = &self.facts;
        let spent = facts.ago(facts.guard.as_ref().map(|seen| seen.at));
        let every = if facts.guard_failing.is_some() {
            RETRY
        } else {
            self.idle_every()
        };
        let rested = facts.ago(facts.lanes.guard_failed) >= RETRY;
        if facts.lanes.guard.is_none() && spent >= every && rested {
            self.send_guard(GuardRequest::Look, commands);
        }
    }

    /// Asks the leader now and then, and everybody when the lock is free or about to be.
    pub(super) fn ask_peers(&mut self, all: bool, commands: &mut Vec<Command>) {
        let now = self.facts.now;
        let free = self.view().cluster().is_some_and(|c| c.leader.is_none());
        let holder = self.view().is_holder();
        let suspicious = !holder && (self.suspects_leader() || free);
        let leader = self.view().leader_member().map(|m| m.name.clone());
        let quiet = leader_asked_every(self.facts.config.ttl);
        let mut due: Vec<(MemberName, String)> = Vec::new();
        for (name, url) in &self.facts.electorate {
            let spent = self
                .facts
                .ago(self.facts.peers.get(name).map(|seen| seen.at));
            let wanted = (all && spent >= ASK_AGAIN)
                || (suspicious && spent >= SUSPICIOUS)
                || (!holder && Some(name) == leader.as_ref() && spent >= quiet);
            if wanted && !self.facts.lanes.peers.contains_key(name) {
                due.push((name.clone(), url.clone()));
            }
        }
        for (name, url) in due {
            let ticket = self.facts.ticket();
            self.facts.lanes.peers.insert(
                name.clone(),
                Sent {
                    ticket,
                    at: now,
                    what: (),
                },
            );
            commands.push(Command::AskPeer(ticket, name, url));
        }
    }

    pub(super) fn ask_history(&mut self, of: Option<Upstream>, commands: &mut Vec<Command>) {
        let again = of.is_none() && self.facts.ago(self.facts.lanes.history_failed) < HISTORY_AGAIN;
        if again || self.facts.lanes.history.is_some() {
            return;
        }
        let ticket = self.facts.ticket();
        let what = of.as_ref().map(|upstream| upstream.name.clone());
        self.facts.lanes.history = Some(Sent {
            ticket,
            at: self.facts.now,
            what,
        });
        commands.push(Command::ReadHistory(ticket, of));
    }

    /// A hand-over that was refused is remembered, so that clearing the key says why.
    fn note_refusal(&mut self, decision: &Decision) {
        if decision.rule == Rule::SwitchoverRefused
            && let Some(asked) = self.view().cluster().and_then(|c| c.failover.as_ref())
        {
            let revision = asked.revision;
            self.facts
                .refused_failover
                .get_or_insert_with(|| (revision, decision.why.clone()));
        }
        // Nobody could take the lock: the next try would end the clients again.
        if decision.rule == Rule::HandOverFailed {
            self.facts.refuse_hand_over(&decision.why);
        }
        let gone = |kind: PgErrorKind| kind == PgErrorKind::NotLevel;
        if decision.rule == Rule::Lead {
            self.facts.failures.retain(|_, failure| !gone(failure.kind));
        }
    }

    // The lanes.

    pub(super) fn send_lease(&mut self, request: LeaseRequest, commands: &mut Vec<Command>) {
        let backing_off = match &request {
            LeaseRequest::Acquire(_)
            | LeaseRequest::Succeed(..)
            | LeaseRequest::Claim(_)
            | LeaseRequest::Release(..) => self.facts.ago(self.facts.lanes.lease_failed) < RETRY,
            LeaseRequest::Settle | LeaseRequest::Renew(_) => false,
        };
        if self.facts.lanes.lease.is_none() && !backing_off {
            let ticket = self.facts.ticket();
            if let LeaseRequest::Succeed(_, ttl) = &request {
                self.facts.succeeding = Some((self.facts.now, *ttl));
            }
            // Whether it is done or not is for the store to say; nothing is written on it any more.
            if let LeaseRequest::Release(lease, _) = &request {
                self.facts.released = self.facts.released.max(Some(lease.epoch));
            }
            if planted(Mutant::DeadlineOnRequest)
                && let (LeaseRequest::Renew(_), Some(held)) = (&request, &mut self.facts.holding)
            {
                (held.renewed, held.confirmed) = (self.facts.now, self.facts.now);
            }
            self.facts.lanes.lease = Some(Sent {
                ticket,
                at: self.facts.now,
                what: request.clone(),
            });
            commands.push(Command::Lease(ticket, request));
        }
    }

    fn send_read(&mut self, request: ReadRequest, commands: &mut Vec<Command>) {
        let ticket = self.facts.ticket();
        self.facts.lanes.read = Some(Sent {
            ticket,
            at: self.facts.now,
            what: request.clone(),
        });
        commands.push(Command::Read(ticket, request));
    }

    pub(super) fn send_write(&mut self, request: WriteRequest, commands: &mut Vec<Command>) {
        let failed = self.facts.ago(self.facts.lanes.write_failed) < RETRY;
        if self.facts.lanes.write.is_none() && !failed {
            if let WriteRequest::Announce(..) = &request {
                self.facts.written.record = Some(report::record(&self.view()));
            }
            if let WriteRequest::Put(Key::Failsafe, ..) = &request {
                let mut list = report::failsafe_list(&self.view());
                list.remove(&self.identity.name);
                self.facts.written.listed.sends(list);
            }
            let ticket = self.facts.ticket();
            self.facts.lanes.write = Some(Sent {
                ticket,
                at: self.facts.now,
                what: request.clone(),
            });
            commands.push(Command::Write(ticket, request));
        }
    }

    fn send_guard(&mut self, request: GuardRequest, commands: &mut Vec<Command>) {
        let ticket = self.facts.ticket();
        let what: Option<Deadline> = match &request {
            GuardRequest::Arm(deadline) => Some(deadline.clone()),
            GuardRequest::Disarm | GuardRequest::Look => None,
        };
        self.facts.lanes.guard = Some(Sent {
            ticket,
            at: self.facts.now,
            what,
        });
        commands.push(Command::Guard(ticket, request));
    }
}

/// Whether a renewal or a confirmation is due. Whichever is due first takes the other along if
/// half of its time is over: the holding is as old as the older of the two, and an idle node
/// spends more on each moment at which it wakes than on what it does then.
fn is_due(age: Duration, other: Duration, every: Duration) -> bool {
    age >= every || (other >= every && age >= every / 2)
}

/// Returns how often a follower asks a leader that seems well. The lock of one that died ends
/// three quarters of a ttl later at the earliest; the silence takes a second to be one, and the
/// others' positions are asked for in the second after that.
fn leader_asked_every(ttl: Duration) -> Duration {
    renew_every(ttl).max((ttl * 3 / 4).saturating_sub(Duration::from_secs(2)))
}

/// Returns the ticket of a request, for tests of lanes.
impl From<Ticket> for u64 {
    fn from(ticket: Ticket) -> Self {
        ticket.0
    }
}

/// An empty document of the `failover` key: nothing is asked for.
pub(super) const NOTHING_ASKED: Bytes = Bytes::from_static(b"{}");

/// While something is going on, the server is looked at ten times a second: a query on an open
/// connection costs it a fraction of a millisecond.
const URGENT: Duration = Duration::from_millis(100);

/// How often the store is read meanwhile; hints come between.
const READ_URGENT: Duration = Duration::from_millis(300);

/// A server that writes or receives is looked at once a second: so old is the position by which
/// others judge how far behind they are.
const BUSY: Duration = Duration::from_secs(1);

/// After a failure. A shorter pause would only add load to what is failing.
pub(crate) const RETRY: Duration = Duration::from_millis(250);

/// The store tells the rest of a lease in whole seconds.
const LEASE_LEFT_EVERY: Duration = Duration::from_millis(700);

/// After a fence that failed, where nothing else ends the server's writes. A fifth of what a fence
/// may take.
pub(crate) const FENCE_AGAIN: Duration = Duration::from_millis(50);

/// Eight times what a fence may take.
pub(super) const FENCE_PATIENCE: Duration = Duration::from_secs(2);

/// A history file that cannot be read now is not going to be in the next millisecond.
const HISTORY_AGAIN: Duration = Duration::from_secs(1);

/// How often everybody is asked while the leader is suspected to be gone.
const SUSPICIOUS: Duration = Duration::from_millis(500);

/// How often at most somebody is asked whose answer is waited for.
const ASK_AGAIN: Duration = Duration::from_millis(50);
