//! From events to facts. Nothing is decided here; what an answer means for who may write is.

use std::sync::Arc;

use super::duties::FENCE_PATIENCE;
use super::facts::{HandedOver, LeaderHistory, OpFailure, RunningOp, Seen, Sent};
use super::lease::{Predecessor, Proof};
use super::lock::electorate;
use super::{
    Command, Event, Failure, LeaseAnswer, LeaseRequest, Machine, Order, ReadAnswer, ReadRequest,
    Ticket, WriteRequest,
};
use crate::cluster::{Cluster, Initialize};
use crate::dcs::{DcsErrorKind, Expect, Key, RawSnapshot};
use crate::guard::{GuardErrorKind, GuardStatus};
use crate::history::History;
use crate::ids::{MemberName, OpId, SystemId};
use crate::mutant::{Mutant, planted};
use crate::peer::PeerStatus;
use crate::pg::{PgErrorKind, PgOp, PgOpKind, StartRole};
use crate::time::NodeTime;

impl Machine {
    pub(super) fn absorb(&mut self, event: Event, commands: &mut Vec<Command>) {
        match event {
            Event::Tick => {}
            Event::Changed => self.facts.lanes.read_wanted = true,
            Event::ServerChanged => self.facts.lanes.observe_wanted = true,
            Event::Lease(ticket, result) => {
                if let Some(sent) = take(&mut self.facts.lanes.lease, ticket) {
                    self.lease_answered(sent, result);
                }
            }
            Event::Read(ticket, result) => {
                if let Some(sent) = take(&mut self.facts.lanes.read, ticket) {
                    self.read_answered(sent, result);
                }
            }
            Event::Written(ticket, result) => {
                if let Some(sent) = take(&mut self.facts.lanes.write, ticket) {
                    self.written(sent, result);
                }
            }
            Event::Observed(ticket, result) => {
                if let Some(sent) = take(&mut self.facts.lanes.observe, ticket) {
                    self.observed(&sent, result);
                }
            }
            Event::HistoryRead(ticket, result) => {
                if let Some(sent) = take(&mut self.facts.lanes.history, ticket) {
                    self.history_read(sent, result);
                }
            }
            Event::OpEnded(id, result) => self.op_ended(id, result),
            Event::Fenced(result) => self.fenced(result),
            Event::Guard(ticket, result) => {
                if let Some(sent) = take(&mut self.facts.lanes.guard, ticket) {
                    self.guard_answered(sent, result);
                }
            }
            Event::PeerAnswered(ticket, name, answer) => self.peer_answered(ticket, name, answer),
            Event::ConsentAnswered(ticket, accepted) => self.consent_answered(ticket, &accepted),
            Event::ConsentAsked(ticket, request) => {
                let answer = self.consent_asked(&request);
                commands.push(Command::AnswerConsent(ticket, answer));
            }
            Event::Order(order) => self.ordered(order),
        }
    }

    fn ordered(&mut self, order: Order) {
        match order {
            Order::Shutdown => self.facts.shutdown = true,
            Order::Detach => self.facts.detach = self.facts.detach.or(Some(self.facts.now)),
            Order::Tags(tags) => Arc::make_mut(&mut self.identity).tags = tags,
        }
    }

    // The lease lane.

    fn lease_answered(
        &mut self,
        sent: Sent<LeaseRequest>,
        result: Result<LeaseAnswer, Failure<DcsErrorKind>>,
    ) {
        let counted_from = self.counted_from(sent.at);
        let facts = &mut self.facts;
        facts.lanes.lease_failed = result.is_err().then_some(facts.now);
        match (&sent.what, result) {
            (
                LeaseRequest::Acquire(_) | LeaseRequest::Succeed(..),
                Ok(LeaseAnswer::Held(lease)),
            ) => {
                facts.ungranted = None;
                self.lock_is_ours(lease, counted_from);
            }
            (LeaseRequest::Acquire(_) | LeaseRequest::Succeed(..), Ok(LeaseAnswer::Done)) => {
                facts.unsettled = true;
            }
            (what @ (LeaseRequest::Acquire(_) | LeaseRequest::Succeed(..)), Err(failure)) => {
                facts.not_granted(what, failure.kind);
            }
            (LeaseRequest::Settle, Ok(_)) => {
                facts.unsettled = false;
                facts.lanes.read_wanted = true;
            }
            (LeaseRequest::Settle, Err(_)) => {}
            (LeaseRequest::Renew(lease), Ok(_)) => {
                let held = facts.holding.as_mut();
                if let Some(held) = held.filter(|h| h.lease.epoch == lease.epoch) {
                    held.renewed = held.renewed.max(counted_from);
                    held.failing = false;
                }
            }
            (LeaseRequest::Renew(lease), Err(failure)) => {
                let held = facts
                    .holding
                    .as_mut()
                    .filter(|h| h.lease.epoch == lease.epoch);
                match (held, failure.kind) {
                    (Some(_), DcsErrorKind::Conflict) => {
                        facts.give_up();
                        facts.lanes.read_wanted = true;
                    }
                    (Some(held), _) => held.failing = true,
                    (None, _) => {}
                }
            }
            (LeaseRequest::Release(..), Ok(_)) => {
                facts.give_up();
                facts.handed_over = None;
                facts.lanes.read_wanted = true;
            }
            (LeaseRequest::Release(..), Err(failure)) => {
                if failure.kind == DcsErrorKind::Conflict {
                    facts.give_up();
                    facts.handed_over = None;
                }
                facts.lanes.read_wanted = true;
            }
            (LeaseRequest::Claim(lease), Ok(_)) => {
                facts.claimed = Some(lease.epoch);
                facts.lanes.read_wanted = true;
            }
            (LeaseRequest::Claim(_), Err(_)) => facts.lanes.read_wanted = true,
        }
    }

