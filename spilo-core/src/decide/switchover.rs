//! Somebody asked the primary to hand over.

use std::time::Duration;

use super::race::SILENCE_LASTS;
use super::{Action, Decision, Rule, View};
use crate::dcs::Expect;
use crate::ids::MemberName;
use crate::mutant::{Mutant, planted};
use crate::pg::PgOp;
use crate::status::PermittedBy;

pub(super) fn decide(view: &View<'_>) -> Option<Decision> {
    let asked = view.cluster()?.failover.as_ref()?;
    let refuse = |why: String| {
        let clear = Action::ClearFailover(Expect::Revision(asked.revision));
        Some(Decision::new(Rule::SwitchoverRefused, clear, why))
    };
    if let Some((_, why)) = view
        .facts
        .refused_failover
        .as_ref()
        .filter(|(r, _)| *r == asked.revision)
    {
        return refuse(why.clone());
    }
    let me = view.me.name.as_str();
    if let Some(leader) = asked.leader.as_deref().filter(|leader| *leader != me) {
        return refuse(format!("it names {leader} as the leader, which is {me}"));
    }
    if asked.candidate.as_deref() == Some(me) {
        return refuse(format!("{me} is the leader already"));
    }
    if let Some(when) = &asked.scheduled_at {
        return refuse(format!(
            "it is scheduled for {when}, and schedules are not supported"
        ));
    }
    // Without the store nobody could take the lock, and the server would be down for nothing.
    let by_consent = view
        .leadership()
        .is_some_and(|l| l.by == PermittedBy::Consent);
    if view.facts.store_failing.is_some() || by_consent {
        let why = "the store does not answer";
        return Some(Decision::wait(Rule::SwitchoverWait, why));
    }
    match not_yet(view, asked.candidate.as_deref()) {
        Ok(None) => {}
        Ok(decision) => return decision,
        Err(why) => return refuse(why),
    }
    let candidate = asked
        .candidate
        .as_ref()
        .and_then(|name| MemberName::new(name.clone()).ok());
    let why = format!(
        "to {}",
        candidate
            .as_ref()
            .map_or("any level standby", MemberName::as_str)
    );
    Some(Decision::run(
        Rule::Switchover,
        PgOp::HandOver { candidate },
        why,
    ))
}

/// Returns what has to come before the hand-over, or why there must be none.
fn not_yet(view: &View<'_>, named: Option<&str>) -> Result<Option<Decision>, String> {
    let candidates = candidates(view, named);
    if candidates.is_empty() {
        return Err("there is no such candidate".to_owned());
    }
    let longest = view.config().ttl * 2;
    let fresh = |name: &MemberName| {
        view.facts.peers.get(name).filter(|seen| {
            let lasts = match &seen.value {
                Some(peer) => ANSWER_LASTS.max(peer.waits.min(longest)),
                None => SILENCE_LASTS,
            };
            view.now().since(seen.at) < lasts
        })
    };
    if let Some(waiting) = candidates.iter().find(|name| fresh(name).is_none()) {
        return Ok(Some(Decision::new(
            Rule::SwitchoverAsk,
            Action::AskPeers,
            waiting.to_string(),
        )));
    }
    let mut reasons = Vec::new();
    let mut first: Option<(&MemberName, Duration)> = None;
    for name in &candidates {
        match fit(view, name) {
            Err(why) => reasons.push(format!("{name}: {why}")),
            Ok(waits) if first.is_none_or(|(_, least)| waits < least) => {
                first = Some((name, waits));
            }
            Ok(_) => {}
        }
    }
    let Some((first, waits)) = first else {
        return Err(format!("no good candidates: {}", reasons.join("; ")));
    };
    if !waits.is_zero() && !planted(Mutant::CandidateNotAwaited) {
        let why = format!("{first} takes no lock for {waits:?}: it promised so, or may have");
        return Ok(Some(Decision::wait(Rule::SwitchoverWait, why)));
    }
    Ok(None)
}

fn candidates(view: &View<'_>, named: Option<&str>) -> Vec<MemberName> {
    let members = view.cluster().into_iter().flat_map(|c| c.members.values());
    members
        .filter(|m| m.name != view.me.name && m.api_url.is_some())
        .filter(|m| named.is_none_or(|n| m.name.as_str() == n))
        .map(|m| m.name.clone())
        .collect()
}

/// Returns for how long the candidate has to be waited for, or why it must not be the next primary.
fn fit(view: &View<'_>, name: &MemberName) -> Result<Duration, String> {
    let seen = view.facts.peers.get(name);
    let Some((peer, at)) = seen.and_then(|seen| Some((seen.value.as_ref()?, seen.at))) else {
        return Err("does not answer".to_owned());
    };
    let Some(position) = peer.position else {
        return Err("its server is down".to_owned());
    };
    if peer.no_failover {
        return Err("may not be promoted".to_owned());
    }
    if peer.barred {
        return Err("may not take the lock; its status says why".to_owned());
    }
    if peer.timeline.is_some() && peer.timeline != view.position().map(|p| p.timeline) {
        return Err("is on another timeline".to_owned());
    }
    let longest = view.config().ttl * 2;
    if peer.waits > longest {
        return Err(format!("takes no lock for {:?}", peer.waits));
    }
    let waits = peer.waits.saturating_sub(view.now().since(at));
    if !waits.is_zero() {
        // Asked again when that is over; what it says of its position is old by then.
        return Ok(waits);
    }
    // What it has flushed was seen together with our own position. What it says was seen by it up
    // to a second ago, in which a busy primary writes more than a standby may be behind.
    let sent = view.running().and_then(|running| {
        let streams = running.walsenders.iter();
        let mut of_it = streams.filter(|sender| sender.application == name.as_str());
        of_it.find_map(|sender| sender.flushed)
    });
    let position = sent.map_or(position, |sent| position.max(sent));
    let behind = view
        .position()
        .map_or(0, |mine| mine.lsn.bytes_past(position));
    let most = view.config().maximum_lag_on_failover_bytes;
    if behind > most {
        return Err(format!("is {behind} bytes behind, more than {most}"));
    }
    Ok(Duration::ZERO)
}

/// An answer that is younger than this describes a server that streams well enough.
const ANSWER_LASTS: Duration = Duration::from_secs(2);
