//! How what an agent wants done is done: each request takes effect at one moment, if at all, and
//! is answered at a later one, if at all.

use super::network::End;
use super::node::Mind;
use super::queue::{Item, StoreBody, StoreCall};
use super::server::{Begun, Order, stopped};
use super::{Sim, address, n_name, node_at};
use crate::dcs::DcsErrorKind;
use crate::guard::GuardErrorKind;
use crate::ids::OpId;
use crate::machine::{
    Command, Event, Failure, GuardRequest, LeaseAnswer, LeaseRequest, Limits, ReadAnswer,
    ReadRequest, Ticket, WriteRequest,
};
use crate::pg::{PgErrorKind, PgOp, Upstream};
use crate::store::Conflict;
use crate::time::NodeTime;
use crate::wal::Lsn;

impl Sim {
    /// Sends on its way what the agent of a node wants done.
    pub(super) fn carry_out(&mut self, n: usize, command: Command) {
        match command {
            Command::Lease(ticket, request) => self.lease(n, ticket, request),
            Command::Read(ticket, request) => {
                self.send(n, ticket, StoreBody::Read(request));
            }
            Command::Write(ticket, request) => {
                let name = self.nodes[n].identity.name.clone();
                self.send(n, ticket, StoreBody::Write(name, request));
            }
            Command::Observe(ticket) => {
                let (there, back) = (self.way(), 1 + self.way());
                let life = self.nodes[n].life;
                self.queue
                    .put(self.now + there, Item::Look(n, life, ticket, back));
            }
            Command::ReadHistory(ticket, of) => self.read_history(n, ticket, of.as_ref()),
            Command::StartOp(id, op) => self.start_op(n, id, &op),
            Command::CancelOp(id) => {
                self.nodes[n].server.cancel();
                self.tell_agent(n, Event::OpEnded(id, stopped(id)));
            }
            Command::Fence => {
                let (life, there) = (self.nodes[n].life, self.way());
                let since = self.now;
                self.queue.put(
                    self.now + there,
                    Item::Fence {
                        node: n,
                        life,
                        since,
                    },
                );
            }
            Command::Guard(ticket, request) => self.ask_guard(n, ticket, request),
            Command::AskPeer(ticket, name, url) => self.ask_peer(n, ticket, &name, &url),
            Command::AskConsent(ticket, members, request) => {
                self.ask_consent(n, ticket, &members, &request);
            }
            Command::AnswerConsent(ticket, answer) => self.answer_consent(n, ticket, answer),
            Command::Exit(exit) => {
                let name = n_name(&self.nodes, n);
                let text = format!("{name} exits: {exit:?}");
                self.note(format_args!("{text}"));
                self.agent_exits(n);
                self.nodes[n].exit = Some(exit);
            }
        }
    }

    /// Lets something happen whose time has come.
    pub(super) fn happen(&mut self, item: Item) {
        match item {
            Item::Deliver(n, life, event) => self.deliver(n, life, event),
            Item::AtStore(call) => self.at_store(*call),
            Item::Look(n, life, ticket, back) => {
                let (back, seen) = if self.nodes[n].server.is_hidden() {
                    let failure = "the data directory does not answer";
                    (1000, Err(Failure::new(PgErrorKind::Retry, failure)))
                } else {
                    (back, Ok(self.look(n)))
                };
                self.answer(n, life, back, Event::Observed(ticket, seen));
            }
            Item::HistoryAsked {
                from,
                life,
                ticket,
                of,
            } => self.history_asked(from, life, ticket, of),
            Item::Effect {
                node,
                life,
                op,
                serial,
                breaks,
            } => self.effect(node, life, op, serial, breaks),
            Item::Fence { node, life, since } => self.fence(node, life, since),
            Item::PeerAsked {
                from,
                life,
                ticket,
                peer,
            } => self.peer_asked(from, life, ticket, peer),
            Item::ConsentAsked {
                round,
                peer,
                request,
            } => self.consent_asked(round, peer, *request),
            Item::ConsentAnswered {
                round,
                peer,
                answer,
            } => self.consent_answered(round, peer, answer),
            Item::ConsentOver(round) => self.consent_over(round),
            Item::Hint(n) => {
                let life = self.nodes[n].life;
                self.deliver(n, life, Event::Changed);
            }
            Item::Receive(n) => {
                self.receive(n);
                let next = self.now + self.conditions.replication_ms.max(1);
                self.queue.put(next, Item::Receive(n));
            }
            Item::Clients => self.clients_write(),
            Item::Over(fault) => {
                self.note(format_args!("-- {fault:?} is over"));
                self.end(fault);
            }
        }
    }

