//! The simulation with those who wait for something in it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use super::super::Sim;
use super::super::node::Mind;
use super::Ended;
use crate::agent::AgentHandle;
use crate::machine::{Command, Event, Ticket};
use crate::peer::ConsentRequest;
use crate::time::NodeTime;

/// The simulation, and a desk for each node.
pub(super) struct Live {
    pub(super) sim: Sim,
    desks: Vec<Desk>,
    questions: Vec<(usize, u64, Ticket, ConsentRequest)>,
    /// A moment on tokio's clock, and in the simulation.
    begun: (Instant, u64),
}

/// Who waits for what at a node, in one life of its agent.
struct Desk {
    life: u64,
    /// The number that was given out last.
    last: u64,
    waiting: BTreeMap<u64, oneshot::Sender<Event>>,
    fences: VecDeque<oneshot::Sender<Event>>,
    /// The revision that the store told of last.
    hinted: watch::Sender<u64>,
    stirred: Arc<Notify>,
    paused: watch::Sender<bool>,
    handle: Option<AgentHandle>,
    /// What the agent decided last, for the story.
    decided: &'static str,
}

/// A question for consent that has reached a node.
pub(super) struct Question {
    pub(super) node: usize,
    pub(super) life: u64,
    pub(super) ticket: Ticket,
    pub(super) request: ConsentRequest,
    pub(super) handle: AgentHandle,
}

impl Live {
    /// Takes a simulation over: its agents end, and their nodes are driven from outside from now
    /// on.
    pub(super) fn new(mut sim: Sim) -> Self {
        for n in 0..sim.nodes.len() {
            sim.agent_exits(n);
            sim.nodes[n].outside = true;
            sim.start_agent(n);
        }
        let desks = sim.nodes.iter().map(|node| Desk::new(node.life));
        Self {
            desks: desks.collect(),
            questions: Vec::new(),
            begun: (Instant::now(), sim.now),
            sim,
        }
    }

    /// Runs the simulation up to now, and tells everybody what concerns them.
    pub(super) fn catch_up(&mut self) {
        let now = self.now();
        self.take_down();
        while self.sim.violation.is_none() && self.sim.next_at() <= now {
            self.sim.advance(now);
        }
        if self.sim.violation.is_none() {
            self.sim.now = self.sim.now.max(now);
            // What has just changed in the store is told of from this moment, and not from the
            // next one at which something happens.
            self.sim.hint();
        }
        for n in 0..self.desks.len() {
            self.tell(n);
        }
    }

    /// Returns when something happens next that somebody may hear of.
    pub(super) fn next_at(&self) -> Option<Instant> {
        if self.sim.violation.is_some() {
            return None;
        }
        let next = self.sim.next_after(self.sim.queue.next_heard_of_at());
        let (instant, base) = self.begun;
        (next < u64::MAX).then(|| instant + Duration::from_millis(next.saturating_sub(base)))
    }

    /// Returns what the clock of a node says.
    pub(super) fn node_time(&self, n: usize) -> NodeTime {
        self.sim.nodes[n].clock.local(self.now())
    }

    /// Returns the number of the life of a node's agent, if it lives.
    pub(super) fn life(&self, n: usize) -> Option<u64> {
        let node = &self.sim.nodes[n];
        node.is_alive().then_some(node.life)
    }

    pub(super) fn handle(&self, n: usize) -> Option<&AgentHandle> {
        self.desks[n].handle.as_ref()
    }

    /// An agent runs on a node; returns whether it is to stand still, from now on.
    pub(super) fn began(&mut self, n: usize, handle: AgentHandle) -> watch::Receiver<bool> {
        self.desks[n].handle = Some(handle);
        self.desks[n].paused.subscribe()
    }

    /// Takes the questions that have come.
    pub(super) fn questions(&mut self) -> Vec<Question> {
        let questions = std::mem::take(&mut self.questions).into_iter();
        let asked = questions.filter_map(|(node, life, ticket, request)| {
            let handle = self.handle(node).filter(|_| self.life(node) == Some(life));
            Some(Question {
                node,
                life,
                ticket,
                request,
                handle: handle?.clone(),
            })
        });
        asked.collect()
    }

    /// Gives a command a number and somebody who waits for its outcome; `None` if the life of the
    /// agent that gives it is over.
    pub(super) fn send(
        &mut self,
        (n, life): (usize, u64),
        command: impl FnOnce(u64) -> Command,
    ) -> Option<(u64, oneshot::Receiver<Event>)> {
        self.catch_up();
        if self.life(n) != Some(life) {
            return None;
        }
        let (sender, outcome) = oneshot::channel();
        let desk = &mut self.desks[n];
        desk.last += 1;
        let number = desk.last;
        let command = command(number);
        if command == Command::Fence {
            desk.fences.push_back(sender);
        } else {
            desk.waiting.insert(number, sender);
        }
        self.sim.count_work(n, std::slice::from_ref(&command));
        self.sim.carry_out(n, command);
        Some((number, outcome))
    }

