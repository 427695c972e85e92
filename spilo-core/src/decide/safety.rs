//! What comes before everything else: no writer without permission, nothing done twice, nothing
//! decided on what is out of date.

use std::time::Duration;

use super::holding::{self, HUNG_PATIENCE};
use super::{Action, Decision, Rule, View};
use crate::cluster::{Initialize, ReleaseDocument};
use crate::dcs::Key;
use crate::guard::GuardErrorKind;
use crate::ids::MemberName;
use crate::machine::facts::HandedOver;
use crate::machine::lease::{Holding, deadline, is_as_good};
use crate::machine::{Exit, LeaseRequest};
use crate::mutant::{Mutant, planted};
use crate::pg::{ControlState, DataDir, PgOp, PgOpKind, Server, StartRole};
use crate::time::NodeTime;
use crate::wal::Lsn;

pub(super) fn decide(view: &View<'_>) -> Option<Decision> {
    permission(view)
        .or_else(|| fatal(view))
        .or_else(|| detach(view))
        .or_else(|| operation(view))
        .or_else(|| unknown(view))
        .or_else(|| shutdown(view))
        .or_else(|| unguarded(view))
        .or_else(|| handed_over(view))
        .or_else(|| store(view))
}

fn permission(view: &View<'_>) -> Option<Decision> {
    let facts = view.facts;
    if view.leadership().is_none() {
        let why = || permission_lost(view);
        let making = facts
            .op
            .as_ref()
            .filter(|running| running.op.makes_primary());
        if making.is_some() {
            let action = if facts.fencing.is_some() {
                Action::Cancel
            } else {
                Action::CancelAndFence
            };
            return Some(Decision::new(
                Rule::OperationWithoutPermission,
                action,
                why(),
            ));
        }
        // An unguarded server is dealt with below: it is stopped in peace if nobody else leads.
        let lone_stranger = !view.is_guarded() && !view.leader_is_other() && facts.op.is_none();
        let stopping = matches!(facts.op.as_ref().map(|o| &o.op), Some(PgOp::Stop));
        let leaving = stopping && !view.is_guarded() && !view.leader_is_other();
        // An agent that just started learns from the guard whether it keeps a permission. Until it
        // has answered, or did not, its deadline stands.
        let guard_heard = facts.guard.is_some() || facts.guard_failing.is_some();
        let stays = lone_stranger || leaving || !guard_heard;
        if view.may_write() && facts.fencing.is_none() && !stays {
            let action = if facts.op.is_some() {
                Action::CancelAndFence
            } else {
                Action::Fence
            };
            return Some(Decision::new(Rule::WriterWithoutPermission, action, why()));
        }
    }
    if let Some((since, failure)) = &facts.guard_failing
        && view.may_write()
        && facts.fencing.is_none()
    {
        let hangs =
            failure.kind == GuardErrorKind::Silent && view.now().since(*since) >= GUARD_PATIENCE;
        if hangs || failure.kind == GuardErrorKind::Gone {
            let action = if facts.op.is_some() {
                Action::CancelAndFence
            } else {
                Action::Fence
            };
            return Some(Decision::new(
                Rule::GuardSilent,
                action,
                failure.text.clone(),
            ));
        }
    }
    facts
        .fencing
        .map(|since| Decision::wait(Rule::Fencing, format!("for {:?}", view.now().since(since))))
}

fn fatal(view: &View<'_>) -> Option<Decision> {
    let exit =
        |rule, text: String| Decision::new(rule, Action::Exit(Exit::Fatal(text.clone())), text);
    if let (Some(Initialize::Known(theirs)), Some(control)) =
        (view.cluster().map(|c| &c.initialize), view.control())
        && *theirs != control.system_id
        && !control.provisional
    {
        let text = format!(
            "the data directory is of another cluster: its system identifier is {}, that of {} in \
             the store is {theirs}; nothing was touched. Point the node at another data directory, \
             or move this one away to have it copied anew",
            control.system_id, view.me.scope
        );
        return Some(exit(Rule::ForeignCluster, text));
    }
    match view.pg().map(|pg| &pg.data) {
        Some(DataDir::Unreadable { problem }) => {
            let text = format!("the data directory cannot be used: {problem}; nothing was touched");
            Some(exit(Rule::DataUnreadable, text))
        }
        Some(DataDir::Empty | DataDir::Unfinished(_) | DataDir::Ready(_)) | None => None,
    }
}

