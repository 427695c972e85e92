//! Another node holds the lock, and this one has data.

use std::time::Duration;

use super::{Action, Decision, Rule, View, holding, safety};
use crate::cluster::Initialize;
use crate::history::History;
use crate::ids::SystemId;
use crate::machine::facts::OpFailure;
use crate::mutant::{Mutant, planted};
use crate::pg::{Control, ControlState, PgErrorKind, PgOp, PgOpKind, Role, Server, StartRole};

pub(super) fn decide(view: &View<'_>) -> Option<Decision> {
    let control = view.control()?;
    let known = view.cluster().map(|c| &c.initialize);
    if control.provisional && known == Some(&Initialize::Known(control.system_id)) {
        // It was bootstrapped here, and others copied it before its own agent could say so.
        let why = format!("the store has system identifier {}", control.system_id);
        return Some(Decision::run(Rule::ConfirmBootstrap, PgOp::Confirm, why));
    }
    Some(match &view.pg()?.server {
        Server::Down => restart(view, control),
        Server::Running(_) => follow(view),
        Server::Busy { saying, .. } | Server::Closed { saying, .. } => {
            if let Some(decision) = diverged_while_busy(view) {
                return Some(decision);
            }
            Decision::wait(Rule::AwaitStandby, saying.clone())
        }
        Server::Hung { .. } => {
            let spent = view.now().since(view.facts.server_since);
            let why = format!("it has not answered for {} s", spent.as_secs());
            if spent >= HUNG_PATIENCE {
                return Some(Decision::new(Rule::FenceHungStandby, Action::Fence, why));
            }
            Decision::wait(Rule::AwaitStandby, why)
        }
    })
}

fn restart(view: &View<'_>, control: &Control) -> Decision {
    match view.is_diverged() {
        Some(true) => return mend(view, control),
        // A server that was a primary may have written what nobody else has. PostgreSQL would
        // refuse to follow, but only after it replayed it all; ask first.
        None if !control.standby || view.failed(PgOpKind::Start) > 0 => {
            return ask(view, "it was a primary, and may have diverged");
        }
        Some(false) | None => {}
    }
    if let Some(failure) = view.backing_off(PgOpKind::Start) {
        return start_failed(failure);
    }
    let safe = view.is_diverged() == Some(false);
    if !safe && view.leader_serves() {
        return ask(view, "it may be on another branch of its timeline");
    }
    let op = PgOp::Start {
        role: StartRole::Standby {
            upstream: view.upstream().filter(|_| safe),
        },
    };
    Decision::run(Rule::StartStandby, op, format!("of {}", view.leader_name()))
}

fn follow(view: &View<'_>) -> Decision {
    let leader = view.leader_name();
    if let Some(decision) = holding::configure(view) {
        return decision;
    }
    let Some(Role::Standby {
        upstream,
        streaming,
        ..
    }) = view.running().map(|r| &r.role)
    else {
        return Decision::wait(Rule::AwaitStandby, "it is no standby");
    };
    let target = view
        .leader_member()
        .and_then(crate::cluster::Member::host_port);
    if target.is_some() && *upstream != target {
        if let Some(failure) = view.backing_off(PgOpKind::Follow) {
            return Decision::wait(Rule::Connecting, failure.text.clone());
        }
        // It may have received another branch from the leader before.
        let seen = view.facts.pg.as_ref().map(|seen| seen.at);
        if seen < Some(view.facts.leader_since) && !planted(Mutant::OldLookFollowed) {
            let why = format!("where it is now that {leader} leads");
            return Decision::wait(Rule::Looking, why);
        }
        if view.is_diverged() == Some(true) {
            return safety::stop(view, Rule::StopDiverged, divergence(view));
        }
        if view.is_diverged().is_none() {
            return ask(view, "it may be on another branch of its timeline");
        }
        let op = PgOp::Follow {
            upstream: view.upstream(),
        };
        return Decision::run(Rule::Follow, op, format!("{leader} holds the lock"));
    }
    if *streaming {
        let drop_slots = view
            .running()
            .and_then(|running| holding::drop_slots(view, running));
        return drop_slots.unwrap_or_else(|| Decision::wait(Rule::Following, leader));
    }
    let idle = view.facts.ago(view.facts.not_streaming_since);
    if idle >= STREAM_PATIENCE {
        match view.is_diverged() {
            Some(true) => {
                let why = divergence(view);
                return safety::stop(view, Rule::StopDiverged, why);
            }
            None if view.leader_serves() => return ask(view, "it does not stream"),
            Some(false) | None => {}
        }
    }
    Decision::wait(
        Rule::Connecting,
        format!("{leader}, for {} ms", idle.as_millis()),
    )
}

