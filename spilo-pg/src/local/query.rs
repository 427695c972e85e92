//! The one query of an observation, and reading its answer.

use serde::Deserialize;
use spilo_core::ids::{MemberName, SlotName};
use spilo_core::pg::{Role, Walsender};
use spilo_core::wal::{Lsn, Timeline};
use tokio_postgres::SimpleQueryRow;

use super::conninfo;

/// What the server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) role: Role,
    pub(crate) version: u32,
    pub(crate) started: String,
    pub(crate) data_dir: String,
    /// The timeline it writes; of a standby the one it receives, while it receives.
    pub(crate) timeline: Option<Timeline>,
    /// The latest timeline that its control file knows of.
    pub(crate) control_timeline: Timeline,
    pub(crate) walsenders: Vec<Walsender>,
    pub(crate) slots: Vec<(SlotName, Option<Lsn>)>,
    /// Settings that wait for a restart, with their values now; not asked each time.
    pub(crate) pending: Option<Vec<(String, String)>>,
}

/// Returns the query.
///
/// Every function that fails in the other role stands behind a test of the role; a promotion
/// between the test and the function fails the query, which is then asked again.
pub(crate) fn text(with_pending: bool) -> String {
    let pending = if with_pending {
        "(SELECT json_agg(json_build_array(name, setting)) FROM pg_settings \
          WHERE pending_restart AND name <> 'hot_standby' AND name NOT LIKE 'recovery\\_%' \
          AND name NOT IN ('primary_conninfo', 'primary_slot_name', 'restore_command'))"
    } else {
        "NULL"
    };
    format!("{QUERY}, {pending} AS pending")
}

/// The query for when the long one takes too long: only what decides, and no view.
pub(crate) const SHORT: &str = "SELECT pg_is_in_recovery() AS standby, \
    CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn() END AS written, \
    pg_last_wal_receive_lsn() AS received, pg_last_wal_replay_lsn() AS replayed";

/// The parameters of a standby that must not be lower than its primary's, as they are now.
pub(crate) const FLOORED: &str = "SELECT name, setting FROM pg_settings WHERE name IN \
    ('max_connections', 'max_worker_processes', 'max_wal_senders', 'max_prepared_transactions', \
     'max_locks_per_transaction')";

impl Answer {
    /// Reads the row.
    ///
    /// # Errors
    /// The column that is missing or cannot be read.
    pub(crate) fn read(row: &SimpleQueryRow) -> Result<Self, String> {
        let column = |name: &str| row.try_get(name).ok().flatten();
        let must = |name: &str| column(name).ok_or_else(|| format!("no {name} in the answer"));
        let timeline = |name: &str, text: &str| {
            let decimal = text.parse().ok();
            decimal
                .map(Timeline)
                .ok_or_else(|| format!("{name}: {text:?} is no timeline"))
        };
        let receiver: Option<Receiver> = json("receiver", column("receiver"))?;
        let control = timeline("control_timeline", must("control_timeline")?)?;
        let (role, timeline) = if must("standby")? == "t" {
            let conninfo = column("conninfo").unwrap_or_default();
            let role = Role::Standby {
                received: lsn("received", column("received"))?.unwrap_or_default(),
                replayed: lsn("replayed", column("replayed"))?.unwrap_or_default(),
                replayed_at: column("replayed_at").map(str::to_owned),
                paused: column("paused") == Some("t"),
                streaming: receiver
                    .as_ref()
                    .is_some_and(|r| r.status.as_deref() == Some("streaming")),
                upstream_end: lsn("end", receiver.as_ref().and_then(|r| r.end.as_deref()))?,
                upstream: conninfo::target(conninfo),
            };
            (role, receiver.and_then(|r| r.tli).map(Timeline))
        } else {
            let file = must("file")?;
            let tli = file
                .get(..8)
                .and_then(|hex| u32::from_str_radix(hex, 16).ok());
            let tli = tli.ok_or_else(|| format!("file: {file:?} is no segment's name"))?;
            let written = lsn("written", column("written"))?.ok_or("no written in the answer")?;
            (Role::Primary { written }, Some(Timeline(tli)))
        };
        let senders: Option<Vec<Sender>> = json("senders", column("senders"))?;
        let slots: Option<Vec<(String, Option<String>)>> = json("slots", column("slots"))?;
        Ok(Self {
            role,
            version: must("version")?
                .parse()
                .map_err(|_| "version is no number")?,
            started: must("started")?.to_owned(),
            data_dir: must("data_dir")?.to_owned(),
            timeline,
            control_timeline: control,
            walsenders: senders
                .unwrap_or_default()
                .into_iter()
                .map(Sender::into_core)
                .collect::<Result<_, _>>()?,
            slots: slots
                .unwrap_or_default()
                .into_iter()
                .filter_map(|(name, at)| {
                    Some((slot_name(&name)?, at.and_then(|at| at.parse().ok())))
                })
                .collect(),
            pending: json("pending", column("pending"))?,
        })
    }
}