/// The last renewal of an agent that detaches is as fresh as can be: it left after the order, and
/// the guard knows of it.
fn detach(view: &View<'_>) -> Option<Decision> {
    let ordered = view.facts.detach?;
    let held = view.facts.holding.as_ref();
    let fresh = held.is_none_or(|held| held.renewed >= ordered && held.confirmed >= ordered);
    let newest = |held: &Holding| {
        let permission = view.leadership()?;
        let wanted = deadline(&permission, &held.lease);
        let armed = view.facts.armed.as_ref()?;
        Some(is_as_good(armed, &wanted, held.lease.ttl))
    };
    let armed = held.is_none_or(|held| newest(held) == Some(true));
    if (fresh && armed) || view.now().since(ordered) >= DETACH_PATIENCE {
        let action = Action::Exit(Exit::Detached);
        return Some(Decision::new(
            Rule::Detach,
            action,
            "guard and server go on without the agent",
        ));
    }
    Some(Decision::wait(Rule::Detach, "renewing the lease once more"))
}

fn operation(view: &View<'_>) -> Option<Decision> {
    let running = view.facts.op.as_ref()?;
    let kind = running.op.kind();
    let spent = view.now().since(running.since);
    let ends_itself = matches!(
        running.op,
        PgOp::Stop | PgOp::HandOver { .. } | PgOp::Promote | PgOp::Start { .. }
    );
    if view.facts.shutdown && !ends_itself && !running.cancelled {
        return Some(Decision::new(
            Rule::StopOperation,
            Action::Cancel,
            format!("{kind} is stopped"),
        ));
    }
    let why = format!("{kind} for {} s", spent.as_secs());
    Some(hopeless(view, &why).unwrap_or_else(|| Decision::wait(Rule::Operating, why)))
}

/// An operation waits for as long as its server needs. A holder whose server answers nobody must
/// not keep the lock for that, nor an agent that is to stop wait for it for ever.
fn hopeless(view: &View<'_>, why: &str) -> Option<Decision> {
    let ends = view
        .facts
        .op
        .as_ref()
        .is_some_and(|running| running.op == PgOp::Stop);
    let leaves = view.facts.shutdown;
    let spared = !view.is_holder() || ends;
    if (spared && !leaves) || view.facts.fencing.is_some() {
        return None;
    }
    if let Some((since, text)) = &view.facts.pg_failing
        && view.now().since(*since) >= BLIND_PATIENCE
    {
        let why = format!("{text}, in {why}");
        return Some(Decision::new(Rule::FenceBlind, Action::CancelAndFence, why));
    }
    if spared {
        return None;
    }
    let start = PgOp::Start {
        role: StartRole::Primary,
    };
    let starts = view
        .facts
        .op
        .as_ref()
        .is_some_and(|running| running.op == start);
    // One that nobody could take the lock of comes back by itself.
    let fails_over = view.facts.handed_over.is_none();
    if let Some(spent) = holding::overdue(view).filter(|_| starts && fails_over) {
        let why = format!("it takes no writes for {} s, in {why}", spent.as_secs());
        return Some(Decision::new(Rule::FenceHung, Action::CancelAndFence, why));
    }
    let hung = matches!(view.pg().map(|pg| &pg.server), Some(Server::Hung { .. }));
    (hung && view.now().since(view.facts.server_since) >= HUNG_PATIENCE).then(|| {
        let why = format!("it does not answer, in {why}");
        Decision::new(Rule::FenceHung, Action::CancelAndFence, why)
    })
}

/// A holder that cannot look at its own data directory would keep the lock for ever, with a server
/// that serves nobody: a disk that hangs does not stop the lease. And an agent that is to stop
/// would never know that its server has.
fn blind(view: &View<'_>) -> Option<Decision> {
    let (since, text) = view.facts.pg_failing.as_ref()?;
    let others = view.facts.electorate.keys().next().is_some();
    let blocks = (view.is_holder() && others) || view.facts.shutdown;
    if !blocks || view.now().since(*since) < BLIND_PATIENCE {
        return None;
    }
    if view.facts.fenced_at >= Some(*since) {
        let unreleased = view.facts.lanes.lease_failed.is_some();
        if view.facts.shutdown && (view.facts.holding.is_none() || unreleased) {
            let why = format!("the server was ended by force: {text}");
            let exit = Action::Exit(Exit::Stopped);
            return Some(Decision::new(Rule::Stopped, exit, why));
        }
        return Some(release(view, Rule::ReleaseBlind, text));
    }
    Some(Decision::new(Rule::FenceBlind, Action::Fence, text.clone()))
}

