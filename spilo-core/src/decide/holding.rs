//! This node holds the lock, and has data.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Action, Decision, Rule, View, safety, switchover};
use crate::cluster::Initialize;
use crate::ids::SlotName;
use crate::mutant::{Mutant, planted};
use crate::pg::{Control, PgOp, PgOpKind, Role, Running, Server, StartRole, Upstream};

pub(super) fn decide(view: &View<'_>) -> Option<Decision> {
    let control = view.control()?;
    let server = &view.pg()?.server;
    Some(match server {
        Server::Running(running) => match running.role {
            Role::Primary { .. } => lead(view, running, control),
            Role::Standby { .. } => promote(view),
        },
        Server::Down => start(view, control),
        Server::Busy { saying, .. } => busy(view, saying),
        // Ended and started anew it would be as closed as before, and it may serve its clients:
        // the outage of one that was not started anew has not begun.
        Server::Closed { saying, .. } => busy(view, saying),
        Server::Hung { .. } => hung(view),
    })
}

fn lead(view: &View<'_>, running: &Running, control: &Control) -> Decision {
    let known = view.cluster().map(|c| &c.initialize);
    if control.provisional && known == Some(&Initialize::Known(control.system_id)) {
        let why = format!("the store has system identifier {}", control.system_id);
        return Decision::run(Rule::ConfirmBootstrap, PgOp::Confirm, why);
    }
    switchover::decide(view)
        .or_else(|| slots(view, running, wanted_slots(view)))
        .or_else(|| configure(view))
        .or_else(|| checkpoint(view))
        .unwrap_or_else(|| {
            let streaming = running
                .walsenders
                .iter()
                .filter(|w| w.state == "streaming")
                .count();
            let epoch = view.lease().map_or(0, |l| l.epoch.0);
            let by = match view.leadership() {
                Some(l) => format!("{:?} of epoch {epoch}", l.by),
                None => format!("epoch {epoch}"),
            };
            Decision::wait(Rule::Lead, format!("by {by}, {streaming} standbys stream"))
        })
}

/// Applies a configuration that is not the one that was applied last.
pub(super) fn configure(view: &View<'_>) -> Option<Decision> {
    let document = view.cluster()?.config.as_ref()?;
    if view.pg()?.configured == Some(document.revision)
        || view.backing_off(PgOpKind::Configure).is_some()
    {
        return None;
    }
    let op = PgOp::Configure {
        revision: document.revision,
        config: document.config.clone(),
    };
    let why = format!("the configuration of revision {}", document.revision);
    Some(Decision::run(Rule::Configure, op, why))
}

/// Keeps one slot for each member, and for `member_slots_ttl` after it is gone.
///
/// Followers cannot stream before their slots exist, so this comes first after a promotion.
fn slots(view: &View<'_>, running: &Running, wanted: BTreeSet<SlotName>) -> Option<Decision> {
    if view.backing_off(PgOpKind::Slots).is_some() {
        return None;
    }
    let wanted = match view.config().use_slots {
        true => wanted,
        // Nobody asks for them any more, and each would keep the log for ever.
        false => strangers(view, running),
    };
    let have: BTreeSet<SlotName> = running.slots.iter().map(|(name, _)| name.clone()).collect();
    let missing: Vec<_> = wanted.difference(&have).map(SlotName::as_str).collect();
    let spare: Vec<_> = have
        .difference(&wanted)
        .filter(|slot| view.facts.slot_seen.contains_key(*slot))
        .map(SlotName::as_str)
        .collect();
    // A slot that is active cannot be dropped; trying that all the time would help nobody.
    let lately = view.facts.ago(view.facts.slots_at) < DROP_SLOTS_EVERY;
    if missing.is_empty() && (spare.is_empty() || lately) {
        return None;
    }
    let why = format!(
        "create [{}], drop [{}]",
        missing.join(", "),
        spare.join(", ")
    );
    Some(Decision::run(Rule::Slots, PgOp::Slots { wanted }, why))
}

/// Drops the members' slots on a standby: nobody advances them there, so that each would keep the
/// log for ever. A slot that a cascading standby uses is active, and an active slot stays.
pub(super) fn drop_slots(view: &View<'_>, running: &Running) -> Option<Decision> {
    slots(view, running, strangers(view, running))
}

