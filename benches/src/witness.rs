//! The servers' own testimony: the commits in their write-ahead logs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use tokio::process::Command;

use crate::exec;

mod cluster_log;

pub use cluster_log::ClusterLog;

/// A commit as a server wrote it down, before it told anybody.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Commit {
    /// The timeline it was written on.
    pub timeline: u32,
    /// Where.
    pub lsn: u64,
    /// When, in microseconds of the wall clock since 1970.
    pub at_us: u64,
}

/// Copies of WAL, taken while it is still there: a rewind throws it away.
#[derive(Debug)]
pub struct WalSaver {
    into: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Kept>>,
}

/// Segments that were seen, by name.
#[derive(Debug, Default)]
struct Kept {
    /// As they were when they were seen last.
    last: BTreeMap<String, Vec<u8>>,
    /// As they were before something else took the place of what had been written.
    replaced: Vec<(String, Vec<u8>)>,
}

impl WalSaver {
    /// Starts copying what changes in a data directory's WAL, four times a second, until this is
    /// dropped or finished.
    pub fn start(data_dir: &Path, into: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (source, stopped) = (data_dir.join("pg_wal"), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut kept = Kept::default();
            let mut since = SystemTime::now();
            loop {
                let before = SystemTime::now();
                // Reading races with the server and with a rewind by design; what is torn is not
                // decoded.
                for (name, path) in recent(&source, since - PASS * 2).unwrap_or_default() {
                    if let Ok(bytes) = std::fs::read(path) {
                        kept.take(name, bytes);
                    }
                }
                since = before;
                if stopped.load(Ordering::Relaxed) {
                    return kept;
                }
                std::thread::sleep(PASS);
            }
        });
        Self {
            into,
            stop,
            thread: Some(thread),
        }
    }

    /// Looks a last time, stops, and returns the directories with the copies.
    ///
    /// # Errors
    ///
    /// Fails where they cannot be written, or were not taken.
    pub fn finish(mut self) -> Result<Vec<PathBuf>> {
        let kept = self.end().context("the thread that reads the log died")?;
        let mut directories = vec![self.into.join("last")];
        std::fs::create_dir_all(&directories[0])?;
        for (name, bytes) in &kept.last {
            std::fs::write(directories[0].join(name), bytes)?;
        }
        for (n, (name, bytes)) in kept.replaced.iter().enumerate() {
            let directory = self.into.join(format!("replaced{n}"));
            std::fs::create_dir_all(&directory)?;
            std::fs::write(directory.join(name), bytes)?;
            directories.push(directory);
        }
        Ok(directories)
    }

    fn end(&mut self) -> Option<Kept> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take()?.join().ok()
    }
}

impl Drop for WalSaver {
    fn drop(&mut self) {
        self.end();
    }
}

impl Kept {
    /// Takes a file as it is now. One that a server went on writing takes the place of what it was;
    /// of any other both are kept.
    fn take(&mut self, name: String, bytes: Vec<u8>) {
        let Some(before) = self.last.insert(name.clone(), bytes) else {
            return;
        };
        let now = &self.last[&name];
        let written = written(&name, &before);
        if now.get(..written) != Some(&before[..written]) {
            self.replaced.push((name, before));
        }
    }
}

/// Returns how much of a segment has been written, the zeros at its end left out; a history file
/// all of it.
///
/// A segment is a file that was used before, so that behind its last page there may be old ones.
/// Where a page is tells its header.
fn written(name: &str, segment: &[u8]) -> usize {
    let number = |digits| u64::from_str_radix(name.get(digits)?, 16).ok();
    let (Some(log), Some(within)) = (number(8..16), number(16..24)) else {
        return segment.len();
    };
    let begin = (log << 32) + within * segment.len() as u64;
    let mut end = 0;
    for (page, at) in segment.chunks(PAGE).zip((0..segment.len()).step_by(PAGE)) {
        let position = page.get(8..16).and_then(|bytes| bytes.try_into().ok());
        if position.map(u64::from_le_bytes) != Some(begin + at as u64) {
            break;
        }
        let zeros = page.iter().rev().take_while(|byte| **byte == 0).count();
        end = at + page.len() - zeros;
    }
    end
}

/// Copies the segments written since a moment, and every history file, from `pg_wal` into a new
/// directory.
///
/// # Errors
///
/// Fails where the target cannot be made or `pg_wal` cannot be listed; a file that vanishes
/// meanwhile is left out.
pub fn save_wal(pg_wal: &Path, into: &Path, since: SystemTime) -> Result<()> {
    std::fs::create_dir_all(into)?;
    for (name, path) in recent(pg_wal, since)? {
        std::fs::copy(path, into.join(name)).ok();
    }
    Ok(())
}

