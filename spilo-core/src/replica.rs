//! How a new replica is made: from a backup, or as a copy of a running server.
//!
//! A backup spares the source, and is the faster way as long as little log was written since it.
//! [`choose_method`] decides by a [`Strategy`], of which there are two here: [`Thresholds`], the one of
//! the spilo appliance and of Patroni's `wale_restore`, and [`Throughput`], which compares estimated
//! times. Another one is a type of yours.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::backup::{BackupInfo, BackupName};
use crate::history::History;
use crate::ids::SystemId;
use crate::wal::{Lsn, WalPosition};

/// The running server that a replica would otherwise be copied from.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Which cluster it is of.
    pub system: SystemId,
    /// The history of the timeline that it is on.
    pub history: &'a History,
    /// How far its log goes on that timeline.
    pub position: Lsn,
}

/// A way to make a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Method {
    /// From this backup and the archived log since.
    Restore(BackupName),
    /// As a copy of the running server, by `pg_basebackup`.
    Clone,
}

/// A way to make a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaMethod {
    /// From the newest backup that fits, if the strategy says so; passed over where there is no
    /// store of backups.
    Backup,
    /// As a copy of the leader, by `pg_basebackup`.
    Basebackup,
    /// By a command of the configuration.
    Command(ReplicaCommand),
}

/// A command that makes a replica, as Patroni runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplicaCommand {
    /// The name of the method.
    pub name: String,
    /// The command, for a shell. It ends with 0 once the data directory is a replica's.
    pub command: String,
    /// What it is given, each as `--key=value`.
    pub arguments: Vec<(String, String)>,
    /// Whether it is given nothing else: no scope, role, data directory and connection string.
    pub no_params: bool,
    /// Whether it finds the data directory as it was, and not empty.
    pub keep_data: bool,
}

/// What was chosen, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The way.
    pub method: Method,
    /// Why, in words and numbers.
    pub reason: String,
}

/// A backup that a replica could be made from.
#[derive(Clone, Copy, Debug)]
pub struct Usable<'a> {
    /// The backup.
    pub backup: &'a BackupInfo,
    /// What it takes unpacked, in bytes.
    pub size: u64,
    /// How much log there is to replay, in bytes: from where the backup began to where the source
    /// is.
    pub wal: u64,
}

/// What decides between the newest backup and a copy of the source.
pub trait Strategy: Send + Sync + fmt::Debug {
    /// Returns whether to take the backup, and why.
    fn restores(&self, usable: Usable<'_>) -> (bool, String);
}

/// The backup is taken while the log since it is less than both of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Thresholds {
    /// A number of bytes; 10 GiB by default.
    pub wal: u64,
    /// A share of what the backup takes unpacked, in percent; 30 by default.
    pub backup_percent: u32,
}

/// The backup is taken if a replica is ready sooner that way, by what was measured; all in bytes a
/// second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Throughput {
    /// How fast a running server is copied.
    pub clone: u64,
    /// How fast a backup is fetched and unpacked.
    pub fetch: u64,
    /// How fast log is fetched from the archive and replayed.
    pub replay: u64,
}

/// Chooses how a replica of `source` is made, of the backups that a store has.
///
/// Taken into account is the newest backup *of this history*: one of the same cluster, made on a
/// timeline that the source came through, and before the source left that timeline. A later time or
/// a greater timeline makes none newer: how far it is along the history does.
pub fn choose_method(
    backups: &[BackupInfo],
    source: Source<'_>,
    strategy: &dyn Strategy,
) -> Choice {
    let mut refused = None;
    let mut newest: Option<&BackupInfo> = None;
    for backup in backups {
        if let Err(why) = source.may_use(backup) {
            refused = Some(why);
        } else if newest.is_none_or(|newest| newest.along() < backup.along()) {
            newest = Some(backup);
        }
    }
    let Some(backup) = newest else {
        let reason = match refused {
            None => "the store has no backup".to_owned(),
            Some(why) if backups.len() == 1 => why,
            Some(why) => format!(
                "none of {} backups can be used; one of them: {why}",
                backups.len()
            ),
        };
        return Choice {
            method: Method::Clone,
            reason,
        };
    };
    let Some(size) = backup.size else {
        let reason = format!("the store does not say how large {} is", backup.name);
        return Choice {
            method: Method::Clone,
            reason,
        };
    };
    let usable = Usable {
        backup,
        size,
        wal: source.position.bytes_past(backup.start.lsn),
    };
    let (restores, reason) = strategy.restores(usable);
    let method = if restores {
        Method::Restore(backup.name.clone())
    } else {
        Method::Clone
    };
    Choice { method, reason }
}

