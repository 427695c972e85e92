//! Whether the archived log has holes.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use spilo_core::backup::{BackupError, BackupErrorKind, BackupName};
use spilo_core::history::History;
use spilo_core::segment::{ArchiveFile, SegmentName, SegmentSize};
use spilo_core::wal::{Lsn, Timeline};

use crate::archive::Archive;
use crate::codec::Codec;
use crate::digest::Digest;
use crate::layout::{self, BACKUPS, WAL};
use crate::sentinel::Sentinel;

/// What an archive has of the log, and what it lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// What there is, a timeline each.
    pub branches: Vec<Branch>,
    /// Files that lie between others, or between a timeline and the one that it left, and are not
    /// there.
    pub holes: Vec<Hole>,
    /// Timelines of which nothing says where they began.
    pub without_history: Vec<Timeline>,
    /// Files that are there more than once, compressed in different ways, and do not hold the same.
    pub collisions: Vec<String>,
    /// Backups that cannot be restored to a consistent state, and the first file that they lack.
    pub unusable: Vec<(BackupName, String)>,
    /// Names of objects among the log that say nothing.
    pub unknown: Vec<String>,
}

/// What there is of one timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Branch {
    /// The timeline.
    pub timeline: Timeline,
    /// The timeline that it left, and where, if its history is there.
    pub parent: Option<(Timeline, Lsn)>,
    /// The first file.
    pub first: String,
    /// The last file.
    pub last: String,
    /// How many files there are.
    pub files: u64,
}

/// Files in a row that are not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hole {
    /// The first of them.
    pub first: String,
    /// The last of them.
    pub last: String,
    /// How many they are.
    pub files: u64,
}

impl Report {
    /// Returns whether nothing is lacking and nothing is there twice with different contents.
    pub fn is_whole(&self) -> bool {
        self.holes.is_empty()
            && self.without_history.is_empty()
            && self.collisions.is_empty()
            && self.unusable.is_empty()
    }
}

impl Archive {
    /// Looks through the names of all archived files of the log, and reads the histories of
    /// timelines.
    ///
    /// `size` is how large the log's files are; without it, the backups say, and where there are
    /// none it is 16 MiB.
    ///
    /// # Errors
    /// The store did not answer.
    ///
    /// # Cancellation
    /// Safe.
    pub async fn verify_wal(&self, size: Option<SegmentSize>) -> Result<Report, BackupError> {
        let listed = self.objects.list(BACKUPS).await?;
        let sentinels = self.sentinels(&listed).await?;
        let said = sentinels.last().map(|found| found.info.segment_size);
        let size = size.or(said).unwrap_or_default();
        let mut files: BTreeMap<String, Vec<(String, Codec)>> = BTreeMap::new();
        let mut archived = Archived::default();
        let mut report = Report::default();
        let listed = self.objects.list(WAL).await?;
        self.not_sealed(&listed)?;
        for object in listed {
            let Some((file, codec)) = layout::read_wal(&object.key) else {
                report.unknown.push(object.key);
                continue;
            };
            match file {
                ArchiveFile::Segment(name) => archived.add(name, size),
                ArchiveFile::History(timeline) => {
                    let history = self.history(timeline, &object.key, codec).await?;
                    archived
                        .histories
                        .extend(history.map(|it| (timeline.0, it)));
                }
                ArchiveFile::Partial(_) | ArchiveFile::Label(..) => {}
            }
            let same = files.entry(file.to_string()).or_default();
            same.push((object.key, codec));
        }
        for (name, objects) in files.into_iter().filter(|(_, objects)| objects.len() > 1) {
            if !self.hold_the_same(&objects).await? {
                report.collisions.push(name);
            }
        }
        archived.report(size, &sentinels, &mut report);
        Ok(report)
    }

