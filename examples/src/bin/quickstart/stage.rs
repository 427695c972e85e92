//! Everything that runs, and the eye on it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use spilo_core::pg::{Role, Running};
use tokio::time::sleep;

use crate::cli::Arguments;
use crate::node::{Common, Node};
use crate::place::Place;
use crate::screen::{Row, Screen};
use crate::store::Store;
use crate::told::{Decision, Told};
use crate::writer::{Target, Writer};

/// The nodes, the store, the client, and the screen that shows them.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    pub(crate) arguments: &'a Arguments,
    pub(crate) dir: &'a Path,
    pub(crate) common: Common,
    pub(crate) store: Store,
    pub(crate) nodes: Vec<Node>,
    pub(crate) writer: Option<Writer>,
    pub(crate) screen: Screen,
    pub(crate) told: Told,
    /// How many of the decisions are in the story.
    read: usize,
    /// What the story has told of each node.
    seen: Vec<Seen>,
    held: bool,
}

/// What a node is, as far as the story goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
enum Seen {
    #[default]
    Nothing,
    /// It takes writes, on this timeline.
    Primary(u32),
    /// It streams, on this timeline.
    Streaming(u32),
}

impl<'a> Stage<'a> {
    /// Prepares the nodes, and starts none.
    pub(crate) fn new(arguments: &'a Arguments, place: &'a Place, told: Told) -> Result<Self> {
        let ttl = Duration::from_secs(arguments.ttl.into());
        let common = Common::new(arguments.bin_dir()?, ttl)?;
        let nodes = (1..=arguments.nodes)
            .map(|number| Node::new(number, place.dir(), &common))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            arguments,
            dir: place.dir(),
            common,
            store: Store::memory(),
            seen: vec![Seen::Nothing; nodes.len()],
            nodes,
            writer: None,
            screen: Screen::new(),
            told,
            read: 0,
            held: false,
        })
    }

    /// Tells an event of the story that happened now.
    pub(crate) fn tell(&mut self, text: &str) {
        self.screen.tell(Instant::now(), text);
    }

    /// Starts a node's agent.
    pub(crate) async fn start(&mut self, index: usize) -> Result<()> {
        self.nodes[index].start(&self.common, &self.store).await
    }

    /// Returns the node that takes writes.
    pub(crate) fn primary(&self) -> Option<usize> {
        self.nodes.iter().position(Node::is_writable)
    }

    /// Returns how many nodes stream.
    pub(crate) fn streaming(&self) -> usize {
        self.nodes.iter().filter(|node| streams(node)).count()
    }

    /// Returns whether a node streams.
    pub(crate) fn is_streaming(&self, index: usize) -> bool {
        streams(&self.nodes[index])
    }

    /// Returns where a client finds the nodes.
    pub(crate) fn targets(&self) -> Vec<Target> {
        self.nodes.iter().map(Target::of).collect()
    }

    /// Notes that the cluster is to stay until it is interrupted.
    pub(crate) fn hold(&mut self) {
        self.held = true;
        self.screen.calm();
    }

    /// Returns whether the show is over and the cluster stays until it is interrupted.
    pub(crate) fn is_held(&self) -> bool {
        self.held
    }

    /// Watches until something has come about.
    ///
    /// # Errors
    /// It has not within `limit`, or an agent has ended: says what each node decided last.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        limit: Duration,
        done: impl Fn(&Self) -> bool,
    ) -> Result<()> {
        let end = Instant::now() + limit;
        loop {
            self.look()?;
            if done(self) {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("{what}: not within {limit:?}. {}", self.last_words());
            }
            sleep(FRAME).await;
        }
    }

    /// Watches for a while.
    pub(crate) async fn watch(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.look()?;
            sleep(FRAME).await;
        }
        Ok(())
    }

    /// Ends client and agents. What they have started is ended by whoever clears the directory.
    pub(crate) async fn end(mut self) {
        if let Some(writer) = self.writer.take() {
            writer.stop().await;
        }
        for node in &mut self.nodes {
            node.drop_agent().await;
        }
    }

    fn look(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            if let Some(why) = node.exit() {
                bail!("the agent of {} has ended: {why}", node.name);
            }
        }
        for decision in self.told.since(self.read) {
            self.read += 1;
            if STORY.contains(&decision.rule.as_str()) {
                self.screen.tell(decision.at, &sentence(&decision));
            }
        }
        for index in 0..self.nodes.len() {
            self.notice(index);
        }
        let under = self.writing();
        let rows: Vec<Row> = self.nodes.iter().map(|node| self.row(node)).collect();
        self.screen.show(&rows, &under);
        Ok(())
    }

    /// Tells what has become of a node since it was looked at last.
    fn notice(&mut self, index: usize) {
        let node = &self.nodes[index];
        let now = match (running(node), node.is_writable()) {
            (Some(running), true) => Seen::Primary(running.timeline.0),
            (Some(running), false) if streams(node) => Seen::Streaming(running.timeline.0),
            // Between two of these it is many things, which the table shows.
            _ if node.status().is_some() => return,
            _ => Seen::Nothing,
        };
        if std::mem::replace(&mut self.seen[index], now) == now {
            return;
        }
        let name = &self.nodes[index].name;
        let text = match now {
            Seen::Nothing => return,
            Seen::Primary(1) => format!("{name} takes writes: it has made the cluster, timeline 1"),
            Seen::Primary(timeline) => format!("{name} takes writes, on timeline {timeline}"),
            Seen::Streaming(timeline) => match self.primary() {
                Some(primary) => {
                    let primary = &self.nodes[primary].name;
                    format!("{name} streams from {primary}, timeline {timeline}")
                }
                None => format!("{name} streams, timeline {timeline}"),
            },
        };
        self.tell(&text);
    }

    fn row(&self, node: &Node) -> Row {
        let member = node.name.to_string();
        let dash = || "-".to_owned();
        let Some(status) = node.status() else {
            let state = "dead".to_owned();
            return Row {
                member,
                role: dash(),
                state,
                is_dead: true,
                ..Row::default()
            };
        };
        let lease = node
            .permission_left()
            .map(|left| format!("{:.1} s", left.as_secs_f64()));
        let mut row = Row {
            member,
            role: dash(),
            state: status.state.as_str().to_owned(),
            lease: lease.unwrap_or_else(dash),
            rule: status.decision.0.to_owned(),
            ..Row::default()
        };
        let Some(running) = running(node) else {
            return row;
        };
        row.timeline = running.timeline.to_string();
        match &running.role {
            Role::Primary { written } => {
                row.role = "primary".to_owned();
                row.position = written.to_string();
            }
            Role::Standby {
                replayed,
                streaming,
                upstream_end,
                ..
            } => {
                row.role = "replica".to_owned();
                row.position = replayed.to_string();
                row.lag = upstream_end.map_or_else(dash, |end| bytes(end.bytes_past(*replayed)));
                if *streaming {
                    row.state = "streaming".to_owned();
                }
            }
        }
        row
    }

    fn writing(&self) -> String {
        let Some(writer) = &self.writer else {
            return String::new();
        };
        let ledger = writer.ledger();
        let rows = ledger.acknowledged.len();
        match &ledger.last {
            None => "the client has not written yet".to_owned(),
            Some((at, node)) => format!(
                "{rows} rows acknowledged, the last {} ms ago by {node}",
                at.elapsed().as_millis()
            ),
        }
    }

    fn last_words(&self) -> String {
        let last = |node: &Node| match self.told.last_of(node.name.as_str()) {
            Some(decision) => format!("{}: {}", node.name, reason(&decision)),
            None => format!("{}: nothing", node.name),
        };
        let words: Vec<String> = self.nodes.iter().map(last).collect();
        format!("What was decided last: {}", words.join("; "))
    }
}

