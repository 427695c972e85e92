//! A base backup of a server, into the archive.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use spilo_core::backup::{BackupError, BackupErrorKind, BackupInfo, BackupName, BackupSource};
use spilo_core::ids::SystemId;
use spilo_core::local::Secret;
use spilo_core::pg::Progress;
use spilo_core::segment::{ArchiveFile, SegmentName, SegmentSize};
use spilo_core::wal::{Lsn, Timeline, WalPosition};
use tar::Builder;
use tokio::task::JoinSet;

use crate::archive::{Archive, DOCUMENT};
use crate::blocking;
use crate::body::Body;
use crate::files::Plan;
use crate::layout::{self, BACKUPS, WAL};
use crate::meter::Meter;
use crate::objects::Object;
use crate::part::add_entry;
use crate::sentinel::{Part, Sentinel};
use crate::session::{Facts, Session};

impl Archive {
    /// Makes a base backup of a running server.
    ///
    /// Returns once the backup and all log that it needs are in the archive; the log is archived by
    /// the server, which is waited for. A standby's primary is asked to begin a new file of the log,
    /// if it is known.
    ///
    /// # Errors
    /// Nothing of it counts as a backup then, and what was stored of it is deleted, if the store
    /// lets us. `Unavailable` when the log did not arrive in time: the error names what is missing.
    ///
    /// # Cancellation
    /// The server's backup mode ends. Objects that are stored already stay, without being a backup;
    /// [`expire`](Self::expire) deletes them.
    pub async fn push_backup(
        &self,
        source: &BackupSource,
        progress: Progress,
    ) -> Result<BackupInfo, BackupError> {
        let started = seconds_since_1970();
        let (session, ended) =
            Session::connect(self.objects.kind(), source.conninfo.expose()).await?;
        let facts = session.facts().await?;
        self.same_directory(&source.data_dir, &facts.data_directory)?;
        progress.say("waiting for a checkpoint");
        let mut start = session.start("spilo", facts.version).await?;
        let mut listed = self.objects.list(BACKUPS).await?;
        if let Some(primary) = &source.primary
            && owned(&listed, &name_of(start, facts.segment_size)).is_some()
            && session.replayed().await?.is_some()
        {
            session.stop(facts.version).await?;
            self.next_checkpoint(primary, &session, &progress).await;
            start = session.start("spilo", facts.version).await?;
            listed = self.objects.list(BACKUPS).await?;
        }
        self.control(&source.data_dir, &facts, start).await?;
        let name = name_of(start, facts.segment_size);
        for other in self.sentinels(&listed).await? {
            self.same_system(other.info.system, facts.system, &other.info.name.0)?;
        }
        if let Some(first) = owned(&listed, &name) {
            let place = self.objects.place(&first.key);
            let problem = format!(
                "{place} is there: a backup that began at the same checkpoint was made, or not \
                 finished; try again after the server's next checkpoint"
            );
            return Err(self.error(BackupErrorKind::Conflict, "begin the backup", problem));
        }
        // Of several that began at the same checkpoint, one gets to store this.
        let text = Body::whole(facts.version_text.clone());
        self.objects.put(&layout::version(&name), text).await?;
        let run = Run {
            archive: self,
            session,
            facts,
            name: name.clone(),
            start,
            started,
        };
        // A backup ends with its session, however long the copy would go on.
        let copied = tokio::select! {
            copied = run.copy(source, &progress) => copied,
            problem = ended => Err(self.error(
                BackupErrorKind::Unavailable,
                "make a base backup",
                format!("the connection to the server ended: {problem}"),
            )),
        };
        match copied {
            // Whatever becomes of the last request: what it makes whole stays.
            Ok(sentinel) => run.seal(sentinel).await,
            Err(error) => {
                self.clean_up(&name).await;
                Err(error)
            }
        }
    }

