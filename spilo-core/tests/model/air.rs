//! Requests between an agent and the rest: what they do, and when their answers arrive.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use spilo_core::NodeTime;
use spilo_core::dcs::DcsErrorKind;
use spilo_core::guard::GuardErrorKind;
use spilo_core::ids::OpId;
use spilo_core::machine::{
    Command, Event, Failure, GuardRequest, LeaseAnswer, LeaseRequest, Machine, ReadAnswer,
    ReadRequest, Ticket, WriteRequest,
};
use spilo_core::peer::{ConsentAnswer, ConsentRequest};
use spilo_core::pg::{PgErrorKind, PgOp, Upstream};
use spilo_core::store::Conflict;

use super::action::{Fate, Lane, Lapse};
use super::canon::Canon;
use super::node_at;
use super::server::{SYSTEM, Source};
use super::world::{Cut, World, name};

/// A request in the air.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    from: usize,
    life: u64,
    ticket: Ticket,
    request: Request,
    /// After how many quanta it is done.
    after: u8,
    /// Whether its sender still waits for the answer.
    awaited: bool,
}

#[derive(Clone, Debug)]
enum Request {
    /// With the lease id that it uses, and those that it revokes.
    Lease(LeaseRequest, u64, Vec<u64>),
    Read(ReadRequest),
}

/// How far an action has come.
struct Course {
    events: VecDeque<(usize, Event)>,
    lapse: Option<(usize, Lapse)>,
    leases: usize,
    reads: usize,
    writes: usize,
    steps: usize,
    /// Who accepted, in the round of consent that is under way.
    accepted: BTreeMap<spilo_core::MemberName, Option<spilo_core::Lsn>>,
}

impl World {
    /// Tells the agent of a node something, and carries out what it wants until it is at rest.
    /// Returns nothing if the lapse found no request.
    pub(crate) fn deliver(
        &mut self,
        n: usize,
        events: VecDeque<Event>,
        lapse: Option<Lapse>,
    ) -> Option<()> {
        let course = self.run(n, events, lapse);
        course.lapse.is_none().then_some(())
    }

    /// Returns how many requests on the lease lane and on the read lane a step would send.
    pub(crate) fn requests_of(&self, n: usize) -> (usize, usize) {
        let mut world = self.clone();
        world.story = None;
        let events = world.hears(n);
        let course = world.run(n, events, None);
        (course.leases, course.reads)
    }

    fn run(&mut self, n: usize, events: VecDeque<Event>, lapse: Option<Lapse>) -> Course {
        let mut course = Course {
            events: events.into_iter().map(|event| (n, event)).collect(),
            lapse: lapse.map(|lapse| (n, lapse)),
            leases: 0,
            reads: 0,
            writes: 0,
            steps: 0,
            accepted: BTreeMap::new(),
        };
        // What is answered at once is answered before anything else happens: an agent that is told
        // two things at the same time takes one after the other.
        while let Some((n, event)) = course.events.pop_front() {
            self.tell(&mut course, n, event);
            if course.steps > MOST_STEPS {
                let what = format!("{} does not come to rest", name(n));
                self.broken.get_or_insert(what);
                break;
            }
        }
        course
    }

    fn tell(&mut self, course: &mut Course, n: usize, event: Event) {
        let now = NodeTime(self.now);
        if let Event::Lease(_, Ok(LeaseAnswer::Held(lease))) = &event {
            // An attempt whose outcome is known needs no settling.
            let id = lease
                .secret
                .0
                .split('@')
                .next()
                .and_then(|id| id.parse::<u64>().ok());
            self.node(n).attempts.retain(|attempt| Some(*attempt) != id);
        }
        let telling = self.story.is_some();
        let Some(machine) = self.node(n).machine.as_mut() else {
            return;
        };
        course.steps += 1;
        let step = machine.step(now, event);
        if telling && step.news {
            let decision = &step.decision;
            self.note(|| format!("{} {}: {}", name(n), decision.rule, decision.why));
        }
        for command in step.commands {
            self.carry_out(course, n, command);
        }
    }

