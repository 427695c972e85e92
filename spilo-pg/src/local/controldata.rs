//! Reading what `pg_controldata` prints.

use std::collections::BTreeMap;

use spilo_core::ids::SystemId;
use spilo_core::pg::ControlState;
use spilo_core::wal::{Lsn, Timeline, WalPosition};

/// What matters of a control file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ControlData {
    pub(crate) system_id: SystemId,
    pub(crate) state: ControlState,
    pub(crate) checkpoint: WalPosition,
    pub(crate) redo: Lsn,
    pub(crate) minimum_recovery: Option<WalPosition>,
    pub(crate) rewindable: bool,
    wal_block: u64,
    wal_segment: u64,
    floors: BTreeMap<&'static str, u64>,
}

impl ControlData {
    /// Reads the output of `pg_controldata` under `LC_ALL=C`.
    ///
    /// # Errors
    /// The first field that is missing or cannot be read, by name.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let fields: BTreeMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.trim(), value.trim()))
            .collect();
        let field = |name: &str| {
            fields
                .get(name)
                .copied()
                .ok_or_else(|| format!("pg_controldata: no line {name:?}"))
        };
        let number = |name: &str| {
            let value = field(name)?;
            value
                .parse::<u64>()
                .map_err(|_| bad(name, value, "a whole number"))
        };
        let lsn = |name: &str| {
            let value = field(name)?;
            value
                .parse::<Lsn>()
                .map_err(|_| bad(name, value, "a log position"))
        };
        let timeline = |name: &str| {
            let value = field(name)?;
            value
                .parse()
                .map(Timeline)
                .map_err(|_| bad(name, value, "a timeline"))
        };
        let system_id = field("Database system identifier")?;
        let state = field("Database cluster state")?;
        let minimum = lsn("Minimum recovery ending location")?;
        let wal_block = number("WAL block size")?;
        let wal_segment = number("Bytes per WAL segment")?;
        if wal_block < PAGE_HEADER * 2 || wal_segment < wal_block {
            return Err(bad(
                "WAL block size",
                &wal_block.to_string(),
                "a possible size",
            ));
        }
        let floors = FLOORS
            .iter()
            .map(|(line, parameter)| Ok((*parameter, number(line)?)));
        Ok(Self {
            system_id: SystemId::parse(system_id)
                .ok_or_else(|| bad("Database system identifier", system_id, "a number"))?,
            state: parse_state(state)
                .ok_or_else(|| bad("Database cluster state", state, "a known state"))?,
            checkpoint: WalPosition {
                timeline: timeline("Latest checkpoint's TimeLineID")?,
                lsn: lsn("Latest checkpoint location")?,
            },
            redo: lsn("Latest checkpoint's REDO location")?,
            minimum_recovery: (minimum != Lsn(0))
                .then(|| {
                    let timeline = timeline("Min recovery ending loc's timeline")?;
                    Ok::<_, String>(WalPosition {
                        timeline,
                        lsn: minimum,
                    })
                })
                .transpose()?,
            rewindable: number("Data page checksum version")? != 0
                || field("wal_log_hints setting")? == "on",
            wal_block,
            wal_segment,
            floors: floors.collect::<Result<_, String>>()?,
        })
    }

    /// Returns how far the log reaches as far as the control file proves it.
    ///
    /// - Shut down as a primary: the end of the shutdown checkpoint's record, which is where
    ///   PostgreSQL's next record would begin, and what a standby that has everything has flushed.
    /// - A standby: the greater of the checkpoint and the minimum recovery point.
    /// - Crashed as a primary: the checkpoint. The log reaches further by what only a crash
    ///   recovery tells.
    pub(crate) fn position(&self) -> WalPosition {
        if self.state == ControlState::ShutDown {
            let lsn = self.end_of_record(self.checkpoint.lsn, SHUTDOWN_CHECKPOINT);
            return WalPosition {
                lsn,
                ..self.checkpoint
            };
        }
        match self.minimum_recovery {
            Some(minimum) if minimum.lsn >= self.checkpoint.lsn => minimum,
            Some(_) | None => self.checkpoint,
        }
    }

    /// Returns the least value that a standby may have for a parameter, if it has one.
    pub(crate) fn floor(&self, parameter: &str) -> Option<u64> {
        self.floors.get(parameter).copied()
    }

    /// Returns where a record of `length` bytes that begins at `start` ends: records are padded
    /// to eight bytes, and each page they reach into has a header first.
    fn end_of_record(&self, start: Lsn, length: u64) -> Lsn {
        let mut left = length.next_multiple_of(8);
        let mut at = start.0;
        loop {
            let room = self.wal_block - at % self.wal_block;
            if left <= room {
                return Lsn(at.saturating_add(left));
            }
            left -= room;
            at = at.saturating_add(room);
            let first = at.is_multiple_of(self.wal_segment);
            at = at.saturating_add(if first { SEGMENT_HEADER } else { PAGE_HEADER });
        }
    }
}

/// Reads the state as `pg_controldata` words it.
fn parse_state(text: &str) -> Option<ControlState> {
    Some(match text {
        "starting up" => ControlState::Starting,
        "shut down" => ControlState::ShutDown,
        "shut down in recovery" => ControlState::ShutDownInRecovery,
        "shutting down" => ControlState::ShuttingDown,
        "in crash recovery" => ControlState::InCrashRecovery,
        "in archive recovery" => ControlState::InArchiveRecovery,
        "in production" => ControlState::InProduction,
        _ => return None,
    })
}