impl Source<'_> {
    /// Returns why a replica of this source cannot be made from the backup, if it cannot.
    fn may_use(&self, backup: &BackupInfo) -> Result<(), String> {
        let name = &backup.name;
        if let Some(system) = backup.system.filter(|system| *system != self.system) {
            return Err(format!(
                "{name} is of the cluster {system}, and the source of {}",
                self.system
            ));
        }
        let (start, stop) = (backup.start, backup.stop);
        if start.lsn > stop.lsn {
            return Err(format!("{name} ends at {stop} before it begins"));
        }
        for (does, position) in [("begins", start), ("ends", stop)] {
            if !self.history.contains(position) {
                return Err(format!(
                    "{name} {does} at {position}, which is not in the history of the source's \
                     timeline {}",
                    self.history.timeline()
                ));
            }
        }
        let at = WalPosition {
            timeline: self.history.timeline(),
            lsn: self.position,
        };
        if stop.lsn > self.position {
            return Err(format!("{name} ends at {stop}, and the source is at {at}"));
        }
        Ok(())
    }
}

impl ReplicaCommand {
    /// Takes the name and the command, which is given the usual and finds an empty directory.
    pub fn new(name: impl Into<String>, command: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            command: command.into(),
            arguments: Vec::new(),
            no_params: false,
            keep_data: false,
        }
    }
}

impl BackupInfo {
    /// Returns how far along a history it is that has all of it; what is replayed from a later
    /// beginning on is less.
    fn along(&self) -> (Lsn, Lsn) {
        (self.start.lsn, self.stop.lsn)
    }
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            wal: 10 << 30,
            backup_percent: 30,
        }
    }
}

impl Strategy for Thresholds {
    fn restores(&self, usable: Usable<'_>) -> (bool, String) {
        let Usable { backup, size, wal } = usable;
        let share = u128::from(size) * u128::from(self.backup_percent) / 100;
        let share = u64::try_from(share).unwrap_or(u64::MAX);
        let (name, percent) = (&backup.name, self.backup_percent);
        let since = format!("{} of log since {name} began", Bytes(wal));
        let size = Bytes(size);
        if wal >= self.wal {
            let limit = Bytes(self.wal);
            return (
                false,
                format!("{since}, not less than the limit of {limit}"),
            );
        }
        if wal >= share {
            let share = Bytes(share);
            let reason = format!("{since}, not less than {percent} % of its {size}, {share}");
            return (false, reason);
        }
        let limit = Bytes(self.wal);
        let reason = format!("{since}, less than {limit} and than {percent} % of its {size}");
        (true, reason)
    }
}

impl Throughput {
    /// Takes what was measured, in bytes a second.
    pub fn new(clone: u64, fetch: u64, replay: u64) -> Self {
        Self {
            clone,
            fetch,
            replay,
        }
    }
}