    pub(super) fn deliver(&mut self, n: usize, life: u64, event: Event) {
        let node = &mut self.nodes[n];
        if node.life != life {
            return;
        }
        if node.paused {
            node.held.push(event);
            return;
        }
        match &event {
            Event::OpEnded(id, _) if node.op != Some(*id) => return,
            Event::OpEnded(..) => node.op = None,
            // Something outside may have ceased to wait, and says itself what it has learnt.
            Event::Lease(_, Ok(LeaseAnswer::Held(lease))) if !node.outside => {
                node.forget_attempt(lease);
            }
            _ => {}
        }
        match &mut node.mind {
            Mind::None => {}
            Mind::Machine(_) => self.step(n, event),
            Mind::Outside { events, .. } => events.push(event),
        }
    }

    pub(super) fn answer(&mut self, n: usize, life: u64, delay: u64, event: Event) {
        self.queue
            .put(self.now + delay, Item::Deliver(n, life, event));
    }

    pub(super) fn way(&mut self) -> u64 {
        self.conditions.way(&mut self.chance)
    }

    pub(super) fn limits(&self, n: usize) -> Option<Limits> {
        match &self.nodes[n].mind {
            Mind::Machine(machine) => Some(Limits::of(machine.facts())),
            Mind::None | Mind::Outside { .. } => None,
        }
    }

    // The store.

    fn lease(&mut self, n: usize, ticket: Ticket, request: LeaseRequest) {
        let id = self.store.keys.new_lease_id();
        if matches!(
            request,
            LeaseRequest::Acquire(_) | LeaseRequest::Succeed(..)
        ) {
            self.nodes[n].attempts.push(id);
        }
        let attempts = match request {
            LeaseRequest::Settle => self.nodes[n].attempts.clone(),
            _ => Vec::new(),
        };
        self.send(n, ticket, StoreBody::Lease(request, id, attempts));
    }

