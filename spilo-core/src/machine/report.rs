//! What others must know: which key to write next, and with what.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;

use super::duties::NOTHING_ASKED;
use super::lease::Holding;
use super::{Facts, Identity, WriteRequest};
use crate::cluster::{
    HistoryEntry, Initialize, MemberRecord, MemberRole, NodeState, StatusDocument, encode,
};
use crate::dcs::{Expect, Key};
use crate::decide::{Decision, Rule, View, waits_until};
use crate::guard::GuardStatus;
use crate::ids::{Epoch, MemberName};
use crate::mutant::{Mutant, planted};
use crate::pg::{ControlState, DataDir, PgOp, PgOpKind, Role, Server, StartRole};
use crate::status::{PermittedBy, Status};
use crate::time::NodeTime;
use crate::wal::Lsn;

/// Returns the write that is most urgent, or `None` when all is written. What is nearly due goes
/// along where the node is `awake` for something else.
pub(super) fn next_write(view: &View<'_>, awake: bool) -> Option<WriteRequest> {
    if view.facts.lanes.write.is_some() || view.cluster().is_none() {
        return None;
    }
    holding(view)
        .or_else(|| leader_writes(view).filter(|request| !was_written(view, request)))
        .or_else(|| announce(view, awake))
        .or_else(|| leader_status(view))
}

/// Whether exactly this was written since the latest snapshot left, which cannot show it yet.
fn was_written(view: &View<'_>, request: &WriteRequest) -> bool {
    let WriteRequest::Put(key, value, _) = request else {
        return false;
    };
    let read_at = view.facts.cluster.as_ref().map(|seen| seen.at);
    let last = view.facts.written.documents.get(key);
    last.is_some_and(|(at, written)| written == value && read_at <= Some(*at))
}

/// Returns when the next write is due although nothing changes.
pub(super) fn next_write_at(view: &View<'_>) -> Option<NodeTime> {
    Some(view.facts.written.member? + ANNOUNCE_EVERY)
}

/// Returns the state of this node in the words of the contract.
pub(super) fn state(view: &View<'_>) -> NodeState {
    match view.facts.op.as_ref().map(|running| running.op.kind()) {
        Some(PgOpKind::Bootstrap) => return NodeState::Initializing,
        Some(PgOpKind::Clone) => return NodeState::CreatingReplica,
        Some(PgOpKind::Start) => return NodeState::Starting,
        Some(PgOpKind::Stop | PgOpKind::HandOver) if !serves(view) => return NodeState::Stopping,
        Some(PgOpKind::Stop) => return NodeState::Stopping,
        Some(
            PgOpKind::Confirm
            | PgOpKind::Follow
            | PgOpKind::Promote
            | PgOpKind::HandOver
            | PgOpKind::Rewind
            | PgOpKind::Configure
            | PgOpKind::Slots
            | PgOpKind::Checkpoint,
        )
        | None => {}
    }
    match view.pg() {
        None => NodeState::Unknown,
        Some(pg) => match &pg.server {
            Server::Running(_) => NodeState::Running,
            Server::Busy { .. } => NodeState::Starting,
            Server::Closed { .. } | Server::Hung { .. } => NodeState::Unknown,
            Server::Down => match &pg.data {
                DataDir::Ready(control) => match control.state {
                    ControlState::ShutDown | ControlState::ShutDownInRecovery => NodeState::Stopped,
                    _ if view.failed(PgOpKind::Start) > 0 => NodeState::StartFailed,
                    ControlState::Starting
                    | ControlState::ShuttingDown
                    | ControlState::InCrashRecovery
                    | ControlState::InArchiveRecovery
                    | ControlState::InProduction => NodeState::Crashed,
                },
                DataDir::Empty | DataDir::Unfinished(_) | DataDir::Unreadable { .. } => {
                    if view.failed(PgOpKind::Bootstrap) > 0 {
                        NodeState::InitdbFailed
                    } else {
                        NodeState::Stopped
                    }
                }
            },
        },
    }
}

