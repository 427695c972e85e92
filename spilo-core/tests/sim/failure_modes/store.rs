//! F13 to F19: a store that is away, answers from the past, says nothing of changes, or dies at the
//! worst moment.

use std::time::Duration;

use serde_json::json;
use spilo_core::dcs::Key;
use spilo_core::decide::Rule;
use spilo_core::machine::Machine;
use spilo_core::sim::{Conditions, Fault, Sim};
use spilo_core::time::NodeTime;

use crate::{NAMES, another, healthy, run, set, settled, stays_primary, three, watch};

#[test]
pub(super) fn f13_a_store_that_is_away_for_a_minute_changes_nothing_while_all_consent() {
    for away in [Fault::StopStore, Fault::SilenceStore, Fault::StoreElection] {
        let mut sim = three(10);
        let primary = sim.primary().unwrap();
        sim.begin(away);
        stays_primary(&mut sim, primary, 60);
        sim.end(away);
        stays_primary(&mut sim, primary, 30);
        healthy(&mut sim);
    }
}

#[test]
pub(super) fn f13_a_primary_that_alone_has_lost_the_store_lives_by_consent() {
    for lost in [Fault::CutFromStore, Fault::DeafToStore] {
        let mut sim = three(10);
        let primary = sim.primary().unwrap();
        sim.begin(lost(primary));
        stays_primary(&mut sim, primary, 60);
        sim.end(lost(primary));
        stays_primary(&mut sim, primary, 30);
        healthy(&mut sim);
    }
}

#[test]
pub(super) fn f13_without_the_consent_of_one_that_may_lead_writes_end_in_time() {
    let mut sim = three(10);
    let primary = sim.primary().unwrap();
    let other = another(&sim, primary);
    // The other does not hear the question, and can take the lock.
    sim.begin(Fault::CutFromStore(primary));
    for (from, to) in [(primary, other), (other, primary)] {
        sim.begin(Fault::CutOneWay(from, to));
    }
    sim.run_until("the end of writes", 10, |sim| sim.primary().is_none());
    sim.run_until("a successor", 30, |sim| sim.primary().is_some());
    assert_ne!(sim.primary(), Some(primary), "{sim}");
    sim.end_all();
    healthy(&mut sim);
}

#[test]
pub(super) fn f14_errors_that_pass_cost_nothing_while_the_lease_has_time() {
    // A request that is swallowed keeps its lane busy for a quarter of the lease; one that is
    // refused does not.
    for (error, lasts_ms) in [(Fault::StopStore, 5000), (Fault::SilenceStore, 2500)] {
        for moment in 0..13 {
            let config = json!({ "ttl": 10, "failsafe_mode": false });
            let mut sim = settled(config, &NAMES);
            let primary = sim.primary().unwrap();
            run(&mut sim, 0.2 * f64::from(moment));
            sim.strike(error, lasts_ms);
            stays_primary(&mut sim, primary, 12);
        }
    }
}

/// A read that something else had called for may come between a renewal and its confirmation, so
/// that the permission grows by less than the time between two.
#[test]
pub(super) fn f14_the_guard_is_told_of_every_renewal() {
    let mut sim = three(10);
    let primary = sim.primary().unwrap();
    let mut since = (NodeTime(0), 0);
    for step in 0..3000 {
        if step % 90 == 0 {
            sim.write(Key::Sync, "{}".into());
        }
        run(&mut sim, 0.01);
        let facts = sim.machine(primary).unwrap().facts();
        let held = facts.holding.as_ref().unwrap();
        let begun = held.renewed.min(held.confirmed);
        if begun != since.0 {
            since = (begun, step);
        }
        // Its answer takes a moment.
        if step - since.1 >= 5 {
            let hard = facts.armed.as_ref().unwrap().hard;
            let wanted = begun + Duration::from_millis(9650);
            assert!(wanted.since(hard) < Duration::from_millis(100), "{sim}");
        }
    }
}

