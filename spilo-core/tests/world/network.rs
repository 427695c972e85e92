//! How requests travel: each takes effect at one moment, if at all, and is answered at a later
//! one, if at all.

use std::collections::BTreeMap;

use spilo_core::dcs::DcsErrorKind;
use spilo_core::guard::{GuardErrorKind, GuardStatus};
use spilo_core::ids::MemberName;
use spilo_core::machine::{
    Command, Event, Failure, GuardRequest, LeaseAnswer, LeaseRequest, ReadAnswer, ReadRequest,
    Ticket, WriteRequest,
};
use spilo_core::peer::{ConsentAnswer, ConsentRequest, PeerStatus};
use spilo_core::pg::{PgErrorKind, PgOp, Role, Server};
use spilo_core::store::Conflict;
use spilo_core::time::NodeTime;

use super::World;
use super::server::{self, FakeServer};

/// How bad the network is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Weather {
    /// Where the next draw comes from; zero draws nothing, and every request takes its least.
    pub(crate) seed: u64,
    /// What each way may take on top of its least, in milliseconds.
    pub(crate) delay: u64,
    /// How many requests to the store in a thousand are lost before, and how many after they took
    /// effect.
    pub(crate) lost: u64,
    /// How many hints in a thousand are lost.
    pub(crate) lost_hints: u64,
}

impl Weather {
    /// Returns a number below `below`, or zero if nothing is drawn.
    pub(crate) fn draw(&mut self, below: u64) -> u64 {
        if self.seed == 0 || below == 0 {
            return 0;
        }
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed >> 11) % below
    }

    pub(crate) fn chance(&mut self, thousandths: u64) -> bool {
        thousandths > 0 && self.seed != 0 && self.draw(1000) < thousandths
    }

    pub(crate) fn loses_hint(&mut self) -> bool {
        self.chance(self.lost_hints)
    }

    fn way(&mut self) -> u64 {
        // Most are fast, and some are slow.
        let most = if self.chance(100) {
            self.delay * 10
        } else {
            self.delay
        };
        1 + self.draw(most + 1)
    }
}

/// What may become of a request to the store.
enum Fate {
    /// It takes effect after the first span and is answered after the second.
    Done(u64, u64),
    /// It takes effect after the span, and the answer is lost.
    Silent(u64),
    /// It is lost.
    Lost,
}

impl World {
    pub(super) fn carry_out(&mut self, name: &MemberName, command: Command) {
        match command {
            Command::Lease(ticket, request) => self.lease(name, ticket, request),
            Command::Read(ticket, request) => self.read(name, ticket, request),
            Command::Write(ticket, request) => self.write_to_store(name, ticket, request),
            Command::Observe(ticket) => self.observe(name, ticket),
            Command::ReadHistory(ticket, of) => {
                let server = match &of {
                    None => Some(&self.nodes[name].server),
                    Some(up) => {
                        let there = &self.nodes[&up.name];
                        let reached = !there.cut_off && !self.nodes[name].cut_off;
                        (reached && there.server.takes_writes()).then_some(&there.server)
                    }
                };
                let answer = server.and_then(FakeServer::identity);
                let answer = answer.ok_or_else(|| Failure::new(PgErrorKind::Retry, "no answer"));
                self.answer(name, 5, Event::HistoryRead(ticket, answer));
            }
            Command::StartOp(id, op) => self.start_op(name, id, &op),
            Command::CancelOp(id) => {
                self.node(name.as_str()).server.cancel();
                let failure = Failure::new(PgErrorKind::Retry, "stopped");
                self.answer(name, 1, Event::OpEnded(id, Err(failure)));
            }
            Command::Fence => self.fence(name),
            Command::Guard(ticket, request) => self.guard(name, ticket, request),
            Command::AskPeer(ticket, peer, _) => self.ask_peer(name, ticket, peer),
            Command::AskConsent(ticket, members, request) => {
                self.ask_consent(name, ticket, members.into_keys().collect(), &request);
            }
            Command::AnswerConsent(_, answer) => {
                self.answers.entry(name.clone()).or_default().push(answer);
            }
            Command::Exit(exit) => {
                self.note(&format!("{name} exits: {exit:?}"));
                self.kill_agent(name.as_str());
                self.node(name.as_str()).exit = Some(exit);
            }
        }
    }

