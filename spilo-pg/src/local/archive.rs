//! How far the archive of the log is.

use std::fs;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use spilo_core::pg::ArchiveStatus;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::LocalOptions;

/// Looks now and then which files of the log wait to be archived.
///
/// In the files, and not by a query: there may be thousands, and they wait on while the server is
/// down.
#[derive(Debug, Default)]
pub(super) struct Archive(Mutex<Turn>);

#[derive(Debug, Default)]
struct Turn {
    looked: Option<Instant>,
    found: Option<ArchiveStatus>,
    work: JoinSet<Option<ArchiveStatus>>,
}

impl Archive {
    /// Returns what was found last, which may be some seconds old; never waits.
    pub(super) fn look(&self, options: &Arc<LocalOptions>) -> Option<ArchiveStatus> {
        options.backups.as_ref()?.store.archive_command()?;
        let mut turn = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(found) = turn.work.try_join_next() {
            turn.found = found.ok().flatten();
        }
        let due = turn.looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY);
        if due && turn.work.is_empty() {
            turn.looked = Some(Instant::now());
            let options = Arc::clone(options);
            turn.work.spawn_blocking(move || waiting(&options).ok());
        }
        turn.found.clone()
    }
}

fn waiting(options: &LocalOptions) -> io::Result<ArchiveStatus> {
    let marks = options.data_dir.join("pg_wal/archive_status");
    let mut status = ArchiveStatus {
        waiting: 0,
        first_waiting: None,
    };
    for mark in fs::read_dir(marks)? {
        let mark = mark?.file_name();
        let Some(name) = mark.to_str().and_then(|mark| mark.strip_suffix(".ready")) else {
            continue;
        };
        status.waiting += 1;
        if status
            .first_waiting
            .as_deref()
            .is_none_or(|first| name < first)
        {
            status.first_waiting = Some(name.to_owned());
        }
    }
    Ok(status)
}

/// A directory of the number of files that the log has for each checkpoint.
const LOOK_EVERY: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use spilo_core::ids::{MemberName, Scope};

    use super::*;

    #[test]
    fn what_waits_is_counted_and_the_first_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let name = MemberName::new("a").unwrap();
        let options = LocalOptions::new(Scope::new("s").unwrap(), name, dir.path(), 1);
        assert!(waiting(&options).is_err());
        let marks = dir.path().join("pg_wal/archive_status");
        fs::create_dir_all(&marks).unwrap();
        let mut wanted = ArchiveStatus {
            waiting: 0,
            first_waiting: None,
        };
        assert_eq!(waiting(&options).unwrap(), wanted);
        for mark in [
            "000000010000000000000003.ready",
            "000000010000000000000002.ready",
            "000000010000000000000001.done",
            "00000002.history.ready",
        ] {
            fs::write(marks.join(mark), "").unwrap();
        }
        wanted.waiting = 3;
        wanted.first_waiting = Some("000000010000000000000002".to_owned());
        assert_eq!(waiting(&options).unwrap(), wanted);
    }
}
