//! What clusters must survive, as sentences.

use serde_json::json;
use spilo_core::decide::Rule;
use spilo_core::machine::Exit;
use spilo_core::sim::{Chance, Conditions, Fault, Sim};

use super::{NAMES, another, healthy, run, settled, stays_primary, three};

#[test]
fn a_new_cluster_elects_clones_and_streams() {
    let mut sim = Sim::new(NAMES, 10);
    let took = healthy(&mut sim);
    assert!(took < 6000, "{took} ms\n{sim}");
}

#[test]
fn a_crashed_server_is_started_in_place() {
    let mut sim = three(10);
    let primary = sim.primary().unwrap();
    sim.begin(Fault::CrashServer(primary));
    let took = sim.run_until("a primary", 5, |sim| sim.primary().is_some());
    assert_eq!(sim.primary(), Some(primary), "{sim}");
    assert!(took < 1000, "{took} ms");
}

#[test]
fn a_server_that_ends_again_and_again_leaves_the_lock_to_others() {
    let mut sim = three(10);
    let primary = sim.primary().unwrap();
    let mut crashes = 0;
    while sim.primary() == Some(primary) {
        crashes += 1;
        assert!(crashes < 5, "{sim}");
        sim.begin(Fault::CrashServer(primary));
        sim.run_until("a primary", 5, |sim| sim.primary().is_some());
        run(&mut sim, 5.0);
    }
    assert_eq!(crashes, 4, "{sim}");
    healthy(&mut sim);
    // One that stays up for a while has deserved its starts anew.
    let primary = sim.primary().unwrap();
    for _ in 0..5 {
        run(&mut sim, 40.0);
        sim.begin(Fault::CrashServer(primary));
        sim.run_until("a primary", 5, |sim| sim.primary().is_some());
    }
    assert_eq!(sim.primary(), Some(primary), "{sim}");
}

#[test]
fn a_lost_node_is_replaced_within_the_ttl_and_comes_back() {
    for ttl in [3, 10] {
        let mut sim = three(ttl);
        let primary = sim.primary().unwrap();
        sim.begin(Fault::KillNode(primary));
        let took = sim.run_until("a successor", 40, |sim| sim.primary().is_some());
        assert!(took <= ttl * 1000 + 500, "ttl {ttl}: {took} ms\n{sim}");
        run(&mut sim, 5.0);
        sim.end(Fault::KillNode(primary));
        healthy(&mut sim);
    }
}

#[test]
fn a_killed_agent_adopts_its_server_when_it_is_back_in_time() {
    let mut sim = three(10);
    let primary = sim.primary().unwrap();
    sim.begin(Fault::KillAgent(primary));
    run(&mut sim, 2.0);
    sim.end(Fault::KillAgent(primary));
    stays_primary(&mut sim, primary, 30);
}

#[test]
fn a_killed_agent_that_stays_away_loses_its_server_and_then_the_lock() {
    let mut sim = three(10);
    let primary = sim.primary().unwrap();
    sim.begin(Fault::KillAgent(primary));
    sim.run_until("the end of writes", 11, |sim| sim.primary().is_none());
    let took = sim.run_until("a successor", 11, |sim| sim.primary().is_some());
    assert!(took < 3000, "{took}\n{sim}");
    assert_ne!(sim.primary(), Some(primary));
    sim.end(Fault::KillAgent(primary));
    healthy(&mut sim);
}

#[test]
fn a_frozen_agent_that_thaws_past_its_lease_does_not_write() {
    let mut sim = three(3);
    let primary = sim.primary().unwrap();
    sim.begin(Fault::PauseAgent(primary));
    run(&mut sim, 8.0);
    assert_ne!(sim.primary(), Some(primary), "{sim}");
    sim.end(Fault::PauseAgent(primary));
    run(&mut sim, 1.0);
    healthy(&mut sim);
}

#[test]
fn a_frozen_guard_is_stood_in_for_by_the_agent() {
    let mut sim = three(3);
    let primary = sim.primary().unwrap();
    sim.begin(Fault::FreezeGuard(primary));
    sim.begin(Fault::CutOff(primary));
    sim.run_until("a successor", 10, |sim| {
        sim.primary().is_some_and(|now| now != primary)
    });
    sim.end_all();
    healthy(&mut sim);
}