/// A standby that cannot reach consistency because its log ends in another line stays "starting
/// up" for ever.
fn diverged_while_busy(view: &View<'_>) -> Option<Decision> {
    let spent = view.now().since(view.facts.server_since);
    if spent < BUSY_PATIENCE {
        return None;
    }
    match view.is_diverged() {
        Some(true) => Some(safety::stop(view, Rule::StopDiverged, divergence(view))),
        None if view.leader_serves() && !recently_asked(view) => {
            Some(ask(view, "it has been starting for long"))
        }
        Some(false) | None => None,
    }
}

/// The failure of a start tells nothing bad of the data: a port is taken, a library is missing, a
/// setting is wrong. They are kept, and the start is tried again for as long as it takes.
fn start_failed(failure: &OpFailure) -> Decision {
    let text = &failure.text;
    if failure.times < START_TRIES {
        return Decision::wait(Rule::StartFailed, text.clone());
    }
    let remedy = "mend the cause; or, if the data are damaged, move the data directory away to have \
                  it copied anew";
    let why = format!("{} starts have failed: {text}; {remedy}", failure.times);
    Decision::wait(Rule::Stuck, why)
}

fn mend(view: &View<'_>, control: &Control) -> Decision {
    let config = view.config();
    let id = control.system_id;
    if config.reclone_when_diverged {
        return reclone(view, id, &divergence(view));
    }
    if !control.rewindable {
        let why = format!("{}; pg_rewind is impossible", divergence(view));
        return reclone_if(view, id, config.reclone_when_rewind_fails, &why);
    }
    let same = |history: &History| Some(history.timeline()) == view.position().map(|p| p.timeline);
    if view.leader_history().is_some_and(same) {
        let why = "its timeline was begun twice, which pg_rewind takes for one";
        return reclone_if(view, id, config.reclone_when_rewind_fails, why);
    }
    rewind(view, id, &divergence(view))
}

/// A rewind of this data directory was interrupted. It is tried again, and what it left is kept
/// like any other data: there may be no other copy of what the directory had.
pub(super) fn resume_rewind(view: &View<'_>) -> Decision {
    let why = "a rewind of the data directory was interrupted";
    let Some(Initialize::Known(id)) = view.cluster().map(|c| &c.initialize) else {
        let why = format!("{why}, and the store does not say of which cluster it has to be");
        return Decision::wait(Rule::AwaitSource, why);
    };
    if view.config().reclone_when_diverged {
        return reclone(view, *id, why);
    }
    rewind(view, *id, why)
}

fn rewind(view: &View<'_>, id: SystemId, why: &str) -> Decision {
    let config = view.config();
    if !config.use_pg_rewind {
        let why = format!("{why}; pg_rewind is off");
        return reclone_if(view, id, config.reclone_when_rewind_fails, &why);
    }
    let failed = view.facts.failures.get(&PgOpKind::Rewind);
    if let Some(failure) = failed
        && (failure.kind == PgErrorKind::CannotRewind
            || (failure.kind != PgErrorKind::Retry && failure.times >= REWIND_TRIES))
    {
        let why = format!("pg_rewind failed: {}", failure.text);
        return reclone_if(view, id, config.reclone_when_rewind_fails, &why);
    }
    if let Some(failure) = view.backing_off(PgOpKind::Rewind) {
        return Decision::wait(Rule::AwaitSource, failure.text.clone());
    }
    match source(view) {
        Ok(from) => Decision::run(Rule::Rewind, PgOp::Rewind { from }, why),
        Err(decision) => decision,
    }
}

fn reclone_if(view: &View<'_>, id: SystemId, allowed: bool, why: &str) -> Decision {
    if allowed {
        return reclone(view, id, why);
    }
    let remedy = "set postgresql.remove_data_directory_on_rewind_failure to have it copied anew";
    Decision::wait(Rule::Stuck, format!("{why}; {remedy}"))
}

