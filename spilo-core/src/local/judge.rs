//! What becomes of the keys whose fate hangs on their value.
//!
//! The rule: a setting that decides who may write, be promoted or connect, and is not built, is
//! refused, because a node that ignores it does something else than it was told to do where it
//! hurts most. A value that asks for what happens anyway is fine.

use serde_json::Value;

use super::keys::Verdict;
use super::options;
use super::scalar::{integer, text};
use crate::config::{boolean, span};

/// Why `pre_promote` is refused.
pub(super) const PRE_PROMOTE: &str =
    "may veto a promotion, and is not built: a node that ignored it would promote all the same";

pub(super) fn watchdog(value: &Value) -> Verdict {
    let word = match value {
        // `off` is a boolean in YAML 1.1, and Patroni takes it for the word.
        Value::Bool(false) => "off".to_owned(),
        other => text(other).unwrap_or_default().to_ascii_lowercase(),
    };
    match word.as_str() {
        "off" | "disable" | "disabled" => Verdict::Fine,
        "auto" | "automatic" => Verdict::Warn(
            "has no effect: no watchdog device is opened; the guard alone ends writes in time"
                .to_owned(),
        ),
        "require" | "required" => Verdict::Refuse(
            "no leader without a watchdog is what this asks for, and watchdogs are not built: use \
             `off` or `automatic`"
                .to_owned(),
        ),
        _ => Verdict::Refuse(expected("`off`, `automatic` or `required`", value)),
    }
}

pub(super) fn nofailover(value: &Value) -> Verdict {
    unless_off(value, "decides who may be promoted")
}

pub(super) fn nosync(value: &Value) -> Verdict {
    unless_off(value, "decides who may be a synchronous standby")
}

pub(super) fn nostream(value: &Value) -> Verdict {
    unless_off(value, "decides where this node gets its WAL from")
}

pub(super) fn flag(value: &Value) -> Verdict {
    match boolean(value) {
        Some(_) => Verdict::Fine,
        None => Verdict::Refuse(expected("a boolean", value)),
    }
}

pub(super) fn clonefrom(value: &Value) -> Verdict {
    match boolean(value) {
        Some(false) => Verdict::Fine,
        Some(true) => Verdict::Warn(
            "is published, but spilo's own nodes clone from the leader all the same".to_owned(),
        ),
        None => Verdict::Refuse(expected("a boolean", value)),
    }
}

pub(super) fn priority(value: &Value) -> Verdict {
    match integer(value) {
        // The default: every node is worth the same.
        Some(1) => Verdict::Fine,
        Some(_) => Verdict::Refuse(not_built("decides who is promoted first")),
        None => Verdict::Refuse(expected("an integer", value)),
    }
}

pub(super) fn replicatefrom(value: &Value) -> Verdict {
    match text(value) {
        Some(name) if name.is_empty() => Verdict::Fine,
        Some(_) => Verdict::Refuse(not_built("decides where this node gets its WAL from")),
        None => Verdict::Refuse(expected("a member's name", value)),
    }
}

pub(super) fn bootstrap_method(value: &Value) -> Verdict {
    match value.as_str() {
        Some("initdb" | "backup") => Verdict::Fine,
        _ => Verdict::Refuse(format!(
            "only `initdb` and `backup` are built, found {}: a new cluster would be made in another \
             way than asked for",
            found(value)
        )),
    }
}

pub(super) fn consistency(value: &Value) -> Verdict {
    match value.as_str() {
        Some("consistent") => Verdict::Fine,
        _ => Verdict::Warn(
            "has no effect: reads are always `consistent`, since others may show a leader that is \
             none"
                .to_owned(),
        ),
    }
}

pub(super) fn zookeeper_tls(value: &Value) -> Verdict {
    match boolean(value) {
        Some(false) => Verdict::Fine,
        _ => Verdict::Refuse(
            "is not built: put a tunnel between, or ask for the servers' plain port".to_owned(),
        ),
    }
}

pub(super) fn checks(value: &Value) -> Verdict {
    match value {
        Value::Array(items) if items.is_empty() => Verdict::Fine,
        _ => Verdict::Warn(
            "has no effect: a check that fails would end the leader's session before its time"
                .to_owned(),
        ),
    }
}