#[test]
fn a_node_that_is_cut_off_stops_writing_before_another_begins() {
    let mut sim = three(10);
    let primary = sim.primary().unwrap();
    sim.begin(Fault::CutOff(primary));
    let took = sim.run_until("a successor", 30, |sim| {
        sim.primary().is_some_and(|now| now != primary)
    });
    assert!(took <= 10_500, "{took} ms\n{sim}");
    run(&mut sim, 3.0);
    sim.end(Fault::CutOff(primary));
    healthy(&mut sim);
}

#[test]
fn without_the_consent_of_all_a_primary_steps_down_in_time() {
    let mut sim = three(10);
    let primary = sim.primary().unwrap();
    let replica = another(&sim, primary);
    sim.begin(Fault::KillAgent(replica));
    sim.begin(Fault::StopStore);
    sim.run_until("the end of writes", 10, |sim| sim.primary().is_none());
    run(&mut sim, 20.0);
    sim.end_all();
    healthy(&mut sim);
}

#[test]
fn a_leader_key_deleted_by_hand_is_taken_back_without_a_gap() {
    let mut sim = three(10);
    let primary = sim.primary().unwrap();
    for _ in 0..3 {
        sim.begin(Fault::DeleteLeader);
        stays_primary(&mut sim, primary, 10);
    }
}

#[test]
fn an_election_of_the_store_changes_nothing() {
    let mut sim = three(10);
    let primary = sim.primary().unwrap();
    sim.strike(Fault::StoreElection, 3000);
    stays_primary(&mut sim, primary, 30);
}

#[test]
fn a_switchover_hands_over_to_the_candidate() {
    let mut sim = settled(json!({ "ttl": 10 }), &["a", "b"]);
    let from = sim.primary().unwrap();
    let to = another(&sim, from);
    sim.begin(Fault::Switchover(from, to));
    let took = sim.run_until("the candidate", 5, |sim| sim.primary() == Some(to));
    assert!(took < 600, "{took} ms\n{sim}");
    healthy(&mut sim);
    stays_primary(&mut sim, to, 15);
}

/// An agent that has just started takes no lock for a ttl, in case it forgot a promise.
#[test]
fn a_primary_serves_until_its_successor_may_take_the_lock() {
    let mut sim = settled(json!({ "ttl": 10 }), &["a", "b"]);
    let from = sim.primary().unwrap();
    let to = another(&sim, from);
    sim.strike(Fault::KillAgent(to), 1000);
    run(&mut sim, 3.0);
    sim.begin(Fault::Switchover(from, to));
    let served = sim.run_until("the hand-over", 15, |sim| sim.primary().is_none());
    assert!(served > 5000, "{served} ms\n{sim}");
    let took = sim.run_until("the candidate", 5, |sim| sim.primary() == Some(to));
    assert!(took < 600, "{took} ms\n{sim}");
    healthy(&mut sim);
}

#[test]
fn a_switchover_loses_nothing_that_was_committed() {
    for seed in 1..20 {
        let mut chance = Chance::seeded(seed);
        let mut conditions = Conditions::drawn(&mut chance);
        conditions.lost_requests = 0;
        conditions.failing_operations = 0;
        let mut sim = settled(json!({ "ttl": 5 }), &["a", "b"]);
        sim.set_conditions(conditions);
        sim.set_seed(seed);
        run(&mut sim, 5.0);
        let from = sim.primary().unwrap();
        let to = another(&sim, from);
        sim.begin(Fault::Switchover(from, to));
        sim.run_until("the candidate", 20, |sim| sim.primary() == Some(to));
        assert_eq!(sim.rows().1, 0, "seed {seed}\n{sim}");
        healthy(&mut sim);
    }
}

#[test]
fn a_shutdown_hands_over_and_exits() {
    let mut sim = three(10);
    let from = sim.primary().unwrap();
    sim.begin(Fault::Shutdown(from));
    let took = sim.run_until("a successor", 5, |sim| {
        sim.primary().is_some_and(|now| now != from)
    });
    assert!(took < 1500, "{took} ms\n{sim}");
    run(&mut sim, 2.0);
    assert_eq!(sim.exited(from), Some(&Exit::Stopped), "{sim}");
    assert_eq!(sim.rows().1, 0, "{sim}");
}

