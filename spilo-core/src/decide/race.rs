//! Nobody holds the lock.

use std::time::Duration;

use super::{Action, Decision, Rule, View, bootstrap};
use crate::cluster::{FailoverDocument, HistoryEntry};
use crate::dcs::{Expect, Key};
use crate::history::{End, History};
use crate::ids::MemberName;
use crate::machine::LeaseRequest;
use crate::machine::facts::Seen;
use crate::machine::lease::{Predecessor, Proof};
use crate::mutant::{Mutant, planted};
use crate::peer::PeerStatus;
use crate::pg::{PgOp, PgOpKind, Running, Server};
use crate::time::NodeTime;
use crate::wal::{Lsn, Timeline, WalPosition};

pub(super) fn decide(view: &View<'_>) -> Decision {
    let outrun = |decision: Decision| give_back(view, &decision).unwrap_or(decision);
    take_back(view)
        .or_else(|| start(view))
        .or_else(|| forbidden(view))
        .or_else(|| position(view).or_else(|| peers(view)).map(outrun))
        .unwrap_or_else(|| {
            let at = view
                .position()
                .map_or_else(String::new, |p| format!(" at {p}"));
            let proof = view.predecessor().and_then(|p| p.proof);
            let why = format!(
                "the lock is free ({}), and nobody is ahead{at}",
                told(proof)
            );
            Decision::new(
                Rule::Acquire,
                Action::Lease(LeaseRequest::Acquire(view.config().ttl)),
                why,
            )
        })
}

/// A primary whose lock was deleted, and whose permission lasts: nobody else can have it before.
fn take_back(view: &View<'_>) -> Option<Decision> {
    let serves = view.running().is_some_and(Running::is_primary);
    if !serves || view.leadership().is_none() {
        return None;
    }
    let stopped = view.facts.store_failing.is_some()
        || view.facts.unsettled
        || !view.config().unsupported.is_empty()
        || unread_config(view).is_some();
    if stopped {
        return forbidden(view);
    }
    let request = LeaseRequest::Acquire(view.config().ttl);
    let why = "the lock vanished, and the permission to write still stands";
    Some(Decision::new(Rule::TakeBack, Action::Lease(request), why))
}

/// A server must run to tell its position, and to serve reads in the meantime.
fn start(view: &View<'_>) -> Option<Decision> {
    match view.pg().map(|pg| &pg.server) {
        Some(Server::Down) => {
            view.control()?;
            if let Some(failure) = view.backing_off(PgOpKind::Start) {
                return Some(Decision::wait(Rule::StartFailed, failure.text.clone()));
            }
            let op = PgOp::Start {
                role: bootstrap::alone(),
            };
            Some(Decision::run(
                Rule::StartToRace,
                op,
                "nobody holds the lock",
            ))
        }
        Some(Server::Busy { saying, .. } | Server::Closed { saying, .. }) => {
            Some(Decision::wait(Rule::AwaitPosition, saying.clone()))
        }
        Some(Server::Hung { .. }) => {
            Some(Decision::wait(Rule::AwaitPosition, "it does not answer"))
        }
        Some(Server::Running(_)) | None => None,
    }
}

