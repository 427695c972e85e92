//! `GET /metrics`, as Prometheus reads it: Patroni's metrics under their names, and spilo's own.

use std::fmt::Write as _;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, header};
use spilo_core::config::whole;
use spilo_core::pg::Role;

use crate::node::Node;
use crate::report::{COMPATIBLE_VERSION, Report};

/// Answers with the metrics of a node.
pub(crate) fn metrics(node: &dyn Node, report: &Report) -> Response {
    let mut response = Response::new(Body::from(text(node, report)));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn text(node: &dyn Node, report: &Report) -> String {
    let status = &report.status;
    let mut page = Page {
        labels: format!(
            "{{scope=\"{}\",name=\"{}\"}}",
            escaped(status.scope.as_str()),
            escaped(status.name.as_str())
        ),
        text: String::new(),
    };
    let version: Vec<String> = COMPATIBLE_VERSION
        .split('.')
        .map(|part| format!("{part:0>2}"))
        .collect();
    page.put(
        GAUGE,
        "patroni_version",
        "Version of Patroni that it is as good as",
        version.concat(),
    );
    server(&mut page, report);
    store(&mut page, node, report);
    page.flag(
        "spilo_writable",
        "Whether the node may take writes and does",
        report.is_writable(),
    );
    let left = status.leadership.map(|lease| lease.until.since(report.now));
    let left = left.unwrap_or_default().as_secs_f64();
    page.put(
        GAUGE,
        "spilo_lease_left_seconds",
        "How long the node may write yet",
        left,
    );
    let fence = f64::from(u32::try_from(status.worst_fence_ms).unwrap_or(u32::MAX)) / 1000.0;
    page.put(
        GAUGE,
        "spilo_worst_fence_seconds",
        "How long the slowest fence took",
        fence,
    );
    let archive = status
        .postgres
        .as_ref()
        .and_then(|seen| seen.archive.as_ref());
    if let Some(archive) = archive {
        let what = "How many files of the log wait to be archived";
        page.put(GAUGE, "spilo_archive_waiting", what, archive.waiting);
    }
    page.text
}

/// What the server is.
fn server(page: &mut Page, report: &Report) {
    let running = report.running();
    let up = running.is_some();
    page.flag("patroni_postgres_running", "Whether the server answers", up);
    let started = running.and_then(|running| epoch(&running.started));
    let what = "When the server was started, in seconds of the epoch";
    let started = started.unwrap_or_default();
    page.put(GAUGE, "patroni_postmaster_start_time", what, started);
    roles(page, report);
    positions(page, report);
    let version = running.map_or(0, |running| running.version);
    let what = "Version of the server";
    page.put(GAUGE, "patroni_postgres_server_version", what, version);
    let timeline = running.map_or(0, |running| running.timeline.0);
    let what = "Timeline of the server";
    page.put(COUNTER, "patroni_postgres_timeline", what, timeline);
    let pending = running.is_some_and(|running| !running.pending_restart.is_empty());
    let what = "Whether a setting waits for a restart";
    page.flag("patroni_pending_restart", what, pending);
    let state = STATES.iter().position(|name| *name == report.state());
    let state = state.and_then(|n| i8::try_from(n).ok()).unwrap_or(-1);
    let what = "State of the server, as a number";
    page.put(GAUGE, "patroni_postgres_state", what, state);
}

/// As what it runs.
fn roles(page: &mut Page, report: &Report) {
    let role = report.running().map(|running| &running.role);
    let is_standby = matches!(role, Some(Role::Standby { .. }));
    let named = is_standby && report.is_named_standby();
    let quorum = report.is_quorum();
    let is_primary = matches!(role, Some(Role::Primary { .. }));
    page.flag("patroni_primary", "Whether it is a primary", is_primary);
    let what = "Whether the node leads a standby cluster";
    page.flag("patroni_standby_leader", what, false);
    page.flag("patroni_replica", "Whether it is a replica", is_standby);
    let what = "Whether it is a synchronous standby";
    page.flag("patroni_sync_standby", what, named && !quorum);
    let what = "Whether it is a standby of a quorum";
    page.flag("patroni_quorum_standby", what, named && quorum);
}

/// How far its log is.
fn positions(page: &mut Page, report: &Report) {
    let (mut written, mut received, mut replayed) = (0, 0, 0);
    let (mut paused, mut streams, mut restores) = (false, false, false);
    let mut replayed_at = None;
    match report.running().map(|running| &running.role) {
        Some(Role::Primary { written: at }) => written = at.0,
        Some(Role::Standby {
            received: end,
            replayed: at,
            replayed_at: when,
            paused: halted,
            streaming,
            ..
        }) => {
            (received, replayed) = (end.0, at.0);
            (paused, streams, restores) = (*halted, *streaming, !*streaming);
            replayed_at = when.as_deref().and_then(epoch);
        }
        None => {}
    }
    let what = "Where the primary writes, in bytes";
    page.put(COUNTER, "patroni_xlog_location", what, written);
    let what = "How far the replica has received, in bytes";
    page.put(COUNTER, "patroni_xlog_received_location", what, received);
    let what = "How far the replica has replayed, in bytes";
    page.put(COUNTER, "patroni_xlog_replayed_location", what, replayed);
    let what = "When the last replayed transaction was committed, in seconds of the epoch";
    let replayed_at = replayed_at.unwrap_or_default();
    page.put(GAUGE, "patroni_xlog_replayed_timestamp", what, replayed_at);
    page.flag("patroni_xlog_paused", "Whether replay is paused", paused);
    let what = "Whether the replica streams";
    page.flag("patroni_postgres_streaming", what, streams);
    let what = "Whether the replica has no stream, and looks in the archive if it has one";
    page.flag("patroni_postgres_in_archive_recovery", what, restores);
}

/// What the node knows of the cluster.
fn store(page: &mut Page, node: &dyn Node, report: &Report) {
    let status = &report.status;
    let unlocked = report
        .cluster()
        .is_none_or(|cluster| cluster.leader.is_none());
    page.flag(
        "patroni_cluster_unlocked",
        "Whether nobody holds the lock",
        unlocked,
    );
    page.flag(
        "patroni_failsafe_mode_is_active",
        "Whether the node lives by consent, without the store",
        status.failsafe_active,
    );
    let enabled = status.config.failsafe_mode;
    page.flag("patroni_failsafe_mode_enabled", "Whether it may", enabled);
    let members = report
        .cluster()
        .and_then(|cluster| cluster.failsafe.as_ref());
    let member = members.is_some_and(|members| members.contains_key(&status.name));
    page.flag(
        "patroni_failsafe_member",
        "Whether it is asked for consent",
        member,
    );
    page.put(
        GAUGE,
        "patroni_dcs_last_seen",
        "When the store answered last, in seconds of the epoch",
        report.dcs_last_seen(node),
    );
    page.flag(
        "patroni_is_paused",
        "Whether the cluster is left alone",
        false,
    );
    let priority = status.tags.get("failover_priority").and_then(whole);
    page.put(
        GAUGE,
        "patroni_failover_priority",
        "Who is promoted first",
        priority.unwrap_or(1),
    );
}

/// Reads a moment as PostgreSQL writes one, `2026-11-30 03:15:00.25+01`, as seconds of the epoch.
fn epoch(text: &str) -> Option<f64> {
    let (date, time) = text.trim().split_once(' ')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let at = time.find(['+', '-']).unwrap_or(time.len());
    let (time, zone) = time.split_at(at);
    let mut parts = time.splitn(3, ':');
    let hours: i64 = parts.next()?.parse().ok()?;
    let minutes: i64 = parts.next()?.parse().ok()?;
    let seconds: f64 = parts.next()?.parse().ok()?;
    let mut offset = zone.trim_start_matches(['+', '-']).splitn(3, ':');
    let mut east: i64 = 0;
    for unit in [3600, 60, 1] {
        if let Some(part) = offset.next().filter(|part| !part.is_empty()) {
            east += part.parse::<i64>().ok()? * unit;
        }
    }
    if zone.starts_with('-') {
        east = -east;
    }
    let whole = days(year, month, day)? * 86_400 + hours * 3600 + minutes * 60 - east;
    Some(
        f64::from(i32::try_from(whole / 1000).ok()?) * 1000.0
            + f64::from(i32::try_from(whole % 1000).ok()?)
            + seconds,
    )
}

/// Returns how many days lie between the epoch and a date of the Gregorian calendar.
fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    let sane = (1..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    // Years that begin in March end with the day that some of them have more.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leaps = year / 4 - year / 100 + year / 400;
    sane.then_some(year * 365 + leaps + (month * 153 + 2) / 5 + day - 719_469)
}

/// Returns a label's value as Prometheus reads it.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// The answer, as it grows.
struct Page {
    labels: String,
    text: String,
}

impl Page {
    fn put(&mut self, kind: &str, name: &str, what: &str, value: impl std::fmt::Display) {
        let labels = &self.labels;
        // Writing into a string cannot fail.
        writeln!(
            self.text,
            "# HELP {name} {what}.\n# TYPE {name} {kind}\n{name}{labels} {value}"
        )
        .unwrap_or_default();
    }

    fn flag(&mut self, name: &str, what: &str, value: bool) {
        self.put(GAUGE, name, what, u8::from(value));
    }
}

const GAUGE: &str = "gauge";
const COUNTER: &str = "counter";

/// Patroni's states, each at the place of its number.
const STATES: [&str; 15] = [
    "initializing new cluster",
    "initdb failed",
    "running custom bootstrap script",
    "custom bootstrap failed",
    "creating replica",
    "running",
    "starting",
    "starting after custom bootstrap",
    "start failed",
    "restarting",
    "restart failed",
    "stopping",
    "stopped",
    "stop failed",
    "crashed",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_as_postgresql_writes_them() {
        for (text, seconds) in [
            ("1970-01-01 00:00:00+00", 0.0),
            ("2000-02-29 12:00:00.5+00", 951_825_600.5),
            ("2026-11-30 03:15:00.25+01", 1_796_004_900.25),
            ("2026-11-29 20:45:00-05:30", 1_796_004_900.0),
        ] {
            assert_eq!(epoch(text), Some(seconds), "{text}");
        }
        for text in [
            "",
            "now",
            "2026-11-30",
            "2026-13-01 00:00:00+00",
            "a-b-c d:e:f",
        ] {
            assert_eq!(epoch(text), None, "{text}");
        }
    }

    #[test]
    fn a_label_ends_where_it_should() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
