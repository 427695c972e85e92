//! A small cluster as a value: nodes, each with the production machine, a guard and a server; the
//! store; the requests in the air; and how much trouble there may yet be.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, json};
use spilo_core::NodeTime;
use spilo_core::config::DynamicConfig;
use spilo_core::dcs::{Expect, Key};
use spilo_core::guard::{Deadline, GuardStatus};
use spilo_core::ids::{MemberName, OpId, Scope};
use spilo_core::machine::{Event, Failure, Identity, Machine};
use spilo_core::pg::PgErrorKind;
use spilo_core::store::Store;
use spilo_core::wal::Timeline;

use super::action::{Action, Incident, Kinds, Lapse};
use super::address;
use super::air::Call;
use super::canon::{Canon, Known};
use super::server::{FakeServer, SYSTEM, State};

/// A state of the model.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) store: Store,
    pub(crate) nodes: Vec<Arc<Node>>,
    pub(crate) calls: Vec<Call>,
    /// How many more incidents there may be.
    pub(crate) incidents: u8,
    /// How many more requests may go astray.
    pub(crate) lapses: u8,
    pub(crate) kinds: Kinds,
    /// For how many quanta a server may put off to become a primary.
    patience: u8,
    /// What was broken within an action.
    pub(crate) broken: Option<String>,
    /// What happened in the last action, if somebody wants to read it.
    pub(crate) story: Option<Vec<String>>,
    /// The timeline that was begun last: no two servers begin the same one.
    timeline: Timeline,
    /// The lease ids that no request can use any more.
    pub(crate) revoked: BTreeSet<u64>,
}

/// An agent, its guard and its server.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) identity: Identity,
    /// The agent's mind, if it runs.
    pub(crate) machine: Option<Machine>,
    /// Counts the lives of the agent: what an earlier one asked for reaches nobody.
    pub(crate) life: u64,
    pub(crate) paused: bool,
    pub(crate) cut: Cut,
    /// Whether it took its step in this quantum.
    pub(crate) stepped: bool,
    /// What its agent is told at its next step.
    pub(crate) inbox: Vec<Event>,
    pub(crate) server: FakeServer,
    pub(crate) deadline: Option<Deadline>,
    /// Whether a fence is under way.
    pub(crate) fencing: bool,
    /// An operation whose server is gone, which it has not noticed.
    pub(crate) lost_op: Option<OpId>,
    /// Whether a promotion was told to stop in the last step.
    pub(crate) cancelled: bool,
    /// Lease ids of requests whose outcome is not known.
    pub(crate) attempts: Vec<u64>,
}

/// What of the store a node does not reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Cut {
    Nothing,
    Reads,
    Everything,
}

impl World {
    /// Creates a cluster that was stopped in peace, of which the first node was the primary.
    pub(crate) fn stopped(setup: &Setup) -> Self {
        let config = setup.config();
        let mut store = Store::default();
        let start = NodeTime(START);
        let mut write = |key, value: String| {
            store
                .put(start, key, value.into(), Expect::Anything)
                .expect("nothing is expected");
        };
        write(Key::Initialize, SYSTEM.to_string());
        write(Key::Config, json!(config.raw).to_string());
        let nodes = (0..setup.nodes).map(|n| Arc::new(Node::new(n, &config)));
        Self {
            now: START,
            store,
            nodes: nodes.collect(),
            calls: Vec::new(),
            incidents: 0,
            lapses: 0,
            kinds: setup.kinds,
            patience: setup.patience,
            broken: None,
            story: None,
            timeline: Timeline(1),
            revoked: BTreeSet::new(),
        }
    }

    /// Returns what the cluster comes to when it is left in peace: a state that comes back after each
    /// quantum.
    ///
    /// # Panics
    /// If it never does.
    pub(crate) fn at_peace(mut self) -> Self {
        let mut last = Vec::new();
        for _ in 0..LONG {
            for n in 0..self.nodes.len() {
                self = self.after(Action::Step(n, None)).expect("it takes a step");
                if self.nodes[n].server.order.is_some() {
                    self = self.after(Action::Obey(n)).expect("it was told to");
                    if self.is_idle() {
                        self.pass();
                    }
                }
            }
            let form = self.canonical();
            if form == last && self.nodes[0].server.takes_writes() {
                return self;
            }
            last = form;
        }
        panic!("a cluster that is left in peace never comes to rest: {self:?}");
    }