#[test]
pub(super) fn f15_an_answer_from_the_past_deposes_nobody() {
    let mut sim = three(10);
    let old = sim.primary().unwrap();
    // From now on, half of what each node reads is how it was when the old one led.
    for node in 0..3 {
        sim.begin(Fault::StaleReads(node));
    }
    // New settings are not taken for old ones again, which would cost a new lease each time.
    set(&mut sim, json!({ "ttl": 12 }));
    let have = |sim: &Sim, ttl| {
        let facts = (0..3).filter_map(|n| Some(sim.machine(n)?.facts()));
        facts
            .into_iter()
            .all(|facts| facts.config.ttl.as_secs() == ttl)
    };
    sim.run_until("the new settings everywhere", 30, |sim| have(sim, 12));
    watch(&mut sim, 30, |sim| assert!(have(sim, 12), "{sim}"));
    sim.begin(Fault::KillNode(old));
    let took = sim.run_until("a successor", 15, |sim| sim.primary().is_some());
    assert!(took <= 13_000, "{took} ms\n{sim}");
    let new = sim.primary().unwrap();
    stays_primary(&mut sim, new, 30);
    sim.end(Fault::KillNode(old));
    healthy(&mut sim);
    // Nor does anybody follow who led then.
    watch(&mut sim, 60, |sim| {
        assert!(sim.is_healthy() && sim.primary() == Some(new), "{sim}");
    });
}

/// Watches of three kinds: silent, dying, and one that skips and repeats.
fn watches() -> [Conditions; 3] {
    [(false, 0), (true, 1000), (true, 500)].map(|(hints, lost)| {
        let mut watch = Conditions::default();
        (watch.hints, watch.lost_hints) = (hints, lost);
        watch
    })
}

#[test]
pub(super) fn f16_what_a_watch_does_not_tell_is_found_out_by_reading() {
    for watch in watches() {
        let mut sim = three(10);
        sim.set_conditions(watch);
        set(&mut sim, json!({ "ttl": 12 }));
        let took = sim.run_until("the new settings everywhere", 15, |sim| {
            (0..3).all(|n| {
                let facts = sim.machine(n).unwrap().facts();
                facts.config.ttl.as_secs() == 12
            })
        });
        assert!(took <= 10_500, "{took} ms\n{sim}");
        let from = sim.primary().unwrap();
        let to = another(&sim, from);
        sim.begin(Fault::Switchover(from, to));
        sim.run_until("the candidate", 15, |sim| sim.primary() == Some(to));
        healthy(&mut sim);
        run(&mut sim, 15.0);
        sim.begin(Fault::KillNode(to));
        let took = sim.run_until("a successor", 20, |sim| sim.primary().is_some());
        assert!(took <= 12_500, "{took} ms\n{sim}");
    }
}

/// Runs for so many seconds, and returns how many requests the store got in them.
fn requests(sim: &mut Sim, seconds: f64) -> u64 {
    let before = sim.store_requests();
    run(sim, seconds);
    sim.store_requests() - before
}

#[test]
pub(super) fn f17_the_store_gets_so_many_requests_a_node_and_no_more() {
    let names = ["a", "b", "c", "d", "e", "f", "g"];
    for nodes in [3, 5, 7] {
        let mut sim = settled(json!({ "ttl": 10 }), &names[..nodes]);
        run(&mut sim, 30.0);
        let n = u64::try_from(nodes).unwrap();
        let idle = requests(&mut sim, 60.0);
        assert!(idle <= 92 + 16 * n, "{nodes} nodes: {idle} in a minute");
        let primary = sim.primary().unwrap();
        let mut woken = sim.clone();
        woken.begin(Fault::DeleteLeader);
        let deleted = requests(&mut woken, 15.0);
        assert!(
            deleted <= 40 + 8 * n,
            "{nodes} nodes: {deleted} for a lock taken back"
        );
        sim.begin(Fault::KillNode(primary));
        let lost = requests(&mut sim, 15.0);
        assert!(lost <= 50 * n, "{nodes} nodes: {lost} in a failover");
    }
}

