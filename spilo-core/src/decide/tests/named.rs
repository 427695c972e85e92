//! What broke elsewhere, as decisions; the names are those of the catalogue of failure modes.

use serde_json::json;

use super::super::{Action, Rule};
use super::*;
use crate::machine::lease::Proof;
use crate::pg::{PgOpKind, StartRole};

fn rule(node: Node) -> Rule {
    node.decide().rule
}

#[test]
fn f4_a_holder_whose_disk_hangs_starts_nothing_and_others_do_not_defer_to_it() {
    let blind = node().holder().with(|f| {
        f.settled_at = NodeTime(NOW.0 + 1);
        f.pg_failing = Some((NodeTime(1000), "the disk hangs".to_owned()));
    });
    let starts_nothing = rule(blind);
    assert!(matches!(starts_nothing, Rule::Looking | Rule::FenceBlind));
    // It gives the lock up once its server is ended (rows of `FenceBlind` and `ReleaseBlind`), and
    // whoever asks it gets no answer.
    assert_eq!(rule(node().peer(None)), Rule::Acquire);
}

#[test]
fn f19_a_holder_without_its_store_comes_back_to_serve_reads() {
    let decision = node()
        .down(false, ControlState::ShutDown)
        .holder_since(NodeTime(80_000))
        .with(|f| f.store_failing = Some((NOW, "no answer".to_owned())))
        .decide();
    let role = StartRole::Standby { upstream: None };
    assert_eq!(decision.action, Action::Run(PgOp::Start { role }));
}

#[test]
fn f26_a_demoted_primary_that_is_ahead_goes_first_unless_it_may_not() {
    let ahead = peer_at(1001);
    assert_eq!(rule(node().peer(Some(ahead.clone()))), Rule::PeerAhead);
    let barred = PeerStatus {
        no_failover: true,
        ..ahead
    };
    assert_eq!(rule(node().peer(Some(barred))), Rule::Acquire);
}

#[test]
fn f27_neither_a_stale_nor_a_half_made_copy_is_promoted() {
    let stale = node().cluster(|c| c.status = Some(optime(1000 + 1_048_577)));
    assert_eq!(rule(stale), Rule::TooFarBehind);
    let level = node().cluster(|c| c.status = Some(optime(1000 + 1_048_576)));
    assert_eq!(rule(level), Rule::Acquire);
    for kind in [PgOpKind::Clone, PgOpKind::Rewind, PgOpKind::Bootstrap] {
        let half = node().pg(DataDir::Unfinished(kind), Server::Down);
        assert_eq!(rule(half.clone()), Rule::AwaitSource);
        assert_eq!(rule(half.holder()), Rule::ReleaseEmpty);
    }
}

#[test]
fn f28_a_node_with_data_takes_no_silent_store_for_a_new_cluster() {
    let silent = node().cluster(|c| *c = Cluster::default()).with(|f| {
        f.predecessor.as_mut().unwrap().proof = Some(Proof::NewCluster);
        f.predecessor.as_mut().unwrap().ttl = None;
    });
    assert_eq!(rule(silent), Rule::PredecessorMayWrite);
}

#[test]
fn f31_the_same_timeline_begun_twice_is_no_history_to_follow() {
    let two = |end| History::root(Timeline(1)).promoted(Timeline(2), Lsn(end));
    let on_two = |node: Node| {
        node.with(|f| match &mut f.pg.as_mut().unwrap().value.server {
            Server::Running(running) => running.timeline = Timeline(2),
            other => panic!("{other:?} does not run"),
        })
    };
    let standby = || on_two(node().standby(1000)).led_by_b();
    let own = |end: u64| move |f: &mut Facts| f.own_history = Some(two(end));
    assert_eq!(
        rule(standby().with(own(800)).history_of_b(two(800))),
        Rule::Follow
    );
    assert_eq!(
        rule(standby().with(own(900)).history_of_b(two(800))),
        Rule::StopDiverged
    );
    // It led the timeline that another leads: another branch, wherever both began.
    let led = standby().with(own(800)).with(|f| f.led = Some(Timeline(2)));
    assert_eq!(rule(led.history_of_b(two(800))), Rule::StopDiverged);
}

#[test]
fn f40_a_half_made_directory_is_made_anew_and_only_from_a_leader() {
    let half = || node().pg(DataDir::Unfinished(PgOpKind::Clone), Server::Down);
    assert_eq!(rule(half().led_by_b()), Rule::Clone);
    let absent = half().cluster(|c| c.initialize = Initialize::Absent);
    assert_eq!(rule(absent), Rule::AwaitSource);
    // Nothing is begun while something runs.
    assert_eq!(
        rule(half().led_by_b().op(PgOp::Checkpoint)),
        Rule::Operating
    );
}

#[test]
fn the_order_of_members_and_their_names_in_the_store_changes_nothing() {
    let asked = |names: &[&str]| {
        let mut node = node();
        for name in names {
            node = node.member(name, |_| {});
        }
        node.with(|f| f.config = Arc::new(config(json!({"ttl": 10}))))
            .decide()
    };
    assert_eq!(asked(&["b", "c", "d"]), asked(&["d", "c", "b"]));
}

#[test]
fn a_history_from_before_the_leader_was_promoted_again_is_not_believed() {
    // The leader kept its lease while the store was away, had to step down, and was promoted once
    // more in the same epoch; this standby is on the new timeline already.
    let standby = node().standby(1000).led_by_b().with(|f| {
        f.own_history = Some(History::root(Timeline(1)).promoted(Timeline(2), Lsn(900)));
        match &mut f.pg.as_mut().unwrap().value.server {
            Server::Running(running) => running.timeline = Timeline(2),
            other => panic!("{other:?} does not run"),
        }
    });
    let outdated = standby
        .history_of_b(History::root(Timeline(1)))
        .cluster(|c| c.members.get_mut(&name("b")).unwrap().timeline = Some(Timeline(2)));
    assert_eq!(rule(outdated), Rule::AwaitHistory);
}

#[test]
fn a_lock_whose_release_has_no_answer_is_released_whatever_the_data_are() {
    let whole = node().holder();
    let half = node()
        .pg(DataDir::Unfinished(PgOpKind::Bootstrap), Server::Down)
        .holder()
        .with(|f| f.claimed = Some(Epoch(20)));
    for node in [whole, half] {
        let asked = node.with(|f| f.released = Some(Epoch(20)));
        assert_eq!(rule(asked), Rule::ReleaseHandedOver);
    }
}

#[test]
fn a_standby_follows_a_new_leader_by_where_it_is_now() {
    let follows = |since: u64| {
        node()
            .led_by_b()
            .with(|f| f.leader_since = NodeTime(since))
            .decide()
            .rule
    };
    let looked_at = node().facts.pg.unwrap().at;
    assert_eq!(follows(looked_at.0 + 1), Rule::Looking);
    assert_ne!(follows(looked_at.0), Rule::Looking);
}
