//! `cargo xtask test`: everything that has to hold before a change is handed in.

mod counts;
mod features;
mod purity;

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use self::counts::Counts;
use crate::programs::agent;
use crate::setup::{Extent, setup};
use crate::shell::{cargo, loudly, shown};
use crate::terminal::{say, warn};
use crate::tools::{Tools, target_directory, workspace_root};

/// Checks everything, stops at the first step that fails, and reports it with the command that
/// repeats it.
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
    let mut nextest = nextest();
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
    report.run(
        "format",
        in_workspace(&["fmt", "--all", "--", "--check", "-l"]),
    )?;
    let lints = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    report.run("lints: workspace", in_workspace(&lints))?;
    for (crate_name, feature) in features::alone(&workspace_root())? {
        let step = format!(
            "lints: {crate_name}, {}",
            feature.as_deref().unwrap_or("no features")
        );
        let mut clippy = in_workspace(&["clippy", "-p", &crate_name, "--no-default-features"]);
        clippy.args(feature.iter().flat_map(|feature| ["--features", feature]));
        clippy.args(["--", "-D", "warnings"]);
        report.run(&step, clippy)?;
    }
    let mut documentation = in_workspace(&["doc", "--workspace", "--no-deps"]);
    documentation.env("RUSTDOCFLAGS", "-D warnings");
    report.run("documentation", documentation)?;
    let build = ["build", "--profile", "sim", "-p", "spilo-simulate"];
    report.run("simulator", in_workspace(&build))?;
    for (step, from, seeds) in [
        ("simulation", 0, 1000),
        ("simulation: seeds of this commit", seed_of_commit()?, 200),
    ] {
        report.run(step, simulation(from, seeds))?;
    }
    let mut times = simulator();
    times.args([
        "--failover",
        "--expect",
        "examples/simulate/failover_time.txt",
    ]);
    report.run("failover times in the simulator", times)?;
    let mut tests = nextest();
    tests.arg("--workspace");
    report.tests("tests", || counts::nextest(tools.export(&mut tests)))?;
    let mut examples = in_workspace(&["test", "--workspace", "--doc"]);
    report.tests("examples in the documentation", || {
        counts::doc_tests(tools.export(&mut examples))
    })
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

fn simulator() -> Command {
    let mut simulate = Command::new(target_directory().join("sim/simulate"));
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
    in_workspace(&["build", "-p", "spilo-examples", "-p", "spilo-pg", "--bins"])
}

fn nextest() -> Command {
    let mut nextest = in_workspace(&["nextest", "run", "--profile", "ci"]);
    // A test whose server is absent must fail, on every machine on which this runs.
    nextest
        .envs([("CI", "true"), ("SPILO_CI", "1")])
        .env("SPILO_AGENT", agent("debug"));
    nextest
}

/// What was done, how long it took and what it found.
#[derive(Default)]
struct Report {
    steps: Vec<Step>,
    counts: Counts,
}

struct Step {
    name: String,
    took: Duration,
    passed: bool,
}

impl Report {
    fn run(&mut self, name: &str, mut command: Command) -> Result<()> {
        self.step(name, || {
            let status = command
                .status()
                .with_context(|| format!("cannot start {name}"))?;
            if !status.success() {
                bail!("{name}: {status}; to repeat it: {}", shown(&command));
            }
            Ok(())
        })
    }

    fn step<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        warn(&format!("==> {name}"));
        let begun = Instant::now();
        let outcome = work();
        let (took, passed) = (begun.elapsed(), outcome.is_ok());
        warn(&format!("    {} in {}", verdict(passed), seconds(took)));
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
        let total = self.steps.iter().map(|step| step.took).sum();
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