fn unknown(view: &View<'_>) -> Option<Decision> {
    if let Some(decision) = blind(view) {
        return Some(decision);
    }
    if !view.facts.pg_is_current() {
        let why = match &view.facts.pg_failing {
            Some((_, text)) => format!("PostgreSQL cannot be looked at: {text}"),
            None => "PostgreSQL has not been looked at since the last operation".to_owned(),
        };
        return Some(Decision::wait(Rule::Looking, why));
    }
    if let Some((_, failure)) = &view.facts.guard_failing
        && !view.facts.shutdown
    {
        return Some(Decision::wait(Rule::GuardUnknown, failure.text.clone()));
    }
    if view.facts.guard.is_none() && !view.facts.shutdown {
        return Some(Decision::wait(
            Rule::GuardUnknown,
            "the guard has not answered yet",
        ));
    }
    None
}

fn shutdown(view: &View<'_>) -> Option<Decision> {
    if !view.facts.shutdown {
        return None;
    }
    if view.is_down() {
        let exit = |why| Decision::new(Rule::Stopped, Action::Exit(Exit::Stopped), why);
        let unreleased = view.facts.lanes.lease_failed.is_some()
            && view.now().since(view.facts.server_since) >= RELEASE_PATIENCE;
        return Some(match view.facts.holding.as_ref() {
            Some(_) if unreleased => {
                exit("the server is down; the lock could not be released and ends of age")
            }
            Some(_) => release(view, Rule::ReleaseHandedOver, "the server is down"),
            None => exit("the server is down"),
        });
    }
    let serves = view.running().is_some_and(crate::pg::Running::is_primary);
    let others = view
        .facts
        .electorate
        .keys()
        .any(|name| is_alive(view, name));
    if view.is_holder() && serves && others && view.failed(PgOpKind::HandOver) == 0 {
        let op = PgOp::HandOver { candidate: None };
        return Some(Decision::run(
            Rule::StopHandOver,
            op,
            "the agent was asked to stop",
        ));
    }
    Some(stop(view, Rule::StopServer, "the agent was asked to stop"))
}

/// Returns the decision to stop the server, not at once again where that has failed.
pub(super) fn stop(view: &View<'_>, rule: Rule, why: impl Into<String>) -> Decision {
    match view.backing_off(PgOpKind::Stop) {
        Some(failure) => Decision::wait(rule, failure.text.clone()),
        None => Decision::run(rule, PgOp::Stop, why.into()),
    }
}

fn unguarded(view: &View<'_>) -> Option<Decision> {
    (!view.is_guarded()).then(|| {
        let why =
            "the server was started by somebody else; it is stopped, to be started under the guard";
        stop(view, Rule::Unguarded, why)
    })
}

fn handed_over(view: &View<'_>) -> Option<Decision> {
    let done = view.facts.handed_over.as_ref()?;
    living_lock(view)?;
    let clean = view
        .control()
        .is_some_and(|c| c.state == ControlState::ShutDown);
    let Some(position) = view.position().filter(|_| view.is_down() && clean) else {
        // It serves again, or was not stopped cleanly: there is nothing to hand over.
        return None;
    };
    let level = match &done.candidate {
        Some(candidate) => has_all(view, done, candidate, position.lsn),
        None => {
            let mut others = view.facts.electorate.keys();
            others.any(|name| has_all(view, done, name, position.lsn))
        }
    };
    if level {
        return Some(release(
            view,
            Rule::ReleaseHandedOver,
            &format!("the successor has {position}"),
        ));
    }
    if view.now().since(done.at) < HAND_OVER_PATIENCE {
        let why = format!("no successor is known to have {position}");
        return Some(Decision::new(Rule::AwaitHandOver, Action::AskPeers, why));
    }
    if view.is_armed_for(Duration::ZERO) {
        if let Some(decision) = holding::worn_out(view) {
            return Some(decision);
        }
        if let Some(failure) = view.backing_off(PgOpKind::Start) {
            return Some(Decision::wait(Rule::HandOverFailed, failure.text.clone()));
        }
        let op = PgOp::Start {
            role: StartRole::Primary,
        };
        let why = format!("no successor has {position}");
        return Some(Decision::run(Rule::HandOverFailed, op, why));
    }
    None
}

/// Whether a member has said since the hand-over that it has everything up to `end`.
fn has_all(view: &View<'_>, done: &HandedOver, name: &MemberName, end: Lsn) -> bool {
    let seen = view.facts.peers.get(name).filter(|seen| seen.at >= done.at);
    seen.and_then(|seen| seen.value.as_ref())
        .is_some_and(|peer| peer.position >= Some(end))
}