    fn carry_out(&mut self, course: &mut Course, n: usize, command: Command) {
        let answer = match command {
            Command::Lease(ticket, request) => return self.lease(course, n, ticket, request),
            Command::Read(ticket, request) => {
                let nth = course.reads;
                course.reads += 1;
                let fate = fate(course, n, Lane::Read, nth);
                return self.send(course, n, ticket, Request::Read(request), fate);
            }
            Command::Write(ticket, request) => {
                let answer =
                    Event::Written(ticket, self.write(n, request).map_err(|c| refused(&c)));
                course.writes += 1;
                if course.writes > MOST_WRITES {
                    self.node(n).inbox.push(answer);
                    return;
                }
                answer
            }
            Command::Observe(ticket) => self.look(n, ticket),
            Command::ReadHistory(ticket, of) => self.history(n, ticket, of.as_ref()),
            Command::StartOp(id, op) => return self.start_op(n, id, &op),
            Command::CancelOp(id) => self.cancel_op(n, id),
            // It is done when the quantum has passed.
            Command::Fence => {
                self.node(n).fencing = true;
                return;
            }
            // The guard is on the same machine, and answers before anybody else.
            Command::Guard(ticket, request) => {
                let answer = Event::Guard(ticket, self.guard(n, request));
                course.events.push_front((n, answer));
                return;
            }
            Command::AskPeer(ticket, peer, url) => {
                let there = node_at(&url).map(|peer| &self.nodes[peer]);
                let there = there.filter(|node| node.steps());
                let status = there
                    .and_then(|node| node.machine.as_ref())
                    .map(Machine::status);
                Event::PeerAnswered(ticket, peer, status.map(|status| status.as_peer()))
            }
            Command::AskConsent(ticket, members, request) => {
                for peer in members.values().filter_map(|url| node_at(url)) {
                    self.ask_consent(course, peer, &request);
                }
                Event::ConsentAnswered(ticket, std::mem::take(&mut course.accepted))
            }
            Command::AnswerConsent(_, answer) => {
                if let ConsentAnswer::Accepted(at) = answer {
                    let name = self.nodes[n].identity.name.clone();
                    course.accepted.insert(name, at);
                }
                return;
            }
            Command::Exit(exit) => {
                let what = format!("{} exits: {exit:?}", name(n));
                self.broken.get_or_insert(what);
                return;
            }
        };
        course.events.push_back((n, answer));
    }

    fn look(&mut self, n: usize, ticket: Ticket) -> Event {
        let source = self.streams_from(n).cloned();
        let server = &mut self.node(n).server;
        let streams = server.receive(source.as_ref());
        Event::Observed(ticket, Ok(server.status(streams)))
    }

    fn history(&self, n: usize, ticket: Ticket, of: Option<&Upstream>) -> Event {
        let of = of.map_or(Some(n), |of| self.at(of));
        let there = of.map(|of| (of, &self.nodes[of].server));
        let there = there.filter(|(of, server)| *of == n || server.takes_writes());
        let silent = || Failure::new(PgErrorKind::Retry, "no answer");
        let history = there.map(|(_, server)| (SYSTEM, server.history.clone()));
        Event::HistoryRead(ticket, history.ok_or_else(silent))
    }

    fn start_op(&mut self, n: usize, id: OpId, op: &PgOp) {
        let now = NodeTime(self.now);
        let source = op.upstream().and_then(|up| self.at(up)).map(|node| Source {
            node,
            history: Some(&self.nodes[node].server)
                .filter(|server| server.takes_writes())
                .map(|server| server.history.clone()),
        });
        let node = self.node(n);
        let armed = node.deadline.as_ref().is_some_and(|d| now < d.soft);
        let was_up = node.server.is_up();
        let result = node.server.run(id, op, armed, source);
        if was_up && !node.server.is_up() {
            node.deadline = None;
        }
        // Everything but a promotion is done at once, and reported with the next step: a look that
        // was taken in the same moment would count as one that saw the result.
        let ended = result.map(|result| Event::OpEnded(id, result));
        node.inbox.extend(ended);
    }

    fn cancel_op(&mut self, n: usize, id: OpId) -> Event {
        let node = self.node(n);
        if let Some(order) = &mut node.server.order {
            order.awaited = false;
            node.cancelled = true;
        }
        node.cancelled |= node.lost_op.take_if(|op| *op == id).is_some();
        Event::OpEnded(id, Err(Failure::new(PgErrorKind::Retry, "stopped")))
    }

    fn ask_consent(&mut self, course: &mut Course, peer: usize, request: &ConsentRequest) {
        if self.nodes[peer].steps() {
            self.tell(
                course,
                peer,
                Event::ConsentAsked(Ticket(0), request.clone()),
            );
        }
    }