fn bad(name: &str, value: &str, wanted: &str) -> String {
    format!("pg_controldata: {name}: wanted {wanted}, found {value:?}")
}

/// The lines with the values that a standby's parameters may not be below.
const FLOORS: &[(&str, &str)] = &[
    ("max_connections setting", "max_connections"),
    ("max_worker_processes setting", "max_worker_processes"),
    ("max_wal_senders setting", "max_wal_senders"),
    ("max_prepared_xacts setting", "max_prepared_transactions"),
    ("max_locks_per_xact setting", "max_locks_per_transaction"),
];

/// The length of a shutdown checkpoint's record in versions 13 to 18: a record header of 24
/// bytes, a data header of 2, and the checkpoint itself of 88.
const SHUTDOWN_CHECKPOINT: u64 = 24 + 2 + 88;
/// The header of a page of the log.
const PAGE_HEADER: u64 = 24;
/// The header of the first page of a segment.
const SEGMENT_HEADER: u64 = 40;

#[cfg(test)]
mod tests {
    use super::*;

    fn text(changes: &[(&str, &str)]) -> String {
        let mut lines = Vec::new();
        for line in SAMPLE.lines() {
            let name = line.split_once(':').unwrap().0;
            match changes.iter().find(|(changed, _)| *changed == name) {
                Some((_, value)) => lines.push(format!("{name}: {value}")),
                None => lines.push(line.to_owned()),
            }
        }
        lines.join("\n")
    }

    fn at(timeline: u32, lsn: &str) -> WalPosition {
        WalPosition {
            timeline: Timeline(timeline),
            lsn: lsn.parse().unwrap(),
        }
    }

    #[test]
    fn a_clean_shutdown_reaches_to_the_end_of_its_record() {
        let control = ControlData::parse(SAMPLE).unwrap();
        assert_eq!(control.system_id, SystemId(7_710_886_690_855_883_428));
        assert_eq!(control.checkpoint, at(1, "0/3000028"));
        assert_eq!(control.position(), at(1, "0/30000A0"));
        assert!(!control.rewindable);
        assert_eq!(control.floor("max_connections"), Some(100));
        assert_eq!(control.floor("work_mem"), None);
    }

    #[test]
    fn a_record_that_crosses_a_page_is_longer_by_the_header() {
        for (start, end) in [
            ("0/3001F88", "0/3002000"), // ends with its page
            ("0/3001FA0", "0/3002030"), // 96 bytes fit, 24 are behind a header of 24
            ("0/3FFFFF8", "0/4000098"), // 8 bytes fit, the next page begins a segment
        ] {
            let control =
                ControlData::parse(&text(&[("Latest checkpoint location", start)])).unwrap();
            assert_eq!(control.position(), at(1, end), "{start}");
        }
    }

    #[test]
    fn a_standby_reaches_to_the_greater_of_checkpoint_and_minimum_recovery_point() {
        for (minimum, timeline, reaches) in [
            ("0/5000000", "2", at(2, "0/5000000")),
            ("0/2000000", "1", at(1, "0/3000028")),
        ] {
            let control = ControlData::parse(&text(&[
                ("Database cluster state", "in archive recovery"),
                ("Minimum recovery ending location", minimum),
                ("Min recovery ending loc's timeline", timeline),
            ]))
            .unwrap();
            assert_eq!(control.position(), reaches);
        }
    }

    #[test]
    fn a_crashed_primary_proves_no_more_than_its_checkpoint() {
        let control =
            ControlData::parse(&text(&[("Database cluster state", "in production")])).unwrap();
        assert_eq!(control.position(), at(1, "0/3000028"));
    }

    #[test]
    fn checksums_or_hint_bits_make_it_rewindable() {
        for change in [
            ("Data page checksum version", "1"),
            ("wal_log_hints setting", "on"),
        ] {
            assert!(
                ControlData::parse(&text(&[change])).unwrap().rewindable,
                "{change:?}"
            );
        }
    }

    #[test]
    fn garbage_is_an_error_that_names_the_line() {
        for (line, value) in [
            ("Database system identifier", "12"),
            ("Database cluster state", "unrecognized status code"),
            ("Latest checkpoint location", "zz"),
            ("Latest checkpoint's TimeLineID", "-1"),
            ("WAL block size", "0"),
            ("max_connections setting", "many"),
        ] {
            let problem = ControlData::parse(&text(&[(line, value)])).unwrap_err();
            assert!(problem.contains(line), "{problem}");
        }
        for garbage in [
            "",
            "::::",
            "\u{0}\u{fffd}\n:\n",
            "WARNING: Calculated CRC checksum",
        ] {
            assert!(ControlData::parse(garbage).is_err(), "{garbage:?}");
        }
    }

    const SAMPLE: &str = "\
pg_control version number:            1300
Database system identifier:           7710886690855883428
Database cluster state:               shut down
pg_control last modified:             Sun Nov 22 06:58:31 2026
Latest checkpoint location:           0/3000028
Latest checkpoint's REDO location:    0/3000028
Latest checkpoint's TimeLineID:       1
Latest checkpoint's oldestCommitTsXid:0
Minimum recovery ending location:     0/0
Min recovery ending loc's timeline:   0
wal_level setting:                    replica
wal_log_hints setting:                off
max_connections setting:              100
max_worker_processes setting:         8
max_wal_senders setting:              10
max_prepared_xacts setting:           0
max_locks_per_xact setting:           64
WAL block size:                       8192
Bytes per WAL segment:                16777216
Data page checksum version:           0";
}
