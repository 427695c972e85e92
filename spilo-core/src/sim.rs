//! A whole cluster in one thread: nodes with clocks of their own, a store, a network, servers made
//! of numbers, clients that write all the time, and everything that can go wrong with them.
//!
//! The [`Machine`] that runs in production is what each node is driven by. Time is a counter, so a
//! minute of failover takes milliseconds; nothing is drawn but from a [`Chance`] with a seed, so the
//! same calls give the same story; and a [`Sim`] is a value, which can be cloned with everything
//! that is under way in it.
//!
//! While it runs it looks on: two writers at one instant, a server that follows a log that is not
//! its own, a cluster that is begun beside data, a promotion that gives up more than the lag that
//! was allowed, an agent that does too much at once end the run with a story of what led to it.
//!
//! # Examples
//! A test of a failover, as the body of a `#[test]` (`spilo-core` with the feature `sim` is all that
//! it needs). A [`Sim`] prints what happened in it, which is worth its place in every assertion.
//! ```
//! use std::time::Duration;
//! use spilo_core::sim::{Conditions, Fault, Sim};
//!
//! let mut conditions = Conditions::default();
//! conditions.way_ms = 2; // up to three milliseconds from one node to another
//! let mut sim = Sim::new(["a", "b", "c"], 10); // leases of ten seconds
//! sim.set_conditions(conditions);
//! sim.set_seed(4711);
//! sim.run_until("a healthy cluster", 60, Sim::is_healthy);
//! sim.run_for(Duration::from_secs(30));
//!
//! let old = sim.primary().expect("it is healthy");
//! sim.begin(Fault::KillNode(old));
//! let gap_ms = sim.run_until("a successor", 20, |sim| sim.primary().is_some());
//! assert!(gap_ms <= 10_500, "{gap_ms} ms without a primary\n{sim}");
//! let new = sim.primary().expect("there is one");
//!
//! sim.end(Fault::KillNode(old));
//! sim.run_until("the old primary to stream", 60, Sim::is_healthy);
//! assert_eq!(sim.primary(), Some(new), "whoever leads goes on leading\n{sim}");
//! let (acknowledged, lost) = sim.rows();
//! assert!(acknowledged > 400 && lost <= 1, "{lost} of {acknowledged} rows lost\n{sim}");
//! ```
//! With the feature `agent`, `Outside` runs the production driver, or code of your own that calls
//! the traits, over the same cluster.
//!
//! # What it is not
//! A server here is a log with a position, and an operation takes a time: what PostgreSQL does with
//! its files is for tests with PostgreSQL. Agent and guard never stand still together while the
//! server runs on, which is outside what spilo promises. No two nodes leave a timeline at the same
//! position, because PostgreSQL could not tell such branches apart.

mod chance;
mod clients;
mod conditions;
mod failover;
mod faults;
mod log;
mod network;
mod node;
mod oracle;
#[cfg(feature = "agent")]
mod outside;
mod peers;
mod plan;
mod queue;
mod requests;
mod server;
mod story;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::config::DynamicConfig;
use crate::dcs::{Expect, Key, RawSnapshot};
use crate::decide::Rule;
use crate::ids::{MemberName, Revision, Scope};
use crate::machine::{Event, Exit, Identity, Machine, Step};
use crate::store::Store;
use crate::time::NodeTime;

pub use chance::Chance;
pub use clients::Row;
pub use conditions::Conditions;
pub use failover::failover_ms;
pub use faults::{Fault, FaultKind};
pub use oracle::Violation;
#[cfg(feature = "agent")]
pub use outside::Outside;
pub use plan::{Outcome, Plan};

use clients::Clients;
use network::{End, Network};
use node::{LocalClock, Mind, Node};
use peers::Round;
use queue::{Item, Queue};
use story::Story;

/// A cluster and everything around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sim {
    now: u64,
    chance: Chance,
    conditions: Conditions,
    store: FakeStore,
    network: Network,
    nodes: Vec<Node>,
    queue: Queue,
    rounds: BTreeMap<u64, Round>,
    round: u64,
    clients: Clients,
    story: Story,
    /// Whom somebody asked to be made the primary since the last one was.
    asked_for: BTreeSet<usize>,
    violation: Option<String>,
    rules: BTreeSet<Rule>,
    promotions: u64,
    steps: u64,
}

/// The store, and how it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct FakeStore {
    keys: Store,
    /// Whether it refuses connections.
    refuses: bool,
    /// Whether it answers nothing.
    silent: bool,
    /// Up to where it told of changes.
    told: u64,
    /// How many requests were sent to it.
    requests: u64,
    /// What it was when a node began to read from a member of it that hears of nothing, and
    /// whether that member is the next to answer.
    past: BTreeMap<usize, (RawSnapshot, bool)>,
}