/// Returns what the node says of itself.
pub(super) fn status(me: &Identity, facts: &Facts, last: Option<&Decision>) -> Status {
    let view = View::new(me, facts);
    let leadership = view.leadership();
    let guard = facts.guard.as_ref().map(|seen| &seen.value);
    // An earlier agent may have ordered a promotion that a standby has still to get to.
    let is_permitted = |guard: &GuardStatus| {
        let ends = guard.deadline.as_ref().map(|deadline| deadline.hard);
        guard.alive && ends.is_some_and(|hard| facts.now < hard)
    };
    let left = guard.is_some_and(is_permitted) && !planted(Mutant::LeftOrderForgotten);
    Status {
        at: facts.now,
        scope: me.scope.clone(),
        name: me.name.clone(),
        leadership,
        holds_lock: facts
            .holding
            .as_ref()
            .is_some_and(|held| held.is_alive(facts.now)),
        postgres: facts.pg.as_ref().map(|seen| seen.value.clone()),
        postgres_at: facts.pg.as_ref().map(|seen| seen.at),
        state: state(&view),
        cluster: facts.cluster.as_ref().map(|seen| Arc::clone(&seen.value)),
        cluster_at: facts.cluster.as_ref().map(|seen| seen.at),
        config: Arc::clone(&facts.config),
        tags: me.tags.clone(),
        may_become_primary: guard.is_none()
            || left
            || facts.guard_failing.is_some()
            || facts.promotion_ordered
            || facts.op.as_ref().is_some_and(|op| op.op.makes_primary()),
        failsafe_active: leadership.is_some_and(|l| l.by == PermittedBy::Consent),
        waits_until: waits_until(&view).unwrap_or(NodeTime(0)),
        barred: is_barred(&view, last),
        off_branch: facts.own_history.is_some()
            && last.is_some_and(|last| last.rule == Rule::TimelineBehind),
        decision: last.map_or(("", String::new()), |d| (d.rule.as_str(), d.why.clone())),
        stepped_at: facts.now,
        fence: "guard",
        weaknesses: guard.map(|g| g.weaknesses.clone()).unwrap_or_default(),
        worst_fence_ms: guard
            .map(|g| u64::try_from(g.worst_fence.as_millis()).unwrap_or(u64::MAX))
            .unwrap_or_default(),
    }
}

/// Whether the node may not take the lock for a reason that is not gone in a moment.
fn is_barred(view: &View<'_>, last: Option<&Decision>) -> bool {
    let facts = view.facts;
    let lasting = |since: NodeTime| facts.now.since(since) >= BARRED_AFTER;
    let store = facts.store_failing.as_ref().map(|(since, _)| *since);
    let guard = facts.guard_failing.as_ref().map(|(since, _)| *since);
    let cut_off = facts.cluster.is_none() || store.is_some_and(lasting);
    let by_rule = last.is_some_and(|last| match last.rule {
        Rule::StoreSilent => cut_off,
        Rule::GuardUnknown => guard.is_none_or(lasting),
        rule => rule.bars(),
    });
    by_rule || (!view.is_holder() && cut_off)
}

/// A question or two may get lost; a switchover is not refused for that.
const BARRED_AFTER: Duration = Duration::from_secs(2);

fn serves(view: &View<'_>) -> bool {
    view.running().is_some()
}

/// Returns the role of this node in the words of the contract.
pub(super) fn role(view: &View<'_>) -> MemberRole {
    let starting_primary = view.facts.op.as_ref().is_some_and(|running| {
        matches!(
            running.op,
            PgOp::Start {
                role: StartRole::Primary
            } | PgOp::Bootstrap { .. }
        )
    });
    if view
        .facts
        .op
        .as_ref()
        .is_some_and(|running| running.op == PgOp::Promote)
    {
        return MemberRole::Promoted;
    }
    match view.pg() {
        None => MemberRole::Uninitialized,
        Some(pg) => match (&pg.server, &pg.data) {
            (Server::Running(running), _) if running.is_primary() => MemberRole::Primary,
            (Server::Running(_), _) => MemberRole::Replica,
            (_, DataDir::Ready(_)) if starting_primary => MemberRole::Primary,
            (_, DataDir::Ready(control)) if control.standby => MemberRole::Replica,
            (_, DataDir::Ready(_)) if view.is_holder() => MemberRole::Primary,
            (_, DataDir::Ready(_)) => MemberRole::Demoted,
            (_, DataDir::Empty | DataDir::Unfinished(_) | DataDir::Unreadable { .. }) => {
                MemberRole::Uninitialized
            }
        },
    }
}

/// The record of a holding, before anything is written by it.
fn holding(view: &View<'_>) -> Option<WriteRequest> {
    let held = view.facts.holding.as_ref()?;
    if held.recorded || held.clear.is_none_or(|at| view.now() < at) {
        return None;
    }
    let record = held.record(&view.me.name).to_bytes();
    let expect = Expect::Leader(held.lease.epoch);
    Some(WriteRequest::Put(Key::Release, record, expect))
}

