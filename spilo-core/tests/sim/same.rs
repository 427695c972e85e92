//! A simulation is a value: paused, replayed or cloned, it is the same to the last bit.

use std::time::Duration;

use serde_json::json;
use spilo_core::sim::{Chance, Conditions, Fault, Sim};

use super::NAMES;

fn begun(seed: u64) -> Sim {
    let mut chance = Chance::seeded(seed);
    let conditions = Conditions::drawn(&mut chance);
    let mut sim = Sim::with(NAMES, &json!({ "ttl": 3 }), conditions, seed);
    sim.set_clock(1, 77_000, 4000);
    sim.set_clock(2, 0, -5000);
    sim
}

fn disturb(sim: &mut Sim) {
    sim.run_for(Duration::from_secs(20));
    sim.strike(Fault::KillNode(0), 3000);
    sim.strike(Fault::CutOff(1), 2000);
    sim.run_for(Duration::from_secs(20));
}

#[test]
fn replayed_it_is_the_same() {
    for seed in 0..5 {
        let (mut a, mut b) = (begun(seed), begun(seed));
        disturb(&mut a);
        disturb(&mut b);
        assert_eq!(a, b);
        assert_eq!(format!("{a:?}"), format!("{b:?}"));
    }
}

#[test]
fn cloned_in_the_middle_it_goes_on_the_same_and_disturbs_nothing() {
    for seed in 0..5 {
        let mut a = begun(seed);
        a.run_for(Duration::from_millis(5_331));
        let mut b = a.clone();
        disturb(&mut b);
        disturb(&mut a);
        assert_eq!(a, b);
    }
}

#[test]
fn paused_at_any_moment_it_goes_on_the_same() {
    for seed in 0..5 {
        let (mut a, mut b) = (begun(seed), begun(seed));
        a.run_for(Duration::from_secs(30));
        for _ in 0..3000 {
            b.run_for(Duration::from_millis(10));
        }
        assert_eq!(a, b);
    }
}

#[test]
fn another_seed_is_another_story() {
    let (mut a, mut b) = (begun(3), begun(3));
    b.set_seed(4);
    disturb(&mut a);
    disturb(&mut b);
    assert_ne!(a.to_string(), b.to_string());
}
