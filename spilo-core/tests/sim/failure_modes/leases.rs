//! F8 to F12: clocks, the health check, and a lease that is not what was asked for.

use std::time::Duration;

use serde_json::json;
use spilo_core::sim::{Chance, Conditions, Fault, Sim};

use crate::{NAMES, healthy, holds, run, settled, stays_primary, three, watch};

#[test]
pub(super) fn f8_clocks_that_are_hours_apart_tell_the_same_story() {
    let story = |hours: [u64; 3]| {
        let mut sim = three(3);
        for (node, hours) in hours.into_iter().enumerate() {
            sim.set_clock(node, hours * 3_600_000, 0);
        }
        sim.run_until("a healthy cluster", 60, Sim::is_healthy);
        let primary = sim.primary().unwrap();
        sim.strike(Fault::CutOff(primary), 8000);
        run(&mut sim, 20.0);
        sim.strike(Fault::StopStore, 30_000);
        run(&mut sim, 40.0);
        healthy(&mut sim);
        sim.to_string()
    };
    let together = story([0, 0, 0]);
    assert_eq!(story([3, 0, 5]), together);
    assert_eq!(story([0, 80_001, 1]), together);
}

#[test]
pub(super) fn f9_no_health_check_says_primary_once_the_lock_may_be_gone() {
    for seed in 0..12 {
        let mut sim = settled(json!({ "ttl": 3, "failsafe_mode": false }), &NAMES);
        let mut chance = Chance::seeded(seed);
        for _ in 0..6 {
            let node = sim.primary().unwrap_or_else(|| chance.pick(&[0, 1, 2]));
            let fault = chance.pick(&[
                Fault::PauseAgent(node),
                Fault::CutOff(node),
                Fault::DeafToStore(node),
                Fault::StopStore,
                Fault::DeleteLeader,
                Fault::CrashServer(node),
            ]);
            sim.strike(fault, chance.below(6000));
            for _ in 0..100 {
                run(&mut sim, 0.05);
                let now = sim.store_time();
                let holder = sim.store().snapshot(now).leader;
                let routed: Vec<_> = (0..3).filter(|n| sim.is_routed_to(*n)).collect();
                assert!(routed.len() <= 1, "{routed:?}\n{sim}");
                // A leader key that was deleted by hand is taken back or waited out.
                let others = holder.is_some_and(|h| {
                    routed
                        .iter()
                        .any(|n| h.name.as_ref() != NAMES[*n].as_bytes())
                });
                assert!(!others, "{routed:?}\n{sim}");
            }
        }
    }
}

#[test]
pub(super) fn f9_an_agent_that_stood_still_past_its_lease_does_not_say_primary() {
    let mut sim = three(3);
    let primary = sim.primary().unwrap();
    sim.begin(Fault::PauseAgent(primary));
    run(&mut sim, 0.5);
    // What it last knew is that it is a primary with a lease.
    assert!(sim.is_routed_to(primary), "{sim}");
    run(&mut sim, 3.0);
    watch(&mut sim, 10, |sim| {
        assert!(!sim.is_routed_to(primary), "{sim}");
    });
    sim.end(Fault::PauseAgent(primary));
    watch(&mut sim, 10, |sim| {
        assert!(!sim.is_routed_to(primary) || holds(sim, primary), "{sim}");
    });
    healthy(&mut sim);
}

#[test]
pub(super) fn f10_the_lease_is_renewed_whatever_else_the_agent_is_busy_with() {
    let mut sim = settled(json!({ "ttl": 20 }), &NAMES);
    let primary = sim.primary().unwrap();
    // Whatever it does with its server takes sixty times as long as usual.
    let mut slow = Conditions::default();
    slow.operations = 600;
    sim.set_conditions(slow);
    let busy = [
        Fault::CrashServer(primary),
        Fault::FreezeServer(primary),
        Fault::HideData(primary),
        Fault::StallDisk(primary),
        Fault::Scatter,
        Fault::KillNode((primary + 1) % 3),
    ];
    let mut renewals = 0;
    for moment in 0..3600 {
        if moment % 200 == 0 {
            sim.strike(busy[moment / 200 % busy.len()], 8000);
        }
        let before = sim.store().next_end();
        run(&mut sim, 0.1);
        let now = sim.store_time();
        let holder = sim.store().snapshot(now).leader.unwrap();
        assert_eq!(holder.name.as_ref(), NAMES[primary].as_bytes(), "{sim}");
        // A quarter of it is spent when the next renewal leaves; the store tells whole seconds.
        let left = sim.store().lease_left(now, &holder).unwrap();
        assert!(left >= Duration::from_secs(14), "{left:?}\n{sim}");
        renewals += u32::from(sim.store().next_end() > before);
    }
    assert!((70..=110).contains(&renewals), "{renewals} in six minutes");
}

#[test]
pub(super) fn f11_a_lease_that_lasts_twice_as_long_costs_time_and_nothing_else() {
    let mut sim = three(10);
    let primary = sim.primary().unwrap();
    sim.begin(Fault::KillNode(primary));
    run(&mut sim, 7.0);
    // The store begins all leases anew.
    sim.strike(Fault::StoreElection, 500);
    let took = sim.run_until("a successor", 30, |sim| sim.primary().is_some());
    assert!((9_900..=11_000).contains(&took), "{took} ms\n{sim}");
    sim.end(Fault::KillNode(primary));
    healthy(&mut sim);
}

/// Ends the lease of the leader long before its time, as a store does that loses a session.
fn lose_session(sim: &mut Sim) {
    let now = sim.store_time();
    let holder = sim.store().snapshot(now).leader.unwrap();
    sim.store().revoke(now, holder.lease_id.unwrap());
}

#[test]
pub(super) fn f12_a_session_that_is_lost_costs_a_living_primary_nothing() {
    for failsafe in [false, true] {
        let config = json!({ "ttl": 10, "failsafe_mode": failsafe });
        let mut sim = settled(config, &NAMES);
        let primary = sim.primary().unwrap();
        for _ in 0..5 {
            lose_session(&mut sim);
            stays_primary(&mut sim, primary, 7);
        }
        healthy(&mut sim);
    }
}

#[test]
pub(super) fn f12_a_session_that_is_lost_for_good_costs_exactly_one_failover() {
    for cut in [Fault::CutFromStore, Fault::CutOff] {
        let config = json!({ "ttl": 10, "failsafe_mode": false });
        let mut sim = settled(config, &NAMES);
        let primary = sim.primary().unwrap();
        let before = sim.promotions();
        sim.begin(cut(primary));
        lose_session(&mut sim);
        // It does not know, and writes for as long as it may.
        let alone = sim.run_until("the end of writes", 10, |sim| sim.primary().is_none());
        assert!(alone > 5000, "{alone} ms\n{sim}");
        run(&mut sim, 30.0);
        assert_eq!(sim.promotions(), before + 1, "{sim}");
        sim.end(cut(primary));
        healthy(&mut sim);
        assert_eq!(sim.promotions(), before + 1, "{sim}");
    }
}