impl Sim {
    /// Creates a cluster of these nodes, with this time to live in seconds and everything else at
    /// its default, and starts the agents: nothing exists yet.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>, ttl: u64) -> Self {
        let config = json!({ "ttl": ttl });
        Self::with(names, &config, Conditions::default(), 0)
    }

    /// Creates a cluster with a dynamic configuration, conditions and a seed.
    ///
    /// # Panics
    /// If a name is none, or the configuration has errors: both are the test's own.
    pub fn with<'a>(
        names: impl IntoIterator<Item = &'a str>,
        config: &Value,
        conditions: Conditions,
        seed: u64,
    ) -> Self {
        let config = config.as_object().cloned().unwrap_or_default();
        let config = DynamicConfig::seed(&config).expect("the configuration is right");
        let config = Arc::new(config);
        let names = names.into_iter().enumerate();
        let nodes = names.map(|(n, name)| Node::new(identity(n, name, &config), as_u64(n)));
        let mut sim = Self {
            now: START,
            chance: Chance::seeded(seed),
            conditions,
            store: FakeStore::default(),
            network: Network::default(),
            nodes: nodes.collect(),
            queue: Queue::default(),
            rounds: BTreeMap::new(),
            round: 0,
            clients: Clients::default(),
            story: Story::default(),
            asked_for: BTreeSet::new(),
            violation: None,
            rules: BTreeSet::new(),
            promotions: 0,
            steps: 0,
        };
        for n in 0..sim.nodes.len() {
            sim.start_agent(n);
            sim.queue.put(START + 1, Item::Receive(n));
        }
        sim.queue.put(START + 1, Item::Clients);
        sim
    }

    /// Gives the clock of a node an origin of its own, and a rate: by how many millionths it runs
    /// too fast. Its agent starts anew. No two clocks may differ by more than 10,000 millionths,
    /// which is what the leases allow for.
    pub fn set_clock(&mut self, node: usize, origin: u64, rate: i64) {
        self.begin(Fault::KillNode(node));
        self.nodes[node].clock = LocalClock { origin, rate };
        self.start_agent(node);
    }

    /// Changes the conditions from now on.
    pub fn set_conditions(&mut self, conditions: Conditions) {
        self.conditions = conditions;
    }

    /// Draws from another seed from now on.
    pub fn set_seed(&mut self, seed: u64) {
        self.chance = Chance::seeded(seed);
    }

    /// Runs for so long.
    ///
    /// # Panics
    /// With the story, if an invariant is broken.
    pub fn run_for(&mut self, span: Duration) {
        let ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        self.run_to(self.now.saturating_add(ms));
        self.assert_sound();
    }

    /// Runs until something is so, and returns how many milliseconds that took.
    ///
    /// # Panics
    /// With the story, if it is not so within so many seconds, or an invariant is broken.
    pub fn run_until(&mut self, what: &str, seconds: u64, done: impl Fn(&Self) -> bool) -> u64 {
        let start = self.now;
        let is_so = self.run_while(seconds, |sim| !done(sim));
        self.assert_sound();
        assert!(is_so, "{what}: not within {seconds} s\n{self}");
        self.now - start
    }

    /// Returns the node whose server takes writes.
    pub fn primary(&self) -> Option<usize> {
        self.nodes.iter().position(|n| n.server.takes_writes())
    }

    /// Returns whether one node is the primary, every other one streams, and all agents run.
    pub fn is_healthy(&self) -> bool {
        let whole = |node: &Node| node.server.takes_writes() || node.server.is_streaming();
        self.primary().is_some() && self.nodes.iter().all(|n| whole(n) && n.answers())
    }

    /// Returns how many nodes there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Returns whether the server of a node answers queries.
    pub fn answers_queries(&self, node: usize) -> bool {
        let server = &self.nodes[node].server;
        server.is_up() && !server.is_stalled()
    }

    /// Returns whether a load balancer would send writes to a node: whether its health check says
    /// that it is a primary. An agent that stands still may have threads that answer by what it
    /// knew last.
    pub fn is_routed_to(&self, node: usize) -> bool {
        let node = &self.nodes[node];
        let now = node.clock.local(self.now);
        node.status().is_some_and(|status| status.is_writable(now))
    }

    /// Returns how many requests all agents together have sent to the store.
    pub fn store_requests(&self) -> u64 {
        self.store.requests
    }

    /// Returns the time since the beginning.
    pub fn elapsed(&self) -> Duration {
        Duration::from_millis(self.now - START)
    }

    /// Returns the rules that were decided by so far.
    pub fn rules(&self) -> &BTreeSet<Rule> {
        &self.rules
    }

    /// Returns how many servers were promoted.
    pub fn promotions(&self) -> u64 {
        self.promotions
    }

    /// Returns how many rows were acknowledged to the clients, and how many of them were lost with
    /// a primary that its standbys were behind of.
    pub fn rows(&self) -> (u64, u64) {
        (self.clients.acknowledged, self.clients.lost)
    }

    /// Returns the mind of a node, if its agent runs.
    pub fn machine(&self, node: usize) -> Option<&Machine> {
        match &self.nodes[node].mind {
            Mind::Machine(machine) => Some(machine),
            Mind::None | Mind::Outside { .. } => None,
        }
    }

    /// Returns why the agent of a node ended, if it did so by itself.
    pub fn exited(&self, node: usize) -> Option<&Exit> {
        self.nodes[node].exit.as_ref()
    }

    /// Returns the store, to look at or to change by hand.
    pub fn store(&mut self) -> &mut Store {
        &mut self.store.keys
    }

    /// Returns what the clock of the store says.
    pub fn store_time(&self) -> NodeTime {
        NodeTime(self.now)
    }

    /// Writes a document as somebody with a command line would.
    pub fn write(&mut self, key: Key, value: Bytes) {
        let now = NodeTime(self.now);
        // Nothing is expected, so that nothing can conflict.
        let put = self.store.keys.put(now, key, value, Expect::Anything);
        debug_assert!(put.is_ok());
    }

    /// Starts the agent of a node, unless it runs.
    pub fn start_agent(&mut self, node: usize) {
        let now = self.now;
        let node = &mut self.nodes[node];
        if node.is_alive() {
            return;
        }
        let local = node.clock.local(now);
        node.life += 1;
        node.exit = None;
        (node.mind, node.wake_at) = if node.outside {
            let (events, status) = (Vec::new(), None);
            (Mind::Outside { events, status }, u64::MAX)
        } else {
            let machine = Machine::new(node.identity.clone(), local);
            (Mind::Machine(Box::new(machine)), now)
        };
    }

    /// Adds a line to the story.
    fn note(&mut self, text: fmt::Arguments<'_>) {
        self.story.add(self.now - START, text);
    }

    /// Runs to a moment, or to a violation.
    fn run_to(&mut self, end: u64) {
        while self.now < end && self.violation.is_none() {
            self.advance(end);
        }
    }

    /// Runs while something is so; returns whether it ceased to be within so many seconds.
    fn run_while(&mut self, seconds: u64, on: impl Fn(&Self) -> bool) -> bool {
        let end = self.now.saturating_add(seconds * 1000);
        while on(self) {
            if self.now >= end || self.violation.is_some() {
                return false;
            }
            self.advance(end);
        }
        true
    }

    /// Goes to the next moment at which something happens, or to `end`.
    fn advance(&mut self, end: u64) {
        // Told of at the moment of the change, wherever a run is paused.
        self.hint();
        self.now = self.next_at().clamp(self.now, end);
        for n in 0..self.nodes.len() {
            self.guard_acts(n);
        }
        while let Some(item) = self.queue.take(self.now) {
            self.happen(item);
            self.look_on();
        }
        for n in 0..self.nodes.len() {
            if self.nodes[n].wake_at <= self.now && !self.nodes[n].paused {
                self.step(n, Event::Tick);
            }
        }
        self.look_on();
    }

    /// Returns when something happens next.
    fn next_at(&self) -> u64 {
        self.next_after(self.queue.next_at())
    }

    /// Returns when something happens next that is not in the queue, or what is in it next.
    fn next_after(&self, queued: Option<u64>) -> u64 {
        let mut next = queued.unwrap_or(u64::MAX);
        if self.conditions.hints
            && let Some(at) = self.store.keys.next_end()
        {
            next = next.min(at.0.max(self.now + 1));
        }
        for node in &self.nodes {
            if !node.paused {
                next = next.min(node.wake_at);
            }
            if let Some(at) = node.deadline_at() {
                next = next.min(at);
            }
        }
        next
    }

    /// Lets the guard of a node do what its deadline says.
    fn guard_acts(&mut self, n: usize) {
        let node = &self.nodes[n];
        if node.deadline_at().is_none_or(|at| at > self.now) {
            return;
        }
        let local = node.clock.local(self.now);
        let over = node
            .guard
            .deadline
            .as_ref()
            .is_some_and(|d| d.hard <= local);
        let lived = node.server.is_up();
        let why = if over {
            "hard deadline"
        } else {
            "soft deadline"
        };
        if over {
            self.nodes[n].server.crash();
            self.nodes[n].guard.deadline = None;
        } else {
            self.flush(n);
            self.nodes[n].server.stop();
        }
        if lived {
            self.nodes[n].guard.fences += 1;
            self.nodes[n].guard.last_fence = Some(why);
            let name = n_name(&self.nodes, n);
            self.story
                .add(self.now - START, format_args!("{name}: guard: {why}"));
            self.tell_agent(n, Event::ServerChanged);
        }
    }

    /// Hands everything that is left to those who stream from a node.
    fn flush(&mut self, n: usize) {
        for other in 0..self.nodes.len() {
            let follows = self.nodes[other].server.upstream() == Some(n);
            if follows && self.nodes[other].server.is_streaming() {
                self.receive(other);
            }
        }
    }

    fn receive(&mut self, n: usize) {
        let server = &self.nodes[n].server;
        let source = server.upstream().filter(|up| {
            let there = &self.nodes[*up].server;
            self.network.joins(End::Node(*up), End::Node(n)) && there.is_up() && !there.is_stalled()
        });
        match source.map(|up| self.nodes.get_disjoint_mut([n, up])) {
            Some(Ok([node, up])) => node.server.receive(up.server.log()),
            Some(Err(_)) | None => self.nodes[n].server.receive(None),
        }
    }

    /// Lets the store tell of changes.
    fn hint(&mut self) {
        let now = NodeTime(self.now);
        let told = Revision(self.store.told);
        if !self.conditions.hints || !self.store.keys.changed(now, told) {
            return;
        }
        self.store.told = self.store.keys.snapshot(now).revision.0;
        if self.store.refuses || self.store.silent {
            return;
        }
        for n in 0..self.nodes.len() {
            for _ in 0..2 {
                let way = self.conditions.way(&mut self.chance);
                let lost = self.chance.happens(self.conditions.lost_hints);
                if !lost && self.network.carries(End::Store, End::Node(n)) {
                    self.queue.put(self.now + way, Item::Hint(n));
                }
                if !self.chance.happens(self.conditions.lost_hints) {
                    break;
                }
            }
        }
    }

    /// Tells the agent of a node something, a moment from now.
    fn tell_agent(&mut self, node: usize, event: Event) {
        self.deliver_in(node, 1, event);
    }

    fn deliver_in(&mut self, node: usize, delay: u64, event: Event) {
        let life = self.nodes[node].life;
        self.queue
            .put(self.now + delay, Item::Deliver(node, life, event));
    }

    fn step(&mut self, n: usize, event: Event) {
        let node = &mut self.nodes[n];
        let local = node.clock.local(self.now);
        let Mind::Machine(machine) = &mut node.mind else {
            return;
        };
        let step = machine.step(local, event);
        node.wake_at = node.clock.true_time(step.wake_at);
        self.steps += 1;
        self.rules.insert(step.decision.rule);
        if step.news {
            let decision = &step.decision;
            let name = n_name(&self.nodes, n);
            self.story.add(
                self.now - START,
                format_args!("{name} {}: {}", decision.rule, decision.why),
            );
        }
        self.carry_out_all(n, step);
    }

    fn carry_out_all(&mut self, n: usize, step: Step) {
        self.count_work(n, &step.commands);
        for command in step.commands {
            self.carry_out(n, command);
        }
    }
}