/// Returns the slots that must exist on a primary: those of members that were seen recently
/// enough, and those that nobody of this cluster ever asked for, which are not ours to drop.
fn wanted_slots(view: &View<'_>) -> BTreeSet<SlotName> {
    let keep = view.config().member_slots_ttl.max(Duration::from_secs(1));
    let mine = view.me.name.slot();
    let members = view
        .facts
        .slot_seen
        .iter()
        .filter(|(slot, seen)| **slot != mine && view.now().since(**seen) < keep)
        .map(|(slot, _)| slot.clone());
    let strangers = view
        .running()
        .map(|r| strangers(view, r))
        .unwrap_or_default();
    members.chain(strangers).collect()
}

fn strangers(view: &View<'_>, running: &Running) -> BTreeSet<SlotName> {
    let ours = |slot: &SlotName| view.facts.slot_seen.contains_key(slot);
    running
        .slots
        .iter()
        .map(|(slot, _)| slot)
        .filter(|slot| !ours(slot))
        .cloned()
        .collect()
}

fn checkpoint(view: &View<'_>) -> Option<Decision> {
    if !view.facts.checkpoint_pending || view.backing_off(PgOpKind::Checkpoint).is_some() {
        return None;
    }
    Some(Decision::run(
        Rule::Checkpoint,
        PgOp::Checkpoint,
        "the promotion is done",
    ))
}

fn promote(view: &View<'_>) -> Decision {
    if let Some(decision) = ready(view) {
        return decision;
    }
    if view.failed(PgOpKind::Promote) >= PROMOTE_TRIES {
        let why = view
            .facts
            .failures
            .get(&PgOpKind::Promote)
            .map_or("", |f| f.text.as_str());
        // A promotion that was ordered may yet come about: the server is ended first.
        return safety::stop(view, Rule::ReleaseUnpromotable, why);
    }
    if let Some(failure) = view.backing_off(PgOpKind::Promote) {
        return Decision::wait(Rule::AwaitServer, failure.text.clone());
    }
    let at = view
        .position()
        .map_or_else(|| "an unknown position".to_owned(), |p| p.to_string());
    Decision::run(Rule::Promote, PgOp::Promote, format!("from {at}"))
}

fn start(view: &View<'_>, control: &Control) -> Decision {
    if view.failed(PgOpKind::Promote) >= PROMOTE_TRIES {
        let why = "its server cannot be promoted, and is down";
        return safety::release(view, Rule::ReleaseUnpromotable, why);
    }
    if control.standby {
        if let Some(decision) = unstartable(view) {
            return decision;
        }
        if let Some(failure) = view.backing_off(PgOpKind::Start) {
            return Decision::wait(Rule::AwaitServer, failure.text.clone());
        }
        let op = PgOp::Start {
            role: StartRole::Standby {
                upstream: None::<Upstream>,
            },
        };
        return Decision::run(Rule::StartHolder, op, "it is promoted once it runs");
    }
    // Its lease has ended, and the store does not say who has the lock: readers need not wait.
    let held = view.facts.holding.as_ref();
    let ended = held.is_some_and(|held| !held.is_alive(view.now()));
    if ended && view.leadership().is_none() && view.backing_off(PgOpKind::Start).is_none() {
        let op = PgOp::Start {
            role: StartRole::Standby { upstream: None },
        };
        return Decision::run(
            Rule::StartHolder,
            op,
            "the lease has ended; it serves reads only",
        );
    }
    if let Some(decision) = unstartable(view) {
        return decision;
    }
    if let Some(decision) = ready(view) {
        return decision;
    }
    if let Some(failure) = view.backing_off(PgOpKind::Start) {
        return Decision::wait(Rule::AwaitServer, failure.text.clone());
    }
    let down = view.now().since(view.facts.server_since);
    let why = format!(
        "down for {} ms, state {:?}",
        down.as_millis(),
        control.state
    );
    Decision::run(
        Rule::StartInPlace,
        PgOp::Start {
            role: StartRole::Primary,
        },
        why,
    )
}