    fn guard(
        &mut self,
        n: usize,
        request: GuardRequest,
    ) -> Result<spilo_core::guard::GuardStatus, Failure<GuardErrorKind>> {
        let now = NodeTime(self.now);
        let node = self.node(n);
        let last = node.deadline.as_ref();
        let refusal = match request {
            GuardRequest::Arm(deadline) if deadline.hard <= now => Some("it has passed"),
            GuardRequest::Arm(_) if last.is_some_and(|d| d.hard <= now) => Some("it kills"),
            GuardRequest::Arm(deadline) if last.is_some_and(|d| d.epoch > deadline.epoch) => {
                Some("a later epoch has it")
            }
            GuardRequest::Arm(deadline) => {
                node.deadline = Some(deadline);
                None
            }
            GuardRequest::Disarm if node.server.takes_writes() => Some("it is a primary"),
            GuardRequest::Disarm => {
                node.deadline = None;
                None
            }
            GuardRequest::Look => None,
        };
        match refusal {
            None => Ok(self.nodes[n].guard_status()),
            Some(why) => Err(Failure::new(GuardErrorKind::Refused, why)),
        }
    }

    // The store.

    fn lease(&mut self, course: &mut Course, n: usize, ticket: Ticket, request: LeaseRequest) {
        let id = self.store.new_lease_id();
        let node = self.node(n);
        let attempts = match &request {
            LeaseRequest::Acquire(_) | LeaseRequest::Succeed(..) => {
                node.attempts.push(id);
                Vec::new()
            }
            LeaseRequest::Settle => node.attempts.clone(),
            LeaseRequest::Renew(_) | LeaseRequest::Release(..) | LeaseRequest::Claim(_) => {
                Vec::new()
            }
        };
        let nth = course.leases;
        course.leases += 1;
        let fate = fate(course, n, Lane::Lease, nth);
        self.send(
            course,
            n,
            ticket,
            Request::Lease(request, id, attempts),
            fate,
        );
    }

    fn send(
        &mut self,
        course: &mut Course,
        n: usize,
        ticket: Ticket,
        request: Request,
        fate: Option<Fate>,
    ) {
        let cut = match (self.nodes[n].cut, &request) {
            (Cut::Everything, _) | (Cut::Reads, Request::Read(_)) => Some(Fate::Lost),
            (Cut::Nothing, _) | (Cut::Reads, Request::Lease(..)) => None,
        };
        let life = self.nodes[n].life;
        let mut call = Call {
            from: n,
            life,
            ticket,
            request,
            after: 0,
            awaited: true,
        };
        match cut.or(fate) {
            None => {
                let answer = self.at_store(&call);
                course.events.push_back((n, answer));
            }
            Some(Fate::Lost) => self.node(n).inbox.push(call.unknown()),
            Some(Fate::AnsweredLate) => {
                let answer = self.at_store(&call);
                self.node(n).inbox.push(answer);
            }
            Some(Fate::AnswerLost) => {
                let _answer = self.at_store(&call);
                self.node(n).inbox.push(call.unknown());
            }
            Some(Fate::DoneLate) => {
                call.after = 1;
                self.calls.push(call);
            }
            Some(Fate::Stray) => {
                self.node(n).inbox.push(call.unknown());
                call.after = 2;
                call.awaited = false;
                self.calls.push(call);
            }
        }
    }

    /// Lets the requests arrive whose time has come.
    pub(crate) fn arrive(&mut self) {
        for mut call in std::mem::take(&mut self.calls) {
            call.after -= 1;
            if call.after > 0 {
                self.calls.push(call);
                continue;
            }
            let answer = self.at_store(&call);
            let node = self.node(call.from);
            if call.awaited && node.life == call.life {
                node.inbox.push(answer);
            }
        }
    }

    fn at_store(&mut self, call: &Call) -> Event {
        let now = NodeTime(self.now);
        match &call.request {
            Request::Lease(request, id, attempts) => {
                let result = self.lease_at_store(call, request, *id, attempts);
                Event::Lease(call.ticket, result.map_err(|c| refused(&c)))
            }
            Request::Read(request) => {
                let store = &mut self.store;
                let answer = match request {
                    ReadRequest::Snapshot => ReadAnswer::Snapshot(Box::new(store.snapshot(now))),
                    ReadRequest::LeaseLeft(holder) => {
                        ReadAnswer::LeaseLeft(store.lease_left(now, holder))
                    }
                    ReadRequest::LeaseEnded(holder) => {
                        ReadAnswer::LeaseEnded(store.lease_ended(now, holder))
                    }
                };
                Event::Read(call.ticket, Ok(answer))
            }
        }
    }

