//! `cargo xtask test`: everything that has to hold before a change is handed in.
//!
//! The lints, the documentation and the simulator wait for nobody, and the tests mostly wait: so the
//! former are done beside the latter, in the time that these leave.

mod counts;
mod features;
mod purity;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use self::counts::Counts;
use crate::programs::agent;
use crate::setup::{Extent, setup};
use crate::shell::{cargo, command, find_program, loudly, quietly};
use crate::terminal::{say, warn};
use crate::tools::{Tools, target_directory, workspace_root};

/// Checks everything and reports what failed with the command that repeats it.
pub(crate) fn all() -> ExitCode {
    let mut report = Report::default();
    let outcome = steps(&mut report);
    if let Err(failure) = &outcome {
        warn(&format!("error: {failure:#}"));
    }
    report.finish(outcome.is_ok());
    if outcome.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs the tests that a filter of nextest selects.
///
/// # Errors
/// When one fails.
pub(crate) fn filtered(tools: &Tools, filter: &[String]) -> Result<()> {
    loudly(tools.export(&mut build_programs()))?;
    let mut nextest = nextest("run");
    // A filter may name packages, and `--workspace` would overrule it.
    if !filter
        .iter()
        .any(|argument| argument.starts_with("-p") || argument.starts_with("--pa"))
    {
        nextest.arg("--workspace");
    }
    loudly(tools.export(&mut nextest).args(filter))
}

fn steps(report: &mut Report) -> Result<()> {
    let tools = report.step("install what is missing", || setup(Extent::Full))?;
    report.step("purity of the core", purity::check)?;
    // The names of the files are enough: `cargo fmt` mends them.
    let format = ["fmt", "--all", "--", "--check", "-l"];
    report.step("format", || loudly(&mut in_workspace(&format)))?;
    let built = report.step("build of the tests", || Built::build(&tools))?;
    // Tests of real servers leave half of the processors' time over, in which the rest is computed.
    let (tested, aside, computed) = std::thread::scope(|scope| {
        let aside = scope.spawn(|| {
            let mut report = Report::default();
            let outcome = computations(&mut report);
            // Now, and not after the tests: who watches may end them.
            if let Err(failure) = &outcome {
                warn(&format!("error: {failure:#}"));
            }
            (report, outcome)
        });
        let tested = tests(report, &tools, &built);
        let (report, outcome) = aside.join().expect("it does not panic");
        (tested, report, outcome)
    });
    report.steps.extend(aside.steps);
    tested.and(computed)
}

/// Tests that are built, so that they are run without cargo: it lets nobody else build meanwhile.
struct Built {
    /// What nextest is told of the binaries.
    binaries: PathBuf,
    /// And of the packages.
    packages: PathBuf,
}

impl Built {
    fn build(tools: &Tools) -> Result<Self> {
        let directory = target_directory().join("nextest");
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let built = Self {
            binaries: directory.join("binaries.json"),
            packages: directory.join("packages.json"),
        };
        let into = |file: &Path| {
            File::create(file).with_context(|| format!("cannot write {}", file.display()))
        };
        let mut list = nextest("list");
        list.args(["--workspace", "--list-type", "binaries-only"])
            .args(["--message-format", "json"])
            .stdout(into(&built.binaries)?);
        loudly(tools.export(&mut list))?;
        let mut packages = in_workspace(&["metadata", "--format-version", "1"]);
        loudly(packages.stdout(into(&built.packages)?))?;
        Ok(built)
    }
}

fn tests(report: &mut Report, tools: &Tools, built: &Built) -> Result<()> {
    let mut tests = nextest("run");
    tests.arg("--binaries-metadata").arg(&built.binaries);
    tests.arg("--cargo-metadata").arg(&built.packages);
    report.tests("tests", || counts::nextest(tools.export(&mut tests)))?;
    let mut examples = in_workspace(&["test", "--workspace", "--doc"]);
    report.tests("examples in the documentation", || {
        counts::doc_tests(tools.export(&mut examples))
    })
}

/// Does what no server has a part in.
fn computations(report: &mut Report) -> Result<()> {
    let mut steps = Vec::new();
    let lints = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    steps.push(("lints: workspace".to_owned(), in_workspace(&lints)));
    for (crate_name, feature) in features::alone(&workspace_root())? {
        let step = format!(
            "lints: {crate_name}, {}",
            feature.as_deref().unwrap_or("no features")
        );
        let mut clippy = in_workspace(&["clippy", "-p", &crate_name, "--no-default-features"]);
        clippy.args(feature.iter().flat_map(|feature| ["--features", feature]));
        clippy.args(["--", "-D", "warnings"]);
        steps.push((step, clippy));
    }
    let mut documentation = in_workspace(&["doc", "--workspace", "--no-deps"]);
    documentation.env("RUSTDOCFLAGS", "-D warnings");
    steps.push(("documentation".to_owned(), documentation));
    for (step, from, seeds) in [
        ("simulation", 0, 1000),
        ("simulation: seeds of this commit", seed_of_commit()?, 200),
    ] {
        steps.push((step.to_owned(), simulation(from, seeds)));
    }
    let mut times = simulator();
    times.args([
        "--failover",
        "--expect",
        "examples/simulate/failover_time.txt",
    ]);
    steps.push(("failover times in the simulator".to_owned(), times));
    for (step, command) in steps {
        report.step(&step, || {
            quietly(&mut aside(&command))?;
            Ok(())
        })?;
    }
    Ok(())
}

/// Returns a command that has the processors while nothing else wants them.
fn aside(command: &Command) -> Command {
    let mut idle = match find_program("chrt") {
        Some(chrt) => {
            let mut chrt = self::command(chrt);
            chrt.args(["--idle", "0"]).arg(command.get_program());
            chrt
        }
        None => self::command(command.get_program()),
    };
    idle.args(command.get_args())
        .current_dir(workspace_root())
        .envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
    idle
}

/// Simulates clusters under fire. All rules must be reached by the fixed seeds.
fn simulation(from: u64, seeds: u64) -> Command {
    let mut simulate = simulator();
    simulate
        .args(["--from", &from.to_string()])
        .args(["--seeds", &seeds.to_string()])
        .args(["--threads", "2"]);
    if from == 0 {
        simulate.arg("--all-rules");
    }
    simulate
}

/// Returns the simulator that was built with its tests: the core is optimised in them as well.
fn simulator() -> Command {
    let mut simulate = Command::new(target_directory().join("debug/simulate"));
    simulate.current_dir(workspace_root());
    simulate
}

/// Returns a seed that each commit has of its own.
///
/// # Errors
/// When git does not know the commit.
fn seed_of_commit() -> Result<u64> {
    let mut git = Command::new("git");
    git.current_dir(workspace_root())
        .args(["rev-parse", "HEAD"]);
    let answer = git.output().context("cannot start git")?;
    let commit = String::from_utf8_lossy(&answer.stdout);
    let digits = commit
        .get(..12)
        .context("git does not say which commit this is")?;
    u64::from_str_radix(digits, 16).context("git names the commit by something else than a hash")
}

fn in_workspace(arguments: &[&str]) -> Command {
    let mut command = cargo();
    command.current_dir(workspace_root()).args(arguments);
    command
}

/// Builds what the tests start as processes of their own. With all tests, those of the packages of
/// these programs are built, and the programs with them.
fn build_programs() -> Command {
    let packages = ["spilo-examples", "spilo-pg", "spilo-backup-example"];
    let mut build = in_workspace(&["build", "--bins"]);
    build.args(packages.iter().flat_map(|package| ["-p", package]));
    build
}

fn nextest(subcommand: &str) -> Command {
    let mut nextest = in_workspace(&["nextest", subcommand, "--profile", "ci"]);
    // A test whose server is absent must fail, on every machine on which this runs.
    nextest
        .envs([("CI", "true"), ("SPILO_CI", "1")])
        .env("SPILO_AGENT", agent("debug"));
    if has_room(MEMORY) {
        nextest.env("TMPDIR", MEMORY);
    }
    nextest
}

/// Returns whether the clusters of tests can have their files in memory: there is nothing of theirs
/// to keep, and waiting for a disk a fifth of what they do.
fn has_room(directory: &str) -> bool {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let runs_programs = mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        let here = fields.next() == Some(directory);
        let options = fields.nth(1).unwrap_or_default();
        here && !options.split(',').any(|option| option == "noexec")
    });
    let mut df = command("df");
    df.args(["--output=avail", "--block-size=1G", directory]);
    let gigabytes = quietly(&mut df).ok();
    let gigabytes = gigabytes.and_then(|text| text.lines().nth(1)?.trim().parse().ok());
    runs_programs && gigabytes.is_some_and(|gigabytes: u64| gigabytes >= 8)
}

