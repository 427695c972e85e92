//! The rows of a node that does not hold the lock.

use super::*;

#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn following() -> Vec<Row> {
    let crashed = || node().down(false, ControlState::InProduction).led_by_b();
    let stopped = || {
        node()
            .down(true, ControlState::ShutDownInRecovery)
            .led_by_b()
    };
    let follow = |streaming| {
        node()
            .standby_of(1000, Some(("10.0.0.2", 5432)), streaming)
            .led_by_b()
    };
    let ask = Action::ReadHistory(Some(upstream_b()));
    let same = History::root(Timeline(1));
    let reclone = PgOp::Clone {
        from: upstream_b(),
        replace: Some(ID),
    };
    let start = PgOp::Start {
        role: StartRole::Standby {
            upstream: Some(upstream_b()),
        },
    };
    let to_b = PgOp::Follow {
        upstream: Some(upstream_b()),
    };
    let careful = |node: Node| {
        node.with(|f| {
            f.config = Arc::new(config(json!({"postgresql": {
                "remove_data_directory_on_rewind_failure": false, "use_pg_rewind": false
            }})));
        })
    };
    let rewind = PgOp::Rewind { from: upstream_b() };
    let half = || node().pg(DataDir::Unfinished(PgOpKind::Rewind), Server::Down);
    let failed = |node: Node, times, kind| {
        node.failed(PgOpKind::Rewind, times, 20_000).with(|f| {
            f.failures.get_mut(&PgOpKind::Rewind).unwrap().kind = kind;
        })
    };
    let hopeless = |node| failed(node, 1, PgErrorKind::CannotRewind);
    let keep = |remove: bool| {
        move |f: &mut Facts| {
            f.config = Arc::new(config(json!({"postgresql": {
                "remove_data_directory_on_rewind_failure": remove
            }})));
        }
    };
    let absent = |c: &mut Cluster| c.initialize = Initialize::Absent;
    vec![
        run(
            Rule::Rewind,
            rewind.clone(),
            crashed().history_of_b(other_branch()),
        ),
        run(
            Rule::Reclone,
            reclone.clone(),
            crashed().history_of_b(same.clone()),
        ),
        wait(Rule::Stuck, careful(crashed()).history_of_b(other_branch())),
        wait(
            Rule::AwaitSource,
            crashed().history_of_b(other_branch()).cluster(absent),
        ),
        wait(
            Rule::AwaitSource,
            crashed().history_of_b(same.clone()).cluster(absent),
        ),
        run(
            Rule::Rewind,
            rewind.clone(),
            half().led_by_b().with(keep(false)),
        ),
        wait(Rule::AwaitSource, half().leader("b", 20)),
        wait(
            Rule::AwaitSource,
            half().led_by_b().failed(PgOpKind::Rewind, 1, 500),
        ),
        // A network that is cut is no reason to throw anything away, however long it takes.
        run(
            Rule::Rewind,
            rewind.clone(),
            failed(half().led_by_b(), 100, PgErrorKind::Retry),
        ),
        run(
            Rule::Rewind,
            rewind,
            failed(half().led_by_b(), 2, PgErrorKind::Refused),
        ),
        run(
            Rule::Reclone,
            reclone.clone(),
            hopeless(half().led_by_b()).with(keep(true)),
        ),
        wait(Rule::Stuck, hopeless(half().led_by_b()).with(keep(false))),
        run(
            Rule::Reclone,
            reclone,
            failed(half().led_by_b(), 3, PgErrorKind::Refused),
        ),
        wait(Rule::Stuck, careful(half().led_by_b())),
        run(
            Rule::StopDiverged,
            PgOp::Stop,
            node().led_by_b().history_of_b(other_branch()),
        ),
        (Rule::AwaitHistory, ask.clone(), crashed()),
        (Rule::AwaitHistory, ask, node().led_by_b()),
        wait(
            Rule::AwaitHistory,
            node()
                .leader("b", 20)
                .member("b", |m| m.state = "stopped".to_owned()),
        ),
        run(
            Rule::StartStandby,
            start.clone(),
            stopped().history_of_b(same.clone()),
        ),
        run(
            Rule::StartStandby,
            alone(),
            stopped().member("b", |m| m.state = "stopped".to_owned()),
        ),
        wait(
            Rule::StartFailed,
            stopped()
                .history_of_b(same.clone())
                .failed(PgOpKind::Start, 1, 500),
        ),
        // Whatever is allowed: that it does not start is no evidence against its data.
        wait(
            Rule::Stuck,
            stopped()
                .history_of_b(same.clone())
                .failed(PgOpKind::Start, 5, 4999),
        ),
        run(
            Rule::StartStandby,
            start.clone(),
            stopped()
                .history_of_b(same.clone())
                .failed(PgOpKind::Start, 5, 5000),
        ),
        wait(
            Rule::Stuck,
            stopped()
                .history_of_b(same.clone())
                .failed(PgOpKind::Start, 500, 9999),
        ),
        run(
            Rule::StartStandby,
            start,
            stopped()
                .history_of_b(same.clone())
                .failed(PgOpKind::Start, 500, 10_000),
        ),
        run(Rule::Follow, to_b, node().led_by_b().history_of_b(same)),
        wait(Rule::Following, follow(true)),
        wait(
            Rule::Connecting,
            follow(false).with(|f| f.not_streaming_since = Some(NOW)),
        ),
        wait(Rule::AwaitStandby, hung().led_by_b()),
        (
            Rule::FenceHungStandby,
            Action::Fence,
            hung().led_by_b().with(|f| f.server_since = NodeTime(1000)),
        ),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn race() -> Vec<Row> {
    let acquire = Action::Lease(LeaseRequest::Acquire(Duration::from_secs(10)));
    let unproven = |f: &mut Facts| f.predecessor.as_mut().unwrap().proof = None;
    let unsupported = |f: &mut Facts| f.config = Arc::new(config(json!({"pause": true})));
    let primary = |p: PeerStatus| Some(PeerStatus { primary: true, ..p });
    let no_config = |f: &mut Facts| {
        f.config = Arc::new(DynamicConfig::absent());
        Arc::make_mut(&mut f.cluster.as_mut().unwrap().value).config = None;
    };
    vec![
        wait(
            Rule::StoreSilent,
            node().with(|f| f.store_failing = Some((NOW, "no answer".to_owned()))),
        ),
        wait(
            Rule::Blind,
            node()
                .peer(Some(peer_at(1000)))
                .with(|f| f.pg_failing = Some((NodeTime(98_000), "the disk hangs".to_owned()))),
        ),
        wait(Rule::Unsettled, node().with(|f| f.unsettled = true)),
        wait(Rule::Unsupported, node().with(unsupported)),
        wait(Rule::Promised, node().with(promised)),
        wait(
            Rule::JustStarted,
            node().with(|f| f.started = NodeTime(95_000)),
        ),
        // A promise is as long as the lease of the one that it was given to.
        wait(
            Rule::JustStarted,
            node().with(|f| {
                f.started = NodeTime(85_000);
                let before = f.predecessor.as_mut().expect("there was a holder");
                before.ttl = Some(Duration::from_secs(30));
            }),
        ),
        wait(Rule::PredecessorMayWrite, node().with(unproven)),
        (
            Rule::TakeBack,
            acquire.clone(),
            node()
                .primary()
                .with(|f| f.armed = Some(kept(20, 105_000, 106_000))),
        ),
        run(
            Rule::StartToRace,
            alone(),
            node().down(false, ControlState::InProduction),
        ),
        wait(Rule::AwaitPosition, hung()),
        wait(
            Rule::NotInFailsafe,
            aged().cluster(|c| c.failsafe = Some(others(&["b"]))),
        ),
        wait(
            Rule::NotInFailsafe,
            aged().with(|f| f.failsafe = Some(others(&["b"]))),
        ),
        // Turning the mode off does not reach a primary that lives by the list.
        wait(
            Rule::NotInFailsafe,
            aged()
                .cluster(|c| c.failsafe = Some(others(&["b"])))
                .with(|f| Arc::make_mut(&mut f.config).failsafe_mode = false),
        ),
        // One that gave the lock up lives by nothing.
        (
            Rule::Acquire,
            acquire.clone(),
            node().cluster(|c| c.failsafe = Some(others(&["b"]))),
        ),
        // Another list may have been in its place, before the store lost it.
        wait(Rule::NotInFailsafe, list_lost(None)),
        wait(Rule::NotInFailsafe, list_lost(Some(Proof::Aged))),
        // The configuration was lost as well, and this node has not seen it.
        wait(Rule::NotInFailsafe, list_lost(None).with(no_config)),
        wait(
            Rule::JustStarted,
            list_lost(None)
                .with(no_config)
                .with(|f| f.started = NodeTime(95_000)),
        ),
        (
            Rule::Acquire,
            acquire.clone(),
            list_lost(Some(Proof::Vouched)),
        ),
        wait(
            Rule::TooFarBehind,
            node().cluster(|c| c.status = Some(optime(2_000_000))),
        ),
        wait(
            Rule::TimelineBehind,
            node().cluster(|c| {
                c.history = Some(vec![crate::cluster::HistoryEntry {
                    timeline: Timeline(1),
                    end: Lsn(900),
                    reason: String::new(),
                    at: None,
                    new_leader: None,
                }]);
            }),
        ),
        (
            Rule::AskPeers,
            Action::AskPeers,
            node().with(|f| f.electorate = others(&["b"])),
        ),
        wait(Rule::PeerIsPrimary, node().peer(primary(peer_at(1000)))),
        wait(Rule::PeerAhead, node().peer(Some(peer_at(1001)))),
        // One that is ahead and may not take the lock is waited for, but not for ever.
        wait(Rule::PeerAhead, ahead_and_unlisted(95_000)),
        // So is one on a later timeline that is too far behind to lead.
        wait(Rule::PeerAhead, on_a_later_timeline(960, 89_000)),
        wait(Rule::PeerAhead, on_a_later_timeline(949, 95_000)),
        (
            Rule::Acquire,
            acquire.clone(),
            on_a_later_timeline(949, 89_000),
        ),
        (Rule::Acquire, acquire.clone(), ahead_and_unlisted(89_000)),
        wait(
            Rule::AwaitCandidate,
            node()
                .peer(Some(peer_at(1000)))
                .cluster(|c| c.failover = Some(failover(None, Some("b")))),
        ),
        (Rule::Acquire, acquire.clone(), node()),
        (
            Rule::Acquire,
            acquire.clone(),
            node().peer(Some(peer_at(1000))),
        ),
        (Rule::Acquire, acquire, node().peer(None)),
    ]
}

/// The last lease is over, and its holder has said nothing.
fn aged() -> Node {
    node().with(|f| {
        let before = f.predecessor.as_mut().expect("there was a holder");
        before.proof = Some(Proof::Aged);
    })
}

/// The list that this node is in is not in the store any more, and the last lease is over.
fn list_lost(proof: Option<Proof>) -> Node {
    node().cluster(|c| c.failsafe = None).with(|f| {
        f.failsafe = Some(others(&["a", "b"]));
        f.started = NodeTime(10_000);
        let before = f.predecessor.as_mut().expect("there was a holder");
        before.gone = Some(NodeTime(20_000));
        before.proof = proof;
    })
}

/// `b` is ahead, and not in the list of the failsafe mode; the lock is free since `gone`.
fn on_a_later_timeline(lsn: u64, gone: u64) -> Node {
    let peer = PeerStatus {
        timeline: Some(Timeline(2)),
        ..peer_at(lsn)
    };
    node()
        .peer(Some(peer))
        .cluster(|c| c.status = Some(optime(1050)))
        .with(|f| {
            Arc::make_mut(&mut f.config).maximum_lag_on_failover_bytes = 100;
            let before = f.predecessor.as_mut().expect("there was a holder");
            before.gone = Some(NodeTime(gone));
        })
}

fn ahead_and_unlisted(gone: u64) -> Node {
    node()
        .peer(Some(peer_at(1001)))
        .cluster(|c| c.failsafe = Some(others(&["a"])))
        .with(|f| {
            let before = f.predecessor.as_mut().expect("there was a holder");
            before.gone = Some(NodeTime(gone));
        })
}