#[test]
fn a_detached_agent_leaves_the_server_and_the_next_one_adopts_it() {
    let mut sim = three(10);
    let primary = sim.primary().unwrap();
    sim.begin(Fault::Detach(primary));
    run(&mut sim, 1.0);
    assert_eq!(sim.exited(primary), Some(&Exit::Detached), "{sim}");
    // The guard knows of a renewal that left after the order, however long ago the last one was.
    run(&mut sim, 6.5);
    sim.end(Fault::Detach(primary));
    stays_primary(&mut sim, primary, 30);
    assert!(sim.rules().contains(&Rule::Succeed));
}

#[test]
fn kills_at_every_moment_of_the_bootstrap_end_in_one_cluster() {
    for moment in (10..2500).step_by(35) {
        let mut sim = Sim::new(NAMES, 3);
        run(&mut sim, f64::from(moment) / 1000.0);
        for node in 0..3 {
            sim.begin(Fault::KillNode(node));
        }
        run(&mut sim, 0.5);
        sim.end_all();
        healthy(&mut sim);
    }
}

#[test]
fn a_node_that_dies_in_the_middle_of_a_rewind_is_mended_by_the_means_allowed() {
    for may_replace in [true, false] {
        let mut came_to = [false; 2];
        // Whether pg_rewind can go on is the chance of the moment.
        for (seed, spent) in (1..).zip([0.02, 0.03, 0.1, 0.11, 0.2, 0.21, 0.3, 0.31]) {
            let postgresql = json!({ "remove_data_directory_on_rewind_failure": may_replace });
            let mut sim = settled(json!({ "ttl": 3, "postgresql": postgresql }), &NAMES);
            sim.set_seed(seed);
            let old = sim.primary().unwrap();
            sim.begin(Fault::KillNode(old));
            sim.run_until("a successor", 10, |sim| sim.primary().is_some());
            sim.end(Fault::KillNode(old));
            sim.run_until("a rewind", 20, |sim| sim.rules().contains(&Rule::Rewind));
            run(&mut sim, spent);
            sim.begin(Fault::KillNode(old));
            sim.end(Fault::KillNode(old));
            let end = |sim: &Sim| sim.is_healthy() || sim.rules().contains(&Rule::Stuck);
            sim.run_until("the end of it", 60, end);
            run(&mut sim, 20.0);
            let resumed = !sim.rules().contains(&Rule::Reclone);
            came_to[usize::from(resumed && sim.is_healthy())] = true;
            let stuck = sim.rules().contains(&Rule::Stuck);
            assert_eq!(sim.is_healthy(), !stuck, "{sim}");
            assert!(may_replace || resumed, "{sim}");
            assert!(!may_replace || !stuck, "{sim}");
        }
        assert_eq!(came_to, [true, true], "{may_replace}");
    }
}

#[test]
fn a_full_disk_costs_the_primary_its_place_and_not_the_cluster() {
    let mut sim = three(5);
    let primary = sim.primary().unwrap();
    sim.begin(Fault::FillDisk(primary));
    sim.run_until("a successor", 60, |sim| {
        sim.primary().is_some_and(|now| now != primary)
    });
    sim.end_all();
    healthy(&mut sim);
}

#[test]
fn a_stalled_disk_is_no_reason_for_two_writers() {
    let mut sim = three(5);
    let primary = sim.primary().unwrap();
    sim.begin(Fault::StallDisk(primary));
    sim.run_until("a successor", 60, |sim| {
        sim.primary().is_some_and(|now| now != primary)
    });
    sim.end_all();
    run(&mut sim, 5.0);
    healthy(&mut sim);
}

#[test]
fn a_standby_that_hangs_is_ended_and_started_anew() {
    let mut sim = three(10);
    let standby = another(&sim, sim.primary().unwrap());
    sim.begin(Fault::FreezeServer(standby));
    sim.run_until("its end", 40, |sim| {
        sim.rules().contains(&Rule::FenceHungStandby)
    });
    sim.end(Fault::FreezeServer(standby));
    healthy(&mut sim);
}