/// Returns the role that the [`SHORT`] query tells, with what it does not tell from before.
pub(crate) fn short_role(row: &SimpleQueryRow, before: &Role) -> Result<Role, String> {
    let column = |name: &str| row.try_get(name).ok().flatten();
    if column("standby") != Some("t") {
        let written = lsn("written", column("written"))?.ok_or("no written in the answer")?;
        return Ok(Role::Primary { written });
    }
    let mut role = match before {
        Role::Standby { .. } => before.clone(),
        Role::Primary { .. } => return Err("a primary became a standby".to_owned()),
    };
    if let Role::Standby {
        received, replayed, ..
    } = &mut role
    {
        *received = lsn("received", column("received"))?.unwrap_or_default();
        *replayed = lsn("replayed", column("replayed"))?.unwrap_or_default();
    }
    Ok(role)
}

/// Reads the name of a slot; a slot that no member could have is none of ours.
pub(crate) fn slot_name(text: &str) -> Option<SlotName> {
    let slot = MemberName::new(text).ok()?.slot();
    (slot.as_str() == text).then_some(slot)
}

#[derive(Debug, Deserialize)]
struct Receiver {
    status: Option<String>,
    tli: Option<u32>,
    end: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Sender {
    user: Option<String>,
    app: Option<String>,
    addr: Option<String>,
    state: Option<String>,
    sync: Option<String>,
    prio: Option<i32>,
    flush: Option<String>,
}

impl Sender {
    fn into_core(self) -> Result<Walsender, String> {
        Ok(Walsender {
            flushed: lsn("flush", self.flush.as_deref())?,
            user: self.user.unwrap_or_default(),
            application: self.app.unwrap_or_default(),
            client: self.addr,
            state: self.state.unwrap_or_default(),
            sync_state: self.sync.unwrap_or_default(),
            sync_priority: self.prio.unwrap_or_default(),
        })
    }
}

fn json<'a, T: Deserialize<'a>>(name: &str, text: Option<&'a str>) -> Result<Option<T>, String> {
    text.map(|text| serde_json::from_str(text).map_err(|error| format!("{name}: {error}")))
        .transpose()
}

fn lsn(name: &str, text: Option<&str>) -> Result<Option<Lsn>, String> {
    text.map(|text| text.parse().map_err(|error| format!("{name}: {error}")))
        .transpose()
}

const QUERY: &str = "SELECT pg_is_in_recovery() AS standby, \
    current_setting('server_version_num') AS version, \
    pg_postmaster_start_time() AS started, \
    current_setting('data_directory') AS data_dir, \
    current_setting('primary_conninfo') AS conninfo, \
    CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn() END AS written, \
    CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_flush_lsn()) END AS file, \
    pg_last_wal_receive_lsn() AS received, \
    pg_last_wal_replay_lsn() AS replayed, \
    pg_last_xact_replay_timestamp() AS replayed_at, \
    CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() END AS paused, \
    greatest((SELECT timeline_id FROM pg_control_checkpoint()), \
             (SELECT min_recovery_end_timeline FROM pg_control_recovery())) AS control_timeline, \
    (SELECT json_build_object('status', status, 'tli', received_tli, 'end', latest_end_lsn) \
       FROM pg_stat_wal_receiver LIMIT 1) AS receiver, \
    (SELECT json_agg(json_build_object('user', usename, 'app', application_name, \
            'addr', host(client_addr), 'state', state, 'sync', sync_state, \
            'prio', sync_priority, 'flush', flush_lsn)) FROM pg_stat_replication) AS senders, \
    (SELECT json_agg(json_build_array(slot_name, restart_lsn)) FROM pg_replication_slots \
      WHERE slot_type = 'physical' AND NOT temporary) AS slots";
