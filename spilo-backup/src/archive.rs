//! Base backups and log in a store of objects.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use spilo_core::backup::{
    BackupError, BackupErrorKind, BackupInfo, BackupName, BackupSource, BackupStore,
};
use spilo_core::pg::Progress;
use spilo_core::wal::Lsn;

use crate::codec::Codec;
use crate::expire::Keep;
use crate::forks::Forks;
use crate::layout::{self, BACKUPS};
use crate::objects::{Object, Objects};
use crate::sentinel::Sentinel;

/// An archive of one cluster.
///
/// Cheap to clone; clones share what they know.
#[derive(Clone)]
pub struct Archive {
    pub(crate) objects: Arc<dyn Objects>,
    pub(crate) options: Arc<ArchiveOptions>,
    /// Sentinels, which never change. One that is not listed any more is forgotten.
    known: Arc<Mutex<BTreeMap<BackupName, Sentinel>>>,
    pub(crate) forks: Arc<Mutex<Forks>>,
}

/// How an archive is written and read.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ArchiveOptions {
    /// How what is written is compressed. What is read may be compressed otherwise.
    pub codec: Codec,
    /// How thoroughly, of those that can choose: from 1 to 19 for zstd.
    pub level: i32,
    /// How many objects of a base backup are on their way at the same time.
    pub parallel: usize,
    /// How long the tar files of a base backup become, in bytes, before they are compressed. A
    /// longer file has one to itself.
    pub part_bytes: u64,
    /// How long a base backup waits, once it is copied, for the log that it needs to be archived.
    pub archive_wait: Duration,
    /// The `archive_command` with which servers archive log here, if any.
    pub archive_command: Option<String>,
    /// The `restore_command` with which servers fetch log from this archive, if any.
    pub restore_command: Option<String>,
}

/// The longest sentinel, or history of a timeline, that is read.
pub(crate) const DOCUMENT: usize = 16 << 20;

impl Archive {
    /// Creates an archive in `objects`.
    pub fn new(objects: Arc<dyn Objects>, options: ArchiveOptions) -> Self {
        Self {
            objects,
            options: Arc::new(options),
            known: Arc::default(),
            forks: Arc::default(),
        }
    }

    /// Returns the backups that are whole, the newest last.
    ///
    /// A later timeline comes after an earlier one, whatever the positions: a cluster that was
    /// recovered to a moment has begun one there, and what was after that moment was given up.
    ///
    /// # Errors
    /// As [`backups`](BackupStore::backups).
    ///
    /// # Cancellation
    /// Safe.
    pub async fn backups_by_age(&self) -> Result<Vec<BackupInfo>, BackupError> {
        let mut backups = self.backups().await?;
        backups.sort_by_key(age);
        Ok(backups)
    }

    /// Returns what the sentinels in a listing say. One that says nothing usable hides no other.
    pub(crate) async fn sentinels(&self, listed: &[Object]) -> Result<Vec<Sentinel>, BackupError> {
        self.not_sealed(listed)?;
        let names: Vec<BackupName> = listed
            .iter()
            .filter_map(|object| layout::read_sentinel(&object.key))
            .collect();
        let mut known = self.remembered();
        known.retain(|name, _| names.contains(name));
        let mut unreadable = None;
        for name in &names {
            if known.contains_key(name) {
                continue;
            }
            match self.sentinel(name).await {
                Ok(sentinel) => {
                    known.insert(name.clone(), sentinel);
                }
                // Deleted in the meantime.
                Err(error) if error.kind() == BackupErrorKind::NotFound => {}
                Err(error) if error.kind() == BackupErrorKind::Damaged => {
                    tracing::warn!("{error}; it is left out");
                    unreadable = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        // Where none of them can be read it is rather that they are read wrongly.
        if let Some(error) = unreadable.filter(|_| known.is_empty()) {
            return Err(error);
        }
        let sentinels = known.values().cloned().collect();
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
        Ok(sentinels)
    }

    /// Refuses to take an archive without its key for one in which there is nothing.
    pub(crate) fn not_sealed(&self, listed: &[Object]) -> Result<(), BackupError> {
        let mut listed = listed.iter();
        let Some(first) = listed.find(|object| object.key.ends_with(layout::SEALED)) else {
            return Ok(());
        };
        let action = format!("read {}", self.objects.place(&first.key));
        let problem = "it is sealed, and no key is given (`--key-file`)";
        Err(self.error(BackupErrorKind::Refused, action, problem))
    }

    /// Returns what the sentinel of one backup says.
    pub(crate) async fn sentinel(&self, name: &BackupName) -> Result<Sentinel, BackupError> {
        if let Some(known) = self.remembered().remove(name) {
            return Ok(known);
        }
        let key = layout::sentinel(name);
        // A name of another form could lead out of the archive.
        if layout::read_backup_name(&name.0).is_none() {
            let action = format!("read the sentinel of {:?}", name.0);
            let problem = "no whole backup has such a name";
            return Err(self.error(BackupErrorKind::NotFound, action, problem));
        }
        let bytes = self.objects.get(&key).await?.all(DOCUMENT).await?;
        Sentinel::read(name, &bytes).map_err(|problem| {
            let action = format!("read {}", self.objects.place(&key));
            self.error(BackupErrorKind::Damaged, action, problem)
        })
    }

    pub(crate) fn error(
        &self,
        kind: BackupErrorKind,
        action: impl Into<String>,
        problem: impl Into<String>,
    ) -> BackupError {
        BackupError::new(self.objects.kind(), kind, action, problem)
    }

    fn remembered(&self) -> BTreeMap<BackupName, Sentinel> {
        let known = self.known.lock();
        known.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What backups are sorted by for how old they are.
pub(crate) fn age(info: &BackupInfo) -> (u32, Lsn, Lsn) {
    (info.start.timeline.0, info.start.lsn, info.stop.lsn)
}

#[async_trait]
impl BackupStore for Archive {
    async fn backups(&self) -> Result<Vec<BackupInfo>, BackupError> {
        let listed = self.objects.list(BACKUPS).await?;
        let sentinels = self.sentinels(&listed).await?;
        Ok(sentinels.into_iter().map(|found| found.info).collect())
    }

    async fn restore(
        &self,
        backup: &BackupName,
        into: &Path,
        progress: Progress,
    ) -> Result<(), BackupError> {
        self.fetch_backup(backup, into, progress).await
    }

    async fn push(
        &self,
        source: &BackupSource,
        progress: Progress,
    ) -> Result<BackupName, BackupError> {
        Ok(self.push_backup(source, progress).await?.name)
    }

    async fn retain(&self, count: usize, progress: Progress) -> Result<(), BackupError> {
        let expired = self.expire(&Keep::Newest(count.max(1)), false).await?;
        for backup in &expired.backups {
            progress.say(&format!("deleted {backup}"));
        }
        Ok(())
    }

    fn archive_command(&self) -> Option<String> {
        self.options.archive_command.clone()
    }

    fn keeps_what_is_there(&self) -> bool {
        true
    }

    fn restore_command(&self) -> Option<String> {
        self.options.restore_command.clone()
    }
}

impl Default for ArchiveOptions {
    fn default() -> Self {
        Self {
            codec: Codec::Zstd,
            // Log and pages are about as small at 1 as at the usual 3, at half the work.
            level: 1,
            parallel: 4,
            part_bytes: 256 << 20,
            archive_wait: Duration::from_secs(600),
            archive_command: None,
            restore_command: None,
        }
    }
}

impl fmt::Debug for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Archive")
            .field("objects", &self.objects)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
