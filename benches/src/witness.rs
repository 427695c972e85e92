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
    thread: Option<JoinHandle<()>>,
}

impl WalSaver {
    /// Starts copying what changes in a data directory's WAL, four times a second, until this is
    /// dropped or finished.
    pub fn start(data_dir: &Path, into: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (source, target, stopped) = (data_dir.join("pg_wal"), into.clone(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut since = SystemTime::now();
            for pass in 0_u32.. {
                let before = SystemTime::now();
                // Copying races with the server and with a rewind by design; what is torn is not
                // read.
                save_wal(
                    &source,
                    &target.join(format!("pass{pass}")),
                    since - PASS * 2,
                )
                .ok();
                since = before;
                if stopped.load(Ordering::Relaxed) {
                    break;
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

    /// Takes a last copy, stops, and returns the directories with the copies.
    pub fn finish(mut self) -> Vec<PathBuf> {
        self.end();
        let entries = std::fs::read_dir(&self.into)
            .into_iter()
            .flatten()
            .flatten();
        entries.map(|entry| entry.path()).collect()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl Drop for WalSaver {
    fn drop(&mut self) {
        self.end();
    }
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
    for entry in std::fs::read_dir(pg_wal)
        .with_context(|| format!("cannot list {}", pg_wal.display()))?
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let recent = entry
            .metadata()
            .and_then(|data| data.modified())
            .is_ok_and(|modified| modified >= since);
        let wanted = name.ends_with(".history") || (is_segment(&name) && recent);
        if wanted {
            std::fs::copy(entry.path(), into.join(name)).ok();
        }
    }
    Ok(())
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
    let place = lsn(line.split("lsn: ").nth(1)?.split(',').next()?)?;
    let (_, description) = line.split_once("desc: COMMIT")?;
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
    fn reigns_that_overlap_are_two_writers() {
        let apart = [at(1, 1, 10), at(1, 2, 20), at(2, 2, 30), at(2, 3, 40)];
        assert_eq!(two_writers(&apart), Vec::<String>::new());
        let over = [at(1, 1, 10), at(1, 2, 30), at(2, 2, 30), at(2, 3, 40)];
        assert_eq!(two_writers(&over).len(), 1);
        let same_timeline = [at(2, 2, 30), at(2, 2, 31)];
        assert_eq!(two_writers(&same_timeline).len(), 1);
    }
}
