//! A simulation for those who drive themselves: the production driver, and tests that call the
//! traits.

mod door;
mod live;
mod plan;

use std::fmt;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

use super::Sim;
use crate::agent::{Agent, AgentHandle, Backends};
use crate::machine::{Command, Exit, Identity, Ticket};
use crate::peer::{ConsentAnswer, ConsentRequest};
use door::Door;
use live::{Live, Question};

/// A [`Sim`] in step with tokio's clock, with [`Backends`] of each node for what drives it from
/// outside.
///
/// It is for a runtime of one thread with a paused clock (`#[tokio::test(start_paused = true)]`):
/// the clock then goes on to the next moment at which something happens whenever nothing is left
/// to do. A call on a backend becomes the command that a machine would have given; dropping its
/// future does what the trait's contract says. An agent that a fault kills is dropped with all that
/// it has under way, one that a fault pauses is not polled, and one that the simulation starts is a
/// new [`Agent`].
///
/// # Examples
/// The production driver over simulated servers and a simulated store:
/// ```
/// use std::time::Duration;
/// use spilo_core::sim::{Fault, Outside, Sim};
///
/// # let runtime = tokio::runtime::Builder::new_current_thread()
/// #     .enable_time()
/// #     .start_paused(true)
/// #     .build()
/// #     .unwrap();
/// # runtime.block_on(async {
/// let cluster = Outside::with_agents(Sim::new(["a", "b", "c"], 10), |_, agent| agent);
/// cluster.run_until("a healthy cluster", 60, Sim::is_healthy).await;
/// let old = cluster.look(Sim::primary).expect("it is healthy");
///
/// cluster.change(|sim| sim.begin(Fault::KillNode(old)));
/// cluster.run_until("a successor", 20, |sim| sim.primary().is_some()).await;
/// cluster.change(|sim| sim.end(Fault::KillNode(old)));
/// cluster.run_until("the old one to stream", 60, Sim::is_healthy).await;
/// # });
/// ```
#[derive(Debug)]
pub struct Outside {
    shared: Arc<Shared>,
    /// What advances the simulation; it ends with this value.
    _driver: JoinSet<()>,
}

/// What the doors, the driver and the test share.
struct Shared {
    live: Mutex<Live>,
    /// Something happens earlier than the driver knows of.
    changed: Notify,
}

impl Outside {
    /// Puts a simulation in step with tokio's clock. Nobody runs on its nodes but the caller, by
    /// their [`backends`](Self::backends).
    ///
    /// # Panics
    /// Outside a runtime.
    pub fn new(sim: Sim) -> Self {
        Self::driven(sim, None)
    }

    /// Puts a simulation in step with tokio's clock, and runs an [`Agent`] on each node.
    ///
    /// `prepare` is given each agent before it runs, with the number of its node, and may change
    /// it, as by [`Agent::with_journal`].
    ///
    /// # Panics
    /// Outside a runtime.
    pub fn with_agents(
        sim: Sim,
        prepare: impl FnMut(usize, Agent) -> Agent + Send + 'static,
    ) -> Self {
        Self::driven(sim, Some(Box::new(prepare)))
    }

    fn driven(sim: Sim, prepare: Option<Prepare>) -> Self {
        let nodes = sim.len();
        let shared = Arc::new(Shared {
            live: Mutex::new(Live::new(sim)),
            changed: Notify::new(),
        });
        let crew = prepare.map(|prepare| Crew::new(prepare, nodes));
        let mut driver = JoinSet::new();
        driver.spawn(Box::pin(drive(Arc::clone(&shared), crew)));
        Self {
            shared,
            _driver: driver,
        }
    }

    /// Returns what the present agent of a node works with. Once that agent was killed, calls on
    /// these backends are never answered.
    pub fn backends(&self, node: usize) -> Backends {
        Door::new(&self.shared, node).backends()
    }

    /// Returns who a node is.
    pub fn identity(&self, node: usize) -> Identity {
        self.shared.live().sim.nodes[node].identity.clone()
    }

    /// Returns the way to the agent that runs on a node, if one does.
    pub fn handle(&self, node: usize) -> Option<AgentHandle> {
        self.shared.live().handle(node).cloned()
    }

    /// Looks at the simulation as it is now.
    ///
    /// Every node has a lock on the simulation in between: `look` must not call the backends.
    pub fn look<T>(&self, look: impl FnOnce(&Sim) -> T) -> T {
        let mut live = self.shared.live();
        live.catch_up();
        look(&live.sim)
    }

    /// Changes the simulation: strikes it with faults, writes to its store. Its time is tokio's,
    /// and `change` must not run it, nor call the backends.
    pub fn change<T>(&self, change: impl FnOnce(&mut Sim) -> T) -> T {
        let mut live = self.shared.live();
        live.catch_up();
        let changed = change(&mut live.sim);
        live.catch_up();
        drop(live);
        self.shared.changed.notify_one();
        changed
    }

    /// Runs for so long.
    ///
    /// # Panics
    /// With the story, if an invariant is broken.
    ///
    /// # Cancellation
    /// Safe to drop; the simulation goes on.
    pub async fn run_for(&self, span: Duration) {
        sleep(span).await;
        self.look(Sim::assert_sound);
    }

