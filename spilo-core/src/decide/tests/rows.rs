//! The rows.

mod bootstrap;
mod free;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::super::{Action, Rule};
use super::*;
use crate::dcs::Expect;
use crate::guard::GuardErrorKind;
use crate::machine::facts::HandedOver;
use crate::machine::lease::Promise;
use crate::machine::{Exit, Failure, Ticket};
use crate::peer::PeerStatus;
use crate::pg::{PgOpKind, StartRole, Walsender};

type Row = (Rule, Action, Node);

fn wait(rule: Rule, node: Node) -> Row {
    (rule, Action::Wait, node)
}

fn run(rule: Rule, op: PgOp, node: Node) -> Row {
    (rule, Action::Run(op), node)
}

fn exit(rule: Rule, exit: Exit, node: Node) -> Row {
    (rule, Action::Exit(exit), node)
}

fn alone() -> PgOp {
    PgOp::Start {
        role: StartRole::Standby { upstream: None },
    }
}

fn in_place() -> PgOp {
    PgOp::Start {
        role: StartRole::Primary,
    }
}

fn promised(facts: &mut Facts) {
    facts.promise = Some(Promise {
        to: name("b"),
        until: NodeTime(105_000),
    });
}

/// A holder whose disk has hung for longer than anybody waits.
fn blind() -> Node {
    let failing = (NodeTime(50_000), "the disk hangs".to_owned());
    node().member("b", |_| {}).holder().with(|f| {
        f.pg_failing = Some(failing);
        f.electorate.insert(name("b"), "http://b".to_owned());
    })
}

fn handed_over(ago: u64) -> impl FnOnce(&mut Facts) {
    move |facts| {
        facts.handed_over = Some(HandedOver {
            candidate: Some(name("b")),
            at: NodeTime(NOW.0 - ago),
        });
    }
}

fn follower(name: &str) -> Walsender {
    Walsender {
        user: "replicator".to_owned(),
        application: name.to_owned(),
        client: None,
        state: "streaming".to_owned(),
        sync_state: "async".to_owned(),
        sync_priority: 0,
        flushed: None,
    }
}

fn edit(node: Node, change: impl FnOnce(&mut Running)) -> Node {
    node.with(|facts| {
        let seen = facts.pg.as_mut().unwrap();
        match &mut seen.value.server {
            Server::Running(running) => change(running),
            other => panic!("{other:?} does not run"),
        }
    })
}