    /// Returns what follows on an action, or nothing if it is not possible here.
    pub(crate) fn after(&self, action: Action) -> Option<Self> {
        let mut next = self.clone();
        if let Some(story) = &mut next.story {
            story.clear();
        }
        match action {
            Action::Step(n, lapse) => next.step(n, lapse)?,
            Action::Pass => {}
            Action::Obey(n) => next.obey(n),
            Action::Begin(incident) => {
                next.incidents = next.incidents.checked_sub(1)?;
                next.begin(incident);
            }
            Action::End(n) => next.recover(n),
        }
        // Between the last step and the next quantum something can only matter if a server is about
        // to become a primary: it may do so while another one is still being killed.
        let ordered = || next.nodes.iter().any(|node| node.server.order.is_some());
        let is_over = match action {
            Action::Step(..) => next.is_idle() && !ordered(),
            Action::Pass => true,
            Action::Obey(_) | Action::Begin(_) | Action::End(_) => false,
        };
        if is_over {
            next.pass();
        }
        Some(next)
    }

    /// Returns whether everybody who takes steps has taken that of this quantum.
    pub(crate) fn is_idle(&self) -> bool {
        self.nodes.iter().all(|node| node.stepped || !node.steps())
    }

    fn step(&mut self, n: usize, lapse: Option<Lapse>) -> Option<()> {
        if let Some(lapse) = lapse {
            self.lapses = self.lapses.checked_sub(1)?;
            self.note(|| format!("{}: {lapse}", name(n)));
        }
        let node = self.node(n);
        node.stepped = true;
        node.cancelled = false;
        let events = self.hears(n);
        self.deliver(n, events, lapse)?;
        self.node(n).lost_op = None;
        Some(())
    }

    /// Takes what the agent of a node is told at a step: what it was not told before, that the store
    /// may have changed, and that its server has, if it is not what the agent thinks.
    pub(crate) fn hears(&mut self, n: usize) -> VecDeque<Event> {
        let streams = self.streams_from(n).is_some();
        let node = self.node(n);
        let mut events: VecDeque<Event> = node.inbox.drain(..).collect();
        let known = node
            .machine
            .as_ref()
            .and_then(|machine| machine.facts().pg.as_ref());
        if known.is_none_or(|seen| seen.value != node.server.status(streams)) {
            events.push_back(Event::ServerChanged);
        }
        events.push_back(Event::Changed);
        // That its server is gone an operation notices last.
        let gone = || Err(Failure::new(PgErrorKind::Retry, "its server is gone"));
        events.extend(node.lost_op.map(|op| Event::OpEnded(op, gone())));
        events
    }

    /// The server of a node does what it was told: it becomes a primary.
    fn obey(&mut self, n: usize) {
        self.timeline = Timeline(self.timeline.0 + 1);
        let unused = self.timeline;
        let node = self.node(n);
        let Some(order) = node.server.become_primary(unused) else {
            return;
        };
        if order.awaited {
            node.inbox.push(Event::OpEnded(order.op, Ok(())));
        }
        self.note(|| format!("{}'s server becomes a primary", name(n)));
    }

    fn begin(&mut self, incident: Incident) {
        let now = NodeTime(self.now);
        self.note(|| format!("-- {incident}"));
        match incident {
            Incident::Kill(n) => {
                let node = self.node(n);
                node.machine = None;
                node.life += 1;
                node.inbox.clear();
                node.attempts.clear();
                node.lost_op = None;
                // The program that fences dies with the agent.
                node.fencing = false;
                if let Some(order) = &mut node.server.order {
                    order.awaited = false;
                }
            }
            Incident::Pause(n) => self.node(n).paused = true,
            Incident::Crash(n) => self.server_ends(n),
            Incident::Cut(n, cut) => self.node(n).cut = cut,
            Incident::DeleteLeader => self.store.delete_leader(now),
            Incident::Wipe => self.store.wipe(now),
        }
    }