/// What must hold before anything is started that takes writes.
fn ready(view: &View<'_>) -> Option<Decision> {
    if let Some(promise) = view.facts.promise.as_ref().filter(|p| view.now() < p.until) {
        let why = format!("to {}", promise.to);
        return Some(safety::release(view, Rule::PromisedHolder, &why));
    }
    let clear = view.facts.holding.as_ref().and_then(|held| held.clear);
    if let Some(at) = clear.filter(|at| view.now() < *at) {
        let left = at.since(view.now());
        let why = format!("the lock was held unseen, by one that may write for {left:?}");
        return Some(Decision::wait(Rule::PredecessorMayWrite, why));
    }
    let enough = view.lease().map(|lease| lease.ttl / 4).unwrap_or_default();
    if view
        .leadership()
        .is_none_or(|l| view.now() + enough > l.until)
    {
        let why = "the lease must be renewed first";
        return Some(Decision::wait(Rule::PermissionShort, why));
    }
    if !view.is_armed_for(Duration::ZERO) {
        return Some(Decision::wait(
            Rule::AwaitGuard,
            "the guard has not taken the deadline yet",
        ));
    }
    None
}

fn busy(view: &View<'_>, saying: &str) -> Decision {
    if let Some(spent) = overdue(view) {
        let why = format!(
            "it says {saying:?}, and takes no writes for {} s",
            spent.as_secs()
        );
        return Decision::new(Rule::FenceHung, Action::Fence, why);
    }
    Decision::wait(Rule::AwaitServer, saying.to_owned())
}

/// Returns for how long the server of the holder has taken no writes, where that is too long and
/// another node may do better.
pub(super) fn overdue(view: &View<'_>) -> Option<Duration> {
    let outage = view.facts.outage.as_ref()?;
    let spent = view.now().since(outage.since);
    let late = spent >= view.config().primary_start_timeout && !planted(Mutant::StartedForEver);
    (late && outage.back.is_none() && may_leave(view)).then_some(spent)
}

/// Whether there is a lock to leave to others, who hear of it. Without a lease the server serves
/// reads only, or by the consent of all.
fn may_leave(view: &View<'_>) -> bool {
    let held = view.facts.holding.as_ref();
    let lives = held.is_some_and(|held| held.is_alive(view.now()));
    lives && view.facts.store_failing.is_none() && has_others(view)
}

fn hung(view: &View<'_>) -> Decision {
    let spent = view.now().since(view.facts.server_since);
    let why = format!("it has not answered for {} ms", spent.as_millis());
    if spent >= HUNG_PATIENCE {
        return Decision::new(Rule::FenceHung, Action::Fence, why);
    }
    Decision::wait(Rule::AwaitServer, why)
}

/// Returns why another node has to try, if it has.
fn unstartable(view: &View<'_>) -> Option<Decision> {
    let Some(spent) = overdue(view) else {
        return worn_out(view);
    };
    let why = format!(
        "it takes no writes for {} s; {}",
        spent.as_secs(),
        said(view)
    );
    Some(safety::release(view, Rule::ReleaseUnstartable, &why))
}

/// The same, by how often it was started alone.
pub(super) fn worn_out(view: &View<'_>) -> Option<Decision> {
    let starts = view.facts.outage.as_ref().map_or(0, |outage| outage.starts);
    let again = starts >= START_TRIES && !planted(Mutant::StartedForEver);
    let tired = again || view.failed(PgOpKind::Start) >= START_TRIES;
    (tired && may_leave(view)).then(|| safety::release(view, Rule::ReleaseUnstartable, said(view)))
}

fn said<'a>(view: &View<'a>) -> &'a str {
    let failure = view.facts.failures.get(&PgOpKind::Start);
    failure.map_or("it was started and ended again", |failure| &failure.text)
}

fn has_others(view: &View<'_>) -> bool {
    view.cluster()
        .is_some_and(|c| c.members.keys().any(|name| *name != view.me.name))
}

/// A promotion that failed three times is not going to succeed here; another node may.
const PROMOTE_TRIES: u32 = 3;

/// The first failure of a start may be a shortage that passes; the third is a broken server.
const START_TRIES: u32 = 3;

const DROP_SLOTS_EVERY: Duration = Duration::from_secs(60);

/// A hung server that is ended and started anew is back within a second or two, while a
/// checkpoint on a slow disk may hold all connections for some seconds.
pub(super) const HUNG_PATIENCE: Duration = Duration::from_secs(10);
