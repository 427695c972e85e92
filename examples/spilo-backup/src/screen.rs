//! What people and programs read.

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::Result;
use serde::Serialize;
use spilo_backup::{Expired, Report};
use spilo_core::backup::BackupInfo;
use spilo_core::pg::Progress;

/// Prints a line for whoever runs it.
pub(crate) fn tell(text: &str) {
    // Where nobody reads any more there is nobody to tell.
    writeln!(io::stderr(), "{text}").ok();
}

/// Prints a line of the result.
pub(crate) fn line(text: &str) {
    writeln!(io::stdout(), "{text}").ok();
}

/// Prints the result as JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    line(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Shows how far it is: in place on a terminal, and otherwise a line for each tenth.
pub(crate) fn progress() -> Progress {
    let in_place = io::stderr().is_terminal();
    Progress::to(move |text| {
        let percent = text
            .split_once(" %")
            .and_then(|(before, _)| before.rsplit(' ').next()?.parse::<u8>().ok());
        if in_place {
            let bar = percent.map(bar).unwrap_or_default();
            write!(io::stderr(), "\r\x1b[K{bar}{text}").ok();
        } else if percent.is_none_or(|percent| percent.is_multiple_of(10)) {
            tell(text);
        }
    })
}

/// Ends what was shown in place.
pub(crate) fn clear() {
    if io::stderr().is_terminal() {
        write!(io::stderr(), "\r\x1b[K").ok();
    }
}

/// Prints a table of backups.
pub(crate) fn backups(backups: &[BackupInfo]) {
    let header = ["Name", "Made", "Cluster", "TL", "Start", "Stop", "Size"];
    let mut rows = vec![header.map(str::to_owned)];
    for info in backups {
        let system = info.system.map(|system| system.to_string());
        let size = info.size.map(|bytes| format!("{} MiB", bytes >> 20));
        rows.push([
            info.name.0.clone(),
            info.made.map(moment).unwrap_or_default(),
            system.unwrap_or_default(),
            info.start.timeline.to_string(),
            info.start.lsn.to_string(),
            info.stop.lsn.to_string(),
            size.unwrap_or_default(),
        ]);
    }
    table(&rows);
}

/// Prints what there is of the log and what is lacking.
pub(crate) fn report(report: &Report) {
    let mut rows = vec![["TL", "Left", "From", "To", "Files"].map(str::to_owned)];
    for branch in &report.branches {
        let parent = branch.parent;
        let parent = parent.map(|(timeline, lsn)| format!("{timeline} at {lsn}"));
        rows.push([
            branch.timeline.to_string(),
            parent.unwrap_or_default(),
            branch.first.clone(),
            branch.last.clone(),
            branch.files.to_string(),
        ]);
    }
    table(&rows);
    for hole in &report.holes {
        let (first, last, files) = (&hole.first, &hole.last, hole.files);
        line(&format!("missing: {first} to {last} ({files} files)"));
    }
    for timeline in &report.without_history {
        line(&format!("missing: the history of timeline {timeline}"));
    }
    for file in &report.collisions {
        line(&format!("twice, and not the same: {file}"));
    }
    for (backup, file) in &report.unusable {
        line(&format!("cannot be used: {backup} needs {file}"));
    }
    for object in &report.unknown {
        line(&format!("unknown: {object}"));
    }
    if report.is_whole() {
        line("nothing is missing");
    }
}

/// Prints what was deleted.
pub(crate) fn expired(expired: &Expired, dry: bool) {
    let did = if dry { "would delete" } else { "deleted" };
    for backup in &expired.backups {
        line(&format!("{did} {backup}"));
    }
    match expired.kept_from {
        Some(from) => line(&format!(
            "{did} {} files of the log; kept is what ends after {from}",
            expired.wal_files
        )),
        None => line("there is no backup; nothing is deleted"),
    }
}

/// Returns a moment as people read it, given in seconds since 1970.
fn moment(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).ok();
    let at = seconds.and_then(|seconds| chrono::DateTime::from_timestamp(seconds, 0));
    let shown = at.map(|at| at.format("%Y-%m-%d %H:%M:%S UTC").to_string());
    shown.unwrap_or_default()
}

fn bar(percent: u8) -> String {
    let full = usize::from(percent.min(100)) / 5;
    format!("[{}{}] ", "#".repeat(full), ".".repeat(20 - full))
}

fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; COLUMNS] = std::array::from_fn(|column| width(column).unwrap_or(0));
    for row in rows {
        let cells = row.iter().zip(widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        line(cells.join("  ").trim_end());
    }
}
