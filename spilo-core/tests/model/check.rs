//! The model as the checker sees it, and what must hold in it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::{self, Write as _};
use std::time::Duration;

use spilo_core::machine::Machine;
use stateright::{Checker as _, HasDiscoveries, Model, Path, Property};

use super::action::Action;
use super::world::{Node, Setup, World, name};

/// A cluster, and what may happen to it.
pub(crate) struct Cluster {
    setup: Setup,
}

/// What came of exploring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Explored {
    /// How many states there are that behave differently.
    pub(crate) states: usize,
    /// How many ways lead to them.
    pub(crate) ways: usize,
    /// How many actions the longest of the shortest ways has.
    pub(crate) depth: usize,
    /// Whether there are no others.
    pub(crate) ended: bool,
    /// What sometimes happens, and did.
    pub(crate) seen: Vec<&'static str>,
    /// What was broken, with the story of how, and after how many states.
    pub(crate) broken: Option<String>,
}

impl Cluster {
    pub(crate) fn new(setup: Setup) -> Self {
        Self { setup }
    }

    /// Explores every state there is.
    pub(crate) fn explore(self) -> Explored {
        self.explore_within(None)
    }

    /// Explores as many states as there is time for.
    pub(crate) fn explore_for(self, span: Duration) -> Explored {
        self.explore_within(Some(span))
    }

    fn explore_within(self, span: Option<Duration>) -> Explored {
        let setup = self.setup.clone();
        let checker = self.checker().finish_when(HasDiscoveries::AnyFailures);
        let checker = match span {
            Some(span) => checker.timeout(span),
            None => checker,
        };
        let checker = checker.spawn_bfs().join();
        let mut found: Vec<_> = checker.discoveries().into_iter().collect();
        found.sort_by_key(|(property, _)| *property);
        let model = Self { setup };
        let is_broken = |property: &str| ALWAYS.iter().any(|(always, _)| *always == property);
        let broken = found.iter().find(|(property, _)| is_broken(property));
        Explored {
            states: checker.unique_state_count(),
            ways: checker.state_count(),
            depth: checker.max_depth(),
            ended: checker.is_done(),
            broken: broken.map(|(property, path)| model.tell(property, path)),
            seen: found
                .iter()
                .map(|(property, _)| *property)
                .filter(|p| !is_broken(p))
                .collect(),
        }
    }

    /// Tells what led to a state.
    fn tell(&self, property: &str, path: &Path<World, Action>) -> String {
        let mut story = format!("broken: {property}\n");
        let Some(mut world) = self.init_states().into_iter().next() else {
            return story;
        };
        world.story = Some(Vec::new());
        for action in path.clone().into_actions() {
            let Some(next) = world.after(action) else {
                break;
            };
            world = next;
            for line in world.story.iter().flatten() {
                story.push_str(line);
                story.push('\n');
            }
        }
        for (n, node) in world.nodes.iter().enumerate() {
            let _written = writeln!(story, "at the end {}: {}", name(n), picture(node));
        }
        if let Some(broken) = &world.broken {
            story.push_str(broken);
        }
        story
    }
}

/// Compares what follows on states that are the same, and returns how many pairs were compared, and
/// how many went on differently.
pub(crate) fn compare(setup: &Setup) -> (usize, usize) {
    let model = Cluster::new(setup.clone());
    let mut followers: BTreeMap<Vec<u64>, Vec<Vec<u64>>> = BTreeMap::new();
    let mut seen: BTreeSet<(Vec<u64>, u64)> = BTreeSet::new();
    let mut queue: VecDeque<World> = model.init_states().into();
    let (mut pairs, mut different) = (0, 0);
    while let Some(world) = queue.pop_front() {
        let mut actions = Vec::new();
        model.actions(&world, &mut actions);
        let next: Vec<World> = actions.into_iter().filter_map(|a| world.after(a)).collect();
        let forms: Vec<_> = next.iter().map(|world| world.form(true)).collect();
        let form = world.canonical();
        match followers.get(&form) {
            Some(others) => {
                pairs += 1;
                different += usize::from(*others != forms);
            }
            None => {
                followers.insert(form, forms);
                // The same state at another time is looked at once more, and not gone on from.
                let is_new = |world: &World| seen.insert((world.canonical(), world.now));
                queue.extend(next.into_iter().filter(is_new));
            }
        }
    }
    (pairs, different)
}

impl Model for Cluster {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let mut world = World::stopped(&self.setup).at_peace();
        world.incidents = self.setup.incidents;
        world.lapses = self.setup.lapses;
        vec![world]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.broken.is_none() {
            world.actions(actions);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        world.after(action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let always = ALWAYS
            .iter()
            .map(|(name, holds)| Property::always(name, *holds));
        let sometimes = SOMETIMES
            .iter()
            .map(|(name, is)| Property::sometimes(name, *is));
        always.chain(sometimes).collect()
    }
}

pub(crate) type Condition = fn(&Cluster, &World) -> bool;

const ALWAYS: &[(&str, Condition)] = &[
    ("at most one server takes writes", |_, world| {
        world
            .nodes
            .iter()
            .filter(|node| node.server.takes_writes())
            .count()
            <= 1
    }),
    ("whoever writes, or is about to, is guarded", |_, world| {
        world.nodes.iter().all(|node| is_guarded(node, world.now))
    }),
    ("no promotion goes on without permission", |_, world| {
        world
            .nodes
            .iter()
            .filter_map(|node| node.machine.as_ref())
            .all(is_permitted)
    }),
    (
        "every agent comes to rest, and none gives up",
        |_, world| world.broken.is_none(),
    ),
];

pub(crate) const SOMETIMES: &[(&str, Condition)] = &[
    ("another node takes over", |_, world| {
        world
            .nodes
            .iter()
            .skip(1)
            .any(|node| node.server.takes_writes())
    }),
    ("a promotion is cancelled", |_, world| {
        world.nodes.iter().any(|node| node.cancelled)
    }),
];

fn is_guarded(node: &Node, now: u64) -> bool {
    let writes = node.server.takes_writes() || node.server.order.is_some();
    !writes || node.killed_at().is_some_and(|at| now < at)
}

/// An operation that makes a primary and was not told to stop has a permission.
fn is_permitted(machine: &Machine) -> bool {
    let facts = machine.facts();
    let making = facts
        .op
        .as_ref()
        .is_some_and(|op| op.op.makes_primary() && !op.cancelled);
    !making || machine.status().leadership.is_some()
}

fn picture(node: &Node) -> String {
    let agent = match (&node.machine, node.paused) {
        (None, _) => "no agent",
        (Some(_), true) => "agent paused",
        (Some(_), false) => "agent runs",
    };
    let deadline = node
        .deadline
        .as_ref()
        .map(|d| d.hard.0 - super::world::START);
    let (server, cut) = (&node.server.state, node.cut);
    format!("{agent}, cut off from {cut:?}, server {server:?}, guard {deadline:?}")
}

impl fmt::Display for Explored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (states, ways, depth) = (self.states, self.ways, self.depth);
        let all = if self.ended { "all" } else { "not all" };
        write!(
            f,
            "{states} states ({all}), {ways} ways, depth {depth}, seen {:?}",
            self.seen
        )?;
        match &self.broken {
            Some(story) => write!(f, "\n{story}"),
            None => Ok(()),
        }
    }
}