fn store(view: &View<'_>) -> Option<Decision> {
    let Some(cluster) = view.cluster() else {
        let why = match &view.facts.store_failing {
            Some((_, text)) => text.clone(),
            None => "the store has not answered yet".to_owned(),
        };
        return Some(Decision::wait(Rule::StoreUnknown, why));
    };
    // The guard kept the secret of the last incarnation, and that one still holds the lock.
    let kept = view
        .facts
        .guard
        .as_ref()
        .and_then(|seen| seen.value.deadline.as_ref())?;
    let there = cluster.leader.as_ref()?;
    let mine = there.name.as_ref() == Some(&view.me.name) && there.record.epoch == kept.epoch;
    let given_up = view.facts.given_up >= Some(kept.epoch);
    if view.is_holder() || !mine || given_up || view.facts.unsettled {
        return None;
    }
    let request = LeaseRequest::Succeed(kept.secret.clone(), view.config().ttl);
    let why = format!("the guard kept epoch {}", kept.epoch);
    Some(Decision::new(Rule::Succeed, Action::Lease(request), why))
}

/// Returns the lock of this node, unless its lease is over by our own count: without a store it
/// ends of age, and the server is of use to readers meanwhile.
fn living_lock<'a>(view: &View<'a>) -> Option<&'a Holding> {
    let held = view.facts.holding.as_ref()?;
    held.is_alive(view.now()).then_some(held)
}

/// A lock whose release was asked for and not answered permits nothing any more, and is of no use
/// but to be released.
pub(super) fn release_again(view: &View<'_>) -> Option<Decision> {
    let epoch = living_lock(view)?.lease.epoch;
    let forgotten = planted(Mutant::ReleaseForgotten);
    (Some(epoch) <= view.facts.released && !forgotten).then(|| {
        let why = "an earlier request to give the lock up has no answer";
        release(view, Rule::ReleaseHandedOver, why)
    })
}

/// Returns the decision to give the lock up, with the record that proves it to others.
pub(super) fn release(view: &View<'_>, rule: Rule, why: &str) -> Decision {
    let Some(lease) = view.lease() else {
        return Decision::wait(rule, why);
    };
    // The record of the release takes the place of that of a holder whom this node has not seen.
    let held = view.facts.holding.as_ref();
    if held.is_some_and(|held| held.clear.is_none_or(|clear| view.now() < clear)) {
        let why = format!("{why}; not before all who held the lock before cannot write any more");
        return Decision::wait(rule, why);
    }
    // It may have served again since an older look.
    let clean = view.facts.pg_is_current()
        && view.is_down()
        && view
            .control()
            .is_some_and(|c| c.state == ControlState::ShutDown);
    let position = view
        .position()
        .filter(|_| clean)
        .map(|p| (p.timeline, p.lsn));
    let record = ReleaseDocument {
        epoch: lease.epoch,
        name: view.me.name.to_string(),
        ttl: Some(lease.ttl),
        taken: false,
        position,
        candidate: position.and_then(|(_, end)| {
            let done = view.facts.handed_over.as_ref()?;
            let candidate = done.candidate.as_ref()?;
            // Who is named need not ask the others.
            has_all(view, done, candidate, end).then(|| candidate.to_string())
        }),
        revision: crate::ids::Revision(0),
    };
    let request = LeaseRequest::Release(lease.clone(), record.to_bytes());
    debug_assert_eq!(Key::Release.path(), "release");
    Decision::new(rule, Action::Lease(request), why)
}

fn is_alive(view: &View<'_>, name: &MemberName) -> bool {
    let walsenders = view
        .running()
        .map(|r| r.walsenders.as_slice())
        .unwrap_or_default();
    walsenders.iter().any(|w| w.application == name.as_str())
}

fn permission_lost(view: &View<'_>) -> String {
    match view.last_leadership() {
        Some(l) if view.leader_is_other() => {
            format!(
                "{} holds the lock, epoch {} is over",
                view.leader_name(),
                l.epoch
            )
        }
        Some(l) => format!(
            "the permission of epoch {} ended {:?} ago",
            l.epoch,
            past(view, l.until)
        ),
        None if view.leader_is_other() => format!("{} holds the lock", view.leader_name()),
        None => "this node has no lock and no consent".to_owned(),
    }
}

fn past(view: &View<'_>, at: NodeTime) -> Duration {
    view.now().since(at)
}

/// A guard that is alive answers in microseconds. Two questions of one second may be lost to a
/// machine that swaps; more may cost the deadline itself.
const GUARD_PATIENCE: Duration = Duration::from_secs(1);

/// A disk that answers nothing for this long is broken for its clients as well.
const BLIND_PATIENCE: Duration = Duration::from_secs(20);

/// Longer than any renewal takes that succeeds.
const DETACH_PATIENCE: Duration = Duration::from_secs(3);

/// The server is down and the lock ends of age: there is nothing to wait for any longer.
const RELEASE_PATIENCE: Duration = Duration::from_secs(3);

/// A level standby has the last record within a round trip.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(2);