    /// Returns from when a lease counts whose request left at `sent`.
    fn counted_from(&self, sent: NodeTime) -> NodeTime {
        if planted(Mutant::LeaseFromAnswer) {
            self.facts.now
        } else {
            sent
        }
    }

    // The read lane.

    fn read_answered(
        &mut self,
        sent: Sent<ReadRequest>,
        result: Result<ReadAnswer, Failure<DcsErrorKind>>,
    ) {
        match (sent.what, result) {
            (ReadRequest::Snapshot, Ok(ReadAnswer::Snapshot(raw))) => {
                let counted_from = self.counted_from(sent.at);
                if self.snapshot(counted_from, raw) {
                    self.facts.written.listed.read(sent.ticket);
                }
            }
            (ReadRequest::Snapshot, Err(failure)) => {
                let now = self.facts.now;
                let since = self
                    .facts
                    .store_failing
                    .as_ref()
                    .map_or(now, |(since, _)| *since);
                self.facts.store_failing = Some((since, failure.text));
                self.facts.lanes.read_wanted = true;
            }
            (ReadRequest::LeaseLeft(record), Ok(ReadAnswer::LeaseLeft(left))) => {
                if let Some(before) = self.facts.predecessor.as_mut()
                    && before.record.as_ref() == Some(&record)
                {
                    before.left = left.map(|left| (sent.at, left)).or(before.left);
                }
            }
            (ReadRequest::LeaseEnded(record), Ok(ReadAnswer::LeaseEnded(true))) => {
                self.lease_ended(&record);
            }
            (ReadRequest::Snapshot, Ok(_))
            | (ReadRequest::LeaseLeft(_) | ReadRequest::LeaseEnded(_), _) => {}
        }
    }

    /// Takes a snapshot in, and returns whether it did.
    fn snapshot(&mut self, at: NodeTime, raw: Box<RawSnapshot>) -> bool {
        let last = self.facts.cluster.as_ref().map(|seen| &seen.value);
        // A snapshot from the past must not undo what is known since.
        let is_old = last.is_some_and(|last| raw.revision < last.revision);
        if is_old && !planted(Mutant::StaleSnapshot) {
            let text = format!(
                "the store answered with revision {}, older than what it had said",
                raw.revision
            );
            self.facts
                .store_failing
                .get_or_insert((self.facts.now, text));
            return false;
        }
        let cluster = match last {
            // An idle cluster says the same again and again.
            Some(last) if self.raw.as_ref() == Some(&raw) => Arc::clone(last),
            last => Arc::new(Cluster::read(&raw, last.map(AsRef::as_ref))),
        };
        self.raw = Some(raw);
        self.facts.store_failing = None;
        if let Some(document) = &cluster.config {
            self.facts.config = Arc::clone(&document.config);
        }
        self.note_lock(at, &cluster);
        if cluster.failsafe.is_some() {
            self.facts.failsafe.clone_from(&cluster.failsafe);
        }
        self.facts.record_seen |= cluster.release.is_some();
        self.facts.existed |= has_data(&cluster, &self.identity.name);
        if cluster.leader.is_some() {
            self.facts.electorate = electorate(&self.identity.name, &cluster);
        } else {
            // Whoever announces itself now is asked as well: an agent that just started has seen
            // nobody else.
            let members = electorate(&self.identity.name, &cluster);
            self.facts.electorate.extend(members);
        }
        if self.facts.cluster.is_none() {
            // What earlier leaders kept, this agent may have to keep and to drop.
            let retained = cluster.status.iter().flat_map(|s| &s.retain_slots);
            // The name of a slot is that of the slot of a member of that name.
            let slots = retained.filter_map(|text| {
                let slot = MemberName::new(text.as_str()).ok()?.slot();
                (slot.as_str() == text).then_some(slot)
            });
            for slot in slots {
                self.facts.slot_seen.insert(slot, self.facts.now);
            }
        }
        for member in cluster.members.keys() {
            self.facts.slot_seen.insert(member.slot(), self.facts.now);
        }
        if let Some((revision, _)) = &self.facts.refused_failover
            && cluster
                .failover
                .as_ref()
                .is_none_or(|f| f.revision != *revision)
        {
            self.facts.refused_failover = None;
        }
        self.facts.cluster = Some(Seen { at, value: cluster });
        true
    }