impl Strategy for Throughput {
    fn restores(&self, usable: Usable<'_>) -> (bool, String) {
        let Usable { backup, size, wal } = usable;
        let seconds = |bytes: u64, per_second: u64| bytes.div_ceil(per_second.max(1));
        // The copy has about the size that the backup had, and what was written since.
        let clone = seconds(size.saturating_add(wal), self.clone);
        let fetch = seconds(size, self.fetch);
        let replay = seconds(wal, self.replay);
        let restore = fetch.saturating_add(replay);
        let reason = format!(
            "{restore} s from {} ({fetch} s to fetch {}, {replay} s to replay {}), {clone} s as a copy",
            backup.name,
            Bytes(size),
            Bytes(wal)
        );
        (restore < clone, reason)
    }
}

/// A number of bytes as people read it.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        let Some((unit, shift)) = UNITS.iter().find(|(_, shift)| self.0 >= 1 << shift) else {
            return write!(f, "{} B", self.0);
        };
        let tenths = (u128::from(self.0) * 10) >> shift;
        write!(f, "{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::Timeline;

    const GIB: u64 = 1 << 30;

    /// Timeline 3, which left 2 at 40 GiB, which left 1 at 20 GiB.
    fn history() -> History {
        History::root(Timeline(1))
            .promoted(Timeline(2), Lsn(20 * GIB))
            .promoted(Timeline(3), Lsn(40 * GIB))
    }

    fn backup(name: &str, timeline: u32, start: u64) -> BackupInfo {
        let at = |lsn| WalPosition {
            timeline: Timeline(timeline),
            lsn: Lsn(lsn),
        };
        let name = BackupName(name.to_owned());
        let mut backup = BackupInfo::new(name, at(start), at(start + GIB));
        backup.system = Some(SystemId(7));
        backup.size = Some(100 * GIB);
        backup
    }

    fn chosen(backups: &[BackupInfo], position: u64) -> Choice {
        let history = history();
        let source = Source {
            system: SystemId(7),
            history: &history,
            position: Lsn(position),
        };
        choose_method(backups, source, &Thresholds::default())
    }

    fn restored(name: &str) -> Method {
        Method::Restore(BackupName(name.to_owned()))
    }

    #[test]
    fn f37_both_thresholds_must_hold_and_the_reason_has_the_numbers() {
        let size = |size| {
            let mut backup = backup("b", 3, 50 * GIB);
            backup.size = Some(size);
            [backup]
        };
        for (bytes, since, method, reason) in [
            (
                100 * GIB,
                9 * GIB,
                restored("b"),
                "9.0 GiB of log since b began, less than 10.0 GiB and than 30 % of its 100.0 GiB",
            ),
            (
                100 * GIB,
                10 * GIB,
                Method::Clone,
                "10.0 GiB of log since b began, not less than the limit of 10.0 GiB",
            ),
            (
                10 * GIB,
                3 * GIB,
                Method::Clone,
                "3.0 GiB of log since b began, not less than 30 % of its 10.0 GiB, 3.0 GiB",
            ),
            (
                10 * GIB,
                3 * GIB - 1,
                restored("b"),
                "2.9 GiB of log since b began, less than 10.0 GiB and than 30 % of its 10.0 GiB",
            ),
        ] {
            let choice = chosen(&size(bytes), 50 * GIB + since);
            assert_eq!((choice.method, choice.reason.as_str()), (method, reason));
        }
    }

    /// Whatever the offset's last digit: it is where the peers' rule loses up to 4 GiB.
    #[test]
    fn f37_the_log_since_a_backup_is_counted_to_the_byte() {
        for low in [0, 0x28, 0xF, 0xFF_FFFF, 0xFFFF_FFFF] {
            let began = 50 * GIB + low;
            let backups = [backup("b", 3, began)];
            let history = history();
            let source = Source {
                system: SystemId(7),
                history: &history,
                position: Lsn(began + GIB),
            };
            #[derive(Debug)]
            struct Told(std::sync::atomic::AtomicU64);
            impl Strategy for Told {
                fn restores(&self, usable: Usable<'_>) -> (bool, String) {
                    self.0
                        .store(usable.wal, std::sync::atomic::Ordering::Relaxed);
                    (true, String::new())
                }
            }
            let told = Told(std::sync::atomic::AtomicU64::new(0));
            choose_method(&backups, source, &told);
            assert_eq!(told.0.into_inner(), GIB);
        }
    }

    #[test]
    fn the_newest_is_the_one_farthest_along_this_history() {
        // 4 is a timeline of others: whatever its number, it is not on the way to 3.
        let backups = [
            backup("old", 2, 35 * GIB),
            backup("branch", 4, 45 * GIB),
            backup("new", 3, 44 * GIB),
            backup("older", 1, 10 * GIB),
        ];
        assert_eq!(chosen(&backups, 47 * GIB).method, restored("new"));
    }

    #[test]
    fn a_backup_of_another_history_is_never_taken_and_the_reason_says_why() {
        let mut foreign = backup("b", 3, 45 * GIB);
        foreign.system = Some(SystemId(8));
        let mut backwards = backup("b", 3, 45 * GIB);
        backwards.stop.lsn = Lsn(44 * GIB);
        // Made from a standby that followed others onto their timeline.
        let mut crossed = backup("b", 2, 30 * GIB);
        crossed.stop = WalPosition {
            timeline: Timeline(4),
            lsn: Lsn(32 * GIB),
        };
        for (backup, reason) in [
            (foreign, "b is of the cluster 8, and the source of 7"),
            (
                backup("b", 2, 40 * GIB),
                "b ends at A/40000000 on timeline 2, which is not in the history of the source's \
                 timeline 3",
            ),
            (
                backup("b", 4, 30 * GIB),
                "b begins at 7/80000000 on timeline 4, which is not in the history of the source's \
                 timeline 3",
            ),
            (
                backup("b", 3, 60 * GIB),
                "b ends at F/40000000 on timeline 3, and the source is at D/0 on timeline 3",
            ),
            (backwards, "b ends at B/0 on timeline 3 before it begins"),
            (
                crossed,
                "b ends at 8/0 on timeline 4, which is not in the history of the source's timeline 3",
            ),
        ] {
            let choice = chosen(&[backup], 52 * GIB);
            assert_eq!(choice.method, Method::Clone);
            assert_eq!(choice.reason, reason);
        }
        assert_eq!(chosen(&[], 52 * GIB).reason, "the store has no backup");
        let mut unknown = backup("b", 3, 50 * GIB);
        unknown.size = None;
        let choice = chosen(&[unknown], 52 * GIB);
        assert_eq!(choice.reason, "the store does not say how large b is");
        let two = [backup("a", 4, 30 * GIB), backup("b", 4, 30 * GIB)];
        let reason = chosen(&two, 52 * GIB).reason;
        assert!(reason.starts_with("none of 2 backups can be used; one of them: b begins"));
    }

    #[test]
    fn of_backups_that_overlap_the_one_that_began_last_leaves_least_to_replay() {
        let mut long = backup("long", 3, 41 * GIB);
        long.stop.lsn = Lsn(50 * GIB);
        let backups = [backup("late", 3, 48 * GIB), long];
        assert_eq!(chosen(&backups, 52 * GIB).method, restored("late"));
    }

    #[test]
    fn estimated_times_decide_where_they_are_known() {
        let rule = Throughput::new(100 << 20, 400 << 20, 50 << 20);
        let b = backup("b", 3, 50 * GIB);
        let usable = |wal| Usable {
            backup: &b,
            size: 100 * GIB,
            wal,
        };
        let (restores, reason) = rule.restores(usable(10 * GIB));
        assert!(restores, "{reason}");
        assert_eq!(
            reason,
            "461 s from b (256 s to fetch 100.0 GiB, 205 s to replay 10.0 GiB), 1127 s as a copy"
        );
        assert!(!rule.restores(usable(200 * GIB)).0);
        let nothing = Throughput::new(0, 0, 0);
        assert!(
            !nothing.restores(usable(u64::MAX)).0,
            "and nothing overflows"
        );
    }
}