    /// Asks a standby's primary for a checkpoint that another backup of the standby can begin at, and
    /// waits until it has come.
    async fn next_checkpoint(&self, primary: &Secret, standby: &Session, progress: &Progress) {
        progress.say("there is a backup from this checkpoint; asking the primary for another one");
        let asked = async {
            let (session, _ended) = Session::connect(self.objects.kind(), primary.expose()).await?;
            let there = session.checkpoint().await?;
            while standby
                .replayed()
                .await?
                .is_some_and(|replayed| replayed <= there)
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok::<_, BackupError>(())
        };
        let problem = match tokio::time::timeout(CHECKPOINT, asked).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it has not come within {CHECKPOINT:?}"),
        };
        progress.say(&format!("there is no other checkpoint: {problem}"));
    }

    fn same_directory(&self, given: &Path, served: &Path) -> Result<(), BackupError> {
        let real = |path: &Path| fs::canonicalize(path);
        let action = || format!("back up {}", given.display());
        let failed = |error: io::Error| {
            self.error(BackupErrorKind::Refused, action(), error.to_string())
                .because(error)
        };
        let given_real = real(given).map_err(failed)?;
        // Another root directory may hide the server's path; then nothing can be compared.
        if real(served).is_ok_and(|served| served != given_real) {
            let problem = format!("the server's data directory is {}", served.display());
            return Err(self.error(BackupErrorKind::Refused, action(), problem));
        }
        Ok(())
    }

    /// Refuses what is of another cluster.
    fn same_system(
        &self,
        theirs: Option<SystemId>,
        ours: SystemId,
        what: &str,
    ) -> Result<(), BackupError> {
        match theirs {
            Some(theirs) if theirs != ours => {
                let problem = format!(
                    "{what} is of the cluster {theirs}, and the server of {ours}: each cluster \
                     needs an archive of its own"
                );
                Err(self.error(BackupErrorKind::Refused, "make a base backup", problem))
            }
            _ => Ok(()),
        }
    }

    /// Reads `pg_control` of the data directory, and makes sure that it is the server's.
    async fn control(
        &self,
        data_dir: &Path,
        facts: &Facts,
        start: WalPosition,
    ) -> Result<Vec<u8>, BackupError> {
        let path = data_dir.join("global/pg_control");
        let action = format!("read {}", path.display());
        let failed = |kind, problem: String| self.error(kind, &action, problem);
        let mut last = None;
        for _ in 0..50 {
            let path = path.clone();
            let read = blocking(move || fs::read(path)).await;
            let bytes =
                read.map_err(|error| failed(BackupErrorKind::Unavailable, error.to_string()))?;
            // One that is read while it is written is read again.
            if last.as_ref() != Some(&bytes) {
                last = Some(bytes);
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
            let eight = |at: usize| bytes.get(at..at + 8).and_then(|part| part.try_into().ok());
            // `ControlFileData` of all supported versions begins with the system identifier, and
            // has where the last checkpoint begins at 40.
            let (Some(system), Some(redo)) = (eight(0), eight(40)) else {
                return Err(failed(
                    BackupErrorKind::Refused,
                    "it is too short".to_owned(),
                ));
            };
            let system = SystemId(u64::from_ne_bytes(system));
            let redo = Lsn(u64::from_ne_bytes(redo));
            if system != facts.system || redo < start.lsn {
                let problem = format!(
                    "it is of the cluster {system} with a checkpoint at {redo}, and the server's \
                     backup of {} began at {}: this is the directory of another server",
                    facts.system, start.lsn
                );
                return Err(failed(BackupErrorKind::Refused, problem));
            }
            return Ok(bytes);
        }
        let problem = "it changes all the time".to_owned();
        Err(failed(BackupErrorKind::Unavailable, problem))
    }

    /// Deletes what was stored of a backup that failed.
    async fn clean_up(&self, name: &BackupName) {
        let folder = layout::backup_folder(name);
        let stored = self.objects.list(&folder).await.unwrap_or_default();
        for object in stored {
            if let Err(error) = self.objects.delete(&object.key).await {
                tracing::warn!("{error}; it is left of a backup that failed");
            }
        }
    }
}

/// Returns the name of a backup that begins there.
fn name_of(start: WalPosition, size: SegmentSize) -> BackupName {
    let segment = size.segment_at(start.timeline, start.lsn);
    let begin = segment.begin(size).unwrap_or_default();
    layout::backup_name(segment, start.lsn.bytes_past(begin))
}