    fn answer(&mut self, name: &MemberName, delay: u64, event: Event) {
        let life = self.nodes[name].life;
        self.later(name.as_str(), life, delay, event);
    }

    fn fate(&mut self, name: &MemberName) -> Fate {
        if self.nodes[name].cut_off || self.store_down {
            return Fate::Lost;
        }
        let lost = self.weather.lost;
        match (self.weather.chance(lost), self.weather.chance(lost)) {
            (true, _) => Fate::Lost,
            (false, true) => Fate::Silent(self.weather.way()),
            (false, false) => Fate::Done(self.weather.way(), self.weather.way()),
        }
    }

    /// Sends a request to the store: `effect` happens there, if it does, and what it returns is
    /// what the sender learns, if it learns it.
    fn send(
        &mut self,
        name: &MemberName,
        unknown: Event,
        effect: impl FnOnce(&mut Self) -> Event + 'static,
    ) {
        let (there, back) = match self.fate(name) {
            Fate::Done(there, back) if there + back < TIMEOUT => (there, Some(back)),
            Fate::Done(there, _) | Fate::Silent(there) => (there, None),
            Fate::Lost => return self.answer(name, TIMEOUT, unknown),
        };
        if back.is_none() {
            self.answer(name, TIMEOUT, unknown.clone());
        }
        let (name, life) = (name.clone(), self.nodes[name].life);
        self.after(there, move |world| {
            // A link that was cut in the meantime carries nothing, in either direction.
            if world.store_down || world.nodes[&name].cut_off {
                if back.is_some() {
                    world.later(name.as_str(), life, TIMEOUT, unknown);
                }
                return;
            }
            let event = effect(world);
            if let Some(back) = back {
                world.later(name.as_str(), life, back, event);
            }
        });
    }

    fn lease(&mut self, me: &MemberName, ticket: Ticket, request: LeaseRequest) {
        let failure = Failure::new(DcsErrorKind::Indeterminate, "no answer");
        let unknown = Event::Lease(ticket, Err(failure));
        let id = self.store.new_lease_id();
        if matches!(
            request,
            LeaseRequest::Acquire(_) | LeaseRequest::Succeed(..)
        ) {
            self.node(me.as_str()).attempts.push(id);
        }
        let settled = self.nodes[me].attempts.clone();
        let (name, life) = (me.clone(), self.nodes[me].life);
        self.send(me, unknown, move |world| {
            let now = NodeTime(world.now);
            let store = &mut world.store;
            let done = |result: Result<(), Conflict>| result.map(|()| LeaseAnswer::Done);
            let result = match &request {
                LeaseRequest::Acquire(ttl) => {
                    store.acquire(now, id, &name, *ttl).map(LeaseAnswer::Held)
                }
                LeaseRequest::Succeed(old, ttl) => store
                    .succeed(now, id, old, &name, *ttl)
                    .map(LeaseAnswer::Held),
                LeaseRequest::Settle => {
                    // The lease that the sender lives by was no attempt without an outcome.
                    let held = world.nodes[&name].machine.as_ref().and_then(|m| {
                        let lease = &m.facts().holding.as_ref()?.lease;
                        lease.secret.0.split('@').next()?.parse::<u64>().ok()
                    });
                    for id in settled.iter().filter(|id| Some(**id) != held) {
                        store.revoke(now, *id);
                    }
                    Ok(LeaseAnswer::Done)
                }
                LeaseRequest::Renew(lease) => done(store.renew(now, lease)),
                LeaseRequest::Release(lease, record) => {
                    done(store.release(now, lease, record.clone()))
                }
                LeaseRequest::Claim(lease) => done(store.claim_initialize(now, lease)),
            };
            let result = result.map_err(|c| Failure::new(DcsErrorKind::Conflict, c.0));
            let node = world.nodes.get_mut(&name).unwrap();
            if request == LeaseRequest::Settle && node.life == life {
                node.attempts.retain(|id| !settled.contains(id));
            }
            Event::Lease(ticket, result)
        });
    }

