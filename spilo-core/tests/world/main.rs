//! Whole clusters in one thread: several machines, the reference store, and servers that are made
//! of numbers. Time is a counter, so a minute of failover takes milliseconds.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod faults;
mod network;
mod scenarios;
mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use spilo_core::config::DynamicConfig;
use spilo_core::dcs::{Key, LeaseSecret};
use spilo_core::decide::Rule;
use spilo_core::ids::{MemberName, OpId, Scope};
use spilo_core::machine::{Event, Exit, Identity, Machine, Order, Ticket};
use spilo_core::peer::ConsentAnswer;
use spilo_core::store::Store;
use spilo_core::time::NodeTime;

use network::Weather;
use server::FakeServer;

/// A cluster and everything around it.
pub(crate) struct World {
    now: u64,
    store: Store,
    /// Whether requests to the store are lost.
    store_down: bool,
    nodes: BTreeMap<MemberName, Node>,
    queue: BTreeMap<(u64, u64), Item>,
    order: u64,
    seen: u64,
    /// What was decided, for people to read when a test fails.
    story: Vec<String>,
    rules: BTreeSet<Rule>,
    answers: BTreeMap<MemberName, Vec<ConsentAnswer>>,
    consents: BTreeMap<(MemberName, Ticket), BTreeMap<MemberName, Option<spilo_core::Lsn>>>,
    weather: Weather,
}

/// What happens at a moment.
enum Item {
    /// An event reaches an agent, if that life of it still lasts.
    Deliver(MemberName, u64, Event),
    /// A request takes effect. What was sent is under way, whatever becomes of its sender.
    Effect(Box<dyn FnOnce(&mut World)>),
}

struct Node {
    machine: Option<Machine>,
    identity: Identity,
    /// Counts the lives of the agent: what an earlier one asked for reaches nobody.
    life: u64,
    server: FakeServer,
    wake_at: u64,
    op: Option<(OpId, u64)>,
    exit: Option<Exit>,
    /// Whether it reaches anybody.
    cut_off: bool,
    paused: bool,
    held: Vec<Event>,
    /// The ids of leases that requests with an unknown outcome were made with.
    attempts: Vec<u64>,
    /// Where its clock began, and how many millionths it runs too fast.
    clock: (u64, i64),
    /// The commands of this second, and which second that is.
    work: (u64, u32),
}

impl World {
    pub(crate) fn new(names: &[&str], dcs: serde_json::Value) -> Self {
        let seed = DynamicConfig::seed(dcs.as_object().unwrap()).unwrap();
        let mut world = Self {
            now: 1_000_000,
            store: Store::default(),
            store_down: false,
            nodes: BTreeMap::new(),
            queue: BTreeMap::new(),
            order: 0,
            seen: 0,
            story: Vec::new(),
            rules: BTreeSet::new(),
            answers: BTreeMap::new(),
            consents: BTreeMap::new(),
            weather: Weather::default(),
        };
        for (n, name) in names.iter().enumerate() {
            let name = MemberName::new(*name).unwrap();
            let identity = Identity {
                scope: Scope::new("demo").unwrap(),
                name: name.clone(),
                conn_url: format!("postgres://10.0.0.{n}:5432/postgres"),
                api_url: format!("http://10.0.0.{n}:8008/patroni"),
                proxy_url: None,
                tags: serde_json::Map::new(),
                bootstrap: Some(Arc::new(seed.clone())),
                fence_budget: Duration::from_millis(250),
            };
            let node = Node {
                machine: None,
                identity,
                life: 0,
                server: FakeServer::new(u64::try_from(n).unwrap()),
                wake_at: 0,
                op: None,
                exit: None,
                cut_off: false,
                paused: false,
                held: Vec::new(),
                attempts: Vec::new(),
                clock: (0, 0),
                work: (0, 0),
            };
            world.nodes.insert(name.clone(), node);
            world.start_agent(name.as_str());
        }
        world
    }