/// Returns the segments written since a moment, and every history file.
fn recent(pg_wal: &Path, since: SystemTime) -> Result<Vec<(String, PathBuf)>> {
    let entries = std::fs::read_dir(pg_wal)
        .with_context(|| format!("cannot list {}", pg_wal.display()))?
        .flatten();
    let wanted = |entry: std::fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let recent = entry
            .metadata()
            .and_then(|data| data.modified())
            .is_ok_and(|modified| modified >= since);
        let wanted = name.ends_with(".history") || (is_segment(&name) && recent);
        wanted.then(|| (name, entry.path()))
    };
    Ok(entries.filter_map(wanted).collect())
}

/// Reads the commits out of directories of WAL, each once, in the order of timeline and position.
///
/// # Errors
///
/// Fails where `pg_waldump` cannot be run. It ends at the first record that is not whole, which is
/// how a log ends.
pub async fn commits(pg_bin: &Path, directories: &[PathBuf]) -> Result<Vec<Commit>> {
    let mut starts = BTreeMap::new();
    for directory in directories {
        read_histories(directory, &mut starts);
    }
    let mut commits = Vec::new();
    for directory in directories {
        for (timeline, first, last) in ranges(directory) {
            let mut command = Command::new(pg_bin.join("pg_waldump"));
            command.env("TZ", "UTC").arg("-p").arg(directory).args([
                "--rmgr=Transaction",
                &first,
                &last,
            ]);
            let output = exec::output(&mut command, Duration::from_secs(120)).await?;
            let start = starts.get(&timeline).copied().unwrap_or(0);
            let text = String::from_utf8_lossy(&output.stdout);
            let found = text.lines().filter_map(|line| commit(timeline, line));
            // A timeline's first segment begins with a copy of its parent's part.
            commits.extend(found.filter(|commit| commit.lsn >= start));
        }
    }
    commits.sort_unstable();
    commits.dedup();
    Ok(commits)
}

/// Sorts copies of WAL by the system identifier that each segment names, into directories of their
/// own: what was thrown away and made anew has the same timeline and the same names.
///
/// # Errors
///
/// Fails where the copies cannot be copied.
pub(crate) fn by_system(
    directories: &[PathBuf],
    into: &Path,
) -> Result<BTreeMap<u64, Vec<PathBuf>>> {
    let mut sorted: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
    for (number, directory) in directories.iter().enumerate() {
        let (mut histories, mut systems) = (Vec::new(), BTreeMap::new());
        for entry in std::fs::read_dir(directory)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !is_segment(&name) {
                histories.push(name);
                continue;
            }
            // One that was only just begun has no header yet, and no commit.
            let Some(system) = system(&std::fs::read(entry.path())?) else {
                continue;
            };
            let place = into.join(system.to_string()).join(number.to_string());
            std::fs::create_dir_all(&place)?;
            std::fs::copy(entry.path(), place.join(name))?;
            systems.insert(system, place);
        }
        for (system, place) in systems {
            for name in &histories {
                std::fs::copy(directory.join(name), place.join(name))?;
            }
            sorted.entry(system).or_default().push(place);
        }
    }
    Ok(sorted)
}

/// Returns the system identifier in the long header of a segment's first page.
fn system(segment: &[u8]) -> Option<u64> {
    let identifier = segment.get(24..32)?.try_into().ok()?;
    Some(u64::from_le_bytes(identifier)).filter(|identifier| *identifier != 0)
}

/// The commits of one timeline: how many, and the moments of the first and the last.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Reign {
    /// The timeline.
    pub timeline: u32,
    /// How many commits.
    pub commits: usize,
    /// The first, in microseconds of the wall clock.
    pub first_us: u64,
    /// The last, in microseconds of the wall clock.
    pub last_us: u64,
}

/// Returns what is wrong with the order of reigns: a timeline's commit at or after the first one of
/// the next, or two different commits at one place, which only two servers on one timeline can
/// write.
pub fn two_writers(commits: &[Commit]) -> Vec<String> {
    let mut wrong = Vec::new();
    for pair in reigns(commits).windows(2) {
        if pair[0].last_us >= pair[1].first_us {
            let late = commits
                .iter()
                .filter(|c| c.timeline == pair[0].timeline && c.at_us >= pair[1].first_us)
                .count();
            wrong.push(format!(
                "{late} commits on timeline {} at or after the first on timeline {}, \
                 the last {} ms later",
                pair[0].timeline,
                pair[1].timeline,
                (pair[0].last_us - pair[1].first_us) / 1000
            ));
        }
    }
    for pair in commits.windows(2) {
        if (pair[0].timeline, pair[0].lsn) == (pair[1].timeline, pair[1].lsn) {
            wrong.push(format!(
                "two commits at {:X} of timeline {}",
                pair[0].lsn, pair[0].timeline
            ));
        }
    }
    wrong
}