/// A file system that has no disk.
const MEMORY: &str = "/dev/shm";

/// What was done, how long it took and what it found.
struct Report {
    begun: Instant,
    steps: Vec<Step>,
    counts: Counts,
}

struct Step {
    name: String,
    took: Duration,
    passed: bool,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            steps: Vec::new(),
            counts: Counts::default(),
        }
    }
}

impl Report {
    fn step<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        warn(&format!("==> {name}"));
        let begun = Instant::now();
        let outcome = work();
        let (took, passed) = (begun.elapsed(), outcome.is_ok());
        warn(&format!(
            "    {name}: {} in {}",
            verdict(passed),
            seconds(took)
        ));
        self.steps.push(Step {
            name: name.to_owned(),
            took,
            passed,
        });
        outcome
    }

    /// Runs a step that counts tests and names the command that repeats those that failed.
    fn tests(&mut self, name: &str, work: impl FnOnce() -> Result<(Counts, String)>) -> Result<()> {
        let mut counted = Counts::default();
        let outcome = self.step(name, || {
            let (counts, repeat) = work()?;
            counted = counts;
            if counts.failed > 0 {
                bail!("{name}: {} failed; to repeat: {repeat}", counts.failed);
            }
            Ok(())
        });
        self.counts += counted;
        outcome
    }

    /// Prints the table, and last the line that continuous integration looks for.
    fn finish(mut self, passed: bool) {
        let total = self.begun.elapsed();
        self.steps.push(Step {
            name: "all".to_owned(),
            took: total,
            passed,
        });
        say("");
        for Step { name, took, passed } in &self.steps {
            say(&format!(
                "{:6}  {:>8}  {name}",
                verdict(*passed),
                seconds(*took)
            ));
        }
        // A step that is not a test may have failed, and no failure may end in "0 failed".
        let failed = self.counts.failed.max(u32::from(!passed));
        say(&format!("{} passed, {failed} failed", self.counts.passed));
    }
}

fn verdict(passed: bool) -> &'static str {
    if passed { "ok" } else { "FAILED" }
}

fn seconds(took: Duration) -> String {
    format!("{:.1} s", took.as_secs_f64())
}