    fn read(&mut self, name: &MemberName, ticket: Ticket, request: ReadRequest) {
        let failure = Failure::new(DcsErrorKind::Unavailable, "no answer");
        let unknown = Event::Read(ticket, Err(failure));
        self.send(name, unknown, move |world| {
            let now = NodeTime(world.now);
            let store = &mut world.store;
            let answer = match &request {
                ReadRequest::Snapshot => ReadAnswer::Snapshot(Box::new(store.snapshot(now))),
                ReadRequest::LeaseLeft(holder) => {
                    ReadAnswer::LeaseLeft(store.lease_left(now, holder))
                }
                ReadRequest::LeaseEnded(holder) => {
                    ReadAnswer::LeaseEnded(store.lease_ended(now, holder))
                }
            };
            Event::Read(ticket, Ok(answer))
        });
    }

    fn write_to_store(&mut self, me: &MemberName, ticket: Ticket, request: WriteRequest) {
        let failure = Failure::new(DcsErrorKind::Indeterminate, "no answer");
        let unknown = Event::Written(ticket, Err(failure));
        let name = me.clone();
        self.send(me, unknown, move |world| {
            let now = NodeTime(world.now);
            let result = match request {
                WriteRequest::Announce(record, ttl) => {
                    world.store.announce(now, &name, record, ttl);
                    Ok(())
                }
                WriteRequest::Put(key, value, expect) => {
                    world.store.put(now, key, value, expect).map(|_| ())
                }
            };
            let result = result.map_err(|c| Failure::new(DcsErrorKind::Conflict, c.0));
            Event::Written(ticket, result)
        });
    }

    fn observe(&mut self, name: &MemberName, ticket: Ticket) {
        let (there, back) = (self.weather.way(), 1 + self.weather.way());
        let (name, life) = (name.clone(), self.nodes[name].life);
        self.after(there, move |world| {
            let status = world.nodes[&name].server.status();
            let event = Event::Observed(ticket, Ok(status));
            world.later(name.as_str(), life, back, event);
        });
    }

    fn start_op(&mut self, name: &MemberName, id: spilo_core::ids::OpId, op: &PgOp) {
        let source = server::source(op).map(|up| {
            let there = &self.nodes[&up.name];
            let lost = there.cut_off || self.nodes[name].cut_off;
            (there.server.clone(), lost)
        });
        if matches!(op, PgOp::Bootstrap { .. }) {
            let other = self.nodes.iter().find(|(_, n)| n.server.has_data());
            let other = other.map(|(n, _)| n.as_str());
            assert_eq!(other, None, "{name} starts anew\n{}", self.tell());
        }
        let now = self.local(name.as_str()).0;
        let node = self.nodes.get_mut(name).unwrap();
        let (delay, result) = node.server.run(now, op, source);
        node.op = Some((id, self.now + delay));
        // The server's clock may be slow; what it does is done when that is said.
        let delay = delay + delay / 100 + 2;
        self.answer(name, delay, Event::OpEnded(id, result));
    }

    fn fence(&mut self, name: &MemberName) {
        let there = self.weather.way();
        let (name, life) = (name.clone(), self.nodes[name].life);
        self.after(there, move |world| {
            world.node(name.as_str()).server.crash();
            world.later(name.as_str(), life, 20, Event::Fenced(Ok(())));
        });
    }