    // The write lane.

    fn written(&mut self, sent: Sent<WriteRequest>, result: Result<(), Failure<DcsErrorKind>>) {
        let facts = &mut self.facts;
        facts.lanes.write_failed = result.is_err().then_some(facts.now);
        if let WriteRequest::Put(Key::Failsafe, _, Expect::Leader(epoch)) = &sent.what
            && facts
                .holding
                .as_ref()
                .is_some_and(|held| held.lease.epoch == *epoch)
        {
            let failure = result.as_ref().err().map(|failure| failure.kind);
            facts.written.listed.answered(facts.lanes.ticket, failure);
        }
        match (sent.what, result) {
            (WriteRequest::Announce(..), Ok(())) => facts.written.member = Some(sent.at),
            (WriteRequest::Put(key, value, _), Ok(())) => {
                if let Some(held) = facts.holding.as_mut()
                    && key == Key::Release
                    && value == held.record(&self.identity.name).to_bytes()
                {
                    held.recorded = true;
                }
                facts.written.documents.insert(key, (sent.at, value));
                facts.lanes.read_wanted = true;
            }
            (WriteRequest::Announce(..), Err(_)) => facts.written.member = None,
            (WriteRequest::Put(key, ..), Err(_)) => {
                facts.written.documents.remove(&key);
                facts.lanes.read_wanted = true;
            }
        }
    }

    // PostgreSQL.

    fn history_read(
        &mut self,
        sent: Sent<Option<MemberName>>,
        result: Result<(SystemId, History), Failure<PgErrorKind>>,
    ) {
        let facts = &mut self.facts;
        let epoch = facts.predecessor.as_ref().and_then(Predecessor::epoch);
        match (sent.what, result) {
            (Some(name), result) => {
                let answer = result.map_err(|failure| failure.text);
                facts.leader_history = Some(LeaderHistory {
                    name,
                    epoch,
                    at: sent.at,
                    answer,
                });
            }
            (None, Ok((_, history))) => {
                facts.own_history = Some(history);
                facts.lanes.history_failed = None;
            }
            (None, Err(_)) => facts.lanes.history_failed = Some(facts.now),
        }
    }

    fn op_ended(&mut self, id: OpId, result: Result<(), Failure<PgErrorKind>>) {
        let facts = &mut self.facts;
        let is_this = |op: &RunningOp| op.id == id || planted(Mutant::StaleOpResult);
        let Some(running) = facts.op.take_if(|op| is_this(op)) else {
            return;
        };
        facts.settle();
        let kind = running.op.kind();
        match result {
            Ok(()) => {
                facts.promotion_ordered |=
                    running.op.makes_primary() && !planted(Mutant::OldLookTrusted);
                facts.failures.remove(&kind);
                match &running.op {
                    PgOp::HandOver { candidate } => {
                        facts.handed_over = Some(HandedOver {
                            candidate: candidate.clone(),
                            at: facts.now,
                        });
                    }
                    PgOp::Promote => {
                        facts.checkpoint_pending = true;
                        facts.promoted = true;
                    }
                    PgOp::Checkpoint => facts.checkpoint_pending = false,
                    PgOp::Start { .. } => facts.handed_over = None,
                    PgOp::Slots { .. } => facts.slots_at = Some(facts.now),
                    PgOp::Clone { .. } => {
                        facts.led = None;
                        facts.forget_old_data();
                    }
                    PgOp::Rewind { .. } => facts.forget_old_data(),
                    PgOp::Bootstrap { .. }
                    | PgOp::Confirm
                    | PgOp::Follow { .. }
                    | PgOp::Stop
                    | PgOp::Configure { .. } => {}
                }
            }
            Err(_) if running.cancelled => {
                facts.promotion_ordered |=
                    running.op.makes_primary() && !planted(Mutant::PromotionOrderForgotten);
            }
            Err(failure) => {
                facts.promotion_ordered |=
                    running.op.makes_primary() && !planted(Mutant::PromotionOrderForgotten);
                // Of one kind: a network that was cut for long says nothing of what comes after.
                let last = facts.failures.get(&kind);
                let times = last
                    .filter(|last| last.kind == failure.kind)
                    .map_or(0, |last| last.times);
                let failure = OpFailure {
                    at: facts.now,
                    times: times.saturating_add(1),
                    kind: failure.kind,
                    text: failure.text,
                };
                if kind == PgOpKind::HandOver {
                    facts.refuse_hand_over(&failure.text);
                }
                facts.failures.insert(kind, failure);
            }
        }
        if let (PgOp::Start { role }, Some(outage)) = (&running.op, &mut facts.outage)
            && *role == StartRole::Primary
        {
            outage.starts = outage.starts.saturating_add(1);
        }
    }

