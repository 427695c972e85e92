//! A node, from its configuration to its end.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use spilo_api::{Api, HttpPeers, serve};
use spilo_core::agent::{Agent, AgentHandle, Backends};
use spilo_core::local::{Local, Parsed};
use spilo_core::machine::{Exit, Identity, Order};
use spilo_core::status::Status;
use spilo_core::{Clock, Cluster, Dcs, Peers};
use spilo_pg::{BootClock, GuardKeeper, LocalServer};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::doors::Doors;
use crate::journal::Sink;
use crate::load::Source;
use crate::logging::LevelHandle;
use crate::notify::Notifier;
use crate::reload::Fresh;
use crate::{backups, journal, reload, wiring};

/// Runs the node until it is told to stop or cannot go on.
pub(crate) fn run(
    parsed: Parsed,
    source: Source,
    level: LevelHandle,
    journal: Option<PathBuf>,
) -> Result<Exit> {
    // One thread for everything that waits, which is nearly all that an agent does; what blocks
    // (files, names) has threads of its own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime of the agent")?;
    let (sink, writer) = journal.map(journal::keep).transpose()?.unzip();
    // As a task like every other: each time something wakes what the runtime itself waits for, it
    // asks the kernel for events at once.
    let node = runtime.spawn(node(parsed.local, source, level, sink));
    let exit = match runtime.block_on(node) {
        Ok(exit) => exit,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    };
    // What blocks still (a look-up of a name, a file system that hangs) is not waited for.
    runtime.shutdown_timeout(Duration::from_millis(100));
    if let Some(writer) = writer {
        writer.finish();
    }
    exit
}

/// What a reload works on.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) local: Local,
    pub(crate) source: Arc<Source>,
    /// The reading of the configuration, at most one.
    pub(crate) reading: JoinSet<Option<Box<Fresh>>>,
    /// Whether it was asked for once more while it was under way.
    pub(crate) read_again: bool,
    pub(crate) level: LevelHandle,
    pub(crate) handle: AgentHandle,
    pub(crate) server: Arc<LocalServer>,
    pub(crate) doors: Doors,
    pub(crate) notifier: Notifier,
}

async fn node(
    local: Local,
    source: Source,
    level: LevelHandle,
    journal: Option<Sink>,
) -> Result<Exit> {
    let notifier = Notifier::from_environment();
    // Before anything else: the default of some of these is to end the process.
    let mut signals = Signals::new()?;
    let identity = wiring::identity(&local)?;
    let listeners = wiring::listeners(&local.restapi.listen)?;
    let tls = wiring::server_tls(&local)?;
    let dcs = wiring::store(&local)?;
    let peers = Arc::new(HttpPeers::new(wiring::peers(&local))?);
    let (postgres, api) = (wiring::postgres(&local)?, wiring::api(&local)?);
    alone(&identity, dcs.as_ref(), peers.as_ref()).await?;
    let clock: Arc<dyn Clock> = Arc::new(BootClock::default());
    let guard = wiring::guard(&postgres);
    let (keeper, server) = GuardKeeper::start(guard, postgres.clone(), clock.clone()).await?;
    tracing::info!(
        pid = keeper.client().pid(),
        adopted = keeper.client().is_adopted(),
        "guard"
    );
    let backends = Backends {
        dcs,
        postgres: Arc::clone(&server) as _,
        guard: Arc::clone(&keeper) as _,
        peers: Arc::clone(&peers) as _,
        clock,
    };
    let (mut agent, handle) = Agent::new(identity, backends);
    if let Some(mut sink) = journal {
        agent = agent.with_journal(move |line| sink.take(line));
    }
    let _beside = backups::beside(local.backup.as_ref(), postgres, &handle)?;
    let api = Api::new(Arc::new(handle.clone()), api)?;

    let (stop, stopped) = watch::channel(false);
    let mut serving = JoinSet::new();
    for listener in listeners {
        let mut stopped = stopped.clone();
        let shutdown = async move {
            // The sender ends with this function, which is a reason to stop as well.
            stopped
                .wait_for(|stopped| *stopped)
                .await
                .map(drop)
                .unwrap_or_default();
        };
        serving.spawn(serve(listener, api.router(), tls.clone(), shutdown));
    }
    notifier.ready();
    let mut running = Running {
        local,
        source: Arc::new(source),
        reading: JoinSet::new(),
        read_again: false,
        level,
        handle,
        server,
        doors: Doors { api, tls, peers },
        notifier,
    };
    let exit = attend(agent.run(), &mut running, &mut signals, &mut serving).await;
    stop.send_replace(true);
    while serving.join_next().await.is_some() {}
    exit
}

