//! F20 to F30: who may be promoted, who must wait and says why, and what must not trigger anything.

use std::time::Duration;

use serde_json::json;
use spilo_core::dcs::Key;
use spilo_core::decide::Rule;
use spilo_core::sim::{Conditions, Fault, Sim};

use crate::{NAMES, another, healthy, run, set, settled, stays_primary, three, watch};

/// Faults that nobody has to mend by hand, at a node.
fn faults(node: usize) -> Vec<Fault> {
    let other = (node + 1) % 3;
    vec![
        Fault::CrashServer(node),
        Fault::KillAgent(node),
        Fault::KillGuard(node),
        Fault::KillNode(node),
        Fault::PauseAgent(node),
        Fault::FreezeGuard(node),
        Fault::BreakFence(node),
        Fault::StallDisk(node),
        Fault::FillDisk(node),
        Fault::FreezeServer(node),
        Fault::HideData(node),
        Fault::BreakData(node),
        Fault::RemoveData(node),
        Fault::ForeignCluster,
        Fault::CutOff(node),
        Fault::CutFromStore(node),
        Fault::DeafToStore(node),
        Fault::CutOneWay(node, other),
        Fault::Scatter,
        Fault::StopStore,
        Fault::SilenceStore,
        Fault::StoreElection,
        Fault::DeleteLeader,
        Fault::Switchover(node, other),
        Fault::Shutdown(node),
        Fault::Detach(node),
    ]
}

#[test]
pub(super) fn f20_every_state_has_an_exit_from_wherever_it_was_entered() {
    let settled = three(3);
    let primary = settled.primary().unwrap();
    let firsts = faults(primary);
    for first in firsts {
        for second in faults(another(&settled, primary))
            .into_iter()
            .chain(faults(primary))
        {
            let mut sim = settled.clone();
            sim.begin(first);
            run(&mut sim, 0.35);
            sim.begin(second);
            run(&mut sim, 5.0);
            sim.end_all();
            run(&mut sim, 5.0);
            // What it was told to do may have ended an agent by now.
            for node in 0..3 {
                sim.start_agent(node);
            }
            let met = format!("{first:?}, {second:?}");
            sim.run_until(&met, 60, Sim::is_healthy);
        }
    }
}

/// A cluster one of whose standbys has not heard of the primary for a megabyte and more, and the
/// number of that standby.
fn with_a_stale_standby() -> (Sim, usize) {
    let mut sim = three(10);
    let primary = sim.primary().unwrap();
    let stale = another(&sim, primary);
    let mut busy = Conditions::default();
    busy.write_bytes = 100_000;
    sim.set_conditions(busy);
    for (from, to) in [(primary, stale), (stale, primary)] {
        sim.begin(Fault::CutOneWay(from, to));
    }
    run(&mut sim, 30.0);
    assert_eq!(sim.primary(), Some(primary), "{sim}");
    for dead in (0..3).filter(|n| *n != stale) {
        sim.begin(Fault::KillNode(dead));
    }
    (sim, stale)
}

#[test]
pub(super) fn f21_a_survivor_that_may_not_lead_says_why_and_one_call_ends_it() {
    let (mut sim, survivor) = with_a_stale_standby();
    run(&mut sim, 300.0);
    assert_eq!(sim.primary(), None, "{sim}");
    let decision = sim.machine(survivor).unwrap().decision().unwrap();
    assert_eq!(decision.rule, Rule::TooFarBehind, "{sim}");
    let numbers = decision.why.contains("bytes behind the leader's");
    assert!(
        numbers && decision.why.contains("more than 1048576"),
        "{}",
        decision.why
    );
    // Who names a leader wants a switchover, in which nothing is lost.
    let gone = another(&sim, survivor);
    sim.strike(Fault::Switchover(gone, survivor), 20_000);
    run(&mut sim, 25.0);
    assert_eq!(sim.primary(), None, "{sim}");
    let order = json!({ "member": NAMES[survivor] }).to_string();
    sim.write(Key::Failover, order.into());
    let took = sim.run_until("the survivor", 10, |sim| sim.primary() == Some(survivor));
    assert!(took <= 5000, "{took} ms\n{sim}");
    // What was given up is known.
    assert!(sim.rows().1 > 0, "{sim}");
    sim.end_all();
    healthy(&mut sim);
}

