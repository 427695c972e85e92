//! `POST /switchover`: checks the order, writes it, waits for what comes of it.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use http::StatusCode;
use serde_json::{Map, Value};
use spilo_core::cluster::{Cluster, Member, MemberRole, encode};
use spilo_core::config::boolean;
use spilo_core::dcs::{Expect, Key};
use spilo_core::{Peers, Revision};
use tokio::task::JoinSet;

use crate::body;
use crate::node::Node;
use crate::reply::{self, Refusal};
use crate::view::View;

/// Does what the order in `map` says, and answers when it is done.
///
/// # Errors
/// Why it was not begun, or that it did not come about.
///
/// # Cancellation
/// Dropping the future ends the waiting. An order that was written stays.
pub(crate) async fn answer(
    node: &dyn Node,
    view: &View,
    map: &Map<String, Value>,
) -> Result<Response, Refusal> {
    let unavailable = |problem: String| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, problem);
    let leader = body::text(map, "leader")?;
    let candidate = match body::text(map, "candidate")? {
        Some(name) => Some(name),
        None => body::text(map, "member")?,
    };
    let scheduled = body::text(map, "scheduled_at")?.is_some();
    let snapshot = view
        .read(node)
        .await
        .map_err(|problem| unavailable(format!("cannot read the cluster: {problem}")))?;
    let cluster = &snapshot.cluster;
    let leader = valid(cluster, leader, candidate, scheduled).map_err(Refusal::bad_request)?;
    possible(node.peers(), cluster, leader, candidate)
        .await
        .map_err(|problem| Refusal::new(StatusCode::PRECONDITION_FAILED, problem))?;

    let mut order = Map::new();
    order.insert("leader".to_owned(), leader.into());
    if let Some(candidate) = candidate {
        order.insert("member".to_owned(), candidate.into());
    }
    let value = encode(&Value::Object(order));
    let written = node.dcs().put(Key::Failover, value, Expect::Anything).await;
    view.forget();
    let revision = written
        .map_err(|error| unavailable(format!("failed to write failover key into DCS: {error}")))?;
    node.wake();
    let success = outcome(node, revision, leader, candidate)
        .await
        .map_err(unavailable)?;
    Ok(reply::text(StatusCode::OK, success))
}

/// Checks what can be checked without asking anybody, in the order of the contract.
fn valid<'a>(
    cluster: &Cluster,
    leader: Option<&'a str>,
    candidate: Option<&str>,
    scheduled: bool,
) -> Result<&'a str, &'static str> {
    let paused = setting(cluster, "pause").and_then(boolean) == Some(true);
    let leader = leader.ok_or("Switchover could be performed only from a specific leader")?;
    if scheduled && paused {
        return Err("Can't schedule switchover in the paused state");
    }
    if scheduled {
        return Err("scheduled_at: a scheduled switchover is not supported by this version");
    }
    if paused && candidate.is_none() {
        return Err("Switchover is possible only to a specific candidate in a paused state");
    }
    if candidate == Some(leader) {
        return Err("Switchover target and source are the same");
    }
    Ok(leader)
}

/// Checks that the order fits the cluster, and that a candidate answers that can be promoted.
async fn possible(
    peers: Arc<dyn Peers>,
    cluster: &Cluster,
    leader: &str,
    candidate: Option<&str>,
) -> Result<(), String> {
    let holder = cluster.leader.as_ref().and_then(|l| l.name.as_ref());
    if holder.map(|name| name.as_str()) != Some(leader) {
        return Err("leader name does not match".to_owned());
    }
    // Quorum mode promotes whoever the vote allows; only priority mode names who may be.
    let mode = setting(cluster, "synchronous_mode");
    let named_only = mode.and_then(boolean) == Some(true);
    let is_named = |name: &str| {
        let sync = cluster.sync.as_ref();
        sync.is_some_and(|sync| sync.standbys.iter().any(|s| s.eq_ignore_ascii_case(name)))
    };
    let others = || {
        cluster
            .members
            .values()
            .filter(|m| m.name.as_str() != leader)
    };
    let members: Vec<&Member> = if let Some(candidate) = candidate {
        if named_only && !is_named(candidate) {
            return Err("candidate name does not match with sync_standby".to_owned());
        }
        let found: Vec<_> = others().filter(|m| m.name.as_str() == candidate).collect();
        if found.is_empty() {
            return Err("candidate does not exists".to_owned());
        }
        found
    } else if named_only {
        let found: Vec<_> = others().filter(|m| is_named(m.name.as_str())).collect();
        if found.is_empty() {
            return Err("switchover is not possible: can not find sync_standby".to_owned());
        }
        found
    } else {
        let found: Vec<_> = others().filter(|m| m.api_url.is_some()).collect();
        if found.is_empty() {
            let problem = "switchover is not possible: cluster does not have members except leader";
            return Err(problem.to_owned());
        }
        found
    };
    poll(peers, &members).await.map_err(|problems| {
        let why = problems.join("; ");
        format!("switchover is not possible: no good candidates have been found ({why})")
    })
}