/// Returns an object that belongs to a backup.
fn owned<'a>(listed: &'a [Object], name: &BackupName) -> Option<&'a Object> {
    let mut listed = listed.iter();
    listed.find(|object| layout::owner(&object.key).is_some_and(|of| of == *name))
}

/// How long a primary may take for a checkpoint and a standby to come there.
const CHECKPOINT: Duration = Duration::from_secs(600);

/// A backup that has begun.
struct Run<'a> {
    archive: &'a Archive,
    session: Session,
    facts: Facts,
    name: BackupName,
    start: WalPosition,
    started: u64,
}

impl Run<'_> {
    /// Stores everything but the sentinel, which it returns.
    async fn copy(
        &self,
        source: &BackupSource,
        progress: &Progress,
    ) -> Result<Sentinel, BackupError> {
        let (archive, data_dir) = (self.archive, source.data_dir.as_path());
        let root = data_dir.to_owned();
        let plan = blocking(move || Plan::of(&root)).await.map_err(|error| {
            let action = format!("read {}", data_dir.display());
            archive
                .error(BackupErrorKind::Unavailable, action, error.to_string())
                .because(error)
        })?;
        let tablespaces = plan.tablespaces.clone();
        let mut bytes = plan.bytes();
        let meter = Meter::new("base backup".to_owned(), bytes, progress.clone());
        let mut parts = self.push_parts(data_dir, plan, Arc::new(meter)).await?;

        // Before the backup ends, so that a standby's says how far replay has to come.
        let control = archive.control(data_dir, &self.facts, self.start).await?;
        let stopped = self.session.stop(self.facts.version).await?;
        let of_standby = stopped.is_of_standby();
        let began = format!("START TIMELINE: {}\n", self.start.timeline);
        if !stopped.label.contains(&began) {
            let problem = "the server began a timeline while the backup began; try again";
            return Err(self.error("end the backup", problem));
        }
        let mut last = vec![("backup_label", stopped.label.into_bytes())];
        if !stopped.map.is_empty() {
            last.push(("tablespace_map", stopped.map.into_bytes()));
        }
        last.push(("global/pg_control", control));
        bytes += last.iter().map(|(_, held)| held.len() as u64).sum::<u64>();
        let number = parts.len();
        parts.push(archive.push_last(&self.name, number, last).await?);

        if let Some(primary) = &source.primary
            && of_standby
        {
            self.end_file(primary, progress).await;
        }
        self.await_log(stopped.at, progress).await?;
        self.all_there(&parts).await?;
        let mut info = BackupInfo::new(self.name.clone(), self.start, stopped.at);
        info.system = Some(self.facts.system);
        info.size = Some(bytes);
        info.made = Some(self.started);
        info.segment_size = self.facts.segment_size;
        let times = (self.started, seconds_since_1970());
        let source = data_dir.display().to_string();
        let sentinel = Sentinel::new(info, source, tablespaces);
        Ok(sentinel.with(self.facts.version, times, parts))
    }

    /// Asks a standby's primary to begin a new file of the log: only whole ones are archived. Where it
    /// does not, the file ends by itself, if later.
    async fn end_file(&self, primary: &Secret, progress: &Progress) {
        let asked = async {
            let store = self.archive.objects.kind();
            let (session, _ended) = Session::connect(store, primary.expose()).await?;
            session.switch_wal().await
        };
        let limit = Duration::from_secs(10);
        let problem = match tokio::time::timeout(limit, asked).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("the primary does not answer within {limit:?}"),
        };
        progress.say(&format!(
            "the primary begins no new file of the log: {problem}"
        ));
    }

    /// Makes sure that nobody took what was stored for something unfinished that is not needed.
    async fn all_there(&self, parts: &[Part]) -> Result<(), BackupError> {
        let folder = layout::parts(&self.name);
        let listed = self.archive.objects.list(&folder).await?;
        let there: BTreeSet<&str> = listed
            .iter()
            .filter_map(|object| object.key.strip_prefix(&folder))
            .collect();
        match parts.iter().find(|part| !there.contains(&part.name[..])) {
            None => Ok(()),
            Some(lost) => {
                let problem = format!("its part {} was deleted meanwhile", lost.name);
                Err(self.error("end the backup", &problem))
            }
        }
    }

    /// Makes it a backup.
    async fn seal(&self, sentinel: Sentinel) -> Result<BackupInfo, BackupError> {
        let objects = &self.archive.objects;
        let key = layout::sentinel(&self.name);
        let bytes = Bytes::from(sentinel.to_bytes());
        if let Err(error) = objects.put(&key, Body::whole(bytes.clone())).await {
            // The answer may have been lost, and the request not.
            let there = match objects.get(&key).await {
                Ok(body) => body.all(DOCUMENT).await.ok(),
                Err(_) => None,
            };
            if there != Some(bytes) {
                return Err(error);
            }
        }
        // What was deleted in this moment is not there, whatever the sentinel says.
        let parts = sentinel.own.as_ref().map(|own| own.parts.as_slice());
        if let Err(error) = self.all_there(parts.unwrap_or_default()).await {
            objects.delete(&key).await?;
            return Err(error);
        }
        Ok(sentinel.info)
    }

    async fn push_parts(
        &self,
        data_dir: &Path,
        plan: Plan,
        meter: Arc<Meter>,
    ) -> Result<Vec<Part>, BackupError> {
        let options = &self.archive.options;
        let waiting = plan.into_parts(options.part_bytes);
        let mut waiting = waiting.into_iter().enumerate();
        let mut running = JoinSet::new();
        let mut done: Vec<(usize, Part)> = Vec::new();
        loop {
            while running.len() < options.parallel.max(1)
                && let Some((number, entries)) = waiting.next()
            {
                let (archive, name) = (self.archive.clone(), self.name.clone());
                let (root, meter) = (data_dir.to_owned(), Arc::clone(&meter));
                running.spawn(async move {
                    let add = move |tar: &mut Builder<_>| {
                        for entry in &entries {
                            add_entry(tar, &root, entry)?;
                            meter.add(entry.bytes);
                        }
                        Ok(())
                    };
                    let part = archive.push_part(&name, number, add).await?;
                    Ok((number, part))
                });
            }
            match running.join_next().await {
                Some(Ok(Ok(part))) => done.push(part),
                Some(Ok(Err(error))) => return Err(error),
                Some(Err(error)) => {
                    let problem = error.to_string();
                    return Err(self.error("store a part of the backup", &problem));
                }
                None => break,
            }
        }
        done.sort_by_key(|(number, _)| *number);
        Ok(done.into_iter().map(|(_, part)| part).collect())
    }

    /// Waits until all log from the beginning of the backup to its end is in the archive.
    async fn await_log(&self, stop: WalPosition, progress: &Progress) -> Result<(), BackupError> {
        let limit = self.archive.options.archive_wait;
        let begun = Instant::now();
        let mut told = None;
        let mut pause = Duration::from_millis(20);
        loop {
            let size = self.facts.segment_size;
            let (missing, problem) = match self.archive.missing(self.start, stop, size).await {
                Ok(missing) => {
                    let Some(first) = missing.first() else {
                        return self.same_log(stop).await;
                    };
                    let problem = format!(
                        "{first} is not in the archive ({} files are missing); see to the server's \
                         archive_command, and on a standby to archive_mode=always and to \
                         pg_switch_wal() on its primary",
                        missing.len()
                    );
                    (missing.len(), problem)
                }
                // What took hours is not given up for one answer.
                Err(error) if error.kind() == BackupErrorKind::Unavailable => {
                    (usize::MAX, error.to_string())
                }
                Err(error) => return Err(error),
            };
            if begun.elapsed() >= limit {
                let problem = format!("after {limit:?}, {problem}");
                return Err(self.error("end the backup", &problem));
            }
            if told.replace(missing) != Some(missing) {
                progress.say(&format!("waiting for the archive: {problem}"));
            }
            // Most often the server archives the last file in this moment.
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    /// Makes sure that the log in the archive is that of this cluster, at both ends.
    async fn same_log(&self, stop: WalPosition) -> Result<(), BackupError> {
        let needed = segments(self.start, stop, self.facts.segment_size);
        for names in [needed.first(), needed.last()].into_iter().flatten() {
            for name in names {
                let file = ArchiveFile::Segment(*name);
                for (key, codec) in self.archive.stored(&file).await? {
                    let place = self.archive.objects.place(&key);
                    let system = self.archive.writer_of(&key, codec, *name).await?;
                    self.archive
                        .same_system(Some(system), self.facts.system, &place)?;
                }
            }
        }
        Ok(())
    }

    fn error(&self, action: &str, problem: &str) -> BackupError {
        self.archive
            .error(BackupErrorKind::Unavailable, action, problem)
    }
}

impl Archive {
    /// Returns which files of the log between two positions are not in the archive.
    async fn missing(
        &self,
        start: WalPosition,
        stop: WalPosition,
        size: SegmentSize,
    ) -> Result<Vec<SegmentName>, BackupError> {
        let needed = segments(start, stop, size);
        let ends = needed.first().zip(needed.last());
        let names = ends.map(|(first, last)| (first[0].to_string(), last[0].to_string()));
        let common = names.map(|(first, last)| {
            let same = first.bytes().zip(last.bytes()).take_while(|(a, b)| a == b);
            first[..same.count()].to_owned()
        });
        let one_timeline = start.timeline == stop.timeline;
        let common = common.filter(|_| one_timeline).unwrap_or_default();
        let listed = self.objects.list(&format!("{WAL}{common}")).await?;
        self.not_sealed(&listed)?;
        let there: BTreeSet<String> = listed
            .iter()
            .filter_map(|object| match layout::read_wal(&object.key)?.0 {
                ArchiveFile::Segment(name) => Some(name.to_string()),
                _ => None,
            })
            .collect();
        let is_there = |names: &Vec<SegmentName>| {
            let mut names = names.iter();
            names.any(|name| there.contains(&name.to_string()))
        };
        let missing = needed.into_iter().filter(|names| !is_there(names));
        Ok(missing.map(|names| names[0]).collect())
    }
}

/// Returns the files of the log between two positions. Where they are on different timelines, each
/// may be of any in between.
fn segments(start: WalPosition, stop: WalPosition, size: SegmentSize) -> Vec<Vec<SegmentName>> {
    let timelines = start.timeline.0..=stop.timeline.0;
    let mut lsn = Lsn(start.lsn.0 / size.bytes() * size.bytes());
    let mut found = Vec::new();
    while lsn < stop.lsn {
        let named = |timeline| size.segment_at(Timeline(timeline), lsn);
        found.push(timelines.clone().map(named).collect());
        match lsn.0.checked_add(size.bytes()) {
            Some(next) => lsn = Lsn(next),
            None => break,
        }
    }
    found
}

pub(crate) fn seconds_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_of_a_backup_is_every_file_that_it_touches() {
        let at = |timeline, lsn| WalPosition {
            timeline: Timeline(timeline),
            lsn: Lsn(lsn),
        };
        let names = |start, stop| {
            let found = segments(start, stop, SegmentSize::DEFAULT);
            let named = |names: &Vec<SegmentName>| {
                let names: Vec<String> = names.iter().map(ToString::to_string).collect();
                names.join(" ")
            };
            found.iter().map(named).collect::<Vec<String>>()
        };
        let one = ["000000010000000000000003"];
        assert_eq!(names(at(1, 0x300_0028), at(1, 0x300_0100)), one);
        assert_eq!(names(at(1, 0x300_0028), at(1, 0x400_0000)), one);
        let two = ["000000010000000000000003", "000000010000000000000004"];
        assert_eq!(names(at(1, 0x300_0028), at(1, 0x400_0001)), two);
        let crossed = ["000000010000000000000003 000000020000000000000003"];
        assert_eq!(names(at(1, 0x300_0028), at(2, 0x300_0100)), crossed);
    }
}