#[test]
pub(super) fn f21_a_survivor_that_has_everything_leads_though_the_others_are_gone_for_ever() {
    let mut sim = three(10);
    let primary = sim.primary().unwrap();
    let survivor = another(&sim, primary);
    for dead in (0..3).filter(|n| *n != survivor) {
        sim.begin(Fault::KillNode(dead));
    }
    let took = sim.run_until("the survivor", 20, |sim| sim.primary() == Some(survivor));
    assert!(took <= 10_500, "{took} ms\n{sim}");
    stays_primary(&mut sim, survivor, 60);
}

#[test]
pub(super) fn f26_a_standby_that_is_ahead_and_cut_off_from_the_store_blocks_nobody() {
    let mut sim = three(10);
    let primary = sim.primary().unwrap();
    let ahead = another(&sim, primary);
    let behind = (0..3).find(|n| *n != primary && *n != ahead).unwrap();
    let lag = [(primary, behind), (behind, primary)];
    for (from, to) in lag {
        sim.begin(Fault::CutOneWay(from, to));
    }
    run(&mut sim, 2.0);
    sim.begin(Fault::CutFromStore(ahead));
    run(&mut sim, 0.5);
    sim.begin(Fault::KillNode(primary));
    for (from, to) in lag {
        sim.end(Fault::CutOneWay(from, to));
    }
    let took = sim.run_until("the other", 30, |sim| sim.primary() == Some(behind));
    // A lease, and the patience with one that is ahead.
    assert!((10_000..21_000).contains(&took), "{took} ms\n{sim}");
    sim.end_all();
    healthy(&mut sim);
}

#[test]
pub(super) fn f26_a_demoted_primary_that_is_ahead_is_waited_for_and_blocks_nobody() {
    for gone_for_good in [false, true] {
        let mut sim = settled(json!({ "ttl": 5, "failsafe_mode": false }), &NAMES);
        let old = sim.primary().unwrap();
        sim.begin(Fault::StopStore);
        run(&mut sim, 2.0);
        let mut late = Conditions::default();
        late.replication_ms = 10_000;
        sim.set_conditions(late);
        // Too late to be started in place, and too early to have been stopped in peace.
        sim.run_until("the last quarter of its lease", 5, |sim| {
            let status = sim.machine(old).unwrap().status();
            let left = status.leadership.map(|l| l.until.since(status.at));
            left.is_none_or(|left| left < Duration::from_millis(1250))
        });
        let row = sim.commit(old).unwrap();
        sim.begin(Fault::CrashServer(old));
        run(&mut sim, 8.0);
        assert!(sim.answers_queries(old) && sim.primary().is_none(), "{sim}");
        if gone_for_good {
            sim.begin(Fault::CutFromStore(old));
        }
        sim.end(Fault::StopStore);
        sim.run_until("a primary", 30, |sim| sim.primary().is_some());
        let new = sim.primary().unwrap();
        assert!(sim.reads(new, row), "{sim}");
        assert_eq!(new == old, !gone_for_good, "{sim}");
        let waited = sim.rules().contains(&Rule::PeerAhead);
        assert!(waited || !gone_for_good, "{sim}");
        sim.set_conditions(Conditions::default());
        sim.end_all();
        healthy(&mut sim);
    }
}

#[test]
pub(super) fn f27_a_standby_that_is_stale_waits_for_those_who_are_not() {
    let (mut sim, _) = with_a_stale_standby();
    watch(&mut sim, 120, |sim| {
        assert_eq!(sim.primary(), None, "{sim}");
    });
    let before = sim.rows().1;
    sim.end_all();
    healthy(&mut sim);
    // Whoever leads now, it has all of it.
    assert_eq!(sim.rows().1, before, "{sim}");
}

