//! How many tests passed and failed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::AddAssign;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::shell::shown;
use crate::tools::target_directory;

/// Tests, counted.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) passed: u32,
    pub(super) failed: u32,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Runs nextest, and returns what it found and the command that repeats it.
///
/// The counts come from its JUnit file and not from its output, so that it keeps the terminal: it
/// shows what runs, and ends its tests in good order when it is interrupted.
///
/// # Errors
/// When it could not run the tests at all, as when they do not build.
pub(super) fn nextest(nextest: &mut Command) -> Result<(Counts, String)> {
    let file = target_directory().join("nextest/ci/junit.xml");
    if file.exists() {
        std::fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    let status = nextest
        .status()
        .with_context(|| format!("cannot start {}", shown(nextest)))?;
    let report = std::fs::read_to_string(&file).ok();
    let counts = report.as_deref().and_then(junit_counts).unwrap_or_default();
    agree(status.success(), counts, &shown(nextest))?;
    let names = report.as_deref().map(failed_names).unwrap_or_default();
    Ok((counts, format!("cargo xtask test -- {}", names.join(" "))))
}

/// Runs the examples in the documentation, and returns what it found and the command that repeats it.
///
/// # Errors
/// When they could not be run at all.
pub(super) fn doc_tests(cargo: &mut Command) -> Result<(Counts, String)> {
    let line = shown(cargo);
    let mut child = cargo
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {line}"))?;
    let output = child
        .stdout
        .take()
        .context("the standard output is piped")?;
    let mut counts = Counts::default();
    for text in BufReader::new(output).lines() {
        let text = text.with_context(|| format!("cannot read what {line} writes"))?;
        counts += result_counts(&text).unwrap_or_default();
        drop(writeln!(std::io::stderr(), "{text}"));
    }
    let status = child.wait()?;
    agree(status.success(), counts, &line)?;
    Ok((counts, line))
}

/// Checks that the exit status and the counts tell the same story.
fn agree(succeeded: bool, counts: Counts, line: &str) -> Result<()> {
    if !succeeded && counts.failed == 0 {
        bail!("{line} failed");
    }
    // Nothing run is nothing shown, whatever the exit status says.
    if succeeded && counts.passed == 0 {
        bail!("{line} ran no test");
    }
    Ok(())
}

/// Reads the totals of a JUnit file: `<testsuites name=".." tests="9" failures="1" errors="0" ..>`.
fn junit_counts(report: &str) -> Option<Counts> {
    let (_, rest) = report.split_once("<testsuites ")?;
    let (totals, _) = rest.split_once('>')?;
    let total = |name: &str| -> Option<u32> {
        let (_, rest) = totals.split_once(&format!("{name}=\""))?;
        rest.split_once('"')?.0.parse().ok()
    };
    let failed = total("failures")? + total("errors")?;
    Some(Counts {
        passed: total("tests")?.checked_sub(failed)?,
        failed,
    })
}

/// Reads the names of the tests that failed; of many only the first few.
fn failed_names(report: &str) -> Vec<&str> {
    let failed = |case: &&str| case.contains("<failure") || case.contains("<error");
    let name = |case| {
        str::split_once(case, "name=\"")?
            .1
            .split_once('"')
            .map(|(name, _)| name)
    };
    report
        .split("<testcase ")
        .skip(1)
        .filter(failed)
        .filter_map(name)
        .take(5)
        .collect()
}

/// Reads `test result: ok. 3 passed; 0 failed; …`.
fn result_counts(line: &str) -> Option<Counts> {
    let (_, rest) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut totals = rest.split(';').map(str::trim);
    let mut total = |name: &str| totals.next()?.strip_suffix(name)?.trim().parse().ok();
    Some(Counts {
        passed: total(" passed")?,
        failed: total(" failed")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_totals_of_a_junit_file_are_read() {
        let report = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="9" failures="1" errors="2" uuid="x" time="4.1">
    <testsuite name="a" tests="3" disabled="0" errors="0" failures="3">"#;
        assert_eq!(
            junit_counts(report),
            Some(Counts {
                passed: 6,
                failed: 3
            })
        );
        assert_eq!(junit_counts(""), None);
        assert_eq!(
            junit_counts(r#"<testsuites tests="1" failures="2" errors="0">"#),
            None
        );
    }

    #[test]
    fn failed_tests_are_named() {
        let report = r#"<testsuite name="a">
        <testcase name="ids::good" classname="a" time="1"></testcase>
        <testcase name="ids::bad" classname="a"><failure message="no"/></testcase>
        <testcase name="late" classname="a"><error type="exec"/></testcase>"#;
        assert_eq!(failed_names(report), ["ids::bad", "late"]);
        assert_eq!(failed_names(""), [""; 0]);
    }

    #[test]
    fn the_result_line_of_doc_tests_is_read() {
        let line =
            "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(
            result_counts(line),
            Some(Counts {
                passed: 12,
                failed: 3
            })
        );
        assert_eq!(result_counts("test spilo_core::ids (line 3) ... ok"), None);
        assert_eq!(result_counts("test result: odd"), None);
    }

    #[test]
    fn a_success_without_tests_and_a_failure_without_failed_tests_are_errors() {
        let none = Counts::default();
        assert!(agree(true, none, "x").is_err());
        assert!(agree(false, none, "x").is_err());
        assert!(
            agree(
                true,
                Counts {
                    passed: 1,
                    failed: 0
                },
                "x"
            )
            .is_ok()
        );
        assert!(
            agree(
                false,
                Counts {
                    passed: 1,
                    failed: 1
                },
                "x"
            )
            .is_ok()
        );
    }
}