    /// Sends a request to the store. Its sender learns of its outcome, or after a while that there
    /// is none to learn.
    fn send(&mut self, n: usize, ticket: Ticket, body: StoreBody) {
        self.store.requests += 1;
        let patience = self.limits(n).map_or(PATIENCE, |limits| {
            let limit = match body {
                StoreBody::Lease(..) => limits.lease,
                StoreBody::Read(_) | StoreBody::Write(..) => limits.request,
            };
            u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)
        });
        let life = self.nodes[n].life;
        if self.store.refuses {
            let refusal = outcome(ticket, &body, DcsErrorKind::Unavailable, "refused");
            return self.answer(n, life, 2, refusal);
        }
        let lost = self.chance.happens(self.conditions.lost_requests);
        let silent = self.chance.happens(self.conditions.lost_requests);
        let (there, back) = (self.way(), self.way());
        let reaches = !lost && self.network.carries(End::Node(n), End::Store);
        if !reaches || there >= patience {
            return self.answer(n, life, patience, unknown(ticket, &body));
        }
        let call = StoreCall {
            from: n,
            life,
            ticket,
            body,
            back: (!silent && there + back < patience).then_some(back),
            patience: patience - there,
        };
        self.queue
            .put(self.now + there, Item::AtStore(Box::new(call)));
    }

    fn at_store(&mut self, call: StoreCall) {
        let (n, life) = (call.from, call.life);
        // A link that was cut meanwhile carries nothing.
        let arrives = !self.store.refuses
            && !self.store.silent
            && self.network.carries(End::Node(n), End::Store);
        let back = call
            .back
            .filter(|_| arrives && self.network.carries(End::Store, End::Node(n)));
        if back.is_none() {
            let event = unknown(call.ticket, &call.body);
            self.answer(n, life, call.patience, event);
        }
        if !arrives {
            return;
        }
        let now = NodeTime(self.now);
        let event = match call.body {
            StoreBody::Lease(request, id, attempts) => {
                let result = self.lease_at_store(n, life, &request, id, &attempts);
                Event::Lease(call.ticket, result)
            }
            StoreBody::Read(request) => {
                let store = &mut self.store;
                let answer = match &request {
                    ReadRequest::Snapshot => ReadAnswer::Snapshot(Box::new(store.snapshot(n, now))),
                    ReadRequest::LeaseLeft(holder) => {
                        ReadAnswer::LeaseLeft(store.keys.lease_left(now, holder))
                    }
                    ReadRequest::LeaseEnded(holder) => {
                        ReadAnswer::LeaseEnded(store.keys.lease_ended(now, holder))
                    }
                };
                Event::Read(call.ticket, Ok(answer))
            }
            StoreBody::Write(name, request) => {
                let keys = &mut self.store.keys;
                let result = match request {
                    WriteRequest::Announce(record, ttl) => {
                        keys.announce(now, &name, record, ttl);
                        Ok(())
                    }
                    WriteRequest::Put(key, value, expect) => {
                        keys.put(now, key, value, expect).map(|_| ())
                    }
                };
                Event::Written(call.ticket, result.map_err(|c| conflict(&c)))
            }
        };
        if let Some(back) = back {
            self.answer(n, life, back, event);
        }
    }

    fn lease_at_store(
        &mut self,
        n: usize,
        life: u64,
        request: &LeaseRequest,
        id: u64,
        attempts: &[u64],
    ) -> Result<LeaseAnswer, Failure<DcsErrorKind>> {
        let now = NodeTime(self.now);
        let name = self.nodes[n].identity.name.clone();
        let keys = &mut self.store.keys;
        let done = |result: Result<(), Conflict>| result.map(|()| LeaseAnswer::Done);
        let result = match request {
            LeaseRequest::Acquire(ttl) => keys.acquire(now, id, &name, *ttl).map(LeaseAnswer::Held),
            LeaseRequest::Succeed(old, ttl) => keys
                .succeed(now, id, old, &name, *ttl)
                .map(LeaseAnswer::Held),
            LeaseRequest::Settle => {
                for id in attempts {
                    keys.revoke(now, *id);
                }
                let node = &mut self.nodes[n];
                if node.life == life {
                    node.attempts.retain(|id| !attempts.contains(id));
                }
                Ok(LeaseAnswer::Done)
            }
            LeaseRequest::Renew(lease) => done(keys.renew(now, lease)),
            LeaseRequest::Release(lease, record) => done(keys.release(now, lease, record.clone())),
            LeaseRequest::Claim(lease) => done(keys.claim_initialize(now, lease)),
        };
        result.map_err(|c| conflict(&c))
    }

    // The server.

    fn look(&self, n: usize) -> crate::pg::PgStatus {
        let followers: Vec<(&str, Lsn)> = self
            .nodes
            .iter()
            .filter(|node| node.server.upstream() == Some(n) && node.server.is_streaming())
            .filter_map(|node| Some((node.name(), node.server.log()?.position().lsn)))
            .collect();
        self.nodes[n].server.status(&followers, address)
    }

    fn read_history(&mut self, n: usize, ticket: Ticket, of: Option<&Upstream>) {
        let life = self.nodes[n].life;
        match of {
            None => self.history_asked(n, life, ticket, n),
            Some(upstream) => {
                let there = self.way();
                let Some(of) = node_at(&upstream.conn_url).filter(|of| *of < self.nodes.len())
                else {
                    let none = Failure::new(PgErrorKind::Retry, "there is no such server");
                    return self.tell_agent(n, Event::HistoryRead(ticket, Err(none)));
                };
                let item = Item::HistoryAsked {
                    from: n,
                    life,
                    ticket,
                    of,
                };
                self.queue.put(self.now + there, item);
            }
        }
    }

    fn history_asked(&mut self, from: usize, life: u64, ticket: Ticket, of: usize) {
        let reached = from == of || self.network.joins(End::Node(from), End::Node(of));
        let there = &self.nodes[of].server;
        let answer = there
            .log()
            .filter(|_| from == of || (reached && there.takes_writes()))
            .map(|log| (log.id, log.history.clone()))
            .ok_or_else(|| Failure::new(PgErrorKind::Retry, "no answer"));
        let back = if answer.is_ok() { self.way() + 2 } else { 1000 };
        self.answer(from, life, back, Event::HistoryRead(ticket, answer));
    }

    fn start_op(&mut self, n: usize, id: OpId, op: &PgOp) {
        self.nodes[n].op = Some(id);
        let upstream = op.upstream().and_then(|up| node_at(&up.conn_url));
        let source = upstream
            .filter(|up| *up < self.nodes.len() && *up != n)
            .filter(|up| self.network.joins(End::Node(*up), End::Node(n)))
            .map(|up| &self.nodes[up].server)
            .filter(|server| server.takes_writes())
            .and_then(|server| server.log().cloned());
        if matches!(op, PgOp::Bootstrap { .. })
            && let Some(other) = self.nodes.iter().find(|o| o.server.has_promised_data())
        {
            let (name, other) = (n_name(&self.nodes, n), other.name());
            let what = format!("{name} begins a cluster, and {other} has the data of one");
            self.break_with(what);
        }
        self.look_at_upstream(n, op, source.as_ref());
        let level = self.is_level(n, op);
        let node = &self.nodes[n];
        let local = node.clock.local(self.now);
        let order = Order {
            op,
            armed: !node.guard.frozen
                && node.guard.deadline.as_ref().is_some_and(|d| local < d.soft),
            upstream,
            source,
            level,
            slowness: self.conditions.operations,
            fails: self.chance.happens(self.conditions.failing_operations),
            hopeless: self.chance.happens(500),
        };
        let life = node.life;
        let (after, serial, breaks) = match self.nodes[n].server.begin(order) {
            Begun::Ended(after, result) => {
                return self.answer(n, life, after, Event::OpEnded(id, result));
            }
            Begun::UnderWay(after, serial) => (after, serial, false),
            Begun::Breaks(after, serial) => (after, serial, true),
        };
        let item = Item::Effect {
            node: n,
            life,
            op: id,
            serial,
            breaks,
        };
        self.queue.put(self.now + after, item);
    }

    /// Returns whether a standby streams that may take over from a node.
    fn is_level(&self, n: usize, op: &PgOp) -> bool {
        let PgOp::HandOver { candidate } = op else {
            return false;
        };
        self.nodes.iter().any(|node| {
            node.server.upstream() == Some(n)
                && node.server.is_streaming()
                && candidate
                    .as_ref()
                    .is_none_or(|wanted| *wanted == node.identity.name)
        })
    }

    fn effect(&mut self, n: usize, life: u64, op: OpId, serial: u64, breaks: bool) {
        if self.nodes[n].server.is_stalled() {
            let item = Item::Effect {
                node: n,
                life,
                op,
                serial,
                breaks,
            };
            return self.queue.put(self.now + 100, item);
        }
        if self.nodes[n].server.is_stopping(serial) && !breaks {
            self.flush(n);
        }
        let was_primary = self.nodes[n].server.is_primary();
        let before = self.nodes[n].server.log().map(|log| log.position());
        let (done, result) = if breaks {
            let failure = Failure::new(PgErrorKind::Retry, "it failed half-way");
            (self.nodes[n].server.breaks(serial), Err(failure))
        } else {
            (self.nodes[n].server.finish(self.now, serial), Ok(()))
        };
        let result = match (done, result) {
            (true, result) => result,
            (false, _) => Err(Failure::new(PgErrorKind::Retry, "its server is gone")),
        };
        let after = self.nodes[n].server.log().map(|log| log.position());
        let is_new = before.map(|at| at.timeline) != after.map(|at| at.timeline);
        if done && !was_primary && is_new && self.nodes[n].server.is_primary() {
            let forked_at = before.map_or(0, |at| at.lsn.0);
            self.promoted(n, forked_at);
        }
        let back = 1 + self.way();
        self.answer(n, life, back, Event::OpEnded(op, result));
    }

    fn fence(&mut self, n: usize, life: u64, since: u64) {
        let failed = |why| Event::Fenced(Err(Failure::new(PgErrorKind::Retry, why)));
        if self.nodes[n].fence_fails {
            return self.answer(n, life, 1, failed("no process can be found"));
        }
        self.nodes[n].server.crash();
        if !self.nodes[n].server.is_up() {
            return self.answer(n, life, 20, Event::Fenced(Ok(())));
        }
        // What waits for a disk that hangs cannot be killed. Its guard is content with a signal that
        // it will find when it wakes.
        let spent = self.now.saturating_sub(since);
        let node = &self.nodes[n];
        if spent >= BURIAL && node.server.is_guarded() && !node.guard.frozen {
            return self.answer(n, life, 20, Event::Fenced(Ok(())));
        }
        if spent >= FENCE_LIMIT {
            return self.answer(n, life, 1, failed("its processes are still alive"));
        }
        let item = Item::Fence {
            node: n,
            life,
            since,
        };
        self.queue.put(self.now + 100, item);
    }

    fn ask_guard(&mut self, n: usize, ticket: Ticket, request: GuardRequest) {
        let local = self.nodes[n].clock.local(self.now);
        let life = self.nodes[n].life;
        if self.nodes[n].guard.frozen {
            let silent = Failure::new(GuardErrorKind::Silent, "no answer");
            return self.answer(n, life, 1000, Event::Guard(ticket, Err(silent)));
        }
        let writes = self.nodes[n].server.takes_writes();
        let guard = &mut self.nodes[n].guard;
        let refusal = match request {
            GuardRequest::Arm(deadline) => guard.arm(deadline, local),
            GuardRequest::Disarm if writes => Some("it is a primary"),
            GuardRequest::Disarm => {
                guard.deadline = None;
                None
            }
            GuardRequest::Look => None,
        };
        let result = match refusal {
            None => Ok(self.nodes[n].guard_status()),
            Some(why) => Err(Failure::new(GuardErrorKind::Refused, why)),
        };
        self.answer(n, life, 1, Event::Guard(ticket, result));
    }

    // The clients.

    fn clients_write(&mut self) {
        for node in &mut self.nodes {
            // Whether its agent says so or not, they write wherever it is possible; but nobody told
            // them of a cluster that is only being begun.
            if !node.server.has_promised_data() {
                continue;
            }
            if let Some(row) = node.server.write(self.conditions.write_bytes) {
                self.clients.acknowledge(self.now, row);
            }
        }
        let next = self.now + self.conditions.write_every_ms.max(1);
        self.queue.put(next, Item::Clients);
    }
}

/// What the sender of a request learns whose answer did not come.
fn unknown(ticket: Ticket, body: &StoreBody) -> Event {
    let kind = match body {
        StoreBody::Read(_) => DcsErrorKind::Unavailable,
        StoreBody::Lease(..) | StoreBody::Write(..) => DcsErrorKind::Indeterminate,
    };
    outcome(ticket, body, kind, "no answer")
}

fn outcome(ticket: Ticket, body: &StoreBody, kind: DcsErrorKind, text: &str) -> Event {
    let failure = Failure::new(kind, text);
    match body {
        StoreBody::Lease(..) => Event::Lease(ticket, Err(failure)),
        StoreBody::Read(_) => Event::Read(ticket, Err(failure)),
        StoreBody::Write(..) => Event::Written(ticket, Err(failure)),
    }
}

fn conflict(conflict: &Conflict) -> Failure<DcsErrorKind> {
    Failure::new(DcsErrorKind::Conflict, conflict.0)
}

/// Something outside has its own time-outs, and none of them is longer.
const PATIENCE: u64 = 15_000;

/// So long a guard waits for what it has killed to be gone.
const BURIAL: u64 = 500;

/// After so long the agent's own fence gives up on processes that do not end.
const FENCE_LIMIT: u64 = 11_000;