/// Returns why this node must not take the lock now, whatever its position.
pub(super) fn forbidden(view: &View<'_>) -> Option<Decision> {
    let facts = view.facts;
    view.cluster()?;
    if let Some((_, text)) = &facts.store_failing {
        return Some(Decision::wait(Rule::StoreSilent, text.clone()));
    }
    if facts.unsettled {
        let why = "an earlier attempt to take the lock may have succeeded";
        return Some(Decision::wait(Rule::Unsettled, why));
    }
    if !view.config().unsupported.is_empty() {
        let names = view.config().unsupported.join(", ");
        let why = format!(
            "the configuration has {names}, which this version does not know how to honour"
        );
        return Some(Decision::wait(Rule::Unsupported, why));
    }
    if let Some(problem) = unread_config(view) {
        let why = format!("the key config {problem}; what it asks for is not known");
        return Some(Decision::wait(Rule::Unsupported, why));
    }
    if let Some((since, text)) = &facts.pg_failing
        && facts.electorate.keys().next().is_some()
        && view.now().since(*since) >= BLIND_LIMIT
    {
        return Some(Decision::wait(Rule::Blind, text.clone()));
    }
    if let Some(promise) = facts.promise.as_ref().filter(|p| view.now() < p.until) {
        let left = promise.until.since(view.now());
        return Some(Decision::wait(
            Rule::Promised,
            format!("to {}, for {left:?}", promise.to),
        ));
    }
    let predecessor = view.predecessor()?;
    // A store that says nothing is a new cluster's to a node without data. To one with data it is
    // a store that was wiped, and whoever led may be writing still.
    let has_data = has_data(view);
    let new = predecessor.proof == Some(Proof::NewCluster) && !has_data;
    let until = forgotten_until(view).filter(|until| !new && view.now() < *until);
    if let Some(until) = until {
        let left = until.since(view.now());
        let why = format!("for {left:?}, in case a promise was forgotten");
        return Some(Decision::wait(Rule::JustStarted, why));
    }
    let waited = match predecessor.cannot_write(view.now()) {
        Ok(Some(Proof::NewCluster)) if has_data => predecessor.waited_out(view.now()),
        other => other,
    };
    match waited {
        Ok(_) => {}
        Err(until) => {
            let name = predecessor
                .name
                .as_ref()
                .map_or("the last holder", MemberName::as_str);
            let left = until.since(view.now());
            let why = format!("{name} may write for {left:?}, and nothing proves otherwise");
            return Some(Decision::wait(Rule::PredecessorMayWrite, why));
        }
    }
    let stopped = waited.ok().flatten().is_some_and(Proof::ends_consent);
    unlisted(view, stopped)
}

/// Returns what is wrong with a configuration that is there, and that this node has never been able
/// to read. It may have settings that decide who may be promoted.
fn unread_config<'a>(view: &View<'a>) -> Option<&'a str> {
    let malformed = &view.cluster()?.malformed;
    let mut bad = malformed
        .iter()
        .filter(|bad| bad.path == Key::Config.path());
    let problem = bad.next()?.problem.as_str();
    (!view.facts.config_known()).then_some(problem)
}

/// Until when this node takes no lock, whatever happens to the one who has it.
pub(crate) fn waits_until(view: &View<'_>) -> Option<NodeTime> {
    if view.cluster().is_none() {
        // Whoever has heard nothing of the store yet takes nothing from it.
        return Some(view.now() + view.config().ttl);
    }
    let promised = view.facts.promise.as_ref().map(|promise| promise.until);
    promised.max(forgotten_until(view))
}

/// Until when a promise holds that this node may have given before it started, if it may have.
fn forgotten_until(view: &View<'_>) -> Option<NodeTime> {
    // Whoever turned the failsafe mode off cannot have told those who are cut off from the store.
    let may_have_promised = match &view.cluster()?.failsafe {
        Some(list) => list.keys().any(|name| *name != view.me.name),
        // Nobody lives by consent before there is a cluster with data.
        None => view.config().failsafe_mode || (has_data(view) && may_be_failsafe(view)),
    };
    let last = view.predecessor().and_then(|predecessor| predecessor.ttl);
    let longest = last.unwrap_or_default().max(view.config().ttl);
    may_have_promised.then(|| view.facts.started + longest)
}

fn has_data(view: &View<'_>) -> bool {
    view.control().is_some_and(|control| !control.provisional)
}

/// Returns why a primary that lives by consent, and not by a lease, may not need that of this node.
fn unlisted(view: &View<'_>, stopped: bool) -> Option<Decision> {
    let list = view.cluster()?.failsafe.as_ref();
    let remembered = view
        .facts
        .failsafe
        .as_ref()
        .filter(|_| may_be_failsafe(view));
    let listed = list
        .or(remembered)
        .is_none_or(|list| list.is_empty() || list.contains_key(&view.me.name));
    if !listed && !stopped && !planted(Mutant::UnlistedAcquires) {
        let why = format!(
            "{} is not among the members by whose consent a primary may live without the store; if \
             none of them is left, set the key failsafe to {{}}",
            view.me.name
        );
        return Some(Decision::wait(Rule::NotInFailsafe, why));
    }
    // Its last holder may have made the list shorter before it was lost, unseen by this node.
    let lost = list.is_none() && remembered.is_some_and(|list| !list.is_empty());
    if lost && !stopped && !planted(Mutant::LostListTrusted) {
        let why = "the key failsafe was lost or cannot be read, so that a primary may live by the \
                   consent of others, and the last one does not say that it has stopped; if it has, \
                   set the key to {}";
        return Some(Decision::wait(Rule::NotInFailsafe, why));
    }
    None
}