    fn fenced(&mut self, result: Result<(), Failure<PgErrorKind>>) {
        let facts = &mut self.facts;
        let began = facts.fencing.take().unwrap_or(facts.now);
        facts.settle();
        match result {
            Ok(()) => {
                facts.armed = None;
                facts.promotion_ordered = false;
                facts.fenced_at = Some(facts.now);
                facts.fence_failing = None;
                facts.unburied.get_or_insert(began);
                facts.lanes.fence_failed = None;
            }
            Err(failure) => {
                let before = facts.fence_failing.take().map(|(since, _)| since);
                let goes_on = began.since(facts.lanes.fence_failed.unwrap_or_default());
                let since = before.filter(|_| goes_on < FENCE_PATIENCE);
                facts.fence_failing = Some((since.unwrap_or(began), failure.text));
                facts.lanes.fence_failed = Some(facts.now);
            }
        }
    }

    // The guard.

    fn guard_answered(
        &mut self,
        sent: Sent<Option<crate::guard::Deadline>>,
        result: Result<GuardStatus, Failure<GuardErrorKind>>,
    ) {
        let facts = &mut self.facts;
        match result {
            Ok(status) => {
                facts.guard_failing = None;
                facts.lanes.guard_failed = None;
                facts.armed.clone_from(&status.deadline);
                let before = facts.guard.as_ref().map(|seen| seen.value.postmaster);
                if before != Some(status.postmaster) {
                    facts.lanes.observe_wanted = true;
                }
                facts.guard = Some(Seen {
                    at: sent.at,
                    value: status,
                });
            }
            Err(failure) => {
                let since = facts
                    .guard_failing
                    .as_ref()
                    .map_or(facts.now, |(since, _)| *since);
                facts.lanes.guard_failed = Some(facts.now);
                if failure.kind != GuardErrorKind::Refused {
                    facts.armed = None;
                }
                facts.guard_failing = Some((since, failure));
                facts.lanes.observe_wanted = true;
            }
        }
    }

    // Peers.

    fn peer_answered(&mut self, ticket: Ticket, name: MemberName, answer: Option<PeerStatus>) {
        let facts = &mut self.facts;
        let Some(sent) = facts
            .lanes
            .peers
            .get(&name)
            .filter(|sent| sent.ticket == ticket)
        else {
            return;
        };
        let at = sent.at;
        facts.lanes.peers.remove(&name);
        // Whoever answers at the address may be somebody else by now.
        let answer = answer.filter(|a| {
            a.name.as_ref().is_none_or(|said| *said == name)
                && a.scope
                    .as_ref()
                    .is_none_or(|said| *said == self.identity.scope.as_str())
        });
        // The word of the former holder itself, given after its key was gone.
        if let Some(before) = facts.predecessor.as_mut()
            && before.name.as_ref() == Some(&name)
            && before.gone.is_some_and(|gone| at >= gone)
            && answer
                .as_ref()
                .is_some_and(|a| a.cannot_write && !a.primary)
        {
            let better = before.proof.filter(|proof| proof.ends_consent());
            before.proof = better.or(Some(Proof::Vouched));
        }
        facts.peers.insert(name, Seen { at, value: answer });
    }
}

/// Whether the store says that there is a cluster, or that somebody else has data.
fn has_data(cluster: &Cluster, me: &MemberName) -> bool {
    let mut others = cluster.members.values().filter(|m| m.name != *me);
    matches!(cluster.initialize, Initialize::Known(_)) || others.any(|m| m.position().is_some())
}

/// Takes the request off its lane if this is the answer to it.
pub(super) fn take<T>(lane: &mut Option<Sent<T>>, ticket: Ticket) -> Option<Sent<T>> {
    lane.take_if(|sent| sent.ticket == ticket)
}