/// Passes on what comes from outside until the agent has ended.
async fn attend(
    agent: impl Future<Output = Exit> + Send + 'static,
    running: &mut Running,
    signals: &mut Signals,
    serving: &mut JoinSet<std::io::Result<()>>,
) -> Result<Exit> {
    let mut agents = JoinSet::new();
    agents.spawn(agent);
    let mut handle = running.handle.clone();
    let mut told = String::new();
    loop {
        tokio::select! {
            Some(ended) = agents.join_next() => match ended {
                Ok(exit) => return Ok(exit),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
            order = signals.next() => obey(order, running).await,
            Some(read) = running.reading.join_next() => match read {
                Ok(fresh) => reload::finish(running, fresh).await,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
            Some(ended) = serving.join_next() => match ended {
                // Without its API the node is invisible to load balancers and deaf to its peers.
                Ok(Err(error)) => bail!("the REST API has ended: {error}"),
                Ok(Ok(())) => bail!("the REST API has ended"),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
            true = handle.changed() => {
                let line = summary(&handle.status());
                if line != told {
                    running.notifier.status(&line);
                    told = line;
                }
            }
        }
    }
}

async fn obey(asked: Asked, running: &mut Running) {
    match asked {
        Asked::Stop => {
            tracing::info!("asked to stop: handing over and stopping PostgreSQL");
            running.notifier.stopping();
            running.handle.order(Order::Shutdown).await;
        }
        Asked::Detach => {
            tracing::info!("asked to detach: PostgreSQL goes on under its guard");
            running.notifier.stopping();
            running.handle.order(Order::Detach).await;
        }
        Asked::Reload => reload::begin(running),
    }
}

/// Refuses to be the second of its name. A store that does not answer is no reason: the agent
/// waits for it, and does nothing before it has come.
async fn alone(identity: &Identity, dcs: &dyn Dcs, peers: &dyn Peers) -> Result<()> {
    let snapshot = match dcs.read().await {
        Ok(snapshot) => snapshot,
        Err(error) => {
            tracing::warn!(%error, "the store does not answer yet");
            return Ok(());
        }
    };
    let cluster = Cluster::read(&snapshot, None);
    let namesake = cluster
        .members
        .get(&identity.name)
        .and_then(|member| member.api_url.clone());
    match namesake {
        // At our own address nobody else is: the port was free.
        Some(url) if url != identity.api_url => match peers.ask(&url).await {
            Ok(_) => Err(anyhow!(
                "name: there is already a node named {} running, at {url}",
                identity.name
            )),
            Err(_) => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Says in one line what the node is and why.
fn summary(status: &Status) -> String {
    let role = match (status.is_primary(), status.holds_lock) {
        (true, true) => "primary",
        (true, false) => "primary without the lock",
        (false, true) => "holds the lock",
        (false, false) => "replica",
    };
    let (rule, why) = &status.decision;
    format!("{role}, {}; {rule}: {why}", status.state.as_str())
}

/// What signals ask for.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Stop,
    Detach,
    Reload,
}

#[derive(Debug)]
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    detach: Signal,
    reload: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let take = |kind| signal(kind).context("cannot handle signals");
        Ok(Self {
            terminate: take(SignalKind::terminate())?,
            interrupt: take(SignalKind::interrupt())?,
            detach: take(SignalKind::user_defined1())?,
            reload: take(SignalKind::hangup())?,
        })
    }

    /// Returns what the next signal asks for.
    ///
    /// # Cancellation
    /// Safe to drop: a signal that has come is not lost.
    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.detach.recv() => Asked::Detach,
            _ = self.reload.recv() => Asked::Reload,
        }
    }
}