/// Returns a decision as the log has it: its rule, and why.
pub(crate) fn reason(decision: &Decision) -> String {
    if decision.why.is_empty() {
        return decision.rule.clone();
    }
    format!("{}: {}", decision.rule, decision.why)
}

fn sentence(decision: &Decision) -> String {
    format!("{} decides {}", decision.node, reason(decision))
}

fn running(node: &Node) -> Option<Running> {
    node.status()?.postgres.as_ref()?.running().cloned()
}

fn streams(node: &Node) -> bool {
    matches!(
        running(node),
        Some(Running {
            role: Role::Standby {
                streaming: true,
                ..
            },
            ..
        })
    )
}

fn bytes(count: u64) -> String {
    match count {
        0..10_000 => format!("{count} B"),
        10_000..10_000_000 => format!("{} kB", count / 1_000),
        _ => format!("{} MB", count / 1_000_000),
    }
}

/// The rules whose decisions are part of the story. The others are in the table while they last.
const STORY: &[&str] = &[
    "BootstrapRace",
    "Bootstrap",
    "Clone",
    "BootstrapFailed",
    "CloneFailed",
    "TooFarBehind",
    "TimelineBehind",
    "PeerIsPrimary",
    "PeerAhead",
    "Acquire",
    "TakeBack",
    "Promote",
    "StartInPlace",
    "StartFailed",
    "StartStandby",
    "Rewind",
    "Reclone",
    "Stuck",
    "Switchover",
    "WriterWithoutPermission",
    "OperationWithoutPermission",
    "GuardSilent",
];

/// How often it is looked: often enough for the eye, seldom enough for one processor.
const FRAME: Duration = Duration::from_millis(100);