/// Whether a primary may live by consent, for all that the configuration says. One that the store
/// lost says nothing.
fn may_be_failsafe(view: &View<'_>) -> bool {
    let unknown = !view.facts.config_known() && !planted(Mutant::LostConfigTrusted);
    view.config().failsafe_mode || unknown
}

/// Returns why this node's own position forbids.
fn position(view: &View<'_>) -> Option<Decision> {
    let cluster = view.cluster()?;
    let Some(mine) = view.position() else {
        return Some(Decision::wait(
            Rule::AwaitPosition,
            "the position is not known",
        ));
    };
    if let Some(behind) = too_far_behind(view, mine.lsn).filter(|_| !is_ordered(view)) {
        let why = format!(
            "{behind}; to go on without them, set the key failover to {{\"member\": \"{}\"}}",
            view.me.name
        );
        return Some(Decision::wait(Rule::TooFarBehind, why));
    }
    let fork = cluster.history.as_ref().and_then(|history| history.last());
    if let Some(fork) = fork.filter(|_| view.config().check_timeline) {
        let Some(history) = &view.facts.own_history else {
            // Without the file, which somebody may have removed, the number has to do.
            let unreadable = view.facts.lanes.history_failed.is_some();
            if unreadable && mine.timeline.0 == fork.timeline.0.saturating_add(1) {
                return None;
            }
            let why = "the history of the own timeline is not known";
            let action = Action::ReadHistory(None);
            return Some(Decision::new(Rule::TimelineBehind, action, why));
        };
        if !has_come_through(history, fork) {
            let why = format!(
                "the cluster left timeline {} at {}, and this server, on {}, did not; if it is \
                 the one to go on with, delete the key history",
                fork.timeline, fork.end, mine.timeline
            );
            return Some(Decision::wait(Rule::TimelineBehind, why));
        }
    }
    None
}

/// Whether a server came to where it is through the last fork that the store knows of.
///
/// The number of a timeline does not tell: the next one may be any that nobody has used, and two
/// that nobody saw promoted may have the same.
fn has_come_through(history: &History, fork: &HistoryEntry) -> bool {
    if planted(Mutant::ForkByNumber) {
        return history.end_of(Timeline(fork.timeline.0 + 1)).is_some();
    }
    history.end_of(fork.timeline) == Some(End::At(fork.end))
}

/// Returns what the peers say against it.
fn peers(view: &View<'_>) -> Option<Decision> {
    let mine = view.position()?;
    if was_released_for(view) {
        return None;
    }
    let ask: Vec<&MemberName> = view.facts.electorate.keys().collect();
    let answer = |name: &MemberName| {
        let lasts = |seen: &Seen<Option<PeerStatus>>| match seen.value {
            Some(_) => ANSWER_LASTS,
            None => SILENCE_LASTS,
        };
        view.facts
            .peers
            .get(name)
            .filter(|seen| view.now().since(seen.at) < lasts(seen))
    };
    if let Some(missing) = ask.iter().find(|name| answer(name).is_none()) {
        return Some(Decision::new(
            Rule::AskPeers,
            Action::AskPeers,
            missing.to_string(),
        ));
    }
    for name in &ask {
        let Some(peer) = answer(name).and_then(|seen| seen.value.as_ref()) else {
            continue;
        };
        if peer.primary && !is_outdated(view, name) {
            return Some(Decision::wait(Rule::PeerIsPrimary, name.to_string()));
        }
    }
    let asked = view.failover();
    if let Some(decision) = asked.and_then(|asked| await_candidate(view, asked, answer)) {
        return Some(decision);
    }
    if is_ordered(view) {
        return None;
    }
    let is_late = free_for(view).is_some_and(|spent| spent >= view.config().ttl);
    for name in &ask {
        let Some(peer) = answer(name).and_then(|seen| seen.value.as_ref()) else {
            continue;
        };
        if peer.no_failover || (is_unlisted(view, name) && is_late) {
            continue;
        }
        if let Some(theirs) = ahead(peer, mine, view.facts.own_history.as_ref()) {
            // What is left of a branch that the cluster has gone on without, and leads nobody; or
            // it has not replayed yet what it has.
            let is_dead = is_late && too_far_behind(view, theirs.lsn).is_some();
            if is_dead && !planted(Mutant::DeadBranchAwaited) {
                continue;
            }
            if is_forgone(view, peer, theirs, mine) {
                continue;
            }
            let why = format!("{name} is at {theirs}, this server at {mine}");
            return Some(Decision::wait(Rule::PeerAhead, why));
        }
    }
    None
}

