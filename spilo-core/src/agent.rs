//! The driver: runs one [`Machine`] against real backends, on tokio.
//!
//! It carries commands out and brings their outcomes back as events, and decides nothing. Nothing
//! on its path waits for an effect: each command is a task of its own, each request has a
//! timeout, and a request whose time is over is reported for what it is: one that may have been
//! done.

mod effects;
mod handle;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::Instrument as _;

use crate::cluster::Malformed;
use crate::config::DynamicConfig;
use crate::dcs::Dcs;
use crate::decide::Rule;
use crate::guard::Guard;
use crate::ids::{OpId, Revision};
use crate::journal::{Recorder, Taken};
use crate::machine::{Command, Event, Exit, Identity, Limits, Machine, Step, Ticket};
use crate::peer::{ConsentAnswer, ConsentRequest, Peers};
use crate::pg::{PgOp, Postgres};
use crate::status::Status;
use crate::time::{Clock, NodeTime};

pub use handle::AgentHandle;

/// What an agent works with.
#[derive(Clone, Debug)]
pub struct Backends {
    /// The store.
    pub dcs: Arc<dyn Dcs>,
    /// The server.
    pub postgres: Arc<dyn Postgres>,
    /// The guard of the server.
    pub guard: Arc<dyn Guard>,
    /// The way to other members.
    pub peers: Arc<dyn Peers>,
    /// The time; the clock that the guard's deadline is measured on.
    pub clock: Arc<dyn Clock>,
}

/// One node's agent.
///
/// # Examples
/// ```no_run
/// # async fn f(identity: spilo_core::machine::Identity, backends: spilo_core::agent::Backends) {
/// let (agent, handle) = spilo_core::agent::Agent::new(identity, backends);
/// // Mount an API on `handle`, pass signals on to it, then:
/// let exit = agent.run().await;
/// # let _ = (exit, handle);
/// # }
/// ```
pub struct Agent {
    machine: Machine,
    journal: Option<Recorder>,
    backends: Backends,
    requests: mpsc::Receiver<Request>,
    status: watch::Sender<Arc<Status>>,
    revision: watch::Sender<Revision>,
    hints: mpsc::Sender<Request>,
    malformed: Vec<Malformed>,
    config: Option<Arc<DynamicConfig>>,
    wake_at: NodeTime,
    tasks: JoinSet<Event>,
    operation: Option<(OpId, oneshot::Sender<()>)>,
    questions: BTreeMap<Ticket, oneshot::Sender<ConsentAnswer>>,
    question: u64,
    silences: effects::Silences,
}

/// What others ask of the running agent.
#[derive(Debug)]
pub(crate) enum Request {
    Event(Event),
    Consent(ConsentRequest, oneshot::Sender<ConsentAnswer>),
}

impl Agent {
    /// Creates an agent, and the handle by which the rest of the program reaches it.
    pub fn new(identity: Identity, backends: Backends) -> (Self, AgentHandle) {
        let machine = Machine::new(identity, backends.clock.now());
        let (sender, requests) = mpsc::channel(REQUESTS);
        let (status, seen) = watch::channel(Arc::new(machine.status()));
        let handle = AgentHandle::new(sender.clone(), seen, backends.clone());
        let agent = Self {
            machine,
            journal: None,
            backends,
            requests,
            status,
            revision: watch::channel(Revision::default()).0,
            hints: sender,
            malformed: Vec::new(),
            config: None,
            wake_at: NodeTime::default(),
            tasks: JoinSet::new(),
            operation: None,
            questions: BTreeMap::new(),
            question: 0,
            silences: effects::Silences::default(),
        };
        (agent, handle)
    }