/// Returns the reigns in commits that are in order.
pub fn reigns(commits: &[Commit]) -> Vec<Reign> {
    let mut reigns: Vec<Reign> = Vec::new();
    for commit in commits {
        match reigns
            .last_mut()
            .filter(|reign| reign.timeline == commit.timeline)
        {
            None => reigns.push(Reign {
                timeline: commit.timeline,
                commits: 1,
                first_us: commit.at_us,
                last_us: commit.at_us,
            }),
            Some(reign) => {
                reign.commits += 1;
                reign.first_us = reign.first_us.min(commit.at_us);
                reign.last_us = reign.last_us.max(commit.at_us);
            }
        }
    }
    reigns
}

/// Returns the first and last segment of each timeline in a directory.
fn ranges(directory: &Path) -> Vec<(u32, String, String)> {
    let mut by_timeline: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_segment(&name)
            && let Ok(timeline) = u32::from_str_radix(&name[..8], 16)
        {
            by_timeline.entry(timeline).or_default().push(name);
        }
    }
    let range = |(timeline, mut names): (u32, Vec<String>)| {
        names.sort_unstable();
        Some((timeline, names.first()?.clone(), names.last()?.clone()))
    };
    by_timeline.into_iter().filter_map(range).collect()
}

fn is_segment(name: &str) -> bool {
    name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Collects where each timeline branched off, from history files.
fn read_histories(directory: &Path, starts: &mut BTreeMap<u32, u64>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(timeline) = name.strip_suffix(".history") else {
            continue;
        };
        let Ok(timeline) = u32::from_str_radix(timeline, 16) else {
            continue;
        };
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let branch = text
            .lines()
            .rev()
            .find_map(|line| lsn(line.split_whitespace().nth(1)?));
        starts.extend(branch.map(|branch| (timeline, branch)));
    }
}

/// Reads a line of `pg_waldump`, if it tells of a commit.
fn commit(timeline: u32, line: &str) -> Option<Commit> {
    let (record, description) = line.split_once("desc: COMMIT")?;
    let (_, place) = record.split_once("lsn: ")?;
    let place = lsn(place.split(',').next()?)?;
    // `COMMIT 2026-01-02 03:04:05.678901 UTC; inval msgs: …`, or `COMMIT_PREPARED …` with more
    // words before the date.
    let words: Vec<&str> = description.split_whitespace().collect();
    let at_us = words.windows(2).find_map(|pair| moment(pair[0], pair[1]))?;
    Some(Commit {
        timeline,
        lsn: place,
        at_us,
    })
}

fn lsn(text: &str) -> Option<u64> {
    let (high, low) = text.trim().split_once('/')?;
    Some((u64::from_str_radix(high, 16).ok()? << 32) | u64::from_str_radix(low, 16).ok()?)
}

/// Returns a UTC date and time of day as microseconds since 1970.
fn moment(date: &str, time: &str) -> Option<u64> {
    let [year, month, day] = numbers(date, '-')?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let [hour, minute, second] = numbers(time, ':')?;
    // Days since 1970 by counting years from March, so that the leap day comes last.
    let (year, month) = if month <= 2 {
        (year.checked_sub(1)?, month + 9)
    } else {
        (year, month - 3)
    };
    let days = (365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day)
        .checked_sub(719_469)?;
    let micros: u64 = format!("{fraction:0<6}").get(..6)?.parse().ok()?;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000 + micros)
}

fn numbers(text: &str, separator: char) -> Option<[u64; 3]> {
    let parts: Vec<u64> = text
        .split(separator)
        .map(|part| part.parse().ok())
        .collect::<Option<_>>()?;
    parts.try_into().ok()
}

