//! Files that are fetched, some of them before PostgreSQL asks for them.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use spilo_core::backup::{BackupError, BackupErrorKind};
use spilo_core::segment::{ArchiveFile, SegmentName, SegmentSize};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::archiver::absent::{FRESH, Recall};
use crate::archiver::handover::Berth;
use crate::archiver::{Inner, locked};
use crate::blocking;

/// What was fetched for a server that has not asked for it yet.
///
/// Only what is noted here is ever handed over, so that a file of another archiver is never used.
#[derive(Debug)]
pub(crate) struct Held {
    files: BTreeMap<String, Fetched>,
    /// How many files are fetched at most.
    most: usize,
    /// How many are for now: where the log ends, most of them would be asked for in vain.
    depth: usize,
    /// How many were begun, to tell one from another.
    begun: u64,
    /// Those that could not be fetched a moment ago. Whoever asks for one asks the store: a server
    /// is not told that something is not there because it was not when nobody had asked.
    missed: BTreeMap<String, Instant>,
}

#[derive(Debug)]
enum Fetched {
    UnderWay {
        number: u64,
        /// Goes with the task.
        ended: watch::Receiver<()>,
        task: AbortHandle,
    },
    There(Berth, SegmentSize),
}

/// What is there of a file.
enum Taken {
    Nothing,
    Soon(watch::Receiver<()>),
    File(Berth, SegmentSize),
}

impl Inner {
    pub(crate) async fn fetch(
        this: &Arc<Self>,
        name: &str,
        into: &Path,
    ) -> Result<(), BackupError> {
        let action = format!("fetch {name}");
        let file = this.file(&action, name)?;
        let size = match Self::fetched_before(this, name, into).await {
            Some(size) => Some(size),
            None => this.fetch_now(file, name, into).await?,
        };
        if let (ArchiveFile::Segment(segment), Some(size)) = (file, size) {
            Self::follow(this, segment, size).await;
        }
        Ok(())
    }

    /// Hands over what was fetched, or is about to be.
    async fn fetched_before(this: &Arc<Self>, name: &str, into: &Path) -> Option<SegmentSize> {
        loop {
            let taken = locked(&this.held).take(name);
            match taken {
                Taken::Nothing => return None,
                // Its end is that of the task, however it ends.
                Taken::Soon(mut ended) => while ended.changed().await.is_ok() {},
                Taken::File(berth, size) => match berth.hand_over(into).await {
                    Ok(()) => return Some(size),
                    Err(error) => {
                        let place = into.display();
                        tracing::warn!("{name} was fetched, and cannot be put to {place}: {error}");
                        return None;
                    }
                },
            }
        }
    }

    /// Fetches a file that is asked for.
    async fn fetch_now(
        &self,
        file: ArchiveFile,
        name: &str,
        into: &Path,
    ) -> Result<Option<SegmentSize>, BackupError> {
        let action = format!("fetch {name}");
        let absent = || {
            let problem = "it is not there, as of a moment ago";
            self.archive
                .error(BackupErrorKind::NotFound, &action, problem)
        };
        let asked = Instant::now();
        let recall = locked(&self.absent).recall(name, asked);
        let found = match recall {
            Recall::Unknown => true,
            Recall::Absent => return Err(absent()),
            Recall::Again => match self.in_time(&action, self.archive.stored(&file)).await {
                Ok(stored) => !stored.is_empty(),
                Err(error) => {
                    // Whether it is there is not known any more.
                    locked(&self.absent).forget(name);
                    return Err(error);
                }
            },
        };
        if !found {
            locked(&self.absent).miss(name, asked);
            return Err(absent());
        }
        let local = |error: io::Error| {
            let kind = BackupErrorKind::Unavailable;
            let error_text = error.to_string();
            self.archive.error(kind, &action, error_text).because(error)
        };
        let berth = self.berth(name).await.map_err(local)?;
        let fetched = self.archive.fetch_wal(name, berth.path());
        let fetched = self.in_time(&action, fetched).await;
        match &fetched {
            Err(error) if error.kind() == BackupErrorKind::NotFound => {
                locked(&self.absent).miss(name, asked);
            }
            _ => locked(&self.absent).forget(name),
        }
        fetched?;
        let size = berth.size();
        berth.hand_over(into).await.map_err(local)?;
        Ok(size)
    }