/// Whether somebody wants this node to be the next primary, whatever is lost by it. A switchover,
/// which names the leader too, is no such word: its leader may be lost before the candidate has
/// everything.
fn is_ordered(view: &View<'_>) -> bool {
    view.failover().is_some_and(|asked| {
        let planned = asked.leader.is_some() && !planted(Mutant::SwitchoverWaivesLag);
        names(asked.candidate.as_deref(), &view.me.name) && !planned
    })
}

/// A switchover's candidate that turns out not to have everything gives the switchover up, after as
/// long as others leave the lock to it: a peer of Patroni's does so for as long as it is asked for.
fn give_back(view: &View<'_>, decision: &Decision) -> Option<Decision> {
    let asked = view.cluster()?.failover.as_ref()?;
    let planned = asked.leader.is_some() && names(asked.candidate.as_deref(), &view.me.name);
    let outrun = matches!(decision.rule, Rule::PeerAhead | Rule::TooFarBehind);
    let late = free_for(view).is_some_and(|spent| spent >= view.config().ttl);
    (planned && outrun && late).then(|| {
        let clear = Action::ClearFailover(Expect::Revision(asked.revision));
        let why = format!("its leader was lost on the way: {}", decision.why);
        Decision::new(Rule::SwitchoverRefused, clear, why)
    })
}

/// Returns by how much a server at `lsn` is too far behind the leader's last known position, whoever
/// it is.
fn too_far_behind(view: &View<'_>, lsn: Lsn) -> Option<String> {
    let known = view.cluster()?.status.as_ref()?.optime?;
    let behind = known.bytes_past(lsn);
    let most = view.config().maximum_lag_on_failover_bytes;
    (behind > most && !planted(Mutant::LagIgnored))
        .then(|| format!("{behind} bytes behind the leader's {known}, more than {most}"))
}

/// Whether a peer that is ahead says that it may not lead, has had a ttl to find a way from when
/// anybody might, and no more is lost by going on without it than may be.
fn is_forgone(view: &View<'_>, peer: &PeerStatus, theirs: WalPosition, mine: WalPosition) -> bool {
    let most = view.config().maximum_lag_on_failover_bytes;
    // On another timeline the positions tell nothing; what it says of its branch does.
    let near = theirs.timeline == mine.timeline && theirs.lsn.bytes_past(mine.lsn) <= most;
    let bounded = near || peer.off_branch;
    let before = view.predecessor().filter(|before| before.proof.is_none());
    let last = before.and_then(Predecessor::may_write_until);
    let spent = last.map_or(Duration::MAX, |last| view.now().since(last));
    let late = free_for(view).map(|free| free.min(spent));
    let late = late.is_some_and(|spent| spent >= view.config().ttl);
    peer.barred && late && bounded && !planted(Mutant::BarredAwaited)
}

/// Returns for how long the lock has been free.
fn free_for(view: &View<'_>) -> Option<Duration> {
    let gone = view.predecessor()?.gone?;
    Some(view.now().since(gone))
}

