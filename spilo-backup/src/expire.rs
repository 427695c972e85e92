//! What is not needed any more.

use std::collections::BTreeSet;

use serde::Serialize;
use spilo_core::backup::{BackupError, BackupErrorKind, BackupInfo, BackupName};
use spilo_core::segment::{ArchiveFile, SegmentSize};
use spilo_core::wal::Lsn;

use crate::archive::{Archive, age};
use crate::layout::{self, BACKUPS, WAL};

/// Which base backups stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keep {
    /// So many of the newest, as [`Archive::backups_by_age`] has them; at least one.
    Newest(usize),
    /// This one and all that are newer.
    From(BackupName),
}

/// What was deleted, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Expired {
    /// Base backups, and what was left of some that were never finished.
    pub backups: Vec<BackupName>,
    /// Files of the log.
    pub wal_files: usize,
    /// The position from which on all log is kept, if there is a backup that needs it.
    pub kept_from: Option<Lsn>,
}

impl Archive {
    /// Deletes the base backups that are not to be kept, and the log that none of the kept ones
    /// needs. Only tells what it would do if `dry`.
    ///
    /// Log goes only if it ends before every kept backup begins, on whatever timeline: what a
    /// backup needs to get to any later moment stays. Histories of timelines stay always.
    ///
    /// # Errors
    /// Nothing is deleted while there is a backup of which it cannot be read where it begins. What
    /// fails in the middle leaves whole backups with all their log, and can be repeated.
    ///
    /// # Cancellation
    /// As after an error.
    pub async fn expire(&self, keep: &Keep, dry: bool) -> Result<Expired, BackupError> {
        let action = "delete what is not needed";
        let refuse = |problem: String| self.error(BackupErrorKind::Refused, action, problem);
        let listed = self.objects.list(BACKUPS).await?;
        let sentinels = self.sentinels(&listed).await?;
        let mut whole: Vec<BackupInfo> = sentinels.into_iter().map(|found| found.info).collect();
        whole.sort_by_key(age);
        let read: BTreeSet<&BackupName> = whole.iter().map(|info| &info.name).collect();
        let named = listed
            .iter()
            .filter_map(|object| layout::read_sentinel(&object.key));
        for name in named {
            if !read.contains(&name) {
                let problem = format!(
                    "the sentinel of {name} cannot be read, so that nobody knows which log it \
                     needs; delete it by hand if it is of no use"
                );
                return Err(refuse(problem));
            }
        }
        let first = first_kept(keep, &whole).map_err(refuse)?;
        let systems: BTreeSet<_> = whole.iter().filter_map(|info| info.system).collect();
        if systems.len() > 1 {
            let problem = "its backups are of different clusters, and nobody knows which log is \
                           whose; each cluster needs an archive of its own";
            return Err(refuse(problem.to_owned()));
        }
        // Of timelines that were left, a later backup may begin earlier.
        let oldest = whole[first..].iter().min_by_key(|info| info.start.lsn);
        let Some(oldest) = oldest else {
            return Ok(Expired::default());
        };
        let sizes: BTreeSet<u64> = whole[first..]
            .iter()
            .map(|info| info.segment_size.bytes())
            .collect();
        if sizes.len() > 1 {
            let problem = "the backups are of logs with files of different sizes".to_owned();
            return Err(refuse(problem));
        }
        let from = oldest.start.lsn;
        let mut expired = Expired {
            kept_from: Some(from),
            ..Expired::default()
        };
        let size = oldest.segment_size;
        let goes: Vec<BackupName> = whole[..first]
            .iter()
            .map(|info| info.name.clone())
            .chain(unfinished(&listed, &read, from, size))
            .collect();
        for name in &goes {
            if !dry {
                self.delete_backup(name, &listed).await?;
            }
        }
        expired.backups = goes;
        for object in self.objects.list(WAL).await? {
            let Some((file, _)) = layout::read_wal(&object.key) else {
                continue;
            };
            if ends_before(file, from, size) {
                expired.wal_files += 1;
                if !dry {
                    self.objects.delete(&object.key).await?;
                }
            }
        }
        Ok(expired)
    }

    /// The sentinel goes first: without it the rest is no backup.
    async fn delete_backup(
        &self,
        name: &BackupName,
        listed: &[crate::Object],
    ) -> Result<(), BackupError> {
        self.objects.delete(&layout::sentinel(name)).await?;
        let folder = layout::backup_folder(name);
        for object in listed {
            if object.key.starts_with(&folder) {
                self.objects.delete(&object.key).await?;
            }
        }
        Ok(())
    }
}

/// Returns where what is kept begins among backups by age.
fn first_kept(keep: &Keep, whole: &[BackupInfo]) -> Result<usize, String> {
    match keep {
        Keep::Newest(0) => Err("at least one backup is kept".to_owned()),
        Keep::Newest(count) => Ok(whole.len().saturating_sub(*count)),
        Keep::From(name) => {
            let at = whole.iter().find(|info| info.name == *name);
            let at = at.ok_or_else(|| format!("there is no backup {name}"))?;
            Ok(whole.partition_point(|info| age(info) < age(at)))
        }
    }
}

/// Returns those without a sentinel that began before the log that is kept: whoever makes one now
/// begins later.
fn unfinished(
    listed: &[crate::Object],
    whole: &BTreeSet<&BackupName>,
    from: Lsn,
    size: SegmentSize,
) -> BTreeSet<BackupName> {
    let names = listed
        .iter()
        .filter_map(|object| layout::owner(&object.key));
    names
        .filter(|name| !whole.contains(name))
        .filter(|name| {
            let began = layout::read_backup_name(&name.0);
            let end = began.and_then(|began| began.segment.end(size));
            end.is_some_and(|end| end <= from)
        })
        .collect()
}

fn ends_before(file: ArchiveFile, from: Lsn, size: SegmentSize) -> bool {
    match file {
        ArchiveFile::Segment(name) | ArchiveFile::Partial(name) | ArchiveFile::Label(name, _) => {
            name.end(size).is_some_and(|end| end <= from)
        }
        ArchiveFile::History(_) => false,
    }
}