    /// Keeps a journal: offers `sink` a line about each step, to be replayed and explained.
    ///
    /// The sink is called on the agent's own path and must not block; it says
    /// [`Taken::Lost`] where it cannot keep a line at once. The lines hold **the secrets of
    /// leases**. See [`journal`](crate::journal) for both.
    #[must_use]
    pub fn with_journal(mut self, sink: impl FnMut(&str) -> Taken + Send + 'static) -> Self {
        self.journal = Some(Recorder::new(sink));
        self
    }

    /// Runs until it was ordered to stop or to detach, or cannot go on.
    ///
    /// # Cancellation
    /// Dropping the future ends everything that the agent has under way, an operation on
    /// PostgreSQL included. The guard and the server under it go on, to the end of the lease.
    pub async fn run(mut self) -> Exit {
        let mut hints = JoinSet::new();
        hints.spawn(effects::watch_store(
            Arc::clone(&self.backends.dcs),
            self.revision.subscribe(),
            self.hints.clone(),
        ));
        hints.spawn(effects::watch_guard(
            Arc::clone(&self.backends.guard),
            self.hints.clone(),
        ));
        let mut event = Event::Tick;
        loop {
            let step = self.step(event);
            if let Some(exit) = self.carry_out(step) {
                return exit;
            }
            event = tokio::select! {
                biased;
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => match done {
                    Ok(event) => event,
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
                Some(request) = self.requests.recv() => self.asked(request),
                () = self.backends.clock.sleep_until(self.wake_at) => Event::Tick,
            };
        }
    }

    fn step(&mut self, event: Event) -> Step {
        let now = self.backends.clock.now();
        match &mut self.journal {
            Some(recorder) => recorder.step(&mut self.machine, now, event),
            None => self.machine.step(now, event),
        }
    }

    fn asked(&mut self, request: Request) -> Event {
        match request {
            Request::Event(event) => event,
            Request::Consent(request, answer) => {
                self.question += 1;
                let ticket = Ticket(self.question);
                self.questions.insert(ticket, answer);
                Event::ConsentAsked(ticket, request)
            }
        }
    }

    fn carry_out(&mut self, step: Step) -> Option<Exit> {
        self.wake_at = step.wake_at;
        let exit = step.commands.iter().find_map(|command| match command {
            Command::Exit(exit) => Some(exit.clone()),
            _ => None,
        });
        self.tell(&step);
        for command in step.commands {
            self.start(command);
        }
        exit
    }

    /// Logs a decision once, and publishes the status that goes with it.
    fn tell(&mut self, step: &Step) {
        let decision = &step.decision;
        let passing = matches!(
            decision.rule,
            Rule::Operating | Rule::Looking | Rule::Fencing
        );
        if step.news && !passing {
            tracing::info!(rule = decision.rule.as_str(), "{}", decision.why);
        } else {
            tracing::trace!(rule = decision.rule.as_str(), "{}", decision.why);
        }
        self.warn_of_config();
        let status = Arc::new(self.machine.status());
        self.status.send_if_modified(|last| {
            let news = status.is_news_after(last);
            *last = status;
            news
        });
        if let Some(seen) = &self.machine.facts().cluster {
            let revision = seen.value.revision;
            self.revision
                .send_if_modified(|last| std::mem::replace(last, revision) != revision);
            if self.malformed != seen.value.malformed {
                self.malformed.clone_from(&seen.value.malformed);
                for bad in &self.malformed {
                    tracing::warn!(
                        "the store's key {} {}; it is left as it is",
                        bad.path,
                        bad.problem
                    );
                }
            }
        }
    }

    /// Says once what the cluster's configuration asks for and does not get. Only taking the lock
    /// depends on what is not built, so that a node that leads would never name it.
    fn warn_of_config(&mut self) {
        let config = &self.machine.facts().config;
        let last = self.config.replace(Arc::clone(config));
        if last.as_ref().is_some_and(|last| Arc::ptr_eq(last, config)) {
            return;
        }
        let said = |text: &String, of: fn(&DynamicConfig) -> &[String]| {
            last.as_ref().is_some_and(|last| of(last).contains(text))
        };
        for name in &config.unsupported {
            if !said(name, |config| &config.unsupported) {
                tracing::warn!(
                    "the cluster's configuration has {name}, which this version does not honour: \
                     no node takes the lock with it, and one that leads goes on without; remove it \
                     from the configuration"
                );
            }
        }
        for text in &config.adjusted {
            if !said(text, |config| &config.adjusted) {
                tracing::warn!("the cluster's configuration: {text}");
            }
        }
    }

    fn start(&mut self, command: Command) {
        let time = Limits::of(self.machine.facts());
        let backends = &self.backends;
        match command {
            Command::Lease(ticket, request) => {
                let (dcs, me) = (
                    Arc::clone(&backends.dcs),
                    self.machine.identity().name.clone(),
                );
                self.tasks
                    .spawn(effects::lease(dcs, me, ticket, request, time.lease));
            }
            Command::Read(ticket, request) => {
                let dcs = Arc::clone(&backends.dcs);
                self.tasks
                    .spawn(effects::read(dcs, ticket, request, time.request));
            }
            Command::Write(ticket, request) => {
                let (dcs, me) = (
                    Arc::clone(&backends.dcs),
                    self.machine.identity().name.clone(),
                );
                self.tasks
                    .spawn(effects::write(dcs, me, ticket, request, time.request));
            }
            Command::Observe(ticket) => {
                self.tasks
                    .spawn(effects::observe(Arc::clone(&backends.postgres), ticket));
            }
            Command::ReadHistory(ticket, of) => {
                let postgres = Arc::clone(&backends.postgres);
                let own = self.machine.facts().system_id;
                self.tasks
                    .spawn(effects::history(postgres, ticket, of, own));
            }
            Command::StartOp(id, op) => self.start_operation(id, op),
            Command::CancelOp(id) => self.cancel_operation(id),
            Command::Fence => {
                self.tasks
                    .spawn(effects::fence(Arc::clone(&backends.postgres)));
            }
            Command::Guard(ticket, request) => {
                self.tasks
                    .spawn(effects::guard(Arc::clone(&backends.guard), ticket, request));
            }
            Command::AskPeer(ticket, name, url) => {
                let peers = Arc::clone(&backends.peers);
                let silences = effects::Silences::clone(&self.silences);
                self.tasks
                    .spawn(effects::ask(peers, silences, ticket, name, url));
            }
            Command::AskConsent(ticket, members, request) => {
                let peers = Arc::clone(&backends.peers);
                self.tasks.spawn(effects::consent(
                    peers,
                    ticket,
                    members,
                    request,
                    time.consent,
                ));
            }
            Command::AnswerConsent(ticket, answer) => self.answer(ticket, answer),
            Command::Exit(_) => {}
        }
    }

    fn start_operation(&mut self, id: OpId, op: PgOp) {
        let (stop, stopped) = oneshot::channel();
        self.operation = Some((id, stop));
        let postgres = Arc::clone(&self.backends.postgres);
        // What it tells on the way is told by whoever runs this agent.
        let operation = effects::operation(postgres, id, op, stopped);
        self.tasks.spawn(operation.in_current_span());
    }

    fn cancel_operation(&mut self, id: OpId) {
        if let Some((_, stop)) = self.operation.take_if(|(running, _)| *running == id) {
            // An operation that has just ended no longer listens, which is as good.
            stop.send(()).unwrap_or_default();
        }
    }

    fn answer(&mut self, ticket: Ticket, answer: ConsentAnswer) {
        if let Some(asker) = self.questions.remove(&ticket) {
            // The asker may have hung up; the promise stands all the same.
            asker.send(answer).unwrap_or_default();
        }
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent")
            .field("name", &self.machine.identity().name)
            .finish_non_exhaustive()
    }
}

/// Requests from outside wait in this queue; whoever finds it full is told so.
const REQUESTS: usize = 64;
