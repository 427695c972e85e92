//! What a machine knows, in words.

use super::story::{operation, peer, server, since};
use crate::cluster::{FailoverDocument, Initialize, ReleaseDocument};
use crate::history::History;
use crate::machine::{Facts, Machine};
use crate::time::NodeTime;
use crate::wal::WalPosition;

/// Says all that decisions are made of, one thing a line; what is not so is left out.
pub(super) fn facts(machine: &Machine, say: &mut dyn FnMut(&str)) {
    let facts = machine.facts();
    let mut put = |name: &str, text: String| say(&format!("  {name:<14}{text}"));
    store(facts, &mut put);
    lock(facts, &mut put);
    own_server(facts, &mut put);
    guard(facts, &mut put);
    others(facts, &mut put);
    if facts.shutdown {
        put("ordered", "to stop".to_owned());
    }
    if facts.detach.is_some() {
        put("ordered", "to leave guard and server running".to_owned());
    }
}

fn store(facts: &Facts, put: &mut dyn FnMut(&str, String)) {
    let ago = |at: NodeTime| ago(facts, at);
    match &facts.cluster {
        None => put("store", "not read yet".to_owned()),
        Some(seen) => {
            let cluster = &seen.value;
            let leader = cluster.leader.as_ref().map_or_else(
                || "free".to_owned(),
                |leader| {
                    let name = leader.name.as_ref().map_or("?", |name| name.as_str());
                    format!("held by {name} in epoch {}", leader.record.epoch)
                },
            );
            let initialize = match &cluster.initialize {
                Initialize::Absent => "not bootstrapped".to_owned(),
                Initialize::Claimed => "being bootstrapped".to_owned(),
                Initialize::Known(id) => format!("cluster {id}"),
                Initialize::Invalid => "identifier unreadable".to_owned(),
            };
            let revision = cluster.revision;
            put(
                "store",
                format!("revision {revision}, read {}: {initialize}", ago(seen.at)),
            );
            put("lock", leader);
            for member in cluster.members.values() {
                let at = member
                    .position()
                    .map_or_else(|| "no position".to_owned(), |lsn| lsn.to_string());
                put(
                    "member",
                    format!(
                        "{}: {}, {}, {at}",
                        member.name,
                        member.role.as_str(),
                        member.state
                    ),
                );
            }
            if let Some(failover) = &cluster.failover {
                put("switchover", switchover(failover));
            }
            if let Some(release) = &cluster.release {
                put("last holder", release_of(release));
            }
            for bad in &cluster.malformed {
                put("malformed", format!("{}: {}", bad.path, bad.problem));
            }
        }
    }
    if let Some((since, why)) = &facts.store_failing {
        put("store", format!("failing since {}: {why}", ago(*since)));
    }
    let config = &facts.config;
    put(
        "settings",
        format!(
            "ttl {:?}, loop_wait {:?}, retry_timeout {:?}, maximum lag {} bytes, failsafe {}",
            config.ttl,
            config.loop_wait,
            config.retry_timeout,
            config.maximum_lag_on_failover_bytes,
            config.failsafe_mode
        ),
    );
}

fn lock(facts: &Facts, put: &mut dyn FnMut(&str, String)) {
    let ago = |at: NodeTime| ago(facts, at);
    if let Some(holding) = &facts.holding {
        put(
            "holds",
            format!(
                "epoch {} for {:?}, renewed {}, confirmed {}{}{}",
                holding.lease.epoch,
                holding.lease.ttl,
                ago(holding.renewed),
                ago(holding.confirmed),
                if holding.recorded {
                    ""
                } else {
                    ", not recorded yet"
                },
                if holding.failing {
                    ", renewal failing"
                } else {
                    ""
                },
            ),
        );
    }
    if let Some(epoch) = facts.given_up {
        put("gave up", format!("epoch {epoch}"));
    }
    if facts.unsettled {
        put("unsettled", "an attempt may still take the lock".to_owned());
    }
    if let Some(consent) = &facts.consent {
        put("consent", format!("asked for {}", ago(consent.asked)));
    }
    if let Some(promise) = &facts.promise {
        let until = since(promise.until, facts.started);
        put("promised", format!("to {} until {until}", promise.to));
    }
    // While its key is there it is who holds the lock, which was said.
    if let Some(before) = &facts.predecessor
        && let Some(gone) = before.gone
    {
        let name = before.name.as_ref().map_or("?", |name| name.as_str());
        let proof = match before.proof {
            Some(proof) => format!("cannot write any more ({proof:?})"),
            None => "may still write".to_owned(),
        };
        put(
            "predecessor",
            format!("{name}: gone {}, {proof}", ago(gone)),
        );
    }
    if let Some((revision, why)) = &facts.refused_failover {
        put(
            "refused",
            format!("switchover of revision {revision}: {why}"),
        );
    }
    if let Some(over) = &facts.handed_over {
        let to = over
            .candidate
            .as_ref()
            .map_or("a level standby", |name| name.as_str());
        put("handed over", format!("to {to}, {}", ago(over.at)));
    }
}

