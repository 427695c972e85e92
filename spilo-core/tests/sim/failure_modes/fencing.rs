//! F1 to F7: the end of writes, and who finds out that they have to end.

use std::time::Duration;

use serde_json::json;
use spilo_core::decide::Rule;
use spilo_core::sim::{Conditions, Fault, Sim};

use crate::{NAMES, another, healthy, holds, run, settled, stays_primary, three, watch};

#[test]
pub(super) fn f1_a_primary_that_is_cut_off_commits_nothing_past_its_lease() {
    for ttl in [3, 10] {
        for moment in 0..8 {
            let mut sim = settled(json!({ "ttl": ttl }), &NAMES);
            run(&mut sim, 0.113 * f64::from(moment));
            let primary = sim.primary().unwrap();
            sim.begin(Fault::CutOff(primary));
            sim.run_until("the end of writes", ttl, |sim| sim.primary().is_none());
            // One part in a hundred is for clocks, a quarter of a second for the fence.
            let now = sim.store_time() + Duration::from_millis(ttl * 10);
            let lasts = sim.clone().store().snapshot(now).leader.is_some();
            assert!(
                lasts,
                "ttl {ttl}: its lock is gone before its writes\n{sim}"
            );
            watch(&mut sim, 20, |sim| assert_ne!(sim.primary(), Some(primary)));
            sim.end(Fault::CutOff(primary));
            healthy(&mut sim);
        }
    }
}

#[test]
pub(super) fn f1_a_primary_whose_guard_hangs_at_the_deadline_is_ended_before_its_lease_is() {
    for moment in 0..12 {
        let mut sim = Sim::new(NAMES, 3);
        for node in 0..3 {
            // All are slow by half of what is allowed for, and the store is not.
            sim.set_clock(node, 0, -5000);
        }
        healthy(&mut sim);
        run(&mut sim, 5.0 + 0.09 * f64::from(moment));
        let primary = sim.primary().unwrap();
        sim.begin(Fault::CutOff(primary));
        sim.run_until("the last moment before the guard acts", 3, |sim| {
            let facts = sim.machine(primary).unwrap().facts();
            let soft = facts.armed.as_ref().unwrap().soft;
            soft.since(facts.now) <= Duration::from_millis(150)
        });
        sim.begin(Fault::FreezeGuard(primary));
        sim.run_until("the end of writes", 2, |sim| sim.primary().is_none());
        let now = sim.store_time() + Duration::from_millis(30);
        let lasts = sim.store().snapshot(now).leader.is_some();
        assert!(lasts, "its lock is gone before its writes\n{sim}");
    }
}

#[test]
pub(super) fn f2_an_old_primary_that_is_back_before_the_promotion_gets_no_client() {
    // Six times slower than usual, a promotion takes 360 ms.
    let mut slow = Conditions::default();
    slow.operations = 60;
    for moment in 0..12 {
        let mut sim = three(10);
        sim.set_conditions(slow.clone());
        let old = sim.primary().unwrap();
        sim.begin(Fault::CutOff(old));
        let chosen = |sim: &Sim| (0..sim.len()).any(|n| n != old && holds(sim, n));
        sim.run_until("a candidate", 20, chosen);
        run(&mut sim, 0.04 * f64::from(moment));
        sim.end(Fault::CutOff(old));
        watch(&mut sim, 20, |sim| {
            assert!(!sim.is_routed_to(old), "{sim}");
            assert_ne!(sim.primary(), Some(old), "{sim}");
        });
        healthy(&mut sim);
    }
}

#[test]
pub(super) fn f3_a_successor_begins_no_earlier_than_its_predecessor_ended() {
    let mut taken_back = false;
    // The standbys lose sight of the primary at every moment of the hand-over.
    for moment in 0..24 {
        let mut sim = three(10);
        let from = sim.primary().unwrap();
        let to = another(&sim, from);
        sim.begin(Fault::Switchover(from, to));
        run(&mut sim, 0.02 * f64::from(moment));
        sim.begin(Fault::Scatter);
        sim.run_until("a primary", 15, |sim| sim.primary().is_some());
        sim.end(Fault::Scatter);
        healthy(&mut sim);
        assert_eq!(sim.rows().1, 0, "{sim}");
        taken_back |= sim.rules().contains(&Rule::HandOverFailed);
    }
    assert!(taken_back, "no moment was too late for the last record");
}

#[test]
pub(super) fn f4_a_disk_that_hangs_for_minutes_costs_the_node_its_lock() {
    let mut sim = three(10);
    let hung = sim.primary().unwrap();
    sim.begin(Fault::StallDisk(hung));
    let took = sim.run_until("a successor", 60, |sim| {
        sim.primary().is_some_and(|now| now != hung)
    });
    assert!(took <= 40_000, "{took} ms\n{sim}");
    let status = sim.machine(hung).unwrap().status();
    assert!(
        !status.is_primary() || !status.is_writable(status.at),
        "{sim}"
    );
    // Whoever asks learns that its agent is well, and how old its word on PostgreSQL is.
    let seen = status.postgres_at.unwrap();
    assert!(status.stepped_at.since(seen).as_secs() >= 20, "{status:?}");
    watch(&mut sim, 300, |sim| {
        assert!(!sim.is_routed_to(hung), "{sim}");
    });
    sim.end(Fault::StallDisk(hung));
    healthy(&mut sim);
}

