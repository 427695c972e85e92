//! What one seed does to a cluster. Gentle faults find nothing: each seed first draws which faults
//! there are and how slow things may get, and then when they strike.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;

use super::faults::{Fault, FaultKind};
use super::{Chance, Conditions, Sim, Violation};
use crate::config::DynamicConfig;
use crate::dcs::Key;
use crate::decide::Rule;

/// A plan drawn from a seed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// The nodes.
    pub nodes: usize,
    /// The time to live in seconds.
    pub ttl: u64,
    /// Whether faults strike while the cluster is being made.
    pub early: bool,
    /// Whether the last node may not make a cluster.
    pub guest: bool,
    /// Whether a primary may live by consent.
    pub failsafe: bool,
    /// The conditions while faults strike.
    pub conditions: Conditions,
    /// Which kinds of fault strike.
    pub kinds: Vec<FaultKind>,
    /// The longest pause between two faults.
    pub pause_ms: u64,
    /// How long faults strike, in seconds.
    pub seconds: u64,
    pub(super) chance: Chance,
}

/// What a run came to that broke no invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// How much time passed in the simulation.
    pub elapsed: Duration,
    /// The rules that were decided by.
    pub rules: BTreeSet<Rule>,
    /// How many servers were promoted.
    pub promotions: u64,
    /// How many rows were acknowledged, and how many of them were left behind by promotions.
    pub rows: (u64, u64),
    /// How many steps the machines took.
    pub steps: u64,
}

impl Plan {
    /// Draws a plan.
    pub fn from_seed(seed: u64) -> Self {
        let mut chance = Chance::seeded(seed);
        let conditions = Conditions::drawn(&mut chance);
        let kinds: Vec<FaultKind> = FaultKind::ALL
            .into_iter()
            .filter(|_| chance.happens(250))
            .collect();
        let early = chance.happens(250);
        let kinds = possible(kinds, early);
        Self {
            seed,
            nodes: chance.pick(&[2, 3, 3, 3, 5]),
            ttl: chance.pick(&[3, 5, 10, 10, 30]),
            early,
            guest: chance.happens(100),
            failsafe: chance.happens(700),
            conditions,
            kinds,
            pause_ms: chance.pick(&[500, 2000, 8000, 30_000]),
            seconds: 150,
            chance,
        }
    }

    /// Runs the plan: a new cluster, faults, and then peace, in which it must mend itself.
    ///
    /// # Errors
    /// The invariant that was broken, or what did not come in time, with the story.
    pub fn run(&self) -> Result<Outcome, Box<Violation>> {
        let mut chance = self.chance;
        let mut sim = self.begin(&mut chance);
        let done = self.disturb(&mut sim, &mut chance);
        if let Err(what) = done.and_then(|()| mend(&mut sim)) {
            sim.break_with(what);
        }
        match sim.violation() {
            Some(violation) => Err(Box::new(violation)),
            None => Ok(Outcome {
                elapsed: sim.elapsed(),
                rules: sim.rules,
                promotions: sim.promotions,
                rows: (sim.clients.acknowledged, sim.clients.lost),
                steps: sim.steps,
            }),
        }
    }

    /// Creates the cluster, in which nothing has happened yet.
    pub(super) fn begin(&self, chance: &mut Chance) -> Sim {
        let config = json!({ "ttl": self.ttl, "failsafe_mode": self.failsafe });
        let names = NAMES.iter().take(self.nodes).copied();
        let seed = chance.below(u64::MAX);
        let mut sim = Sim::with(names, &config, Conditions::default(), seed);
        if self.guest
            && let Some(node) = sim.nodes.last_mut()
        {
            node.identity.bootstrap = None;
        }
        for n in 0..self.nodes {
            let (origin, rate) = (chance.below(1_000_000_000), chance.below(10_001));
            sim.set_clock(n, origin, i64::try_from(rate).unwrap_or(0) - 5000);
        }
        sim.story.title(format!(
            "seed {}: {} nodes, ttl {}, failsafe mode {}, every {} ms of {:?}, {:?}",
            self.seed,
            self.nodes,
            self.ttl,
            self.failsafe,
            self.pause_ms,
            self.kinds,
            self.conditions
        ));
        sim
    }

    fn disturb(&self, sim: &mut Sim, chance: &mut Chance) -> Result<(), String> {
        if !self.early {
            expect(sim, 60, "a new cluster is not healthy within a minute")?;
        }
        sim.set_conditions(self.conditions.clone());
        let end = sim.now + self.seconds * 1000;
        while sim.now < end && sim.violation.is_none() {
            // Some faults are worst in the middle of what another one began.
            let most = if chance.happens(100) {
                300
            } else {
                self.pause_ms
            };
            let pause = 20 + chance.below(most);
            sim.run_to((sim.now + pause).min(end));
            if self.kinds.is_empty() {
                continue;
            }
            self.strike(sim, chance);
        }
        Ok(())
    }

    /// Lets one fault of the plan's kinds strike.
    pub(super) fn strike(&self, sim: &mut Sim, chance: &mut Chance) {
        // The primary is where it hurts.
        let any = chance.index(self.nodes);
        let node = match sim.primary() {
            Some(primary) if chance.happens(600) => primary,
            _ => any,
        };
        let kind = chance.pick(&self.kinds);
        let longest = chance.pick(&[1000, 5000, 20_000, 60_000]);
        let lasts = 50 + chance.below(longest);
        let fault = fault(kind, node, chance, self.nodes);
        sim.strike(fault, lasts);
    }
}