    /// Runs until something is so, and returns how many milliseconds that took, to within twenty.
    ///
    /// # Panics
    /// With the story, if it is not so within so many seconds, or an invariant is broken.
    ///
    /// # Cancellation
    /// Safe to drop; the simulation goes on.
    pub async fn run_until(&self, what: &str, seconds: u64, done: impl Fn(&Sim) -> bool) -> u64 {
        let begun = Instant::now();
        let is_so = self.wait(Duration::from_secs(seconds), done).await;
        let sim = self.look(Sim::clone);
        sim.assert_sound();
        assert!(is_so, "{what}: not within {seconds} s\n{sim}");
        u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Waits until something is so; returns whether it was within `limit`.
    async fn wait(&self, limit: Duration, done: impl Fn(&Sim) -> bool) -> bool {
        let end = Instant::now() + limit;
        loop {
            if self.look(&done) {
                return true;
            }
            if Instant::now() >= end || self.look(|sim| sim.violation.is_some()) {
                return false;
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

/// Advances the simulation whenever something happens that somebody hears of.
async fn drive(shared: Arc<Shared>, mut crew: Option<Crew>) {
    loop {
        shared.live().catch_up();
        if let Some(crew) = &mut crew {
            crew.follow(&shared);
        }
        let next = shared.live().next_at();
        let ended = async {
            match &mut crew {
                Some(crew) => crew.ended().await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            ended = ended => shared.live().ended(ended),
            () = shared.changed.notified() => {}
            () = until(next) => {}
        }
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}

/// The agents that run.
struct Crew {
    prepare: Prepare,
    tasks: JoinSet<Ended>,
    running: Vec<Option<(u64, AbortHandle)>>,
}

type Prepare = Box<dyn FnMut(usize, Agent) -> Agent + Send>;

/// What came to its end.
enum Ended {
    Agent(usize, u64, Exit),
    Question(usize, u64, Ticket, ConsentAnswer),
    Panic(String),
}

impl Crew {
    fn new(prepare: Prepare, nodes: usize) -> Self {
        Self {
            prepare,
            tasks: JoinSet::new(),
            running: (0..nodes).map(|_| None).collect(),
        }
    }

    /// Ends the agents whose life is over, starts those whose life began, and passes questions on.
    fn follow(&mut self, shared: &Arc<Shared>) {
        for node in 0..self.running.len() {
            let life = shared.live().life(node);
            let runs = self.running[node].as_ref().map(|(life, _)| *life);
            if runs == life {
                continue;
            }
            if let Some((_, agent)) = self.running[node].take() {
                agent.abort();
            }
            if let Some(life) = life {
                self.start(shared, node, life);
            }
        }
        let questions = shared.live().questions();
        for question in questions {
            self.ask(question);
        }
    }

    fn start(&mut self, shared: &Arc<Shared>, node: usize, life: u64) {
        let door = Door::new(shared, node);
        let identity = shared.live().sim.nodes[node].identity.clone();
        // The agent reads its clock, which is behind the same lock.
        let (agent, handle) = Agent::new(identity, door.backends());
        let agent = (self.prepare)(node, agent);
        let paused = shared.live().began(node, handle);
        let task = self.tasks.spawn(Box::pin(async move {
            let exit = unless_paused(agent.run(), paused).await;
            Ended::Agent(node, life, exit)
        }));
        self.running[node] = Some((life, task));
    }

    fn ask(&mut self, question: Question) {
        let Question {
            node,
            life,
            ticket,
            request,
            handle,
        } = question;
        self.tasks.spawn(async move {
            let answer = consent(&handle, request).await;
            Ended::Question(node, life, ticket, answer)
        });
    }

    async fn ended(&mut self) -> Ended {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(ended)) => return ended,
                Some(Err(error)) if error.is_cancelled() => {}
                Some(Err(error)) => return Ended::Panic(told(error)),
                None => return pending().await,
            }
        }
    }
}

async fn consent(handle: &AgentHandle, request: ConsentRequest) -> ConsentAnswer {
    handle.consent(request).await
}

/// Polls what `agent` is only while it is not paused.
async fn unless_paused(
    agent: impl Future<Output = Exit>,
    mut paused: watch::Receiver<bool>,
) -> Exit {
    let mut agent = Box::pin(agent);
    loop {
        if paused.wait_for(|paused| !*paused).await.is_err() {
            // Its life is over, and it is about to be dropped.
            return pending().await;
        }
        tokio::select! {
            biased;
            _ = paused.wait_for(|paused| *paused) => {}
            exit = &mut agent => return exit,
        }
    }
}

fn told(error: JoinError) -> String {
    let Ok(panic) = error.try_into_panic() else {
        return "an agent did not end by itself".to_owned();
    };
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    format!("an agent panicked: {}", text.unwrap_or("without a word"))
}

impl Shared {
    fn live(&self) -> MutexGuard<'_, Live> {
        // What panics while it holds the lock is a test's own closure, which changes no more.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what the agent of a node wants done on its way.
    fn carry_out(&self, node: usize, life: u64, command: Command) {
        self.live().carry_out(node, life, command);
        self.changed.notify_one();
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// Often enough to be a measure, and seldom enough to cost little.
const LOOK_EVERY: Duration = Duration::from_millis(20);