    /// Carries out what needs no answer, if the life of the agent that gives it lasts.
    pub(super) fn carry_out(&mut self, n: usize, life: u64, command: Command) {
        self.catch_up();
        if self.life(n) == Some(life) {
            self.sim.carry_out(n, command);
        }
    }

    /// Forgets who waits for something; returns whether it had not come.
    pub(super) fn forget(&mut self, n: usize, number: u64) -> bool {
        self.desks[n].waiting.remove(&number).is_some()
    }

    /// What an agent did came to its end.
    pub(super) fn ended(&mut self, ended: Ended) {
        match ended {
            Ended::Agent(n, life, exit) => self.carry_out(n, life, Command::Exit(exit)),
            Ended::Question(n, life, ticket, answer) => {
                self.carry_out(n, life, Command::AnswerConsent(ticket, answer));
            }
            Ended::Panic(what) => self.sim.break_with(what),
        }
    }

    pub(super) fn is_paused(&self, n: usize) -> bool {
        self.sim.nodes[n].paused
    }

    pub(super) fn paused(&self, n: usize) -> watch::Receiver<bool> {
        self.desks[n].paused.subscribe()
    }

    pub(super) fn hints(&self, n: usize) -> watch::Receiver<u64> {
        self.desks[n].hinted.subscribe()
    }

    pub(super) fn stirred(&self, n: usize) -> Arc<Notify> {
        Arc::clone(&self.desks[n].stirred)
    }

    fn now(&self) -> u64 {
        let (instant, base) = self.begun;
        let since = u64::try_from(instant.elapsed().as_millis());
        base.saturating_add(since.unwrap_or(u64::MAX))
    }

    /// Takes down what the agents say of themselves, for their peers and for the story.
    fn take_down(&mut self) {
        for n in 0..self.desks.len() {
            let desk = &mut self.desks[n];
            let node = &mut self.sim.nodes[n];
            let (Some(handle), Mind::Outside { status, .. }) = (&desk.handle, &mut node.mind)
            else {
                continue;
            };
            let says = handle.status();
            if desk.life != node.life || status.as_ref().is_some_and(|s| Arc::ptr_eq(s, &says)) {
                continue;
            }
            *status = Some(Arc::clone(&says));
            let (rule, why) = &says.decision;
            // The numbers in a reason change with each look; the rule is what the story is of.
            if std::mem::replace(&mut desk.decided, rule) != *rule {
                let name = node.name().to_owned();
                self.sim.note(format_args!("{name} {rule}: {why}"));
            }
        }
    }

    /// Tells those who wait at a node what has come.
    fn tell(&mut self, n: usize) {
        let told = self.sim.store.told;
        let node = &mut self.sim.nodes[n];
        let desk = &mut self.desks[n];
        if desk.life != node.life {
            *desk = Desk::after(desk, node.life);
        }
        let paused = node.paused;
        desk.paused
            .send_if_modified(|last| std::mem::replace(last, paused) != paused);
        let life = node.life;
        let Mind::Outside { events, .. } = &mut node.mind else {
            return;
        };
        for event in std::mem::take(events) {
            if let Some((ticket, request)) = desk.take(event, told) {
                self.questions.push((n, life, ticket, request));
            }
        }
    }
}

impl Desk {
    fn new(life: u64) -> Self {
        Self {
            life,
            last: 0,
            waiting: BTreeMap::new(),
            fences: VecDeque::new(),
            hinted: watch::channel(0).0,
            stirred: Arc::default(),
            paused: watch::channel(false).0,
            handle: None,
            decided: "",
        }
    }

    /// A desk for another life. It numbers on, so that no number is given out twice.
    fn after(&self, life: u64) -> Self {
        Self {
            last: self.last,
            ..Self::new(life)
        }
    }

    /// Hands an event to those who wait for it; returns a question for consent, which is for the
    /// agent.
    fn take(&mut self, event: Event, told: u64) -> Option<(Ticket, ConsentRequest)> {
        let number = match &event {
            Event::Tick => return None,
            Event::Changed => {
                self.hinted.send_replace(told);
                return None;
            }
            Event::ServerChanged => {
                self.stirred.notify_one();
                return None;
            }
            Event::Order(order) => {
                if let Some(handle) = &self.handle {
                    // A full queue is what a fault may meet.
                    handle.try_order(order.clone());
                }
                return None;
            }
            Event::ConsentAsked(ticket, request) => return Some((*ticket, request.clone())),
            Event::Lease(ticket, _)
            | Event::Read(ticket, _)
            | Event::Written(ticket, _)
            | Event::Observed(ticket, _)
            | Event::HistoryRead(ticket, _)
            | Event::Guard(ticket, _)
            | Event::PeerAnswered(ticket, _, _)
            | Event::ConsentAnswered(ticket, _) => ticket.0,
            Event::OpEnded(id, _) => id.0,
            Event::Fenced(_) => {
                let first = self.fences.pop_front();
                // Whoever asked may have ceased to wait, here and below.
                first.map(|first| first.send(event).is_ok());
                return None;
            }
        };
        let waiting = self.waiting.remove(&number);
        waiting.map(|waiting| waiting.send(event).is_ok());
        None
    }
}