#[test]
pub(super) fn f27_a_copy_that_is_half_made_or_was_never_begun_is_not_promoted() {
    for moment in 0..16 {
        let mut sim = Sim::new(["a", "b"], 3);
        sim.run_until("a primary", 10, |sim| sim.primary().is_some());
        let primary = sim.primary().unwrap();
        run(&mut sim, 0.08 * f64::from(moment));
        let copying = !sim.is_healthy();
        sim.begin(Fault::KillNode(primary));
        run(&mut sim, 30.0);
        let copy = another(&sim, primary);
        let whole = sim.answers_queries(copy);
        assert!(whole || sim.primary().is_none(), "{sim}");
        assert!(copying || whole, "{sim}");
        sim.end(Fault::KillNode(primary));
        healthy(&mut sim);
        assert!(whole || sim.primary() == Some(primary), "{sim}");
    }
}

#[test]
pub(super) fn f28_a_wiped_store_makes_no_second_writer_and_comes_back() {
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
pub(super) fn f28_an_agent_with_data_takes_no_wiped_store_for_a_new_cluster() {
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

#[test]
pub(super) fn f28_whatever_documents_are_deleted_the_primary_stays() {
    let settled = three(10);
    let primary = settled.primary().unwrap();
    for which in 0..512 {
        for leader_too in [false, true] {
            let mut sim = settled.clone();
            sim.begin(Fault::WipeSome(which));
            if leader_too {
                sim.begin(Fault::DeleteLeader);
            }
            watch(&mut sim, 4, |sim| {
                assert_eq!(sim.primary(), Some(primary), "{which:b}\n{sim}");
            });
        }
    }
}

#[test]
pub(super) fn f29_no_signal_that_is_wrong_alone_triggers_a_failover() {
    let settled = three(10);
    let primary = settled.primary().unwrap();
    let signals = [
        (Fault::KillAgent(primary), 5000),
        (Fault::PauseAgent(primary), 5000),
        (Fault::FreezeGuard(primary), 900),
        (Fault::BreakFence(primary), 60_000),
        (Fault::HideData(primary), 19_000),
        (Fault::CrashServer(primary), 0),
        (Fault::CutFromStore(primary), 60_000),
        (Fault::DeafToStore(primary), 60_000),
        (Fault::Scatter, 60_000),
        (Fault::StopStore, 60_000),
        (Fault::DeleteLeader, 0),
        (Fault::KillNode(another(&settled, primary)), 60_000),
    ];
    for (signal, lasts_ms) in signals {
        let mut sim = settled.clone();
        sim.strike(signal, lasts_ms);
        run(&mut sim, 90.0);
        assert_eq!(sim.promotions(), settled.promotions(), "{signal:?}\n{sim}");
        assert_eq!(sim.primary(), Some(primary), "{signal:?}\n{sim}");
        healthy(&mut sim);
    }
}

#[test]
pub(super) fn f30_nodes_that_live_by_different_settings_have_one_writer() {
    let cuts: [fn(usize) -> Fault; 3] = [Fault::CutOff, Fault::CutFromStore, Fault::DeafToStore];
    for (before, after) in [(3, 30), (30, 3)] {
        for (moment, cut) in (0..12).flat_map(|moment| cuts.map(|cut| (moment, cut))) {
            let config = json!({ "ttl": before, "failsafe_mode": false });
            let mut sim = settled(config, &NAMES);
            let primary = sim.primary().unwrap();
            let behind = another(&sim, primary);
            // One of them does not learn of the new settings before the primary is lost, and for
            // the primary they may come at any moment of that.
            sim.begin(Fault::CutFromStore(behind));
            let settings = json!({ "ttl": after, "of_a_later_version": { "n": 1 } });
            set(&mut sim, settings);
            run(&mut sim, 0.001 * f64::from(1 << moment));
            sim.begin(cut(primary));
            run(&mut sim, 0.5);
            sim.begin(Fault::CutOff(primary));
            sim.end(Fault::CutFromStore(behind));
            sim.run_until("a successor", 70, |sim| {
                sim.primary().is_some_and(|now| now != primary)
            });
            run(&mut sim, 5.0);
            sim.end_all();
            healthy(&mut sim);
            let now = sim.store_time();
            let config = sim.store().snapshot(now).documents[&Key::Config].clone();
            let text = String::from_utf8_lossy(&config.value).into_owned();
            assert!(text.contains(r#""of_a_later_version":{"n":1}"#), "{text}");
        }
    }
}
