//! Where later timelines left earlier ones.
//!
//! A primary that lost its place, and comes back, has log of its own past the point where the next
//! one began. It must not be archived: whoever recovers along that timeline would come to what the
//! cluster gave up, and the file may be the one that the next primary has archived in its own form.
//!
//! Of several later timelines the one that left it last counts: what lies before that point somebody
//! came by, and a promotion that failed leaves a history that nobody goes on with.
//!
//! A server that went along to the later timeline has such files as well: a standby is told to
//! archive the one in which the timelines part, and one that was recovered to a moment has what was
//! archived past it. These are passed over, since nobody needs them, and what waits behind them goes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

use spilo_core::backup::{BackupError, BackupErrorKind};
use spilo_core::history::{End, History};
use spilo_core::segment::ArchiveFile;
use spilo_core::wal::{Lsn, Timeline};
use tokio::time::Instant;

use crate::archive::{Archive, DOCUMENT};
use crate::blocking;
use crate::codec::Codec;
use crate::page::FirstPage;

/// What is known of the histories in an archive.
#[derive(Debug, Default)]
pub(crate) struct Forks {
    /// Histories that are there, which never change.
    archived: BTreeMap<u32, History>,
    /// Timelines that had none, and when that was asked.
    absent: BTreeMap<u32, Instant>,
}

/// Where a timeline was left for a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fork {
    /// The later one.
    pub(crate) next: Timeline,
    /// Where it begins.
    pub(crate) at: Lsn,
}

/// Why a file of the log is not archived.
pub(crate) enum GivenUp {
    /// This server has left its timeline before the end of the file: what counts of it is in the
    /// first file of the later timeline.
    Here(Fork),
    /// Another server has.
    Elsewhere(BackupError),
}

/// For how long it is believed that there is no later timeline. One begins no sooner after this
/// server was fenced than a lease lasts, which is longer.
const BELIEVED: Duration = Duration::from_secs(5);

impl Archive {
    /// Returns why a file of the log is not archived, where it does not end before the point at
    /// which its timeline was left.
    pub(crate) async fn given_up(
        &self,
        file: ArchiveFile,
        page: Option<FirstPage>,
        path: &Path,
    ) -> Result<Option<GivenUp>, BackupError> {
        let (ArchiveFile::Segment(name), Some(page)) = (file, page) else {
            return Ok(None);
        };
        let timeline = name.timeline();
        let (here, elsewhere) = self.forks_of(timeline, path).await?;
        let end = name.end(page.size).unwrap_or(Lsn(u64::MAX));
        let past = |fork: &Fork| end > fork.at;
        // A standby that went along has the end of the old timeline as a file of full length.
        if let Some(fork) = here.filter(past) {
            return Ok(Some(GivenUp::Here(fork)));
        }
        Ok(elsewhere.filter(past).map(|Fork { next, at }| {
            let problem = format!(
                "timeline {timeline} was left at {at} for timeline {next}, and this file goes past \
                 that point: the server must be rewound (pg_rewind) or made anew, unless another \
                 cluster archives to the same place; its log is kept"
            );
            let action = format!("archive {}", path.display());
            GivenUp::Elsewhere(self.error(BackupErrorKind::Refused, action, problem))
        }))
    }

    /// Returns where a timeline was left last, as the histories beside a file say, and as those in
    /// the archive do.
    async fn forks_of(
        &self,
        timeline: Timeline,
        path: &Path,
    ) -> Result<(Option<Fork>, Option<Fork>), BackupError> {
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        let read = {
            let folder = folder.clone();
            blocking(move || later_histories(&folder, timeline)).await
        };
        let local = read.map_err(|error| {
            let action = format!("read the histories in {}", folder.display());
            let kind = match error.kind() {
                io::ErrorKind::InvalidData => BackupErrorKind::Damaged,
                _ => BackupErrorKind::Unavailable,
            };
            self.error(kind, action, error.to_string()).because(error)
        })?;
        let here = local.values().filter_map(|it| fork_in(it, timeline));
        let here = here.max_by_key(|fork| fork.at);
        let mut elsewhere = Vec::new();
        for next in timeline.0.saturating_add(1)..u32::MAX {
            match self.archived_history(Timeline(next)).await? {
                Some(history) => elsewhere.extend(fork_in(&history, timeline)),
                None if local.contains_key(&next) => {}
                None => break,
            }
        }
        Ok((here, elsewhere.into_iter().max_by_key(|fork| fork.at)))
    }

