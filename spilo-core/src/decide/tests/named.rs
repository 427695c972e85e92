//! What broke elsewhere, as decisions; the names are those of the catalogue of failure modes.

use serde_json::json;

use super::super::{Action, Rule};
use super::*;
use crate::cluster::HistoryEntry;
use crate::history::Ancestor;
use crate::machine::facts::{HandedOver, Outage};
use crate::machine::lease::Proof;
use crate::machine::{Exit, Ticket};
use crate::pg::{PgOpKind, StartRole};

fn rule(node: Node) -> Rule {
    node.decide().rule
}

#[test]
fn f4_a_holder_whose_disk_hangs_starts_nothing_and_others_do_not_defer_to_it() {
    let blind = node().holder().with(|f| {
        f.settled = Ticket(1);
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
fn f31_a_race_asks_for_the_fork_and_not_for_the_number_of_a_timeline() {
    let line = |ends: &[(u32, u64)], timeline: u32| {
        let ancestors = ends.iter().map(|(timeline, end)| Ancestor {
            timeline: Timeline(*timeline),
            end: Lsn(*end),
        });
        History::new(Timeline(timeline), ancestors.collect()).unwrap()
    };
    let on = |timeline: Timeline, own: Option<History>, fork: (u32, u64)| {
        let node = node().with(|f| {
            f.own_history = own;
            match &mut f.pg.as_mut().unwrap().value.server {
                Server::Running(running) => running.timeline = timeline,
                other => panic!("{other:?} does not run"),
            }
        });
        node.cluster(|c| {
            c.history = Some(vec![HistoryEntry {
                timeline: Timeline(fork.0),
                end: Lsn(fork.1),
                reason: String::new(),
                at: None,
                new_leader: None,
            }]);
        })
    };
    let racer = |own: History, fork| rule(on(own.timeline(), Some(own), fork));
    // The archive had the histories of 4 and 5, of which nothing came.
    let gap = || line(&[(1, 100), (3, 300)], 6);
    assert_eq!(racer(gap(), (3, 300)), Rule::Acquire);
    assert_eq!(racer(gap(), (3, 301)), Rule::TimelineBehind);
    // The leader was promoted again, and could not write that yet.
    assert_eq!(racer(gap(), (1, 100)), Rule::Acquire);
    assert_eq!(racer(line(&[(1, 100)], 3), (3, 300)), Rule::TimelineBehind);
    // Somebody else began the same number, and the cluster went on there.
    assert_eq!(racer(line(&[(1, 100)], 2), (1, 101)), Rule::TimelineBehind);
    assert_eq!(racer(line(&[(1, 101)], 2), (1, 101)), Rule::Acquire);
    // Without the file the number has to do, once it is known that there is none to read.
    let unread = |timeline| on(Timeline(timeline), None, (1, 101));
    assert_eq!(unread(2).decide().action, Action::ReadHistory(None));
    let failed = |f: &mut Facts| f.lanes.history_failed = Some(NOW);
    assert_eq!(rule(unread(2).with(failed)), Rule::Acquire);
    assert_eq!(rule(unread(3).with(failed)), Rule::TimelineBehind);
}

#[test]
fn f26_a_peer_that_is_ahead_and_says_that_it_may_not_lead_is_not_waited_for_for_ever() {
    let racer = |barred: bool, gone: u64| {
        let peer = PeerStatus {
            barred,
            ..peer_at(1001)
        };
        rule(node().peer(Some(peer)).with(|f| {
            f.predecessor.as_mut().unwrap().gone = Some(NodeTime(gone));
        }))
    };
    // It has a ttl to find a way.
    assert_eq!(racer(true, 95_000), Rule::PeerAhead);
    assert_eq!(racer(true, 89_000), Rule::Acquire);
    assert_eq!(racer(false, 89_000), Rule::PeerAhead);
    // Nor where more would be lost by that than may be, or nobody knows how much.
    let asked = |peer: PeerStatus| {
        let peer = PeerStatus {
            barred: true,
            ..peer
        };
        let node = node().peer(Some(peer));
        rule(node.with(|f| f.predecessor.as_mut().unwrap().gone = Some(NodeTime(80_000))))
    };
    assert_eq!(asked(peer_at(1000 + 1_048_576)), Rule::Acquire);
    assert_eq!(asked(peer_at(1000 + 1_048_577)), Rule::PeerAhead);
    let on_another = PeerStatus {
        timeline: Some(Timeline(2)),
        ..peer_at(900)
    };
    assert_eq!(asked(on_another.clone()), Rule::PeerAhead);
    // But what is off the branch of the store is lost already.
    let off_branch = PeerStatus {
        off_branch: true,
        ..on_another
    };
    assert_eq!(asked(off_branch), Rule::Acquire);
}

/// A holder whose primary crashed.
fn down() -> Node {
    node().down(false, ControlState::InProduction).holder()
}

/// It takes no writes since then, and was started so often.
fn outage(since: u64, starts: u32) -> impl FnOnce(&mut Facts) + Clone {
    let outage = Outage {
        since: NodeTime(since),
        starts,
        back: None,
    };
    move |f| f.outage = Some(outage)
}

/// It is waited for so long.
fn minute(f: &mut Facts) {
    Arc::make_mut(&mut f.config).primary_start_timeout = Duration::from_secs(60);
}

#[test]
fn a_holder_whose_server_does_not_stay_up_leaves_the_lock_to_others() {
    for (change, alone, others) in [
        (outage(90_000, 2), Rule::StartInPlace, Rule::StartInPlace),
        (
            outage(90_000, 3),
            Rule::StartInPlace,
            Rule::ReleaseUnstartable,
        ),
        (
            outage(39_999, 1),
            Rule::StartInPlace,
            Rule::ReleaseUnstartable,
        ),
    ] {
        assert_eq!(rule(down().with(minute).with(change.clone())), alone);
        let with_b = down().member("b", |_| {}).with(minute).with(change);
        assert_eq!(rule(with_b), others);
    }
}

#[test]
fn a_holder_whose_server_takes_too_long_leaves_the_lock_to_others() {
    // At once, where that is wanted.
    let at_once = |f: &mut Facts| {
        Arc::make_mut(&mut f.config).primary_start_timeout = Duration::ZERO;
    };
    let with_b = || down().member("b", |_| {});
    let down_now = with_b().with(at_once).with(outage(NOW.0, 0));
    assert_eq!(rule(down_now), Rule::ReleaseUnstartable);
    // A recovery that takes too long, under an operation or not.
    let data = DataDir::Ready(control(false, ControlState::InCrashRecovery));
    let recovering = || {
        let busy = Server::Busy {
            saying: "the database system is starting up".to_owned(),
            guarded: true,
        };
        with_b().pg(data.clone(), busy).with(outage(0, 1))
    };
    let start = PgOp::Start {
        role: StartRole::Primary,
    };
    assert_eq!(rule(recovering()), Rule::AwaitServer);
    assert_eq!(rule(recovering().with(minute)), Rule::FenceHung);
    assert_eq!(rule(recovering().op(start.clone())), Rule::Operating);
    let decision = recovering().with(minute).op(start).decide();
    assert_eq!(decision.action, Action::CancelAndFence);
    // Who does not let the agent in may serve everybody else.
    let closed = Server::Closed {
        saying: "password authentication failed".to_owned(),
        guarded: true,
    };
    let closed = || with_b().pg(data.clone(), closed.clone()).with(minute);
    assert_eq!(rule(closed()), Rule::AwaitServer);
    // One that was just started serves nobody yet.
    assert_eq!(rule(closed().with(outage(0, 1))), Rule::FenceHung);
    // Nor does a standby, whatever the lock is; without a lock it serves as one.
    let standby = || {
        let busy = Server::Busy {
            saying: "the database system is starting up".to_owned(),
            guarded: true,
        };
        let data = DataDir::Ready(control(true, ControlState::InArchiveRecovery));
        with_b().pg(data, busy).with(minute).with(outage(0, 0))
    };
    assert_eq!(rule(standby()), Rule::FenceHung);
    let recovered = || node().down(true, ControlState::InArchiveRecovery).holder();
    let recovered = recovered().member("b", |_| {}).with(minute);
    assert_eq!(rule(recovered.clone()), Rule::StartHolder);
    assert_eq!(rule(recovered.with(outage(0, 0))), Rule::ReleaseUnstartable);
}

#[test]
fn an_outage_is_over_once_the_server_has_served_for_a_while() {
    let at = |seconds: u64| NodeTime(1000 * seconds);
    let mut outage = Outage::new(at(100));
    outage.starts = 2;
    let back = outage.over(at(101)).unwrap();
    // Down again before that: it began just now, and the starts count.
    let again = back.clone().on(at(110));
    assert_eq!((again.since, again.starts, again.back), (at(110), 2, None));
    assert_eq!(back.clone().over(at(130)), Some(back.clone()));
    assert_eq!(back.clone().over(at(131)), None);
    // Nobody can look at it: it is over, unless the server was started in it and took no write yet.
    let started = Outage { back: None, ..back };
    assert_eq!(started.clone().unseen(), Some(started));
    for outage in [back, Outage::new(at(1))] {
        assert_eq!(outage.unseen(), None);
    }
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

#[test]
fn a_switchovers_candidate_loses_no_more_than_any_other() {
    let asked = |leader: Option<&str>| {
        let asked = failover(leader, Some("a"));
        node().cluster(|c| c.failover = Some(asked))
    };
    // The leader was lost before it had handed over.
    let far_behind = |node: Node| node.cluster(|c| c.status = Some(optime(2_000_000)));
    assert_eq!(rule(far_behind(asked(Some("c")))), Rule::TooFarBehind);
    assert_eq!(rule(far_behind(asked(None))), Rule::Acquire);
    let passed = |node: Node| node.peer(Some(peer_at(1001)));
    assert_eq!(rule(passed(asked(Some("c")))), Rule::PeerAhead);
    assert_eq!(rule(passed(asked(None))), Rule::Acquire);
}

#[test]
fn a_release_names_the_candidate_only_if_it_has_everything() {
    let stops_amid_a_switchover = |lsn: u64| {
        let node = node().down(false, ControlState::ShutDown).holder();
        let node = node.peer(Some(peer_at(lsn))).with(|f| {
            f.shutdown = true;
            f.handed_over = Some(HandedOver {
                candidate: Some(name("b")),
                at: NodeTime(NOW.0 - 1000),
            });
        });
        let action = node.decide().action;
        let Action::Lease(LeaseRequest::Release(_, record)) = action else {
            panic!("{action:?}");
        };
        String::from_utf8(record.to_vec()).unwrap()
    };
    assert!(stops_amid_a_switchover(1000).contains(r#""candidate":"b""#));
    assert!(!stops_amid_a_switchover(999).contains(r#""b""#));
}

#[test]
fn f4_an_agent_that_is_to_stop_ends_though_it_cannot_see_its_server() {
    let stopping = |failing_ms: u64, fenced: Option<u64>| {
        let node = node().with(|f| {
            f.shutdown = true;
            f.pg_failing = Some((NodeTime(NOW.0 - failing_ms), "the disk hangs".to_owned()));
            f.settled = Ticket(1);
            f.fenced_at = fenced.map(NodeTime);
        });
        node.decide()
    };
    // A stop that hangs with the disk is not waited for either.
    let in_stop = |failing_ms: u64| {
        let node = node().op(PgOp::Stop).with(|f| {
            f.shutdown = true;
            f.pg_failing = Some((NodeTime(NOW.0 - failing_ms), "the disk hangs".to_owned()));
        });
        node.decide().rule
    };
    assert_eq!(in_stop(19_999), Rule::Operating);
    assert_eq!(in_stop(20_000), Rule::FenceBlind);
    assert_eq!(stopping(19_999, None).rule, Rule::Looking);
    assert_eq!(stopping(20_000, None).rule, Rule::FenceBlind);
    assert_eq!(stopping(20_000, Some(79_999)).rule, Rule::FenceBlind);
    let ended = stopping(20_000, Some(80_000));
    assert_eq!(ended.action, Action::Exit(Exit::Stopped));
}

#[test]
fn a_switchovers_candidate_that_has_not_everything_leaves_the_lock_to_others() {
    let outrun = |free_ms: u64, leader: Option<&str>| {
        let node = node().peer(Some(peer_at(1001)));
        let node = node.cluster(|c| c.failover = Some(failover(leader, Some("a"))));
        let gone = NodeTime(NOW.0 - free_ms);
        node.with(|f| f.predecessor.as_mut().unwrap().gone = Some(gone))
            .decide()
    };
    assert_eq!(outrun(9999, Some("c")).rule, Rule::PeerAhead);
    let given_up = outrun(10_000, Some("c"));
    assert_eq!(given_up.rule, Rule::SwitchoverRefused);
    assert!(matches!(given_up.action, Action::ClearFailover(_)));
    assert_eq!(outrun(10_000, None).rule, Rule::Acquire);
}

#[test]
fn a_configuration_that_was_never_read_is_not_taken_for_none() {
    let unread = |known: bool| {
        let node = node().cluster(|c| {
            c.malformed.push(crate::cluster::Malformed {
                path: "config".to_owned(),
                problem: "is no JSON".to_owned(),
            });
            c.config = known.then(|| ConfigDocument {
                config: Arc::new(config(json!({"ttl": 10}))),
                revision: Revision(5),
            });
        });
        rule(node)
    };
    assert_eq!(unread(false), Rule::Unsupported);
    // The last good one goes on.
    assert_eq!(unread(true), Rule::Acquire);
}