    pub(crate) fn run(&mut self, seconds: f64) -> &mut Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "whole milliseconds of a test"
        )]
        let end = self.now + (seconds * 1000.0) as u64;
        while self.now < end {
            self.advance(end);
        }
        self
    }

    pub(crate) fn run_until(
        &mut self,
        what: &str,
        seconds: u64,
        done: impl Fn(&Self) -> bool,
    ) -> u64 {
        let start = self.now;
        while !done(self) {
            assert!(
                self.now < start + seconds * 1000,
                "{what}: not within {seconds} s\n{}",
                self.tell()
            );
            self.advance(u64::MAX);
        }
        self.now - start
    }

    pub(crate) fn primary(&self) -> Option<&str> {
        let mut found = self.nodes.iter().filter(|(_, n)| n.server.takes_writes());
        found.next().map(|(name, _)| name.as_str())
    }

    pub(crate) fn replicas(&self) -> usize {
        self.nodes
            .values()
            .filter(|n| n.server.is_streaming())
            .count()
    }

    pub(crate) fn is_healthy(&self) -> bool {
        self.primary().is_some() && self.replicas() + 1 == self.nodes.len()
    }

    pub(crate) fn healthy(&mut self) -> u64 {
        self.run_until("a healthy cluster", 60, Self::is_healthy)
    }

    pub(crate) fn crash_server(&mut self, name: &str) {
        self.node(name).server.crash();
        self.hint(name, Event::ServerChanged);
    }

    pub(crate) fn kill_agent(&mut self, name: &str) {
        let node = self.node(name);
        node.machine = None;
        node.life += 1;
        node.op = None;
        node.held.clear();
        node.attempts.clear();
        node.paused = false;
        node.server.cancel();
    }

    pub(crate) fn kill_node(&mut self, name: &str) {
        self.kill_agent(name);
        self.node(name).server.crash();
        self.node(name).server.deadline = None;
    }

    pub(crate) fn start_agent(&mut self, name: &str) {
        let now = self.local(name);
        let node = self.node(name);
        node.life += 1;
        node.exit = None;
        node.machine = Some(Machine::new(node.identity.clone(), now));
        node.wake_at = now.0;
    }

    pub(crate) fn pause_agent(&mut self, name: &str) {
        self.node(name).paused = true;
    }

    pub(crate) fn resume_agent(&mut self, name: &str) {
        let node = self.node(name);
        node.paused = false;
        let life = node.life;
        for event in std::mem::take(&mut self.node(name).held) {
            self.later(name, life, 0, event);
        }
    }

    pub(crate) fn cut_off(&mut self, name: &str, yes: bool) {
        self.node(name).cut_off = yes;
    }

    pub(crate) fn stop_store(&mut self, yes: bool) {
        self.store_down = yes;
    }

    pub(crate) fn order(&mut self, name: &str, order: Order) {
        self.hint(name, Event::Order(order));
    }

    pub(crate) fn put(&mut self, key: Key, value: &'static [u8]) {
        self.write_by_hand(key, Bytes::from_static(value));
    }

    pub(crate) fn write_by_hand(&mut self, key: Key, value: Bytes) {
        let anything = spilo_core::dcs::Expect::Anything;
        let now = NodeTime(self.now);
        self.store.put(now, key, value, anything).unwrap();
    }

    pub(crate) fn exited(&mut self, name: &str) -> Option<Exit> {
        self.node(name).exit.clone()
    }

    pub(crate) fn rules(&self) -> &BTreeSet<Rule> {
        &self.rules
    }

    pub(crate) fn tell(&self) -> String {
        let skipped = self.story.len().saturating_sub(120);
        let mut lines = vec![self.story.first().map_or("", String::as_str)];
        lines.extend(self.story.iter().skip(skipped).map(String::as_str));
        lines.join("\n")
    }

    /// Gives the clock of a node an origin of its own, and a rate. Before its agent starts.
    pub(crate) fn set_clock(&mut self, name: &str, origin: u64, millionths: i64) {
        self.node(name).clock = (origin, millionths);
        self.start_agent(name);
    }

    fn node(&mut self, name: &str) -> &mut Node {
        self.nodes.get_mut(&MemberName::new(name).unwrap()).unwrap()
    }

    /// Returns what a node's own clock says.
    fn local(&self, name: &str) -> NodeTime {
        self.nodes[&MemberName::new(name).unwrap()].local(self.now)
    }

    fn note(&mut self, text: &str) {
        let seconds = f64::from(u32::try_from(self.now - 1_000_000).unwrap()) / 1000.0;
        self.story.push(format!("{seconds:>9.3} {text}"));
    }

    fn hint(&mut self, name: &str, event: Event) {
        let life = self.node(name).life;
        self.later(name, life, 1, event);
    }

    fn later(&mut self, name: &str, life: u64, delay: u64, event: Event) {
        let name = MemberName::new(name).unwrap();
        self.put_in_queue(delay, Item::Deliver(name, life, event));
    }

    fn after(&mut self, delay: u64, effect: impl FnOnce(&mut Self) + 'static) {
        self.put_in_queue(delay, Item::Effect(Box::new(effect)));
    }

    fn put_in_queue(&mut self, delay: u64, item: Item) {
        self.order += 1;
        self.queue.insert((self.now + delay, self.order), item);
    }

    /// Goes to the next moment at which something happens, or to `end`.
    fn advance(&mut self, end: u64) {
        let queued = self.queue.keys().next().map_or(u64::MAX, |(at, _)| *at);
        // Servers and clocks are looked at ten times as often as anything of theirs matters.
        self.now = queued
            .clamp(self.now + 1, self.now / TICK * TICK + TICK)
            .min(end);
        let names: Vec<MemberName> = self.nodes.keys().cloned().collect();
        self.servers(&names);
        if !self.store_down
            && self
                .store
                .changed(NodeTime(self.now), spilo_core::Revision(self.seen))
        {
            self.seen = self.store.snapshot(NodeTime(self.now)).revision.0;
            for name in &names {
                if !self.nodes[name].cut_off && !self.weather.loses_hint() {
                    self.hint(name.as_str(), Event::Changed);
                }
            }
        }
        while let Some(entry) = self.queue.first_entry().filter(|e| e.key().0 <= self.now) {
            match entry.remove() {
                Item::Effect(effect) => effect(self),
                Item::Deliver(name, life, event) => self.deliver(&name, life, event),
            }
            self.check();
        }
        for name in &names {
            let node = &self.nodes[name];
            if node.wake_at <= node.local(self.now).0 && !node.paused {
                self.step(name, Event::Tick);
            }
        }
        self.check();
    }

    fn deliver(&mut self, name: &MemberName, life: u64, event: Event) {
        let node = self.nodes.get_mut(name).unwrap();
        if node.life != life {
            return;
        }
        if node.paused {
            node.held.push(event);
            return;
        }
        if let Event::OpEnded(id, _) = &event {
            if node.op.is_none_or(|(running, _)| running != *id) {
                return;
            }
            node.op = None;
        }
        self.step(name, event);
    }

    /// Replication, deadlines, and writes.
    fn servers(&mut self, names: &[MemberName]) {
        let now = self.now;
        for name in names {
            let node = self.nodes.get_mut(name).unwrap();
            let local = node.local(now).0;
            let happened = node.server.pass_time(local);
            node.server.followers.clear();
            if now.is_multiple_of(TICK) && node.server.takes_writes() {
                node.server.write(100);
            }
            if happened {
                self.note(&format!("{name}: the guard stopped the server"));
                self.hint(name.as_str(), Event::ServerChanged);
            }
        }
        for name in names {
            let source = self.nodes[name].server.upstream().and_then(|(host, _)| {
                let n: usize = host.rsplit('.').next()?.parse().ok()?;
                let there = &self.nodes[names.get(n)?];
                let reached = !there.cut_off && !self.nodes[name].cut_off;
                let sends = there.server.sends(there.local(now).0);
                (reached && sends).then(|| (names[n].clone(), there.server.clone()))
            });
            let server = &mut self.nodes.get_mut(name).unwrap().server;
            if let Err(diverged) = server.stream(source.as_ref().map(|(_, s)| s)) {
                panic!("{name} has diverged: {diverged}\n{}", self.tell());
            }
            let server = &self.nodes[name].server;
            if let Some((from, _)) = source.filter(|_| server.is_streaming()) {
                let from = &mut self.nodes.get_mut(&from).unwrap().server;
                from.followers.push(name.to_string());
            }
        }
    }

    /// One writer at any instant, whatever happens.
    fn check(&self) {
        let mut writers = self.nodes.iter().filter(|(_, n)| n.server.takes_writes());
        if let (Some((a, _)), Some((b, _))) = (writers.next(), writers.next()) {
            let told = |name: &MemberName| {
                let node = &self.nodes[name];
                let deadline = node
                    .server
                    .deadline
                    .as_ref()
                    .map(|d| (d.epoch, d.soft, d.hard));
                format!("{name} by {deadline:?} at its {}", node.local(self.now))
            };
            let (a, b) = (told(a), told(b));
            panic!(
                "two writers, {a}, and {b}, at {}\n{}",
                self.now,
                self.tell()
            );
        }
    }

    fn step(&mut self, name: &MemberName, event: Event) {
        let second = self.now / 1000;
        let node = self.nodes.get_mut(name).unwrap();
        let now = node.local(self.now);
        let Some(machine) = node.machine.as_mut() else {
            return;
        };
        let step = machine.step(now, event);
        node.wake_at = step.wake_at.0;
        let before = if node.work.0 == second {
            node.work.1
        } else {
            0
        };
        let work = before + u32::try_from(step.commands.len()).unwrap();
        node.work = (second, work);
        self.rules.insert(step.decision.rule);
        if step.news {
            let text = format!("{name} {}: {}", step.decision.rule, step.decision.why);
            self.note(&text);
        }
        let commands = step.commands;
        assert!(commands.len() < 16, "too much at once: {commands:?}");
        assert!(
            work < WORK,
            "{name}: {work} commands in a second\n{}",
            self.tell()
        );
        for command in commands {
            self.carry_out(name, command);
        }
    }
}

impl Node {
    fn local(&self, now: u64) -> NodeTime {
        let (origin, millionths) = self.clock;
        let now = i64::try_from(now).unwrap();
        let drift = now * millionths / 1_000_000;
        NodeTime(origin + u64::try_from(now + drift).unwrap())
    }

    /// Whether its agent answers others.
    fn answers(&self) -> bool {
        !self.cut_off && !self.paused && self.machine.is_some()
    }
}

pub(crate) fn three(ttl: u64) -> World {
    World::new(&["a", "b", "c"], json!({ "ttl": ttl }))
}

/// The secret of the reference store is opaque here as everywhere.
pub(crate) fn secret_of(world: &mut World, name: &str) -> Option<LeaseSecret> {
    let server = &world.node(name).server;
    server.deadline.as_ref().map(|d| d.secret.clone())
}

/// How often servers stream and write.
const TICK: u64 = 10;

/// More commands than this in one second are no work but a storm.
const WORK: u32 = 250;