    /// Returns the history of a timeline, if it is archived.
    async fn archived_history(&self, timeline: Timeline) -> Result<Option<History>, BackupError> {
        let now = Instant::now();
        {
            let forks = self.forks.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(history) = forks.archived.get(&timeline.0) {
                return Ok(Some(history.clone()));
            }
            let asked = forks.absent.get(&timeline.0);
            if asked.is_some_and(|asked| now.duration_since(*asked) < BELIEVED) {
                return Ok(None);
            }
        }
        let stored = self.stored(&ArchiveFile::History(timeline)).await?;
        let mut found = None;
        for (key, codec) in stored {
            found = Some(self.read_history(timeline, &key, codec).await);
            if let Some(Ok(_)) = found {
                break;
            }
        }
        let history = found.transpose()?;
        let mut forks = self.forks.lock().unwrap_or_else(PoisonError::into_inner);
        match &history {
            Some(history) => {
                forks.absent.remove(&timeline.0);
                forks.archived.insert(timeline.0, history.clone());
            }
            None => {
                forks.absent.retain(|_, asked| now - *asked < BELIEVED);
                forks.absent.insert(timeline.0, now);
            }
        }
        Ok(history)
    }

    /// Reads the history of a timeline.
    pub(crate) async fn read_history(
        &self,
        timeline: Timeline,
        key: &str,
        codec: Codec,
    ) -> Result<History, BackupError> {
        let read = self.unpack(key, codec, move |mut unpacked| {
            let mut text = Vec::new();
            let most = DOCUMENT as u64;
            let read = unpacked.by_ref().take(most).read_to_end(&mut text);
            read.map_err(|error| unpacked.broken(&error))?;
            // A restore point may have a name in any encoding.
            let text = String::from_utf8_lossy(&text).into_owned();
            let read = History::parse(timeline, &text);
            read.map_err(|error| unpacked.damaged(error.to_string()))
        });
        read.await
    }
}

fn fork_in(history: &History, timeline: Timeline) -> Option<Fork> {
    match history.end_of(timeline)? {
        End::At(at) => Some(Fork {
            next: history.timeline(),
            at,
        }),
        End::Open => None,
    }
}

/// Reads the histories of later timelines of which there is log in a folder.
///
/// A server keeps a history that it was told of also when it cannot go along with it, and then has
/// none of that log.
fn later_histories(folder: &Path, timeline: Timeline) -> io::Result<BTreeMap<u32, History>> {
    let mut found = BTreeSet::new();
    let mut written = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        match name.to_str().and_then(|name| name.parse().ok()) {
            Some(ArchiveFile::History(later)) => found.insert(later.0),
            Some(ArchiveFile::Segment(segment)) => written.insert(segment.timeline().0),
            _ => continue,
        };
    }
    let mut histories = BTreeMap::new();
    for later in found.intersection(&written) {
        if *later <= timeline.0 {
            continue;
        }
        let path = folder.join(format!("{later:08X}.history"));
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            text => text?,
        };
        let history = History::parse(Timeline(*later), &String::from_utf8_lossy(&text));
        let history = history.map_err(|error| {
            let problem = format!("{}: {error}", path.display());
            io::Error::new(io::ErrorKind::InvalidData, problem)
        })?;
        histories.insert(*later, history);
    }
    Ok(histories)
}