fn own_server(facts: &Facts, put: &mut dyn FnMut(&str, String)) {
    let ago = |at: NodeTime| ago(facts, at);
    match &facts.pg {
        None => put("server", "not looked at yet".to_owned()),
        Some(seen) => {
            let stale = if facts.pg_is_current() {
                ""
            } else {
                ", out of date"
            };
            put(
                "server",
                format!("{}, looked at {}{stale}", server(&seen.value), ago(seen.at)),
            );
        }
    }
    if let Some((since, why)) = &facts.pg_failing {
        put("server", format!("looks fail since {}: {why}", ago(*since)));
    }
    if let Some(history) = &facts.own_history {
        put("history", line(history));
    }
    if let Some(running) = &facts.op {
        let stopping = if running.cancelled {
            ", told to stop"
        } else {
            ""
        };
        put(
            "operation",
            format!(
                "{}: {}, since {}{stopping}",
                running.id,
                operation(&running.op),
                ago(running.since)
            ),
        );
    }
    for (kind, failure) in &facts.failures {
        put(
            "failed",
            format!(
                "{kind}, {} in a row, last {}: {}",
                failure.times,
                ago(failure.at),
                failure.text
            ),
        );
    }
    if let Some(since) = facts.fencing {
        put("fence", format!("under way since {}", ago(since)));
    }
    if let Some((since, why)) = &facts.fence_failing {
        put("fence", format!("fails since {}: {why}", ago(*since)));
    }
    if let Some(since) = facts.unburied {
        put(
            "fence",
            format!("killed all, and not gone since {}", ago(since)),
        );
    }
    if facts.checkpoint_pending {
        put("checkpoint", "still to come after the promotion".to_owned());
    }
    if facts.promotion_ordered {
        put("promotion", "ordered, and not looked at since".to_owned());
    }
}

fn guard(facts: &Facts, put: &mut dyn FnMut(&str, String)) {
    let ago = |at: NodeTime| ago(facts, at);
    match (&facts.guard, &facts.armed) {
        (None, _) => put("guard", "has not answered yet".to_owned()),
        (Some(_), None) => put("guard", "not armed".to_owned()),
        (Some(_), Some(deadline)) => put(
            "guard",
            format!(
                "armed to {} (soft {}) for epoch {}",
                since(deadline.hard, facts.started),
                since(deadline.soft, facts.started),
                deadline.epoch
            ),
        ),
    }
    if let Some((since, failure)) = &facts.guard_failing {
        put(
            "guard",
            format!("failing since {}: {}", ago(*since), failure.text),
        );
    }
}

fn others(facts: &Facts, put: &mut dyn FnMut(&str, String)) {
    for (name, seen) in &facts.peers {
        let answer = peer(seen.value.as_ref());
        put(
            "peer",
            format!("{name} {answer}, asked {}", ago(facts, seen.at)),
        );
    }
    if let Some(history) = &facts.leader_history {
        let told = match &history.answer {
            Ok((_, history)) => line(history),
            Err(why) => why.clone(),
        };
        put("its history", format!("{}: {told}", history.name));
    }
    if let Some(list) = &facts.failsafe {
        let names: Vec<_> = list.keys().map(|name| name.as_str()).collect();
        put("failsafe list", names.join(", "));
    }
}

fn switchover(asked: &FailoverDocument) -> String {
    let from = asked.leader.as_deref().unwrap_or("whoever leads");
    let to = asked.candidate.as_deref().unwrap_or("a level standby");
    let at = asked.scheduled_at.as_deref().unwrap_or("now");
    format!("asked for, from {from} to {to}, {at}")
}

fn release_of(document: &ReleaseDocument) -> String {
    let (name, epoch) = (&document.name, document.epoch);
    if document.taken {
        return format!("{name}, which took epoch {epoch}");
    }
    let at = match document.position {
        Some((timeline, lsn)) => format!(" at {}", WalPosition { timeline, lsn }),
        None => String::new(),
    };
    let to = match &document.candidate {
        Some(candidate) => format!(" for {candidate}"),
        None => String::new(),
    };
    format!("{name}, which gave epoch {epoch} up{at}{to}")
}

fn line(history: &History) -> String {
    let mut text = String::new();
    let skipped = history.ancestors().len().saturating_sub(ANCESTORS);
    if skipped > 0 {
        text.push_str(&format!("({skipped} earlier) "));
    }
    for ancestor in history.ancestors().iter().skip(skipped) {
        text.push_str(&format!("{} to {}, ", ancestor.timeline, ancestor.end));
    }
    text.push_str(&format!("timeline {}", history.timeline()));
    text
}

fn ago(facts: &Facts, at: NodeTime) -> String {
    if at == facts.now {
        return "just now".to_owned();
    }
    format!("{} s ago", since(facts.now, at))
}

/// A line of timelines is shown from its end; a cluster may have had thousands.
const ANCESTORS: usize = 5;
