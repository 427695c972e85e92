//! What clusters must survive, as sentences.

use serde_json::json;
use spilo_core::dcs::Key;
use spilo_core::decide::Rule;
use spilo_core::machine::{Exit, Order};

use super::{World, secret_of, three};

#[test]
fn a_new_cluster_elects_clones_and_streams() {
    let mut world = three(10);
    let took = world.healthy();
    assert!(took < 6000, "{took} ms\n{}", world.tell());
}

#[test]
fn a_crashed_server_is_started_in_place() {
    let mut world = three(10);
    world.healthy();
    world.run(5.0);
    let primary = world.primary().unwrap().to_owned();
    world.crash_server(&primary);
    let took = world.run_until("a primary", 5, |w| w.primary().is_some());
    assert_eq!(world.primary(), Some(primary.as_str()), "{}", world.tell());
    assert!(took < 1000, "{took} ms");
}

#[test]
fn a_lost_node_is_replaced_within_the_ttl_and_comes_back() {
    for ttl in [3, 10] {
        let mut world = three(ttl);
        world.healthy();
        world.run(15.0);
        let primary = world.primary().unwrap().to_owned();
        world.kill_node(&primary);
        let took = world.run_until("a successor", 40, |w| w.primary().is_some());
        assert!(
            took <= ttl * 1000 + 500,
            "ttl {ttl}: {took} ms\n{}",
            world.tell()
        );
        world.run(5.0);
        world.start_agent(&primary);
        world.healthy();
    }
}

#[test]
fn a_killed_agent_adopts_its_server_when_it_is_back_in_time() {
    let mut world = three(10);
    world.healthy();
    world.run(15.0);
    let primary = world.primary().unwrap().to_owned();
    world.kill_agent(&primary);
    world.run(2.0);
    assert!(secret_of(&mut world, &primary).is_some());
    world.start_agent(&primary);
    for _ in 0..300 {
        world.run(0.1);
        assert_eq!(world.primary(), Some(primary.as_str()), "{}", world.tell());
    }
}

#[test]
fn a_killed_agent_that_stays_away_loses_its_server_and_then_the_lock() {
    let mut world = three(10);
    world.healthy();
    world.run(15.0);
    let primary = world.primary().unwrap().to_owned();
    world.kill_agent(&primary);
    world.run_until("the end of writes", 11, |w| w.primary().is_none());
    let took = world.run_until("a successor", 11, |w| w.primary().is_some());
    assert!(took < 3000, "{took}\n{}", world.tell());
    assert_ne!(world.primary(), Some(primary.as_str()));
    world.start_agent(&primary);
    world.healthy();
}

#[test]
fn a_frozen_agent_that_thaws_past_its_lease_does_not_write() {
    let mut world = three(3);
    world.healthy();
    world.run(5.0);
    let primary = world.primary().unwrap().to_owned();
    world.pause_agent(&primary);
    world.run(8.0);
    assert_ne!(world.primary(), Some(primary.as_str()), "{}", world.tell());
    world.resume_agent(&primary);
    world.run(1.0);
    world.healthy();
}

#[test]
fn a_node_that_is_cut_off_stops_writing_before_another_begins() {
    let mut world = three(10);
    world.healthy();
    world.run(15.0);
    let primary = world.primary().unwrap().to_owned();
    world.cut_off(&primary, true);
    let took = world.run_until("a successor", 30, |w| {
        w.primary().is_some_and(|p| p != primary)
    });
    assert!(took <= 10_500, "{took} ms\n{}", world.tell());
    world.run(3.0);
    world.cut_off(&primary, false);
    world.healthy();
}

#[test]
fn f13_a_store_that_is_away_for_a_minute_changes_nothing_while_all_consent() {
    let mut world = three(10);
    world.healthy();
    world.run(15.0);
    let primary = world.primary().unwrap().to_owned();
    world.stop_store(true);
    for _ in 0..60 {
        world.run(1.0);
        assert_eq!(world.primary(), Some(primary.as_str()), "{}", world.tell());
    }
    world.stop_store(false);
    for _ in 0..300 {
        world.run(0.1);
        assert_eq!(world.primary(), Some(primary.as_str()), "{}", world.tell());
    }
    world.healthy();
}