#[test]
pub(super) fn f18_an_attempt_that_was_given_up_blocks_nobody_for_longer_than_its_lease() {
    let names = ["a", "b"];
    for dies in [false, true] {
        let (mut sim, racer) = with_an_attempt_of_unknown_outcome(names);
        if dies {
            sim.begin(Fault::KillAgent(racer));
        }
        run(&mut sim, 10.1);
        assert!(!is_held_by(&mut sim, names[racer]), "{sim}");
        sim.end_all();
        healthy(&mut sim);
    }
    // Whoever hears of the store again undoes what it tried, and need not wait for the lease.
    let (mut sim, racer) = with_an_attempt_of_unknown_outcome(names);
    sim.end(Fault::DeafToStore(racer));
    run(&mut sim, 3.0);
    assert!(!is_held_by(&mut sim, names[racer]), "{sim}");
    sim.run_until("its next attempt", 12, |sim| sim.primary() == Some(racer));
}

#[test]
pub(super) fn f18_a_holder_that_hears_of_no_renewal_keeps_the_lock_for_a_lease_and_no_longer() {
    let mut sim = settled(json!({ "ttl": 10, "failsafe_mode": false }), &NAMES);
    let primary = sim.primary().unwrap();
    // Its renewals arrive at the store, and no answer comes back.
    sim.begin(Fault::DeafToStore(primary));
    sim.run_until("the end of writes", 10, |sim| sim.primary().is_none());
    sim.run_until("a successor", 60, |sim| sim.primary().is_some());
}

/// Two nodes, one of which is dead, while the other holds the lock and does not know it; with the
/// number of that other.
fn with_an_attempt_of_unknown_outcome(names: [&'static str; 2]) -> (Sim, usize) {
    let mut sim = settled(json!({ "ttl": 10 }), &names);
    let old = sim.primary().unwrap();
    let racer = another(&sim, old);
    sim.begin(Fault::KillNode(old));
    sim.run_until("an attempt", 20, |sim| {
        let decision = sim.machine(racer).and_then(Machine::decision);
        decision.is_some_and(|decision| decision.rule == Rule::Acquire)
    });
    sim.begin(Fault::DeafToStore(racer));
    run(&mut sim, 0.01);
    assert!(is_held_by(&mut sim, names[racer]), "{sim}");
    (sim, racer)
}

fn is_held_by(sim: &mut Sim, name: &str) -> bool {
    let now = sim.store_time();
    let leader = sim.store().snapshot(now).leader;
    leader.is_some_and(|leader| leader.name.as_ref() == name.as_bytes())
}

/// Runs to a moment of a hand-over, from which on the store is away; returns who hands over.
fn hand_over_without_store(moment: u32) -> (Sim, usize) {
    let mut sim = three(10);
    let from = sim.primary().unwrap();
    let to = another(&sim, from);
    sim.begin(Fault::Switchover(from, to));
    run(&mut sim, 0.03 * f64::from(moment));
    sim.begin(Fault::StopStore);
    (sim, from)
}

#[test]
pub(super) fn f19_the_store_dies_at_any_moment_of_a_hand_over() {
    for moment in 0..20 {
        let (mut sim, from) = hand_over_without_store(moment);
        run(&mut sim, 20.0);
        let others = (0..3).filter(|n| *n != from);
        assert!(others.into_iter().all(|n| sim.answers_queries(n)), "{sim}");
        sim.end(Fault::StopStore);
        healthy(&mut sim);
        assert_eq!(sim.rows().1, 0, "{sim}");
    }
}

#[test]
pub(super) fn f19_whoever_hands_over_without_a_store_comes_back_to_serve_reads() {
    for moment in 0..20 {
        let (mut sim, from) = hand_over_without_store(moment);
        run(&mut sim, 20.0);
        assert!(sim.answers_queries(from), "{sim}");
    }
}

#[test]
pub(super) fn f19_a_primary_whose_store_is_gone_comes_back_to_serve_reads() {
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