/// Judges libpq's ways to connect: what it does anyway, what is merely weaker, and what asks for
/// more than happens.
pub(super) fn connection(value: &Value) -> Verdict {
    match text(value).unwrap_or_default().as_str() {
        "prefer" | "postgres" => Verdict::Fine,
        "disable" | "allow" | "direct" => {
            Verdict::Warn("has no effect: connections are encrypted where both ends can".to_owned())
        }
        "require" | "verify-ca" | "verify-full" => Verdict::Refuse(
            "insisting on it is not built: `hostssl` lines in `pg_hba` insist at the other end"
                .to_owned(),
        ),
        _ => Verdict::Refuse(expected("a word that libpq knows there", value)),
    }
}

pub(super) fn base_name(value: &Value) -> Verdict {
    match value.as_str() {
        Some("postgresql") => Verdict::Fine,
        _ => Verdict::Refuse(format!(
            "only `postgresql` is built, found {}",
            found(value)
        )),
    }
}

/// Keeping a copy that the operator wants kept is not ignored, although it would be convenient.
pub(super) fn remove(value: &Value) -> Verdict {
    if boolean(value) == Some(true) {
        let problem = "has no effect: only the cluster's own configuration decides it";
        return Verdict::Warn(problem.to_owned());
    }
    Verdict::Refuse(
        "keeping it on this node alone is not built: set it in the cluster's own configuration"
            .to_owned(),
    )
}

pub(super) fn seconds(value: &Value) -> Verdict {
    match span(value) {
        Some(span) if !span.is_zero() => Verdict::Fine,
        _ => Verdict::Refuse(expected("a positive number of seconds", value)),
    }
}

pub(super) fn initdb(value: &Value) -> Verdict {
    options_without(
        value,
        &["pgdata", "nosync", "pwfile", "sync-only", "version"],
    )
}

pub(super) fn basebackup(value: &Value) -> Verdict {
    const OWN: [&str; 11] = [
        "pgdata",
        "format",
        "wal-method",
        "xlog-method",
        "gzip",
        "version",
        "dbname",
        "host",
        "port",
        "username",
        "password",
    ];
    options_without(value, &OWN)
}

/// Options of the program of backups, which the agent itself tells what to do and where.
pub(super) fn backup_options(value: &Value) -> Verdict {
    options_without(value, &["archive", "json", "resident", "help", "version"])
}

pub(super) fn rewind_options(value: &Value) -> Verdict {
    const OWN: [&str; 10] = [
        "target-pgdata",
        "source-pgdata",
        "source-server",
        "write-recovery-conf",
        "dry-run",
        "restore-target-wal",
        "config-file",
        "no-ensure-shutdown",
        "version",
        "help",
    ];
    match options_without(value, &OWN) {
        Verdict::Fine => Verdict::Warn("has no effect: `pg_rewind` gets no options".to_owned()),
        refused => refused,
    }
}

/// Says what `value` is, for the end of "must be …, found …".
pub(super) fn found(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(flag) => format!("the boolean {flag}"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("{text:?}"),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a map".to_owned(),
    }
}

pub(super) fn expected(what: &str, value: &Value) -> String {
    format!("must be {what}, found {}", found(value))
}

fn unless_off(value: &Value, decides: &str) -> Verdict {
    match boolean(value) {
        Some(false) => Verdict::Fine,
        Some(true) => Verdict::Refuse(not_built(decides)),
        None => Verdict::Refuse(expected("a boolean", value)),
    }
}

fn not_built(decides: &str) -> String {
    format!("{decides}, and is not built: remove it, or run this node with Patroni")
}

fn options_without(value: &Value, own: &[&str]) -> Verdict {
    let options = match options::parse(value) {
        Ok(options) => options,
        Err(problem) => return Verdict::Refuse(problem),
    };
    match options
        .iter()
        .find(|option| own.contains(&option.name.as_str()))
    {
        Some(option) => Verdict::Refuse(format!(
            "`{}` is not the operator's to choose here",
            option.name
        )),
        None => Verdict::Fine,
    }
}