impl FakeStore {
    /// Lets every other read of a node be answered by what there is now.
    fn leave_behind(&mut self, node: usize, now: NodeTime) {
        let past = self.keys.snapshot(now);
        self.past.insert(node, (past, false));
    }

    /// Returns everything in the store, as the member of it that answers a node knows it.
    fn snapshot(&mut self, node: usize, now: NodeTime) -> RawSnapshot {
        if let Some((past, is_next)) = self.past.get_mut(&node) {
            *is_next = !*is_next;
            if !*is_next {
                return past.clone();
            }
        }
        self.keys.snapshot(now)
    }
}

impl fmt::Display for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.story.fmt(f)?;
        for node in &self.nodes {
            writeln!(
                f,
                "at the end {}: {}",
                node.name(),
                oracle::picture(node, self.now)
            )?;
        }
        Ok(())
    }
}

fn identity(n: usize, name: &str, config: &Arc<DynamicConfig>) -> Identity {
    Identity {
        scope: Scope::new("sim").expect("it is a name"),
        name: MemberName::new(name).expect("names of nodes are names"),
        conn_url: format!("postgres://{}:5432/postgres", address(n)),
        api_url: format!("http://{}:8008/patroni", address(n)),
        proxy_url: None,
        tags: Map::new(),
        bootstrap: Some(Arc::clone(config)),
        fence_budget: Duration::from_millis(250),
    }
}

/// Returns the address of a node.
fn address(n: usize) -> String {
    format!("10.0.0.{n}")
}

/// Returns the node that a URL leads to.
fn node_at(url: &str) -> Option<usize> {
    let host = url.split("://").nth(1)?.split([':', '/']).next()?;
    host.strip_prefix("10.0.0.")?.parse().ok()
}

fn n_name(nodes: &[Node], n: usize) -> &str {
    nodes[n].name()
}

fn as_u64(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// The true time of the beginning; not zero, so that clocks may be before it.
const START: u64 = 1_000_000;