#[test]
fn without_the_consent_of_all_a_primary_steps_down_in_time() {
    let mut world = three(10);
    world.healthy();
    world.run(15.0);
    let primary = world.primary().unwrap().to_owned();
    let replica = ["a", "b", "c"].into_iter().find(|n| *n != primary).unwrap();
    world.kill_agent(replica);
    world.stop_store(true);
    world.run_until("the end of writes", 10, |w| w.primary().is_none());
    world.run(20.0);
    world.stop_store(false);
    world.start_agent(replica);
    world.healthy();
}

#[test]
fn f28_a_wiped_store_makes_no_second_writer_and_comes_back() {
    let mut world = three(10);
    world.healthy();
    world.run(15.0);
    let primary = world.primary().unwrap().to_owned();
    let now = spilo_core::NodeTime(world.now);
    world.store.wipe(now);
    for _ in 0..300 {
        world.run(0.1);
        assert_eq!(world.primary(), Some(primary.as_str()), "{}", world.tell());
    }
    world.healthy();
    let now = spilo_core::NodeTime(world.now);
    assert!(
        world
            .store
            .snapshot(now)
            .documents
            .contains_key(&Key::Initialize)
    );
    assert!(
        world
            .store
            .snapshot(now)
            .documents
            .contains_key(&Key::Config)
    );
}

#[test]
fn a_leader_key_deleted_by_hand_is_taken_back_without_a_gap() {
    let mut world = three(10);
    world.healthy();
    world.run(15.0);
    let primary = world.primary().unwrap().to_owned();
    for _ in 0..3 {
        let now = spilo_core::NodeTime(world.now);
        world.store.delete_leader(now);
        for _ in 0..100 {
            world.run(0.1);
            assert_eq!(world.primary(), Some(primary.as_str()), "{}", world.tell());
        }
    }
}