/// Between two copies of a living server's WAL.
const PASS: Duration = Duration::from_millis(250);
/// PostgreSQL's unless it was built otherwise.
const PAGE: usize = 8192;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(timeline: u32, lsn: u64, at_us: u64) -> Commit {
        Commit {
            timeline,
            lsn,
            at_us,
        }
    }

    /// A segment of two pages that was used before, with `bytes` of the present content.
    fn segment(bytes: usize, content: u8) -> Vec<u8> {
        let mut segment = vec![7; 2 * PAGE];
        let begin: u64 = (1 << 32) + 3 * segment.len() as u64;
        for at in (0..bytes).step_by(PAGE) {
            let page = &mut segment[at..at + PAGE];
            page.fill(0);
            page[8..16].copy_from_slice(&(begin + at as u64).to_le_bytes());
            page[24..(bytes - at).min(PAGE)].fill(content);
        }
        segment
    }

    #[test]
    fn what_is_written_on_is_kept_once_and_what_is_replaced_is_kept_too() {
        let name = "000000020000000100000003";
        for bytes in [100, PAGE - 8, PAGE + 100] {
            assert_eq!(written(name, &segment(bytes, 1)), bytes);
        }
        assert_eq!(written(name, &segment(0, 1)), 0);
        assert_eq!(written("00000002.history", b"1\t0/3000000"), 11);
        let mut kept = Kept::default();
        for bytes in [0, 100, 200, PAGE + 100] {
            kept.take(name.to_owned(), segment(bytes, 1));
        }
        assert_eq!((kept.last.len(), kept.replaced.len()), (1, 0));
        // Another server's, of which one page is the same.
        let mut other = segment(PAGE + 200, 1);
        other[PAGE + 50] = 2;
        kept.take(name.to_owned(), other.clone());
        assert_eq!(kept.last[name], other);
        assert_eq!(kept.replaced, [(name.to_owned(), segment(PAGE + 100, 1))]);
        // One that a rewind has cut off to write it anew.
        kept.take(name.to_owned(), Vec::new());
        assert_eq!(kept.replaced[1].1, other);
    }

    #[test]
    fn a_commit_is_read_with_its_place_and_its_moment() {
        let line = "rmgr: Transaction len (rec/tot):     34/    34, tx:        735, \
                    lsn: 1/0152F3A8, prev 1/0152F370, \
                    desc: COMMIT 2000-03-01 00:00:01.500000 UTC; inval msgs: catcache 1";
        assert_eq!(
            commit(3, line),
            Some(at(3, 0x1_0152_F3A8, 951_868_801_500_000))
        );
        assert_eq!(commit(3, &line.replace("COMMIT", "ABORT")), None);
    }

    #[test]
    fn the_epoch_is_the_epoch() {
        assert_eq!(moment("1970-01-01", "00:00:00.000000"), Some(0));
        assert_eq!(
            moment("2024-02-29", "12:00:00"),
            Some(1_709_208_000_000_000)
        );
    }

    #[test]
    fn segments_are_sorted_by_the_cluster_that_they_are_of() {
        let scratch = tempfile::tempdir().unwrap();
        let of_system = |system: u64| {
            let mut page = vec![0; PAGE];
            page[24..32].copy_from_slice(&system.to_le_bytes());
            page
        };
        let (first, second) = ("000000010000000000000001", "000000010000000000000002");
        let copies = scratch.path().join("copies");
        std::fs::create_dir(&copies).unwrap();
        std::fs::write(copies.join(first), of_system(5)).unwrap();
        std::fs::write(copies.join(second), of_system(7)).unwrap();
        std::fs::write(copies.join("000000010000000000000003"), of_system(0)).unwrap();
        std::fs::write(copies.join("00000002.history"), "1\t0/3000000").unwrap();
        let sorted = by_system(&[copies], &scratch.path().join("sorted")).unwrap();
        let places: Vec<u64> = sorted.keys().copied().collect();
        assert_eq!(places, [5, 7]);
        for (system, segment) in [(5, first), (7, second)] {
            let place = &sorted[&system][0];
            assert!(place.join("00000002.history").exists());
            assert_eq!(
                std::fs::read(place.join(segment)).unwrap(),
                of_system(system)
            );
        }
    }

    #[test]
    fn reigns_that_overlap_are_two_writers() {
        let apart = [at(1, 1, 10), at(1, 2, 20), at(2, 2, 30), at(2, 3, 40)];
        assert_eq!(two_writers(&apart), Vec::<String>::new());
        let over = [at(1, 1, 10), at(1, 2, 30), at(2, 2, 30), at(2, 3, 40)];
        assert_eq!(two_writers(&over).len(), 1);
        let same_timeline = [at(2, 2, 30), at(2, 2, 31)];
        assert_eq!(two_writers(&same_timeline).len(), 1);
    }
}
