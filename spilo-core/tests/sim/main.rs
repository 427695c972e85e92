//! Whole clusters in one thread: what they must survive, as sentences, and under fire.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod failure_modes;
mod same;
mod scenarios;
mod seeds;

use std::time::Duration;

use serde_json::{Map, Value, json};
use spilo_core::dcs::Key;
use spilo_core::machine::Machine;
use spilo_core::sim::{Conditions, Sim};

const NAMES: [&str; 3] = ["a", "b", "c"];

/// A cluster of three that has been healthy for a while.
fn three(ttl: u64) -> Sim {
    settled(json!({ "ttl": ttl }), &NAMES)
}

fn settled(config: Value, names: &[&'static str]) -> Sim {
    let mut sim = Sim::with(names.iter().copied(), &config, Conditions::default(), 1);
    healthy(&mut sim);
    run(&mut sim, 15.0);
    sim
}

fn healthy(sim: &mut Sim) -> u64 {
    sim.run_until("a healthy cluster", 60, Sim::is_healthy)
}

fn run(sim: &mut Sim, seconds: f64) {
    sim.run_for(Duration::from_secs_f64(seconds));
}

/// Runs and looks ten times a second whether the primary is always this one.
fn stays_primary(sim: &mut Sim, node: usize, seconds: u32) {
    for _ in 0..seconds * 10 {
        run(sim, 0.1);
        assert_eq!(sim.primary(), Some(node), "{sim}");
    }
}

/// A node that is not this one.
fn another(sim: &Sim, node: usize) -> usize {
    (0..sim.len()).find(|n| *n != node).unwrap()
}

/// Runs for so long, and looks at each moment at which something happens.
fn watch(sim: &mut Sim, seconds: u64, look: impl Fn(&Sim)) {
    let end = sim.elapsed() + Duration::from_secs(seconds);
    sim.run_until("the end", seconds + 1, |sim| {
        look(sim);
        sim.elapsed() >= end
    });
}

/// Changes these settings in the store.
fn set(sim: &mut Sim, changed: Value) {
    let now = sim.store_time();
    let document = sim.store().snapshot(now).documents[&Key::Config].clone();
    let mut settings: Map<String, Value> = serde_json::from_slice(&document.value).unwrap();
    settings.extend(changed.as_object().unwrap().clone());
    let text = Value::Object(settings).to_string();
    sim.write(Key::Config, text.into());
}

/// Whether a node has the lock, as far as it knows.
fn holds(sim: &Sim, node: usize) -> bool {
    let facts = sim.machine(node).map(Machine::facts);
    facts.is_some_and(|facts| facts.holding.is_some())
}
