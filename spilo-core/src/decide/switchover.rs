//! Somebody asked the primary to hand over.

use std::time::Duration;

use super::{Action, Decision, Rule, View};
use crate::dcs::Expect;
use crate::ids::MemberName;
use crate::pg::{PgOp, PgOpKind};

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
    if let Some(failure) = view.facts.failures.get(&PgOpKind::HandOver)
        && view.now().since(failure.at) < REFUSAL_LASTS
    {
        return refuse(failure.text.clone());
    }
    let candidates = candidates(view, asked.candidate.as_deref());
    if candidates.is_empty() {
        return refuse("there is no such candidate".to_owned());
    }
    let fresh = |name: &MemberName| {
        view.facts
            .peers
            .get(name)
            .filter(|seen| view.now().since(seen.at) < ANSWER_LASTS)
    };
    if let Some(waiting) = candidates.iter().find(|name| fresh(name).is_none()) {
        return Some(Decision::new(
            Rule::SwitchoverAsk,
            Action::AskPeers,
            waiting.to_string(),
        ));
    }
    let reasons: Vec<String> = candidates
        .iter()
        .filter_map(|name| unfit(view, name).map(|why| format!("{name}: {why}")))
        .collect();
    if reasons.len() == candidates.len() {
        return refuse(format!("no good candidates: {}", reasons.join("; ")));
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

fn candidates(view: &View<'_>, named: Option<&str>) -> Vec<MemberName> {
    let members = view.cluster().into_iter().flat_map(|c| c.members.values());
    members
        .filter(|m| m.name != view.me.name && m.api_url.is_some())
        .filter(|m| named.is_none_or(|n| m.name.as_str() == n))
        .map(|m| m.name.clone())
        .collect()
}

fn unfit(view: &View<'_>, name: &MemberName) -> Option<String> {
    let Some(peer) = view
        .facts
        .peers
        .get(name)
        .and_then(|seen| seen.value.as_ref())
    else {
        return Some("does not answer".to_owned());
    };
    let Some(position) = peer.position else {
        return Some("its server is down".to_owned());
    };
    // What it has flushed was seen together with our own position. What it says was seen by it up
    // to a second ago, in which a busy primary writes more than a standby may be behind.
    let sent = view.running().and_then(|running| {
        let streams = running.walsenders.iter();
        let mut of_it = streams.filter(|sender| sender.application == name.as_str());
        of_it.find_map(|sender| sender.flushed)
    });
    let position = sent.map_or(position, |sent| position.max(sent));
    if peer.no_failover {
        return Some("may not be promoted".to_owned());
    }
    if peer.timeline.is_some() && peer.timeline != view.position().map(|p| p.timeline) {
        return Some("is on another timeline".to_owned());
    }
    let behind = view
        .position()
        .map_or(0, |mine| mine.lsn.bytes_past(position));
    let most = view.config().maximum_lag_on_failover_bytes;
    (behind > most).then(|| format!("is {behind} bytes behind, more than {most}"))
}

/// An answer that is younger than this describes a server that streams well enough.
const ANSWER_LASTS: Duration = Duration::from_secs(2);

/// A hand-over that failed refuses the request that it was for, and not one a while later.
const REFUSAL_LASTS: Duration = Duration::from_secs(1);
