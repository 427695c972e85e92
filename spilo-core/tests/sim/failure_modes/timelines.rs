//! F31 to F36: branches of the log, rewinds, histories and slots.

use std::collections::BTreeSet;

use serde_json::json;
use spilo_core::dcs::Key;
use spilo_core::decide::Rule;
use spilo_core::pg::PgOpKind;
use spilo_core::sim::{Chance, Conditions, Fault, Sim};

use crate::{NAMES, another, healthy, run, settled};

#[test]
pub(super) fn f31_no_server_follows_a_branch_that_is_not_its_own() {
    for seed in 0..40 {
        let mut chance = Chance::seeded(seed);
        let mut sim = settled(json!({ "ttl": 3, "check_timeline": false }), &NAMES);
        // What one writes, the others have late or never: branches that begin apart.
        let mut late = Conditions::default();
        late.replication_ms = 2000;
        sim.set_conditions(late);
        for _ in 0..6 {
            let node = sim.primary().unwrap_or_else(|| chance.pick(&[0, 1, 2]));
            sim.strike(Fault::KillNode(node), 500 + chance.below(9000));
            run(&mut sim, 6.0);
        }
        sim.end_all();
        sim.set_conditions(Conditions::default());
        healthy(&mut sim);
        let primary = sim.primary().unwrap();
        let row = sim.commit(primary).unwrap();
        run(&mut sim, 1.0);
        assert!((0..3).all(|n| sim.reads(n, row)), "seed {seed}\n{sim}");
    }
}

#[test]
pub(super) fn f32_a_rewind_whose_source_dies_ends_in_a_healthy_replica() {
    for moment in 0..10 {
        let postgresql = json!({ "remove_data_directory_on_rewind_failure": true });
        let mut sim = settled(json!({ "ttl": 3, "postgresql": postgresql }), &NAMES);
        let old = sim.primary().unwrap();
        sim.begin(Fault::KillNode(old));
        sim.run_until("a successor", 10, |sim| sim.primary().is_some());
        let source = sim.primary().unwrap();
        // What is copied from a source that dies is of no use.
        let mut failing = Conditions::default();
        failing.failing_operations = 1000;
        sim.set_conditions(failing);
        sim.end(Fault::KillNode(old));
        sim.run_until("a rewind", 20, |sim| sim.rules().contains(&Rule::Rewind));
        run(&mut sim, 0.04 * f64::from(moment));
        sim.begin(Fault::KillNode(source));
        run(&mut sim, 1.0);
        let failures = &sim.machine(old).unwrap().facts().failures;
        assert!(failures.contains_key(&PgOpKind::Rewind), "{sim}");
        sim.set_conditions(Conditions::default());
        sim.run_until("a third primary", 20, |sim| sim.primary().is_some());
        assert_ne!(sim.primary(), Some(old), "{sim}");
        sim.end(Fault::KillNode(source));
        healthy(&mut sim);
    }
}

#[test]
pub(super) fn f33_a_history_grows_with_every_timeline_and_no_further_than_it_may() {
    for keep in [0, 5] {
        let config = json!({ "ttl": 10, "max_timelines_history": keep });
        let mut sim = settled(config, &NAMES);
        let timelines = 60;
        for _ in 1..timelines {
            // Whoever was down until now is taken for down for two seconds more.
            run(&mut sim, 2.5);
            let from = sim.primary().unwrap();
            let to = another(&sim, from);
            sim.begin(Fault::Switchover(from, to));
            sim.run_until("the candidate", 5, |sim| sim.primary() == Some(to));
            healthy(&mut sim);
        }
        run(&mut sim, 5.0);
        let now = sim.store_time();
        let document = sim.store().snapshot(now).documents[&Key::History].clone();
        let entries: Vec<serde_json::Value> = serde_json::from_slice(&document.value).unwrap();
        let kept = if keep == 0 { timelines - 1 } else { keep };
        assert_eq!(entries.len(), kept, "{sim}");
        assert_eq!(entries.last().unwrap()[0], json!(timelines - 1), "{sim}");
    }
}

/// The slots of a node, as it saw them last.
fn slots(sim: &Sim, node: usize) -> BTreeSet<String> {
    let facts = sim.machine(node).unwrap().facts();
    let running = facts.pg.as_ref().unwrap().value.running().unwrap();
    let names = running.slots.iter().map(|(slot, _)| slot.to_string());
    names.collect()
}

#[test]
pub(super) fn f36_slots_wait_for_a_member_for_its_time_and_pin_nothing_on_a_standby() {
    let mut sim = settled(json!({ "ttl": 10, "member_slots_ttl": 60 }), &NAMES);
    let primary = sim.primary().unwrap();
    let away = another(&sim, primary);
    let others = |node: usize| -> BTreeSet<String> {
        let names = (0..3).filter(|n| *n != node);
        names.map(|n| NAMES[n].to_owned()).collect()
    };
    sim.begin(Fault::KillNode(away));
    run(&mut sim, 55.0);
    assert_eq!(slots(&sim, primary), others(primary), "it may come back");
    run(&mut sim, 120.0);
    assert!(!slots(&sim, primary).contains(NAMES[away]), "{sim}");
    sim.end(Fault::KillNode(away));
    healthy(&mut sim);
    run(&mut sim, 5.0);
    assert_eq!(slots(&sim, primary), others(primary));

    sim.begin(Fault::Switchover(primary, away));
    sim.run_until("the candidate", 15, |sim| sim.primary() == Some(away));
    healthy(&mut sim);
    run(&mut sim, 90.0);
    assert_eq!(slots(&sim, away), others(away));
    for standby in (0..3).filter(|n| *n != away) {
        assert_eq!(slots(&sim, standby), BTreeSet::new(), "{sim}");
    }
}