#[test]
pub(super) fn f4_a_server_that_hangs_and_that_its_agent_cannot_end_is_ended_by_the_guard() {
    let mut sim = three(10);
    let hung = sim.primary().unwrap();
    sim.begin(Fault::BreakFence(hung));
    sim.begin(Fault::FreezeServer(hung));
    run(&mut sim, 1.0);
    assert!(!sim.is_healthy(), "{sim}");
    // It hangs for ten seconds, no fence ends it for two, and the lease lasts for ten.
    sim.run_until("a primary that serves", 23, Sim::is_healthy);
    sim.end(Fault::BreakFence(hung));
    healthy(&mut sim);
}

#[test]
pub(super) fn f5_a_stop_that_hangs_leaves_the_deadline_of_the_guard_armed() {
    for moment in 1..8 {
        let mut sim = three(3);
        let old = sim.primary().unwrap();
        sim.begin(Fault::Shutdown(old));
        run(&mut sim, 0.02 * f64::from(moment));
        // Its processes are there and do not end, and its agent ends nothing any more.
        sim.begin(Fault::FreezeServer(old));
        sim.begin(Fault::PauseAgent(old));
        sim.begin(Fault::CutOff(old));
        sim.run_until("a successor", 10, |sim| {
            sim.primary().is_some_and(|now| now != old)
        });
        sim.end(Fault::FreezeServer(old));
        watch(&mut sim, 5, |sim| {
            assert_ne!(sim.primary(), Some(old), "{sim}");
        });
        sim.end(Fault::PauseAgent(old));
        sim.end(Fault::CutOff(old));
        sim.run_until("its end", 20, |sim| sim.exited(old).is_some());
        sim.end(Fault::Shutdown(old));
        healthy(&mut sim);
    }
}

/// What a node comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// It writes all along.
    Writes,
    /// It is the primary again, and nobody else was.
    Returns,
    /// Another node is the primary, once its writes have ended.
    Yields,
}

#[test]
pub(super) fn f6_what_a_look_comes_to_decides_no_role_that_the_lease_does_not() {
    use Then::{Returns, Writes, Yields};
    // The looks fail for five seconds: without an answer, hung, refused, with nonsense. Their lease
    // is well, is not renewed for as long, and is lost.
    let looks: [fn(usize) -> Fault; 4] = [
        Fault::HideData,
        Fault::FreezeServer,
        Fault::CrashServer,
        Fault::BreakData,
    ];
    let expected = [
        [Writes, Writes, Yields],
        [Returns, Returns, Yields],
        [Returns, Returns, Yields],
        [Yields, Yields, Yields],
    ];
    for (look, expected) in looks.into_iter().zip(expected) {
        for (lease, expected) in expected.into_iter().enumerate() {
            let config = json!({ "ttl": 10, "failsafe_mode": false });
            let mut sim = settled(config, &NAMES);
            let primary = sim.primary().unwrap();
            sim.begin(look(primary));
            match lease {
                0 => {}
                1 => sim.strike(Fault::CutFromStore(primary), 5000),
                _ => sim.begin(Fault::CutOff(primary)),
            }
            if expected == Writes {
                stays_primary(&mut sim, primary, 5);
            } else {
                run(&mut sim, 5.0);
            }
            let promotions = sim.promotions();
            if expected == Yields {
                sim.run_until("a successor", 20, |sim| {
                    sim.primary().is_some_and(|now| now != primary)
                });
                sim.end_all();
            } else {
                sim.end_all();
                sim.run_until("its return", 2, |sim| sim.primary() == Some(primary));
                assert_eq!(sim.promotions(), promotions, "{sim}");
            }
            healthy(&mut sim);
        }
    }
}

#[test]
pub(super) fn f7_a_node_frozen_past_its_lease_never_writes_again_and_rejoins() {
    for agent_first in [false, true] {
        let mut sim = three(10);
        let old = sim.primary().unwrap();
        sim.begin(Fault::PauseAgent(old));
        sim.begin(Fault::FreezeServer(old));
        run(&mut sim, 20.0);
        let new = sim.primary().unwrap();
        assert_ne!(new, old, "{sim}");
        let mut thawed = [Fault::FreezeServer(old), Fault::PauseAgent(old)];
        if agent_first {
            thawed.reverse();
        }
        for fault in thawed {
            sim.end(fault);
            watch(&mut sim, 3, |sim| {
                assert_eq!(sim.primary(), Some(new), "{sim}");
            });
        }
        healthy(&mut sim);
        stays_primary(&mut sim, new, 30);
    }
}