/// Asks the members, all at once; the first good one is enough.
///
/// # Errors
/// What is wrong with each.
async fn poll(peers: Arc<dyn Peers>, members: &[&Member]) -> Result<(), Vec<String>> {
    let mut problems = Vec::new();
    let mut asked = JoinSet::new();
    for member in members {
        let name = member.name.clone();
        let Some(url) = member.api_url.clone() else {
            problems.push(format!("{name}: has no api_url"));
            continue;
        };
        let peers = peers.clone();
        asked.spawn(async move {
            match peers.ask(&url).await {
                Err(error) => Err(format!("{name}: {error}")),
                Ok(answer) if answer.position.is_none() => {
                    Err(format!("{name}: its server does not answer"))
                }
                Ok(answer) if answer.no_failover => Err(format!("{name}: may not be promoted")),
                Ok(_) => Ok(()),
            }
        });
    }
    while let Some(answer) = asked.join_next().await {
        match answer {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(problem)) => problems.push(problem),
            Err(error) => problems.push(error.to_string()),
        }
    }
    problems.sort();
    Err(problems)
}

/// Waits until another member leads and its server is a primary.
///
/// # Errors
/// That the order was withdrawn, or that nothing can be said yet.
async fn outcome(
    node: &dyn Node,
    order: Revision,
    old: &str,
    candidate: Option<&str>,
) -> Result<String, String> {
    let loop_wait = node.status().config.loop_wait;
    let allowed = 2 * loop_wait.clamp(SHORTEST_LOOP, LONGEST_LOOP);
    let mut why = None;
    let watch = async {
        loop {
            tokio::time::sleep(POLL_EVERY).await;
            let status = node.status();
            if is_refusal(status.decision.0) {
                why = Some(status.decision.1.clone());
            }
            // An older view does not have the order yet, and would look as if it were withdrawn.
            let Some(cluster) = status.cluster.as_deref().filter(|c| c.revision >= order) else {
                continue;
            };
            let new = cluster
                .leader
                .as_ref()
                .and_then(|l| l.name.as_ref())
                .map(|n| n.as_str());
            match new {
                Some(new) if new != old && leads(cluster) => return Some(new.to_owned()),
                Some(new) if new == old && cluster.failover.is_none() => return None,
                Some(_) | None => {}
            }
        }
    };
    match tokio::time::timeout(allowed, watch).await {
        Ok(Some(new)) => Ok(match candidate {
            Some(wanted) if wanted != new => {
                format!("Switched over to \"{new}\" instead of \"{wanted}\"")
            }
            Some(_) | None => format!("Successfully switched over to \"{new}\""),
        }),
        Ok(None) => Err(match why {
            Some(why) => format!("Switchover failed: {why}"),
            None => "Switchover failed".to_owned(),
        }),
        Err(_) => Err(format!(
            "Switchover status unknown after {} seconds; operation may still be in progress",
            allowed.as_secs()
        )),
    }
}

fn leads(cluster: &Cluster) -> bool {
    cluster
        .leader_member()
        .is_some_and(|m| m.role == MemberRole::Primary && m.state == "running")
}

/// Returns whether a rule's name says that its reason is why a switchover does not come about.
fn is_refusal(rule: &str) -> bool {
    let rule = rule.to_ascii_lowercase().replace(['_', '-', ' '], "");
    let about = rule.contains("switchover") || rule.contains("handover");
    about && (rule.contains("refused") || rule.contains("failed"))
}

fn setting<'a>(cluster: &'a Cluster, name: &str) -> Option<&'a Value> {
    cluster.config.as_ref()?.config.raw.get(name)
}

/// A look costs nothing, and the reason of a refusal may be there for a few milliseconds only.
const POLL_EVERY: Duration = Duration::from_millis(10);

/// The bounds of the contract's `2 x max(10, loop_wait)`; above, clients have gone long ago.
const SHORTEST_LOOP: Duration = Duration::from_secs(10);
const LONGEST_LOOP: Duration = Duration::from_secs(120);