    /// Returns the history of a timeline. One that cannot be read is as good as none.
    async fn history(
        &self,
        timeline: Timeline,
        key: &str,
        codec: Codec,
    ) -> Result<Option<History>, BackupError> {
        match self.read_history(timeline, key, codec).await {
            Ok(history) => Ok(Some(history)),
            Err(error) if is_of_the_object(&error) => {
                tracing::warn!("{error}");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn hold_the_same(&self, objects: &[(String, Codec)]) -> Result<bool, BackupError> {
        let mut digests = BTreeSet::new();
        for (key, codec) in objects {
            match self.digest(key, *codec).await {
                Ok(digest) => digests.insert(Some(digest)),
                Err(error) if is_of_the_object(&error) => digests.insert(None),
                Err(error) => return Err(error),
            };
        }
        Ok(digests.len() == 1 && !digests.contains(&None))
    }

    /// Returns how many bytes an object holds, and their CRC-32.
    pub(crate) async fn digest(&self, key: &str, codec: Codec) -> Result<(u64, u32), BackupError> {
        self.unpack(key, codec, |mut unpacked| {
            let mut digest = Digest::default();
            unpacked.write_to(&mut digest, "memory".as_ref())?;
            Ok(digest.finish())
        })
        .await
    }
}

fn is_of_the_object(error: &BackupError) -> bool {
    matches!(
        error.kind(),
        BackupErrorKind::Damaged | BackupErrorKind::NotFound
    )
}

/// The names of what there is.
#[derive(Default)]
struct Archived {
    /// Of each timeline, which files: the how manieth of all log each is.
    files: BTreeMap<u32, BTreeSet<u64>>,
    histories: BTreeMap<u32, History>,
}

impl Archived {
    fn add(&mut self, name: SegmentName, size: SegmentSize) {
        if let Some(begin) = name.begin(size) {
            let files = self.files.entry(name.timeline().0).or_default();
            files.insert(begin.0 / size.bytes());
        }
    }

    /// Whether there is log of an earlier timeline that this one may have left.
    fn has_earlier(&self, timeline: Timeline, floor: u64) -> bool {
        let mut earlier = self.files.range(..timeline.0);
        earlier.any(|(_, files)| files.range(floor..).next().is_some())
    }

    fn report(&self, size: SegmentSize, sentinels: &[Sentinel], report: &mut Report) {
        let hole = |timeline, first: u64, last: u64| Hole {
            first: name(timeline, first, size),
            last: name(timeline, last, size),
            files: last - first + 1,
        };
        // What came before the oldest backup, nobody needs; it may have been deleted.
        let begins = sentinels.iter().map(|found| found.info.start.lsn.0);
        let floor = begins.min().unwrap_or(0) / size.bytes();
        for (&timeline, all) in &self.files {
            let files: BTreeSet<u64> = all.range(floor..).copied().collect();
            let (Some(&first), Some(&last)) = (files.first(), files.last()) else {
                continue;
            };
            let history = self.histories.get(&timeline);
            let timeline = Timeline(timeline);
            let parent = history.and_then(|history| history.ancestors().last());
            report.branches.push(Branch {
                timeline,
                parent: parent.map(|parent| (parent.timeline, parent.end)),
                first: name(timeline, first, size),
                last: name(timeline, last, size),
                files: files.len() as u64,
            });
            if let Some(parent) = parent.filter(|parent| parent.end.0 / size.bytes() >= floor) {
                // The file in which it left begins its own log, as a copy.
                let fork = parent.end.0 / size.bytes();
                if first > fork {
                    report.holes.push(hole(timeline, fork, first - 1));
                }
                let left = self.files.get(&parent.timeline.0);
                let before = left.and_then(|files| files.range(floor..fork).next_back());
                if let Some(&before) = before.filter(|before| **before + 1 < fork) {
                    report
                        .holes
                        .push(hole(parent.timeline, before + 1, fork - 1));
                }
            } else if parent.is_none() && self.has_earlier(timeline, floor) {
                report.without_history.push(timeline);
            }
            for (before, after) in files.iter().zip(files.iter().skip(1)) {
                if before + 1 < *after {
                    report.holes.push(hole(timeline, before + 1, after - 1));
                }
            }
        }
        // One that lies inside a timeline and before the next one's beginning is found twice.
        report.holes.sort_by(|a, b| a.first.cmp(&b.first));
        report.holes.dedup();
        for sentinel in sentinels {
            let info = &sentinel.info;
            let timelines = info.start.timeline.0..=info.stop.timeline.0;
            let begin = info.start.lsn.0 / size.bytes();
            let end = info.stop.lsn.0.saturating_sub(1) / size.bytes();
            let is_there = |number: &u64| {
                let mut timelines = timelines.clone();
                timelines.any(|timeline| {
                    let files = self.files.get(&timeline);
                    files.is_some_and(|files| files.contains(number))
                })
            };
            if let Some(lost) = (begin..=end).find(|number| !is_there(number)) {
                let lost = name(info.start.timeline, lost, size);
                report.unusable.push((info.name.clone(), lost));
            }
        }
    }
}

fn name(timeline: Timeline, number: u64, size: SegmentSize) -> String {
    let begin = Lsn(number.saturating_mul(size.bytes()));
    size.segment_at(timeline, begin).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archived(files: &[(u32, std::ops::RangeInclusive<u64>)]) -> Archived {
        let mut archived = Archived::default();
        for (timeline, numbers) in files {
            let files = archived.files.entry(*timeline).or_default();
            files.extend(numbers.clone());
        }
        archived
    }

    /// Ten failovers, each in the middle of the fourth file.
    fn ten_failovers() -> Archived {
        let size = SegmentSize::DEFAULT.bytes();
        let mut archived = archived(&[(1, 1..=3)]);
        let mut history = History::root(Timeline(1));
        for timeline in 2..=11 {
            let fork = u64::from(timeline - 1) * 4;
            history = history.promoted(Timeline(timeline), Lsn(fork * size + 4711));
            archived.histories.insert(timeline, history.clone());
            let files = archived.files.entry(timeline).or_default();
            files.extend(fork..fork + 4);
        }
        archived
    }

    fn report(archived: &Archived) -> Report {
        let mut report = Report::default();
        archived.report(SegmentSize::DEFAULT, &[], &mut report);
        report
    }

    fn hole(first: &str, last: &str, files: u64) -> Hole {
        let (first, last) = (first.to_owned(), last.to_owned());
        Hole { first, last, files }
    }

    #[test]
    fn an_archive_with_ten_failovers_is_whole() {
        let report = report(&ten_failovers());
        assert!(report.is_whole(), "{report:?}");
        assert_eq!(report.branches.len(), 11);
        let last = &report.branches[10];
        assert_eq!(
            last.parent.map(|(timeline, _)| timeline),
            Some(Timeline(10))
        );
        assert_eq!(last.last, "0000000B000000000000002B");
    }

    /// Whichever file is taken out: it is missed, except for the first and the last of all.
    #[test]
    fn every_file_that_is_lost_is_missed() {
        let whole = ten_failovers();
        for (timeline, files) in &whole.files {
            for number in files {
                let mut archived = ten_failovers();
                let files = archived.files.get_mut(timeline).unwrap();
                files.remove(number);
                let found = report(&archived).holes;
                let is_end = [1, 43].contains(number);
                let lost = name(Timeline(*timeline), *number, SegmentSize::DEFAULT);
                let expected = if is_end {
                    vec![]
                } else {
                    vec![hole(&lost, &lost, 1)]
                };
                assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn a_history_that_is_lost_is_missed() {
        let mut archived = ten_failovers();
        archived.histories.remove(&5);
        assert_eq!(report(&archived).without_history, [Timeline(5)]);
    }

    #[test]
    fn holes_are_told_as_a_whole() {
        let lost = report(&archived(&[(1, 3..=5), (1, 9..=300)]));
        let expected = hole("000000010000000000000006", "000000010000000000000008", 3);
        assert_eq!(lost.holes, [expected]);
    }
}