/// Whether a peer may not take the lock, because it is not in the list of the failsafe mode: one
/// that is ahead is waited for, but not for ever.
fn is_unlisted(view: &View<'_>, name: &MemberName) -> bool {
    let list = view.cluster().and_then(|c| c.failsafe.as_ref());
    list.is_some_and(|list| !list.is_empty() && !list.contains_key(name))
}

/// Whether the last holder gave the lock up for this node, which it knew to have everything.
fn was_released_for(view: &View<'_>) -> bool {
    let released = view
        .predecessor()
        .is_some_and(|p| p.proof == Some(Proof::Released));
    let record = view.cluster().and_then(|c| c.release.as_ref());
    released && record.is_some_and(|r| names(r.candidate.as_deref(), &view.me.name))
}

/// Whether the word of a peer that it is a primary is older than the proof that it is none.
fn is_outdated(view: &View<'_>, name: &MemberName) -> bool {
    let Some(before) = view.predecessor().filter(|p| p.name.as_ref() == Some(name)) else {
        return false;
    };
    let said = view.facts.peers.get(name).map(|seen| seen.at);
    before.proof.is_some() && before.gone.is_some() && said < before.gone
}

/// A lock that was released for a candidate is left to it while it is alive and able.
fn await_candidate<'a>(
    view: &View<'_>,
    asked: &FailoverDocument,
    answer: impl Fn(&MemberName) -> Option<&'a Seen<Option<PeerStatus>>>,
) -> Option<Decision> {
    let me = &view.me.name;
    let able = |name: &MemberName| {
        answer(name)
            .and_then(|seen| seen.value.as_ref())
            .is_some_and(|peer| peer.position.is_some() && !peer.no_failover && !peer.barred)
    };
    if free_for(view).is_some_and(|spent| spent >= view.config().ttl) {
        return None;
    }
    if let Some(candidate) = asked
        .candidate
        .as_deref()
        .filter(|name| *name != me.as_str())
    {
        let name = MemberName::new(candidate).ok()?;
        return able(&name).then(|| Decision::wait(Rule::AwaitCandidate, candidate.to_owned()));
    }
    // The one that gave the lock up takes it back only if nobody else can have it.
    if names(asked.leader.as_deref(), me) {
        let other = view.facts.electorate.keys().find(|name| able(name))?;
        return Some(Decision::wait(Rule::AwaitCandidate, other.to_string()));
    }
    None
}

/// Returns the position of a peer that is ahead of ours.
///
/// On the same timeline the log position tells. A peer on another timeline is behind if ours
/// contains it. Otherwise it is ahead if its timeline is a later one, which we may yet have to
/// follow; and if it is an earlier one, it has diverged from us and its rest is lost already.
fn ahead(peer: &PeerStatus, mine: WalPosition, history: Option<&History>) -> Option<WalPosition> {
    let lsn = peer.position?;
    let timeline = peer.timeline.unwrap_or(mine.timeline);
    let theirs = WalPosition { timeline, lsn };
    if timeline == mine.timeline {
        return (lsn > mine.lsn).then_some(theirs);
    }
    if history.is_some_and(|history| history.contains(theirs)) {
        return None;
    }
    (timeline.0 > mine.timeline.0).then_some(theirs)
}

fn names(name: Option<&str>, member: &MemberName) -> bool {
    name == Some(member.as_str())
}

fn told(proof: Option<Proof>) -> &'static str {
    match proof {
        Some(Proof::Released) => "it was released",
        Some(Proof::Aged) => "the lease ended of age",
        Some(Proof::Vouched) => "its holder says that it cannot write",
        Some(Proof::Own) => "it was this node's own",
        Some(Proof::NewCluster) => "the cluster is new",
        None => "its holder's longest deadline has passed",
    }
}

/// One look may be late. A disk that answers nothing for longer would not let a promotion end.
const BLIND_LIMIT: Duration = Duration::from_secs(2);

/// Short enough that a server that streamed on has not come far.
const ANSWER_LASTS: Duration = Duration::from_secs(3);

/// Finding out that a peer does not answer takes as long as a question may take; it is not waited
/// for twice.
pub(super) const SILENCE_LASTS: Duration = Duration::from_secs(6);
