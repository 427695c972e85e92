//! The health checks: which path answers 200 when.

use std::time::Duration;

use serde_json::Value;
use spilo_core::Lsn;
use spilo_core::pg::Role;

use crate::query::Query;
use crate::report::Report;

/// Returns whether the check at `path` passes.
///
/// Paths are matched by what they contain, in the order of the contract; the first hit decides.
pub(crate) fn passes(path: &str, query: &Query, report: &Report) -> bool {
    let path = if path == "/" { "/primary" } else { path };
    let has = |part: &str| path.contains(part);
    let primary = report.is_writable();
    // A standby cluster is refused by the agent, so no node is ever its leader.
    if has("standby_leader") || has("standby-leader") {
        return false;
    }
    // Not the lock alone: a load balancer would be sent to a server that is down or in recovery.
    if has("leader") || has("master") || has("primary") || has("read-write") {
        return primary;
    }
    let replica = || is_replica(query, report);
    let passes = if has("replica") {
        replica()
    } else if has("read-only") && !has("sync") && !has("quorum") {
        primary || replica()
    } else if has("health") {
        report.state() == "running"
    } else {
        report.cluster().is_some() && by_synchronicity(path, primary, query, report)
    };
    passes && tags_match(query, report)
}

/// Returns whether the agent is alive: its machine stepped not long ago.
pub(crate) fn is_alive(report: &Report) -> bool {
    let ttl = report.status.config.ttl;
    let allowed = if report.status.is_primary() {
        ttl
    } else {
        ttl.saturating_mul(2)
    };
    report.now.since(report.status.stepped_at) < allowed
}

/// Returns whether the node can serve: it is the primary, or a standby that streams and is close.
pub(crate) fn is_ready(query: &Query, report: &Report) -> bool {
    if report.is_writable() {
        return true;
    }
    let Some(standby) = Standby::of(report) else {
        return false;
    };
    let end = leader_end(report, &standby);
    let informed = end.is_some() || report.cluster().is_some() || report.status.failsafe_active;
    if !standby.streaming || !informed {
        return false;
    }
    let default = i128::from(report.status.config.maximum_lag_on_failover_bytes);
    let allowed = query.first("lag").and_then(bytes).or(Some(default));
    let at = match query.first("mode") {
        Some("write") => standby.received,
        Some(_) | None => standby.replayed,
    };
    !lags(end, at, allowed)
}

struct Standby {
    received: Lsn,
    replayed: Lsn,
    streaming: bool,
    upstream_end: Option<Lsn>,
}

impl Standby {
    fn of(report: &Report) -> Option<Self> {
        let running = report.running().filter(|_| report.state() == "running")?;
        match running.role {
            Role::Primary { .. } => None,
            Role::Standby {
                received,
                replayed,
                streaming,
                upstream_end,
                ..
            } => Some(Self {
                received,
                replayed,
                streaming,
                upstream_end,
            }),
        }
    }
}

fn by_synchronicity(path: &str, primary: bool, query: &Query, report: &Report) -> bool {
    let named = report.is_named_standby();
    let synchronous = named && !report.is_quorum();
    let quorum = named && report.is_quorum();
    match path {
        "/sync" | "/synchronous" => synchronous && is_replica(query, report),
        "/quorum" => quorum && is_replica(query, report),
        "/async" | "/asynchronous" => !named && is_replica(query, report),
        "/read-only-sync" | "/read-only-synchronous" => {
            primary || (synchronous && is_replica(query, report))
        }
        "/read-only-quorum" => primary || (quorum && is_replica(query, report)),
        _ => false,
    }
}

fn is_replica(query: &Query, report: &Report) -> bool {
    let Some(standby) = Standby::of(report) else {
        return false;
    };
    let hidden = report
        .status
        .tags
        .get("noloadbalance")
        .and_then(spilo_core::config::boolean);
    if hidden == Some(true) {
        return false;
    }
    if let Some(wanted) = query.first("replication_state")
        && (wanted != "streaming" || !standby.streaming)
    {
        return false;
    }
    let allowed = query.first("lag").and_then(bytes);
    !lags(leader_end(report, &standby), standby.replayed, allowed)
}

/// Returns the furthest known end of the leader's log.
fn leader_end(report: &Report, standby: &Standby) -> Option<Lsn> {
    let published = report
        .cluster()
        .and_then(|c| c.status.as_ref())
        .and_then(|s| s.optime);
    published.max(standby.upstream_end)
}

fn lags(end: Option<Lsn>, at: Lsn, allowed_bytes: Option<i128>) -> bool {
    match (end, allowed_bytes) {
        (Some(end), Some(allowed)) => i128::from(end.0) > i128::from(at.0) + allowed,
        (None, _) | (_, None) => false,
    }
}

fn tags_match(query: &Query, report: &Report) -> bool {
    query
        .pairs()
        .filter_map(|(k, v)| Some((k.strip_prefix("tag_")?, v)))
        .all(|(key, wanted)| match report.status.tags.get(key) {
            None | Some(Value::Null) => false,
            Some(Value::String(text)) => text == wanted,
            Some(other) => other.to_string().to_lowercase() == wanted,
        })
}

/// Reads a number of bytes as PostgreSQL reads it: `strtol` with base 0, or a decimal fraction,
/// and a unit. `None` is unlimited, as Patroni has it for what it cannot read.
fn bytes(text: &str) -> Option<i128> {
    let text = text.trim();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let hex = digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"));
    let body = hex.unwrap_or(digits);
    let in_number = |c: char| {
        if hex.is_some() {
            c.is_ascii_hexdigit()
        } else {
            c.is_ascii_digit() || c == '.'
        }
    };
    let split = body.find(|c| !in_number(c)).unwrap_or(body.len());
    let (number, unit) = (&body[..split], body[split..].trim());
    let factor: u64 = match unit {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return None,
    };
    let whole = if hex.is_some() {
        u64::from_str_radix(number, 16).ok()
    } else if number.len() > 1 && number.starts_with('0') && !number.contains('.') {
        u64::from_str_radix(number, 8).ok()
    } else {
        number.parse().ok()
    };
    let value = match whole {
        Some(whole) => i128::from(whole) * i128::from(factor),
        None => fraction(number, factor)?,
    };
    Some(if negative { -value } else { value })
}

/// Reads a decimal fraction through a span of time, which has the same range and does the
/// rounding without a cast from a float.
fn fraction(number: &str, factor: u64) -> Option<i128> {
    let value: f64 = number.parse().ok()?;
    let span = Duration::try_from_secs_f64(value).ok()?;
    let nanos = span.as_nanos() * u128::from(factor) + 500_000_000;
    i128::try_from(nanos / 1_000_000_000).ok()
}