    /// Starts to fetch what follows a file, once what does not is deleted.
    async fn follow(this: &Arc<Self>, segment: SegmentName, size: SegmentSize) {
        let next = |name: &SegmentName| name.next(size);
        let following = std::iter::successors(segment.next(size), next);
        let names: Vec<String> = following
            .take(this.options.prefetch)
            .map(|name| name.to_string())
            .collect();
        let stale = locked(&this.held).keep_only(&names);
        if !stale.is_empty() {
            let deleted = blocking(move || {
                drop(stale);
                Ok(())
            });
            deleted.await.ok();
        }
        let mut held = locked(&this.held);
        held.missed.retain(|_, missed| missed.elapsed() < FRESH);
        for name in names.iter().take(held.depth) {
            if !held.missed.contains_key(name) {
                Self::begin(this, &mut held, name);
            }
        }
    }

    fn begin(this: &Arc<Self>, held: &mut Held, name: &str) {
        if held.files.contains_key(name) {
            return;
        }
        held.begun += 1;
        let number = held.begun;
        let (running, ended) = watch::channel(());
        let (inner, owned) = (Arc::clone(this), name.to_owned());
        let task = this.spawn(async move {
            inner.prefetch(&owned, number).await;
            drop(running);
        });
        let under_way = Fetched::UnderWay {
            number,
            ended,
            task,
        };
        held.files.insert(name.to_owned(), under_way);
    }

    /// Fetches a file that nobody has asked for. That it fails is told to nobody: whoever asks for
    /// it asks the store.
    async fn prefetch(&self, name: &str, number: u64) {
        let fetched = async {
            let berth = self.berth(name).await.ok()?;
            let action = format!("fetch {name}");
            let fetched = self.archive.fetch_wal(name, berth.path());
            self.in_time(&action, fetched).await.ok()?;
            let size = berth.size()?;
            Some((berth, size))
        };
        let fetched = fetched.await;
        let mut held = locked(&self.held);
        let is_wanted = matches!(
            held.files.get(name),
            Some(Fetched::UnderWay { number: wanted, .. }) if *wanted == number
        );
        if !is_wanted {
            return;
        }
        match fetched {
            Some((berth, size)) => {
                held.depth = (held.depth * 2).min(held.most);
                held.files
                    .insert(name.to_owned(), Fetched::There(berth, size));
            }
            None => {
                held.depth = held.most.min(1);
                held.files.remove(name);
                held.missed.insert(name.to_owned(), Instant::now());
            }
        }
    }

    async fn berth(&self, name: &str) -> io::Result<Berth> {
        let (fetched, name) = (self.fetched.clone(), name.to_owned());
        blocking(move || Berth::new(&fetched, &name)).await
    }
}

impl Held {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            files: BTreeMap::new(),
            most,
            depth: most,
            begun: 0,
            missed: BTreeMap::new(),
        }
    }

    /// Returns the files that are there.
    pub(crate) fn names(&self) -> Vec<String> {
        let there = self.files.iter();
        let there = there.filter(|(_, file)| matches!(file, Fetched::There(..)));
        there.map(|(name, _)| name.clone()).collect()
    }

    fn take(&mut self, name: &str) -> Taken {
        match self.files.remove(name) {
            None => Taken::Nothing,
            Some(Fetched::There(berth, size)) => Taken::File(berth, size),
            // Its task failed without taking note of it.
            Some(Fetched::UnderWay { ended, .. }) if ended.has_changed().is_err() => Taken::Nothing,
            Some(Fetched::UnderWay {
                number,
                ended,
                task,
            }) => {
                let soon = ended.clone();
                let under_way = Fetched::UnderWay {
                    number,
                    ended,
                    task,
                };
                self.files.insert(name.to_owned(), under_way);
                Taken::Soon(soon)
            }
        }
    }

    /// Takes out all other files.
    fn keep_only(&mut self, names: &[String]) -> Vec<Fetched> {
        let files = std::mem::take(&mut self.files);
        let (kept, stale): (BTreeMap<_, _>, BTreeMap<_, _>) = files
            .into_iter()
            .partition(|(name, _)| names.contains(name));
        self.files = kept;
        for file in stale.values() {
            if let Fetched::UnderWay { task, .. } = file {
                task.abort();
            }
        }
        stale.into_values().collect()
    }
}