fn announce(view: &View<'_>, awake: bool) -> Option<WriteRequest> {
    // A node that may have to refuse its data directory has not been here.
    if view.facts.pg.is_none() && view.facts.lanes.observe_failed.is_none() {
        return None;
    }
    let record = record(view);
    let written = &view.facts.written;
    let due = match (written.member, &written.record) {
        (None, _) | (_, None) => true,
        (Some(at), Some(last)) => {
            let spent = view.now().since(at);
            let there = view
                .cluster()
                .is_some_and(|c| c.members.contains_key(&view.me.name));
            let lost = !there && spent >= Duration::from_secs(1);
            lost || spent >= ANNOUNCE_EVERY
                || (awake && spent >= ANNOUNCE_EVERY * 3 / 4)
                || !record.is_like(last)
                || (record != *last && spent >= view.config().loop_wait)
        }
    };
    let ttl = view.config().ttl.saturating_mul(3).max(MEMBER_TTL);
    due.then(|| WriteRequest::Announce(record.to_bytes(), ttl))
}

/// Returns what this node says of itself in its member record.
pub(super) fn record(view: &View<'_>) -> MemberRecord {
    let running = view.running();
    let mut record = MemberRecord {
        conn_url: view.me.conn_url.clone(),
        api_url: view.me.api_url.clone(),
        proxy_url: view.me.proxy_url.clone(),
        state: state(view),
        role: role(view),
        checkpoint_pending: view.facts.checkpoint_pending,
        tags: view.me.tags.clone(),
        pending_restart: running
            .map(|r| r.pending_restart.clone())
            .unwrap_or_default(),
        xlog_location: view.position().map(|p| p.lsn),
        replay_lsn: None,
        receive_lsn: None,
        streaming: false,
        timeline: view.position().map(|p| p.timeline),
    };
    if let Some(Role::Standby {
        received,
        replayed,
        streaming,
        ..
    }) = running.map(|r| &r.role)
    {
        record.receive_lsn = Some(*received).filter(|lsn| lsn.0 > 0);
        record.replay_lsn = Some(*replayed).filter(|lsn| lsn.0 > 0);
        record.streaming = *streaming;
    }
    record
}

/// What only the leader writes, and what others wait for.
fn leader_writes(view: &View<'_>) -> Option<WriteRequest> {
    let cluster = view.cluster()?;
    let epoch = view.lease()?.epoch;
    let running = view.running().filter(|r| r.is_primary())?;
    let system_id = view.control()?.system_id;
    let put = |key, value, expect| Some(WriteRequest::Put(key, value, expect));
    let known = cluster.revision.0 >= epoch.0;
    if cluster.initialize != Initialize::Known(system_id) && known {
        // A valid identifier of another cluster was refused long before. A claim of which the
        // holder has a whole cluster is one that somebody left.
        let ours = view.facts.claimed == Some(epoch);
        let whole = view.control().is_some_and(|control| !control.provisional);
        let free = !matches!(cluster.initialize, Initialize::Claimed) || ours || whole;
        if free {
            let value = Bytes::from(system_id.to_string());
            return put(Key::Initialize, value, Expect::Leader(epoch));
        }
    }
    // One that is there and cannot be read is for people to mend, not for us to replace.
    let unreadable = cluster
        .malformed
        .iter()
        .any(|m| m.path == Key::Config.path());
    if cluster.config.is_none() && known && !unreadable {
        let config = view
            .me
            .bootstrap
            .as_ref()
            .filter(|_| view.facts.claimed == Some(epoch));
        let raw = config.map_or_else(|| view.config().raw.clone(), |c| c.raw.clone());
        if !raw.is_empty() {
            return put(Key::Config, encode(&Value::Object(raw)), Expect::Absent);
        }
        if let Some(seed) = &view.me.bootstrap {
            return put(
                Key::Config,
                encode(&Value::Object(seed.raw.clone())),
                Expect::Absent,
            );
        }
    }
    failover_done(view, epoch)
        .or_else(|| history(view, epoch))
        .or_else(|| failsafe(view, epoch))
        .filter(|_| running.is_primary())
}

/// The winner of a switchover clears the request that made it one.
fn failover_done(view: &View<'_>, epoch: Epoch) -> Option<WriteRequest> {
    let asked = view.cluster()?.failover.as_ref()?;
    let for_me = asked.candidate.as_deref() == Some(view.me.name.as_str());
    let from_other = asked
        .leader
        .as_deref()
        .is_some_and(|l| l != view.me.name.as_str());
    let old = asked.revision.0 < epoch.0;
    (old && (for_me || from_other || asked.leader.is_none())).then_some(WriteRequest::Put(
        Key::Failover,
        NOTHING_ASKED,
        Expect::Revision(asked.revision),
    ))
}