/// Leaves out what no cluster can stand. An agent that starts after the store was wiped, on a node
/// without data, cannot know that there was a cluster; people who wipe a store look first whether
/// everybody has their data.
fn possible(mut kinds: Vec<FaultKind>, early: bool) -> Vec<FaultKind> {
    // Of two clusters that were half begun, the one whose identifier somebody wrote into the store
    // goes on, and the other's data are for people to remove.
    if early {
        kinds.retain(|kind| *kind != FaultKind::ForeignCluster);
    }
    if early || kinds.contains(&FaultKind::RemoveData) {
        kinds.retain(|kind| !matches!(kind, FaultKind::Wipe | FaultKind::WipeSome));
    }
    kinds
}

/// Ends all faults, and looks whether the cluster becomes whole, and stays it.
fn mend(sim: &mut Sim) -> Result<(), String> {
    make_peace(sim);
    if expect(sim, 60, "").is_err() {
        empty_lost_list(sim);
    }
    expect(sim, 120, "not healthy two minutes after the faults")?;
    // A lease of before may end yet whose holder died before the guard had its secret.
    sim.run_to(sim.now + 40_000);
    expect(sim, 60, "not healthy again")?;
    sim.run_to(sim.now + 5000);
    if !sim.is_healthy() {
        return Err("it did not last".to_owned());
    }
    sim.unsound_in_peace().map_or(Ok(()), Err)
}

/// Nobody leads who is not in the list by which a lost primary may still live. That it does not is
/// for people to say, and they empty the list then.
pub(super) fn empty_lost_list(sim: &mut Sim) {
    if sim.primary().is_none() {
        sim.write(Key::Failsafe, "{}".into());
    }
}

/// Ends all faults, and what only people could mend.
pub(super) fn make_peace(sim: &mut Sim) {
    sim.note(format_args!("-- the faults are over"));
    sim.end_all();
    let quiet = Conditions {
        hints: sim.conditions.hints,
        ..Conditions::default()
    };
    sim.set_conditions(quiet);
    // Settings that are gone or broken are for people to mend.
    let settings = json!({ "ttl": 5 });
    if let Some(Ok(config)) = settings.as_object().map(DynamicConfig::seed) {
        let text = serde_json::Value::Object(config.raw).to_string();
        sim.write(Key::Config, text.into());
    }
}

fn expect(sim: &mut Sim, seconds: u64, what: &str) -> Result<(), String> {
    // An agent that was told to stop may still be doing so when its fault is over.
    let whole = |sim: &Sim| sim.is_healthy();
    let end = sim.now + seconds * 1000;
    while sim.now < end && sim.violation.is_none() {
        if sim.run_while(1, |sim| !whole(sim)) {
            return Ok(());
        }
        for n in 0..sim.nodes.len() {
            sim.start_agent(n);
        }
    }
    Err(what.to_owned())
}

/// Makes a fault of a kind, at a node.
fn fault(kind: FaultKind, node: usize, chance: &mut Chance, nodes: usize) -> Fault {
    let other = (node + 1 + chance.index(nodes - 1)) % nodes;
    match kind {
        FaultKind::CrashServer => Fault::CrashServer(node),
        FaultKind::KillAgent => Fault::KillAgent(node),
        FaultKind::KillGuard => Fault::KillGuard(node),
        FaultKind::KillNode => Fault::KillNode(node),
        FaultKind::PauseAgent => Fault::PauseAgent(node),
        FaultKind::FreezeGuard => Fault::FreezeGuard(node),
        FaultKind::BreakFence => Fault::BreakFence(node),
        FaultKind::StallDisk => Fault::StallDisk(node),
        FaultKind::FillDisk => Fault::FillDisk(node),
        FaultKind::FreezeServer => Fault::FreezeServer(node),
        FaultKind::HideData => Fault::HideData(node),
        FaultKind::BreakData => Fault::BreakData(node),
        FaultKind::RemoveData => Fault::RemoveData(node),
        FaultKind::StartByHand => Fault::StartByHand(node),
        FaultKind::ForeignCluster => Fault::ForeignCluster,
        FaultKind::CutOff => Fault::CutOff(node),
        FaultKind::CutFromStore => Fault::CutFromStore(node),
        FaultKind::DeafToStore => Fault::DeafToStore(node),
        FaultKind::CutOneWay => Fault::CutOneWay(node, other),
        FaultKind::Scatter => Fault::Scatter,
        FaultKind::StopStore => Fault::StopStore,
        FaultKind::SilenceStore => Fault::SilenceStore,
        FaultKind::StoreElection => Fault::StoreElection,
        FaultKind::DeleteLeader => Fault::DeleteLeader,
        FaultKind::Wipe => Fault::Wipe,
        FaultKind::WipeSome => Fault::WipeSome(u16::try_from(chance.below(512)).unwrap_or(0)),
        FaultKind::Garbage => {
            let key = chance.pick(&BROKEN_BY_HAND);
            Fault::Garbage(key, u8::try_from(chance.below(200)).unwrap_or(0))
        }
        FaultKind::Switchover => Fault::Switchover(node, other),
        FaultKind::Shutdown => Fault::Shutdown(node),
        FaultKind::Detach => Fault::Detach(node),
    }
}

/// The documents that people write, or could.
const BROKEN_BY_HAND: [Key; 6] = [
    Key::Config,
    Key::Status,
    Key::Failover,
    Key::History,
    Key::Failsafe,
    Key::Release,
];

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
