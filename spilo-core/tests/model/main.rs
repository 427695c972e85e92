//! Every state that a small cluster can come to, with the machine of production and the reference
//! store: at most one server takes writes in any of them.
//!
//! A node takes one step in each quantum, a quarter of the ttl, in any order with the others. What
//! goes wrong is bounded by how often, but neither by when nor by how long: see `action` for what
//! there is, and `canon` for what makes two states the same.
//!
//! What is simpler than the world, so that the space closes in less than a minute:
//! - Positions never move: nothing is said here about lost writes or about which log is followed.
//! - Peers, guard and PostgreSQL answer at once, and the store's hints always come. A promotion
//!   takes effect at once, or some quanta later, and is reported with the next step.
//! - A fast stop at the soft deadline never succeeds, the clock of a guard is as slow as it may
//!   be, and a kill takes the longest that it may: the server writes until the last millisecond.
//! - The failsafe mode is off, nobody asks for a switchover, and the cluster exists already.

mod action;
mod air;
mod canon;
mod check;
mod server;
mod world;

use action::Kinds;
use check::Cluster;
use world::Setup;

/// Explores two nodes and one ttl: two incidents of the kinds that matter most, and one incident of
/// any kind together with one request of any fate. Returns how many states there are.
///
/// # Errors
/// The story of what was broken, or what never happened although it should.
#[expect(
    clippy::print_stdout,
    reason = "how many states there are is what one wants to know"
)]
pub(crate) fn check() -> Result<usize, String> {
    let (mut states, mut seen) = (0, Vec::new());
    for setup in [TWO_INCIDENTS, INCIDENT_AND_LAPSE] {
        let explored = Cluster::new(setup.clone()).explore();
        println!("{setup:?}: {explored}");
        states += explored.states;
        if let Some(story) = explored.broken {
            return Err(format!("after {states} states: {story}"));
        }
        if !explored.ended {
            return Err(format!("not all states were explored: {setup:?}"));
        }
        seen.extend(explored.seen);
    }
    // A check of a space in which nothing happens would pass as well.
    match check::SOMETIMES
        .iter()
        .find(|(what, _)| !seen.contains(what))
    {
        Some((what, _)) => Err(format!("never: {what}")),
        None => Ok(states),
    }
}

#[test]
#[expect(
    clippy::print_stdout,
    reason = "how many states there are is what one wants to know"
)]
fn two_nodes_never_write_at_once() {
    match check() {
        Ok(states) => println!("{states} states"),
        Err(story) => panic!("{story}"),
    }
}

#[test]
fn states_that_are_the_same_go_on_the_same() {
    let setup = Setup {
        incidents: 1,
        lapses: 0,
        ..INCIDENT_AND_LAPSE
    };
    let (pairs, different) = check::compare(&setup);
    assert!(pairs > 100, "{pairs} pairs are too few to tell");
    assert_eq!(different, 0, "of {pairs} pairs");
}

#[test]
#[ignore = "takes ten minutes: cargo nextest run -p spilo-core --features sim --test model \
            --run-ignored only --no-capture, with --config-file of a longer slow-timeout"]
#[expect(
    clippy::print_stdout,
    reason = "how far it came is what one wants to know"
)]
fn three_nodes_never_write_at_once() {
    let setup = Setup {
        nodes: 3,
        incidents: 1,
        lapses: 0,
        ..INCIDENT_AND_LAPSE
    };
    let explored = Cluster::new(setup.clone()).explore_for(std::time::Duration::from_secs(600));
    println!("{setup:?}: {explored}");
    assert_eq!(explored.broken, None, "{explored}");
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

const INCIDENT_AND_LAPSE: Setup = Setup {
    nodes: 2,
    incidents: 1,
    lapses: 1,
    kinds: Kinds::All,
    patience: 1,
    failsafe: false,
};

const TWO_INCIDENTS: Setup = Setup {
    incidents: 2,
    lapses: 0,
    kinds: Kinds::Few,
    // Longer than a permission lasts: no promotion is ever cancelled otherwise.
    patience: 4,
    ..INCIDENT_AND_LAPSE
};