    fn guard(&mut self, name: &MemberName, ticket: Ticket, request: GuardRequest) {
        let now = self.local(name.as_str()).0;
        let server = &mut self.node(name.as_str()).server;
        let last = server.deadline.clone();
        let refusal = match request {
            GuardRequest::Arm(deadline) if deadline.hard.0 <= now => Some("it has passed"),
            GuardRequest::Arm(deadline) if last.is_some_and(|l| l.epoch > deadline.epoch) => {
                Some("a later epoch has it")
            }
            GuardRequest::Arm(deadline) => {
                server.deadline = Some(deadline);
                None
            }
            GuardRequest::Disarm if server.takes_writes() => Some("it is a primary"),
            GuardRequest::Disarm => {
                server.deadline = None;
                None
            }
            GuardRequest::Look => None,
        };
        let mut status = GuardStatus::idle();
        status.deadline.clone_from(&server.deadline);
        status.postmaster = (!matches!(server.status().server, Server::Down)).then_some(1);
        let result = match refusal {
            None => Ok(status),
            Some(why) => Err(Failure::new(GuardErrorKind::Refused, why)),
        };
        self.answer(name, 1, Event::Guard(ticket, result));
    }

    fn ask_peer(&mut self, name: &MemberName, ticket: Ticket, peer: MemberName) {
        let (there, back) = (self.weather.way() + 1, self.weather.way() + 1);
        let (name, life) = (name.clone(), self.nodes[name].life);
        self.after(there, move |world| {
            let lost = world.nodes[&name].cut_off || !world.nodes[&peer].answers();
            let answer = if lost {
                None
            } else {
                Some(world.peer_status(&peer))
            };
            let back = if lost { 300 } else { back };
            let event = Event::PeerAnswered(ticket, peer, answer);
            world.later(name.as_str(), life, back, event);
        });
    }

    /// What the agent of a node says, which is what it saw last.
    fn peer_status(&self, name: &MemberName) -> PeerStatus {
        let status = self.nodes[name].machine.as_ref().unwrap().status();
        let running = status.postgres.as_ref().and_then(|pg| pg.running());
        PeerStatus {
            scope: None,
            name: Some(name.clone()),
            primary: running.is_some_and(|r| r.is_primary()),
            position: running.map(|r| r.position().lsn),
            timeline: running.map(|r| r.timeline),
            no_failover: false,
            streaming: matches!(
                running.map(|r| &r.role),
                Some(Role::Standby {
                    streaming: true,
                    ..
                })
            ),
            cannot_write: status.cannot_write(),
        }
    }

    fn ask_consent(
        &mut self,
        name: &MemberName,
        ticket: Ticket,
        members: Vec<MemberName>,
        request: &ConsentRequest,
    ) {
        let key = (name.clone(), ticket);
        self.consents.insert(key.clone(), BTreeMap::new());
        let mut last = 0;
        for peer in members {
            let there = self.weather.way() + 2;
            last = last.max(there);
            let (key, request) = (key.clone(), request.clone());
            self.after(there, move |world| {
                if world.nodes[&key.0].cut_off || !world.nodes[&peer].answers() {
                    return;
                }
                world.answers.insert(peer.clone(), Vec::new());
                world.step(&peer, Event::ConsentAsked(Ticket(1), request));
                let answer = world.answers.get(&peer).map(Vec::as_slice);
                if let Some([ConsentAnswer::Accepted(lsn)]) = answer {
                    let lsn = *lsn;
                    world.consents.entry(key).or_default().insert(peer, lsn);
                }
            });
        }
        let (back, life) = (self.weather.way() + 2, self.nodes[name].life);
        self.after(last + 1, move |world| {
            let accepted = world.consents.remove(&key).unwrap_or_default();
            let event = Event::ConsentAnswered(ticket, accepted);
            world.later(key.0.as_str(), life, back, event);
        });
    }
}

/// How long a request to the store is waited for.
const TIMEOUT: u64 = 500;
