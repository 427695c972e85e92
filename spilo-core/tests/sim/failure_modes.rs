//! The failure modes of the peers that concern decisions, by their numbers.

use serde_json::json;
use spilo_core::dcs::Key;
use spilo_core::sim::Fault;

use super::{NAMES, another, healthy, run, settled, stays_primary, three};

#[test]
fn f13_a_store_that_is_away_for_a_minute_changes_nothing_while_all_consent() {
    let mut sim = three(10);
    let primary = sim.primary().unwrap();
    sim.begin(Fault::StopStore);
    stays_primary(&mut sim, primary, 60);
    sim.end(Fault::StopStore);
    stays_primary(&mut sim, primary, 30);
    healthy(&mut sim);
}

#[test]
fn f19_the_store_dies_while_the_primary_hands_over() {
    let mut sim = three(10);
    let from = sim.primary().unwrap();
    let to = another(&sim, from);
    sim.begin(Fault::Switchover(from, to));
    run(&mut sim, 0.15);
    sim.begin(Fault::StopStore);
    run(&mut sim, 20.0);
    sim.end(Fault::StopStore);
    healthy(&mut sim);
}

#[test]
fn f19_a_primary_whose_store_is_gone_comes_back_to_serve_reads() {
    let mut sim = settled(json!({ "ttl": 5, "failsafe_mode": false }), &NAMES);
    sim.begin(Fault::StopStore);
    sim.run_until("the end of writes", 6, |sim| sim.primary().is_none());
    let took = sim.run_until("all servers to answer", 10, |sim| {
        (0..sim.len()).all(|n| sim.answers_queries(n))
    });
    assert!(took < 5000, "{took} ms\n{sim}");
    sim.end(Fault::StopStore);
    healthy(&mut sim);
}

#[test]
fn f28_a_wiped_store_makes_no_second_writer_and_comes_back() {
    let mut sim = three(10);
    let primary = sim.primary().unwrap();
    sim.begin(Fault::Wipe);
    stays_primary(&mut sim, primary, 30);
    healthy(&mut sim);
    let now = sim.store_time();
    let documents = sim.store().snapshot(now).documents;
    assert!(documents.contains_key(&Key::Initialize));
    assert!(documents.contains_key(&Key::Config));
}

#[test]
fn f28_an_agent_with_data_takes_no_wiped_store_for_a_new_cluster() {
    let mut sim = three(10);
    let primary = sim.primary().unwrap();
    let other = another(&sim, primary);
    // The primary writes on by its lease, and cannot see that the store was wiped.
    sim.begin(Fault::CutOff(primary));
    sim.begin(Fault::KillAgent(other));
    sim.begin(Fault::Wipe);
    sim.end(Fault::KillAgent(other));
    run(&mut sim, 20.0);
    sim.end(Fault::CutOff(primary));
    run(&mut sim, 60.0);
    healthy(&mut sim);
}