    fn lease_at_store(
        &mut self,
        call: &Call,
        request: &LeaseRequest,
        id: u64,
        attempts: &[u64],
    ) -> Result<LeaseAnswer, Conflict> {
        let now = NodeTime(self.now);
        let me = self.nodes[call.from].identity.name.clone();
        let store = &mut self.store;
        let held = match request {
            LeaseRequest::Acquire(ttl) => store.acquire(now, id, &me, *ttl),
            LeaseRequest::Succeed(old, ttl) => store.succeed(now, id, old, &me, *ttl),
            LeaseRequest::Settle => {
                for id in attempts {
                    store.revoke(now, *id);
                    self.revoked.insert(*id);
                }
                let node = self.node(call.from);
                if node.life == call.life {
                    node.attempts.retain(|id| !attempts.contains(id));
                }
                return Ok(LeaseAnswer::Done);
            }
            LeaseRequest::Renew(lease) => return store.renew(now, lease).map(|()| DONE),
            LeaseRequest::Release(lease, record) => {
                return store.release(now, lease, record.clone()).map(|()| DONE);
            }
            LeaseRequest::Claim(lease) => return store.claim_initialize(now, lease).map(|()| DONE),
        };
        if held.is_err() && call.awaited {
            let node = self.node(call.from);
            node.attempts.retain(|attempt| *attempt != id);
        }
        held.map(LeaseAnswer::Held)
    }

    fn write(&mut self, n: usize, request: WriteRequest) -> Result<(), Conflict> {
        let now = NodeTime(self.now);
        if self.nodes[n].cut == Cut::Everything {
            return Err(Conflict("it does not reach the store"));
        }
        let me = self.nodes[n].identity.name.clone();
        match request {
            // The records of members are given no end: it takes half a minute, and matters little.
            WriteRequest::Announce(record, _) => {
                self.store
                    .announce(now, &me, record, Duration::from_secs(1 << 40));
                Ok(())
            }
            WriteRequest::Put(key, value, expect) => {
                self.store.put(now, key, value, expect).map(drop)
            }
        }
    }

    fn at(&self, upstream: &Upstream) -> Option<usize> {
        node_at(&upstream.conn_url).filter(|node| *node < self.nodes.len())
    }
}

impl Call {
    /// What its sender learns when there is no answer.
    fn unknown(&self) -> Event {
        match &self.request {
            Request::Lease(..) => {
                let failure = Failure::new(DcsErrorKind::Indeterminate, "no answer");
                Event::Lease(self.ticket, Err(failure))
            }
            Request::Read(_) => {
                let failure = Failure::new(DcsErrorKind::Unavailable, "no answer");
                Event::Read(self.ticket, Err(failure))
            }
        }
    }

    pub(crate) fn canonical(&self, canon: &mut Canon, world: &World) {
        let lives = world.nodes[self.from].life == self.life;
        canon.enter(self.from, super::canon::Known::default());
        canon.number(self.from as u64);
        canon.number(u64::from(self.after) * 4 + u64::from(self.awaited) * 2 + u64::from(lives));
        canon.put(&self.ticket);
        match &self.request {
            Request::Lease(request, id, attempts) => {
                canon.put(request);
                canon.lease_ids([*id].iter().chain(attempts));
                canon.number(u64::from(world.revoked.contains(id)));
            }
            Request::Read(request) => canon.put(request),
        }
    }
}

/// Takes the fate that was meant for this request.
fn fate(course: &mut Course, n: usize, lane: Lane, nth: usize) -> Option<Fate> {
    let meant =
        |(of, lapse): &mut (usize, Lapse)| *of == n && lapse.lane == lane && lapse.nth == nth;
    course.lapse.take_if(meant).map(|(_, lapse)| lapse.fate)
}

fn refused(conflict: &Conflict) -> Failure<DcsErrorKind> {
    Failure::new(DcsErrorKind::Conflict, conflict.0)
}

/// What the status document tells a peer.
const DONE: LeaseAnswer = LeaseAnswer::Done;

/// A leader that cannot read writes the same again and again; after so many times in one step the
/// store is a little slower.
const MOST_WRITES: usize = 12;

/// More than any step takes, with all that is answered at once.
const MOST_STEPS: usize = 200;