fn history(view: &View<'_>, epoch: Epoch) -> Option<WriteRequest> {
    let own = view.facts.own_history.as_ref()?;
    let known = view.cluster()?.history.as_deref().unwrap_or_default();
    let mut entries: Vec<HistoryEntry> = own
        .ancestors()
        .iter()
        .map(|ancestor| {
            let old = known
                .iter()
                .find(|e| e.timeline == ancestor.timeline && e.end == ancestor.end);
            old.cloned().unwrap_or_else(|| HistoryEntry {
                timeline: ancestor.timeline,
                end: ancestor.end,
                reason: "no recovery target specified".to_owned(),
                at: None,
                new_leader: None,
            })
        })
        .collect();
    let keep = view.config().max_timelines_history;
    if keep > 0 && entries.len() > keep {
        entries.drain(..entries.len() - keep);
    }
    let same = view
        .cluster()?
        .history
        .as_ref()
        .is_some_and(|k| *k == entries);
    if same {
        return None;
    }
    let bytes = HistoryEntry::list_to_bytes(&entries);
    let written = view
        .facts
        .written
        .documents
        .get(&Key::History)
        .map(|(_, b)| b);
    if written == Some(&bytes) && view.cluster()?.history.is_some() {
        return None;
    }
    Some(WriteRequest::Put(
        Key::History,
        bytes,
        Expect::Leader(epoch),
    ))
}

/// The members whose consent would keep this node a primary without the store.
/// Returns whom the failsafe list is to name: everybody, or nobody where it is not asked for.
pub(super) fn failsafe_list(view: &View<'_>) -> BTreeMap<MemberName, String> {
    let mut list = BTreeMap::new();
    if let Some(cluster) = view.cluster().filter(|_| view.config().failsafe_mode) {
        let members = cluster.members.values();
        list.extend(members.filter_map(|m| Some((m.name.clone(), m.api_url.clone()?))));
        list.insert(view.me.name.clone(), view.me.api_url.clone());
    }
    list
}

fn failsafe(view: &View<'_>, epoch: Epoch) -> Option<WriteRequest> {
    let cluster = view.cluster()?;
    // Whoever comes into the list counts on being asked, and the permission may rest on the consent
    // of those who were in it before.
    let facts = view.facts;
    let in_force = facts.consent.as_ref().map(|consent| consent.asked);
    let asked = in_force.max(facts.lanes.consent.as_ref().map(|sent| sent.at));
    let base = facts.holding.as_ref().map(Holding::base);
    if asked.is_some() && asked >= base && !planted(Mutant::ListedUnderConsent) {
        return None;
    }
    let list = failsafe_list(view);
    // The list binds whoever is not in it; one that nobody asks any more is emptied.
    if cluster
        .failsafe
        .as_ref()
        .map_or(list.is_empty(), |known| *known == list)
    {
        return None;
    }
    let map = list
        .into_iter()
        .map(|(n, url)| (n.to_string(), Value::from(url)))
        .collect();
    let bytes = encode(&Value::Object(map));
    Some(WriteRequest::Put(
        Key::Failsafe,
        bytes,
        Expect::Leader(epoch),
    ))
}

/// The leader's position, by which others judge how far behind they are.
fn leader_status(view: &View<'_>) -> Option<WriteRequest> {
    let cluster = view.cluster()?;
    let epoch = view.lease()?.epoch;
    let running = view.running()?;
    let Role::Primary { written } = running.role else {
        return None;
    };
    let last = view.facts.written.documents.get(&Key::Status);
    let spent = last.map(|(at, _)| view.now().since(*at));
    let gone = cluster.status.is_none() && spent >= Some(Duration::from_secs(1));
    if !gone && spent.is_some_and(|spent| spent < STATUS_EVERY.max(view.config().ttl / 4)) {
        return None;
    }
    let slots = running
        .slots
        .iter()
        .filter_map(|(name, lsn)| Some((name.to_string(), (*lsn)?)))
        .chain([(view.me.name.slot().to_string(), written)])
        .collect::<BTreeMap<String, Lsn>>();
    let keep = view.config().member_slots_ttl;
    let retain = view
        .facts
        .slot_seen
        .iter()
        .filter(|(_, seen)| view.now().since(**seen) < keep)
        .map(|(slot, _)| slot.to_string())
        .collect();
    let keeps = !keep.is_zero();
    let status = StatusDocument {
        optime: Some(written),
        slots: if keeps { slots } else { BTreeMap::new() },
        retain_slots: if keeps { retain } else { Default::default() },
        other: cluster
            .status
            .as_ref()
            .map(|s| s.other.clone())
            .unwrap_or_default(),
    };
    let bytes = status.to_bytes();
    let due = gone || last.is_none_or(|(_, value)| *value != bytes);
    due.then_some(WriteRequest::Put(Key::Status, bytes, Expect::Leader(epoch)))
}

/// A member record lives thirty seconds or more.
const MEMBER_TTL: Duration = Duration::from_secs(30);

/// A renewal that is lost leaves as much time again, in which it is tried four times a second.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(17);

/// The position of a busy leader changes all the time; a second of it is what the loss after a
/// failover cannot be known more exactly than.
const STATUS_EVERY: Duration = Duration::from_secs(1);