    /// Ends what an incident began on a node.
    fn recover(&mut self, n: usize) {
        let now = NodeTime(self.now);
        self.note(|| format!("-- {} is well again", name(n)));
        let node = self.node(n);
        if node.machine.is_none() {
            node.machine = Some(Machine::new(node.identity.clone(), now));
        }
        node.paused = false;
        node.cut = Cut::Nothing;
    }

    /// Lets a quantum pass.
    fn pass(&mut self) {
        for n in 0..self.nodes.len() {
            self.grow_impatient(n);
            if self.nodes[n].fencing {
                self.server_ends(n);
                let node = self.node(n);
                node.fencing = false;
                node.inbox.push(Event::Fenced(Ok(())));
            }
        }
        self.now += QUANTUM;
        for n in 0..self.nodes.len() {
            if self.nodes[n].killed_at().is_some_and(|at| at <= self.now) {
                self.note(|| format!("{}'s guard has killed its server", name(n)));
                self.server_ends(n);
                self.node(n).deadline = None;
            }
            self.node(n).stepped = false;
        }
        self.arrive();
        let since = self.now - START;
        self.note(|| format!("{since} ms:"));
    }

    /// A server does what it was told at once, or later, but not for ever later.
    fn grow_impatient(&mut self, n: usize) {
        let Some(waited) = self.nodes[n]
            .server
            .order
            .as_ref()
            .map(|order| order.waited)
        else {
            return;
        };
        if waited >= self.patience {
            return self.obey(n);
        }
        if let Some(order) = &mut self.node(n).server.order {
            order.waited += 1;
        }
    }

    /// No process of the server is left.
    fn server_ends(&mut self, n: usize) {
        let node = self.node(n);
        let was_up = node.server.is_up();
        let order = node.server.crash();
        let lost = order.filter(|order| order.awaited);
        node.lost_op = lost.map(|order| order.op).or(node.lost_op);
        if was_up {
            node.deadline = None;
        }
    }

    pub(crate) fn node(&mut self, n: usize) -> &mut Node {
        Arc::make_mut(&mut self.nodes[n])
    }

    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        if self.story.is_some() {
            let text = text();
            self.story.get_or_insert_default().push(text);
        }
    }

    /// Returns the history of the server that a standby streams from, if it streams.
    pub(crate) fn streams_from(&self, n: usize) -> Option<&spilo_core::History> {
        let State::Standby(Some(upstream)) = &self.nodes[n].server.state else {
            return None;
        };
        let there = &self.nodes.get(*upstream)?.server;
        there.takes_writes().then_some(&there.history)
    }

    /// Returns what is equal for states that behave alike.
    pub(crate) fn canonical(&self) -> Vec<u64> {
        self.form(false)
    }

    /// Returns the same, but `blurred`: it leaves out when an idle agent looks at its guard next.
    pub(crate) fn form(&self, blurred: bool) -> Vec<u64> {
        let mut canon = Canon::new(NodeTime(self.now));
        canon.number(u64::from(self.incidents));
        canon.number(u64::from(self.lapses));
        canon.number(u64::from(self.timeline.0));
        canon.put(&self.store);
        for call in &self.calls {
            call.canonical(&mut canon, self);
        }
        let members = self.store.clone().snapshot(NodeTime(0)).members;
        for (n, node) in self.nodes.iter().enumerate() {
            let facts = node.machine.as_ref().map(Machine::facts);
            let guard = facts.and_then(|facts| facts.guard.as_ref());
            let mut known = facts.map(Known::of).unwrap_or_default();
            known.guard = blurred || guard.is_some_and(|seen| seen.value == node.guard_status());
            known.announced = members.contains_key(name(n));
            canon.enter(n, known);
            node.canonical(&mut canon);
        }
        canon.finish()
    }
}