fn reclone(view: &View<'_>, id: SystemId, why: &str) -> Decision {
    if let Some(failure) = view.backing_off(PgOpKind::Clone) {
        return Decision::wait(Rule::CloneFailed, failure.text.clone());
    }
    match source(view) {
        Ok(from) => {
            let op = PgOp::Clone {
                from,
                replace: Some(id),
            };
            Decision::run(Rule::Reclone, op, why)
        }
        Err(decision) => decision,
    }
}

/// Waits until the store has the identifier of the leader's cluster. Whoever bootstraps and fails
/// before that begins anew, and a copy would be of a cluster that is none; and that data which are
/// to be replaced are of the same cluster, nothing else tells.
pub(super) fn unconfirmed(view: &View<'_>) -> Option<Decision> {
    let initialize = view.cluster().map(|c| &c.initialize);
    if matches!(initialize, Some(Initialize::Known(_))) || planted(Mutant::UnconfirmedCopied) {
        return None;
    }
    let leader = view.leader_name();
    let why = format!("the store has no identifier yet of the cluster that {leader} leads");
    Some(Decision::wait(Rule::AwaitSource, why))
}

/// The leader, if it is a primary of a known cluster that serves and whose control file knows its
/// timeline.
fn source(view: &View<'_>) -> Result<crate::pg::Upstream, Decision> {
    let leader = view.leader_name();
    if !view.leader_serves() {
        return Err(Decision::wait(
            Rule::AwaitSource,
            format!("{leader} does not serve yet"),
        ));
    }
    if let Some(decision) = unconfirmed(view) {
        return Err(decision);
    }
    if view.leader_member().is_some_and(|m| m.checkpoint_pending) {
        let why = format!("{leader} has not checkpointed since its promotion");
        return Err(Decision::wait(Rule::AwaitSource, why));
    }
    view.upstream()
        .ok_or_else(|| Decision::wait(Rule::AwaitSource, format!("{leader} says no address")))
}

fn ask(view: &View<'_>, why: &str) -> Decision {
    let known = view.facts.leader_history.as_ref();
    let problem = known
        .and_then(|k| k.answer.as_ref().err())
        .map_or("", String::as_str);
    if !view.leader_serves() {
        let why = format!("{why}; {} does not serve yet", view.leader_name());
        return Decision::wait(Rule::AwaitHistory, why);
    }
    let answered = view.leader_history().is_some();
    if answered || view.facts.lanes.history.is_some() || recently_asked(view) {
        return Decision::wait(Rule::AwaitHistory, format!("{why}; {problem}"));
    }
    Decision::new(
        Rule::AwaitHistory,
        Action::ReadHistory(view.upstream()),
        why,
    )
}

fn recently_asked(view: &View<'_>) -> bool {
    let asked = view.facts.leader_history.as_ref().map(|known| known.at);
    let current = view.leader_history().is_some();
    !current && view.facts.ago(asked) < ASK_EVERY
}

fn divergence(view: &View<'_>) -> String {
    let at = view.position().map_or_else(String::new, |p| p.to_string());
    let fork = view.leader_history().and_then(|theirs| {
        let mine = view.position()?;
        match theirs.end_of(mine.timeline)? {
            crate::history::End::At(end) => Some(format!(
                "{} left that timeline at {end}",
                view.leader_name()
            )),
            crate::history::End::Open => None,
        }
    });
    let fork = fork.unwrap_or_else(|| format!("{} never was on that timeline", view.leader_name()));
    let crashed = view.is_down()
        && view
            .control()
            .is_some_and(|c| !c.standby && c.state != ControlState::ShutDown);
    if crashed {
        return format!("this server crashed as a primary at {at} or later, and {fork}");
    }
    format!("this server is at {at}, and {fork}")
}

/// A walreceiver tries again every `wal_retrieve_retry_interval`, which is 100 ms here and 5 s by
/// PostgreSQL's default.
const STREAM_PATIENCE: Duration = Duration::from_secs(1);

/// Crash recovery of a healthy standby may take long; asking costs one connection.
const BUSY_PATIENCE: Duration = Duration::from_secs(5);

const ASK_EVERY: Duration = Duration::from_millis(500);

/// One that may pass is none of the directory's. Of any other the third is.
const REWIND_TRIES: u32 = 3;

/// What passes by itself has passed by then; somebody has to look.
const START_TRIES: u32 = 5;

/// A standby serves reads only, and ending it costs its clients their connections.
const HUNG_PATIENCE: Duration = Duration::from_secs(30);