#[test]
fn a_switchover_hands_over_to_the_candidate() {
    let mut world = World::new(&["a", "b"], serde_json::json!({ "ttl": 10 }));
    world.healthy();
    world.run(15.0);
    let from = world.primary().unwrap().to_owned();
    let to = if from == "a" { "b" } else { "a" };
    if to == "b" {
        world.put(Key::Failover, br#"{"leader":"a","member":"b"}"#);
    } else {
        world.put(Key::Failover, br#"{"leader":"b","member":"a"}"#);
    }
    let took = world.run_until("the candidate", 5, |w| w.primary() == Some(to));
    assert!(took < 600, "{took} ms\n{}", world.tell());
    world.healthy();
    world.run(15.0);
    assert_eq!(world.primary(), Some(to), "{}", world.tell());
}

#[test]
fn a_shutdown_hands_over_and_exits() {
    let mut world = three(10);
    world.healthy();
    world.run(15.0);
    let from = world.primary().unwrap().to_owned();
    world.order(&from, Order::Shutdown);
    let took = world.run_until("a successor", 5, |w| w.primary().is_some_and(|p| p != from));
    assert!(took < 1500, "{took} ms\n{}", world.tell());
    world.run(2.0);
    assert_eq!(world.exited(&from), Some(Exit::Stopped), "{}", world.tell());
}

#[test]
fn a_detached_agent_leaves_the_server_and_the_next_one_adopts_it() {
    let mut world = three(10);
    world.healthy();
    world.run(15.0);
    let primary = world.primary().unwrap().to_owned();
    world.order(&primary, Order::Detach);
    world.run(1.0);
    assert_eq!(
        world.exited(&primary),
        Some(Exit::Detached),
        "{}",
        world.tell()
    );
    world.run(4.0);
    world.start_agent(&primary);
    for _ in 0..300 {
        world.run(0.1);
        assert_eq!(world.primary(), Some(primary.as_str()), "{}", world.tell());
    }
    assert!(world.rules().contains(&Rule::Succeed));
}

#[test]
fn f19_the_store_dies_while_the_primary_hands_over() {
    let mut world = three(10);
    world.healthy();
    world.run(15.0);
    let from = world.primary().unwrap().to_owned();
    world.put(
        Key::Failover,
        if from == "a" {
            br#"{"leader":"a"}"#
        } else if from == "b" {
            br#"{"leader":"b"}"#
        } else {
            br#"{"leader":"c"}"#
        },
    );
    world.run(0.15);
    world.stop_store(true);
    world.run(20.0);
    world.stop_store(false);
    world.healthy();
}

#[test]
fn kills_at_every_moment_of_the_bootstrap_end_in_one_cluster() {
    for moment in (10..2500).step_by(35) {
        let mut world = three(3);
        world.run(f64::from(moment) / 1000.0);
        for name in ["a", "b", "c"] {
            world.kill_node(name);
        }
        world.run(0.5);
        for name in ["a", "b", "c"] {
            world.start_agent(name);
        }
        world.healthy();
    }
}

#[test]
fn f28_an_agent_with_data_takes_no_wiped_store_for_a_new_cluster() {
    let mut world = three(10);
    world.healthy();
    world.run(15.0);
    let primary = world.primary().unwrap().to_owned();
    let other = ["a", "b", "c"].into_iter().find(|n| *n != primary).unwrap();
    // The primary writes on by its lease, and cannot see that the store was wiped.
    world.cut_off(&primary, true);
    world.kill_agent(other);
    let now = spilo_core::NodeTime(world.now);
    world.store.wipe(now);
    world.start_agent(other);
    world.run(20.0);
    world.cut_off(&primary, false);
    world.run(60.0);
    world.healthy();
}

#[test]
fn a_switchover_loses_nothing_that_was_committed() {
    for seed in 1..20 {
        let mut world = World::new(&["a", "b"], serde_json::json!({ "ttl": 5 }));
        world.weather.seed = seed * 0x9E37_79B9;
        world.weather.delay = seed % 20;
        world.healthy();
        world.run(2.0);
        let from = world.primary().unwrap().to_owned();
        let to = if from == "a" { "b" } else { "a" };
        let asked = format!(r#"{{"leader":"{from}","member":"{to}"}}"#);
        world.write_by_hand(Key::Failover, asked.into());
        world.run_until("the candidate", 20, |w| w.primary() == Some(to));
        let old = world.node(&from).server.clone();
        assert!(
            world.node(to).server.has_all_of(&old),
            "seed {seed}\n{}",
            world.tell()
        );
        world.healthy();
    }
}

#[test]
fn f19_a_primary_whose_store_is_gone_comes_back_to_serve_reads() {
    let mut world = World::new(
        &["a", "b", "c"],
        serde_json::json!({ "ttl": 5, "failsafe_mode": false }),
    );
    world.healthy();
    world.run(10.0);
    let primary = world.primary().unwrap().to_owned();
    world.stop_store(true);
    world.run_until("the end of writes", 6, |w| w.primary().is_none());
    let serves = |w: &World| {
        w.nodes
            .values()
            .all(|n| n.server.status().running().is_some())
    };
    let took = world.run_until("all servers to answer", 10, serves);
    assert!(took < 5000, "{primary}: {took} ms\n{}", world.tell());
    world.stop_store(false);
    world.healthy();
}

#[test]
fn a_node_that_dies_in_the_middle_of_a_rewind_is_mended_by_the_means_allowed() {
    for may_replace in [true, false] {
        let mut came_to = [false; 2];
        // Whether pg_rewind can go on is the chance of the moment.
        for spent in [0.02, 0.03, 0.1, 0.11, 0.2, 0.21, 0.3, 0.31] {
            let postgresql = json!({ "remove_data_directory_on_rewind_failure": may_replace });
            let config = json!({ "ttl": 3, "postgresql": postgresql });
            let mut world = World::new(&["a", "b", "c"], config);
            world.healthy();
            world.run(10.0);
            let old = world.primary().unwrap().to_owned();
            world.kill_node(&old);
            world.run_until("a successor", 10, |w| w.primary().is_some());
            world.start_agent(&old);
            world.run_until("a rewind", 20, |w| w.rules().contains(&Rule::Rewind));
            world.run(spent);
            world.kill_node(&old);
            world.start_agent(&old);
            let end = |w: &World| w.is_healthy() || w.rules().contains(&Rule::Stuck);
            world.run_until("the end of it", 60, end);
            world.run(20.0);
            let resumed = !world.rules().contains(&Rule::Reclone);
            came_to[usize::from(resumed && world.is_healthy())] = true;
            let stuck = world.rules().contains(&Rule::Stuck);
            assert_eq!(world.is_healthy(), !stuck, "{}", world.tell());
            assert!(may_replace || resumed, "{}", world.tell());
            assert!(!may_replace || !stuck, "{}", world.tell());
        }
        assert_eq!(came_to, [true, true], "{may_replace}");
    }
}