impl Node {
    fn new(n: usize, config: &Arc<DynamicConfig>) -> Self {
        let identity = Identity {
            scope: Scope::new("model").expect("it is a name"),
            name: MemberName::new(name(n)).expect("it is a name"),
            conn_url: format!("postgres://{}:5432/postgres", address(n)),
            api_url: format!("http://{}:8008/patroni", address(n)),
            proxy_url: None,
            tags: Map::new(),
            bootstrap: Some(Arc::clone(config)),
            fence_budget: FENCE_BUDGET,
        };
        Self {
            machine: Some(Machine::new(identity.clone(), NodeTime(START))),
            identity,
            life: 0,
            paused: false,
            cut: Cut::Nothing,
            stepped: false,
            inbox: Vec::new(),
            server: FakeServer::stopped(n > 0),
            deadline: None,
            fencing: false,
            lost_op: None,
            cancelled: false,
            attempts: Vec::new(),
        }
    }

    /// Returns whether its agent runs.
    pub(crate) fn steps(&self) -> bool {
        self.machine.is_some() && !self.paused
    }

    pub(crate) fn is_well(&self) -> bool {
        self.steps() && self.cut == Cut::Nothing
    }

    /// Returns when the guard is done with killing, at the latest: its clock is as slow as any may
    /// be, and the kill takes as long as any may.
    pub(crate) fn killed_at(&self) -> Option<u64> {
        let hard = self.deadline.as_ref()?.hard + FENCE_BUDGET + TTL / 100;
        Some(hard.0 - 1)
    }

    pub(crate) fn guard_status(&self) -> GuardStatus {
        let mut status = GuardStatus::idle();
        status.deadline.clone_from(&self.deadline);
        status.postmaster = self.server.is_up().then_some(1);
        status.alive = self.server.is_up();
        status
    }

    fn canonical(&self, canon: &mut Canon) {
        for flag in [self.paused, self.stepped, self.fencing, self.cancelled] {
            canon.number(u64::from(flag));
        }
        canon.number(self.cut as u64);
        canon.put(&self.lost_op);
        canon.put(&self.deadline);
        canon.put(&self.inbox);
        canon.lease_ids(self.attempts.iter());
        self.server.canonical(canon);
        canon.put(&self.machine);
        if let Some(facts) = self.machine.as_ref().map(Machine::facts) {
            let seen = facts.pg.as_ref().map(|seen| seen.at);
            canon.number(u64::from(facts.pg_is_current()));
            canon.number(u64::from(seen < facts.fenced_at));
        }
    }
}

/// What is to be explored.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) nodes: usize,
    pub(crate) incidents: u8,
    pub(crate) lapses: u8,
    pub(crate) kinds: Kinds,
    /// For how many quanta a server may put off to become a primary.
    pub(crate) patience: u8,
    pub(crate) failsafe: bool,
}

impl Setup {
    fn config(&self) -> Arc<DynamicConfig> {
        let document = json!({
            "ttl": TTL.as_secs(),
            "loop_wait": 1,
            "retry_timeout": 1,
            "failsafe_mode": self.failsafe,
            "member_slots_ttl": 0,
            "postgresql": { "use_slots": false, "parameters": null },
        });
        let document = document.as_object().cloned().unwrap_or_default();
        Arc::new(DynamicConfig::seed(&document).expect("the configuration is right"))
    }
}

impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        self.canonical() == other.canonical()
    }
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.canonical().hash(state);
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.story)
    }
}

pub(crate) fn name(n: usize) -> &'static str {
    ["a", "b", "c"][n]
}

/// The least ttl that there is.
const TTL: Duration = Duration::from_secs(3);

/// A cluster that starts has settled everything in much less than so many quanta.
const LONG: usize = 200;

/// A quarter of the ttl: how often a holder renews, and how long it waits for an answer.
pub(crate) const QUANTUM: u64 = 750;

/// The usual one.
const FENCE_BUDGET: Duration = Duration::from_millis(250);

/// Long enough after the beginning of time that nothing is before it.
pub(crate) const START: u64 = 100_000;