fn other_branch() -> History {
    History::root(Timeline(1)).promoted(Timeline(2), Lsn(900))
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn safety() -> Vec<Row> {
    let foreign = SystemId(7_000_000_000_000_000_002);
    let gone = |kind| {
        move |f: &mut Facts| {
            f.guard_failing = Some((NodeTime(98_000), Failure::new(kind, "no answer")));
        }
    };
    let unreadable = DataDir::Unreadable {
        problem: "it is version 9".to_owned(),
    };
    let text = "the data directory cannot be used: it is version 9; nothing was touched";
    let foreign_text = format!(
        "the data directory is of another cluster: its system identifier is {ID}, that of demo in \
         the store is {foreign}; nothing was touched. Point the node at another data directory, \
         or move this one away to have it copied anew"
    );
    vec![
        (
            Rule::WriterWithoutPermission,
            Action::Fence,
            node().primary(),
        ),
        (
            Rule::WriterWithoutPermission,
            Action::Fence,
            node().primary().led_by_b(),
        ),
        (
            Rule::WriterWithoutPermission,
            Action::CancelAndFence,
            node().primary().op(PgOp::Checkpoint),
        ),
        (
            Rule::OperationWithoutPermission,
            Action::CancelAndFence,
            node().op(PgOp::Promote),
        ),
        (
            Rule::OperationWithoutPermission,
            Action::Cancel,
            node().op(PgOp::Promote).with(|f| f.fencing = Some(NOW)),
        ),
        (
            Rule::GuardSilent,
            Action::Fence,
            node().primary().holder().with(gone(GuardErrorKind::Silent)),
        ),
        wait(
            Rule::Fencing,
            node().with(|f| f.fencing = Some(NodeTime(99_990))),
        ),
        exit(
            Rule::ForeignCluster,
            Exit::Fatal(foreign_text),
            node().cluster(|c| c.initialize = Initialize::Known(foreign)),
        ),
        exit(
            Rule::DataUnreadable,
            Exit::Fatal(text.to_owned()),
            node().pg(unreadable, Server::Down),
        ),
        exit(
            Rule::Detach,
            Exit::Detached,
            node().with(|f| f.detach = Some(NOW)),
        ),
        wait(
            Rule::Detach,
            node().primary().holder().with(|f| f.detach = Some(NOW)),
        ),
        exit(
            Rule::Stopped,
            Exit::Stopped,
            node()
                .down(true, ControlState::ShutDownInRecovery)
                .with(|f| f.shutdown = true),
        ),
        (
            Rule::StopOperation,
            Action::Cancel,
            node().op(PgOp::Checkpoint).with(|f| f.shutdown = true),
        ),
        wait(Rule::Operating, node().op(PgOp::Stop)),
        // An operation keeps nobody at a server that answers no one.
        (
            Rule::FenceBlind,
            Action::CancelAndFence,
            blind().op(PgOp::Checkpoint),
        ),
        (
            Rule::FenceHung,
            Action::CancelAndFence,
            hung()
                .holder()
                .op(PgOp::HandOver { candidate: None })
                .with(|f| f.server_since = NodeTime(90_000)),
        ),
        wait(Rule::Operating, hung().holder().op(PgOp::Checkpoint)),
        (Rule::FenceBlind, Action::Fence, blind()),
        (
            Rule::ReleaseBlind,
            released(20, None),
            blind().with(|f| f.fenced_at = Some(NodeTime(60_000))),
        ),
        wait(Rule::Looking, node().with(|f| f.settled = Ticket(1))),
        wait(Rule::GuardUnknown, node().with(|f| f.guard = None)),
        wait(Rule::GuardUnknown, node().with(gone(GuardErrorKind::Gone))),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn handing_over() -> Vec<Row> {
    let stopping = |f: &mut Facts| f.shutdown = true;
    let stopped = || node().down(false, ControlState::ShutDown).holder();
    let level = |lsn| {
        move |f: &mut Facts| {
            f.electorate = others(&["b"]);
            let seen = Seen {
                at: NOW,
                value: Some(peer_at(lsn)),
            };
            f.peers.insert(name("b"), seen);
        }
    };
    let led = edit(node().primary(), |r| r.walsenders.push(follower("b"))).holder();
    let unguarded = edit(node(), |r| r.guarded = false);
    let there = Some((Timeline(1), Lsn(1000)));
    let succeed = LeaseRequest::Succeed(kept(20, 105_000, 106_000).secret, Duration::from_secs(10));
    vec![
        run(
            Rule::StopHandOver,
            PgOp::HandOver { candidate: None },
            led.with(stopping).with(|f| f.electorate = others(&["b"])),
        ),
        run(Rule::StopServer, PgOp::Stop, node().with(stopping)),
        run(
            Rule::StopServer,
            PgOp::Stop,
            node().primary().holder().with(stopping),
        ),
        wait(
            Rule::Unguarded,
            unguarded.clone().failed(PgOpKind::Stop, 1, 999),
        ),
        run(
            Rule::Unguarded,
            PgOp::Stop,
            unguarded.failed(PgOpKind::Stop, 1, 1000),
        ),
        (
            Rule::ReleaseHandedOver,
            released(20, there),
            stopped().with(stopping),
        ),
        (
            Rule::ReleaseHandedOver,
            released_for_b(),
            stopped().with(handed_over(0)).with(level(1000)),
        ),
        (
            Rule::ReleaseHandedOver,
            released(20, None),
            node().holder().with(|f| f.released = Some(Epoch(20))),
        ),
        (
            Rule::AwaitHandOver,
            Action::AskPeers,
            stopped().with(handed_over(500)).with(level(999)),
        ),
        run(
            Rule::HandOverFailed,
            in_place(),
            stopped().with(handed_over(2000)).with(level(999)),
        ),
        wait(Rule::StoreUnknown, node().with(|f| f.cluster = None)),
        (
            Rule::Succeed,
            Action::Lease(succeed),
            node().primary().leader("a", 20).with(|f| {
                f.armed = Some(kept(20, 105_000, 106_000));
                f.guard.as_mut().unwrap().value.deadline = Some(kept(20, 105_000, 106_000));
            }),
        ),
    ]
}

fn released_for_b() -> Action {
    let record = ReleaseDocument {
        epoch: Epoch(20),
        name: "a".to_owned(),
        ttl: Some(Duration::from_secs(10)),
        taken: false,
        position: Some((Timeline(1), Lsn(1000))),
        candidate: Some("b".to_owned()),
        revision: Revision(0),
    };
    Action::Lease(LeaseRequest::Release(lease(20), record.to_bytes()))
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn holding() -> Vec<Row> {
    let lead = || node().primary().holder();
    let asked = |leader, candidate| {
        lead()
            .cluster(|c| c.failover = Some(failover(leader, candidate)))
            .member("b", |_| {})
    };
    let refused = Action::ClearFailover(Expect::Revision(Revision(7)));
    let waiting = |seconds| PeerStatus {
        waits: Duration::from_secs(seconds),
        ..peer_at(1000)
    };
    let b = Some(name("b"));
    let provisional = |f: &mut Facts| {
        if let DataDir::Ready(control) = &mut f.pg.as_mut().unwrap().value.data {
            control.provisional = true;
        }
    };
    let configure = PgOp::Configure {
        revision: Revision(6),
        config: Arc::new(seed()),
    };
    let slots = PgOp::Slots {
        wanted: BTreeSet::from([name("b").slot()]),
    };
    let without_slots = |f: &mut Facts| {
        f.config = Arc::new(config(json!({"postgresql": {"use_slots": false}})));
        f.slot_seen.insert(name("b").slot(), NOW);
        if let Server::Running(running) = &mut f.pg.as_mut().unwrap().value.server {
            let theirs = name("of_somebody_else").slot();
            running.slots = vec![(name("b").slot(), None), (theirs, None)];
        }
    };
    let theirs = PgOp::Slots {
        wanted: BTreeSet::from([name("of_somebody_else").slot()]),
    };
    let store_fails = |f: &mut Facts| f.store_failing = Some((NOW, "no answer".to_owned()));
    let long_silent = |f: &mut Facts| {
        f.peers.get_mut(&name("b")).unwrap().at = NodeTime(NOW.0 - 2100);
    };
    let unseen = |f: &mut Facts| {
        f.holding.as_mut().unwrap().clear = Some(NodeTime(104_000));
    };
    vec![
        (
            Rule::PromisedHolder,
            released(20, None),
            node().holder().with(promised),
        ),
        run(
            Rule::ConfirmBootstrap,
            PgOp::Confirm,
            lead().with(provisional),
        ),
        (
            Rule::SwitchoverRefused,
            refused.clone(),
            asked(Some("c"), None),
        ),
        (
            Rule::SwitchoverRefused,
            refused.clone(),
            asked(Some("a"), Some("c")),
        ),
        (
            Rule::SwitchoverRefused,
            refused.clone(),
            asked(Some("a"), Some("a")),
        ),
        (
            Rule::SwitchoverAsk,
            Action::AskPeers,
            asked(Some("a"), Some("b")),
        ),
        wait(
            Rule::SwitchoverWait,
            asked(Some("a"), Some("b")).peer(Some(waiting(4))),
        ),
        wait(
            Rule::SwitchoverWait,
            asked(Some("a"), Some("b"))
                .peer(Some(peer_at(1000)))
                .with(store_fails),
        ),
        (
            Rule::SwitchoverRefused,
            refused.clone(),
            asked(Some("a"), Some("b")).peer(None).with(long_silent),
        ),
        (
            Rule::SwitchoverRefused,
            refused,
            asked(Some("a"), Some("b")).peer(Some(waiting(21))),
        ),
        run(
            Rule::Switchover,
            PgOp::HandOver { candidate: b },
            asked(Some("a"), Some("b")).peer(Some(peer_at(1000))),
        ),
        run(
            Rule::Configure,
            configure,
            lead().cluster(|c| c.config = Some(document(6))),
        ),
        run(
            Rule::Slots,
            slots,
            lead().with(|f| {
                f.slot_seen.insert(name("b").slot(), NOW);
            }),
        ),
        run(Rule::Slots, theirs, lead().with(without_slots)),
        run(
            Rule::Checkpoint,
            PgOp::Checkpoint,
            lead().with(|f| f.checkpoint_pending = true),
        ),
        wait(Rule::Lead, lead()),
        wait(Rule::PermissionShort, node().holder_since(NodeTime(92_000))),
        wait(Rule::PredecessorMayWrite, node().holder().with(unseen)),
        wait(Rule::AwaitGuard, node().holder().with(|f| f.armed = None)),
        run(Rule::Promote, PgOp::Promote, node().holder()),
        run(
            Rule::ReleaseUnpromotable,
            PgOp::Stop,
            node().holder().failed(PgOpKind::Promote, 3, 5000),
        ),
        (
            Rule::ReleaseUnpromotable,
            released(20, None),
            node()
                .down(true, ControlState::ShutDownInRecovery)
                .holder()
                .failed(PgOpKind::Promote, 3, 5000),
        ),
        run(
            Rule::StartInPlace,
            in_place(),
            node().down(false, ControlState::InProduction).holder(),
        ),
        (
            Rule::ReleaseUnstartable,
            released(20, None),
            node()
                .down(false, ControlState::InProduction)
                .holder()
                .member("b", |_| {})
                .failed(PgOpKind::Start, 3, 5000),
        ),
        // Its record would take the place of that of a holder whom nobody has seen.
        wait(
            Rule::ReleaseUnstartable,
            node()
                .down(false, ControlState::InProduction)
                .holder()
                .member("b", |_| {})
                .failed(PgOpKind::Start, 3, 5000)
                .with(|f| f.holding.as_mut().expect("it holds").clear = Some(NodeTime(105_000))),
        ),
        run(
            Rule::StartHolder,
            alone(),
            node().down(true, ControlState::InArchiveRecovery).holder(),
        ),
        wait(Rule::AwaitServer, hung().holder()),
        (
            Rule::FenceHung,
            Action::Fence,
            hung().holder().with(|f| f.server_since = NodeTime(90_000)),
        ),
    ]
}

fn hung() -> Node {
    let data = DataDir::Ready(control(true, ControlState::InArchiveRecovery));
    node()
        .pg(data, Server::Hung { guarded: true })
        .with(|f| f.server_since = NodeTime(99_000))
}

fn all() -> Vec<Row> {
    [
        safety(),
        handing_over(),
        bootstrap::rows(),
        holding(),
        free::following(),
        free::race(),
    ]
    .concat()
}

#[test]
fn each_row_decides_what_it_says() {
    for (n, (rule, action, node)) in all().into_iter().enumerate() {
        let decision = node.decide();
        assert_eq!(
            (decision.rule, &decision.action),
            (rule, &action),
            "row {n}: {}",
            decision.why
        );
        assert!(!decision.why.is_empty(), "row {n}, {rule}, says why");
    }
}

#[test]
fn every_rule_has_a_row() {
    let seen: BTreeSet<Rule> = all().into_iter().map(|(rule, _, _)| rule).collect();
    let missing: Vec<Rule> = Rule::ALL
        .iter()
        .copied()
        .filter(|r| !seen.contains(r))
        .collect();
    assert_eq!(missing, []);
}
