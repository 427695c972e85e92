//! `cargo xtask mutants`: planted bugs, and what sees them.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::shell::{cargo, shown};
use crate::terminal::{say, warn};
use crate::tools::{target_directory, workspace_root};

/// Plants each mistake that the core knows, and prints which test sees it.
///
/// # Errors
/// When one survives, or something does not build.
pub(crate) fn check() -> Result<()> {
    warn("building the core with planted bugs");
    let table = output(
        tests(&["--test", "mutants", "--", "--nocapture"]),
        "the simulator",
    )?;
    let mut survivors = Vec::new();
    say(&format!("{:<26} {:<44} {}", "mutant", "seen by", "how"));
    for line in table.lines().filter(|line| line.starts_with("mutant\t")) {
        let mut fields = line.split('\t').skip(1);
        let mut next = || fields.next().unwrap_or_default();
        let (name, what, seeds, violation) = (next(), next(), next(), next());
        if seeds != "survived" {
            let violation: String = violation.chars().take(70).collect();
            say(&format!(
                "{name:<26} {:<44} {violation}",
                format!("simulator, {seeds} seeds")
            ));
            continue;
        }
        match seen_by(name)? {
            Some(test) => say(&format!("{name:<26} {test:<44} {what}")),
            None => {
                say(&format!("{name:<26} {:<44} {what}", "nobody"));
                survivors.push(name.to_owned());
            }
        }
    }
    if !survivors.is_empty() {
        bail!("nobody sees: {}", survivors.join(", "));
    }
    Ok(())
}

/// Returns the first test that sees a mistake: the quick ones are asked first.
fn seen_by(mutant: &str) -> Result<Option<String>> {
    for target in [&["--lib"][..], &["--test", "sim"]] {
        if let Some(test) = named_test(mutant, target)? {
            return Ok(Some(test));
        }
    }
    Ok(None)
}

/// Returns the first of the core's own tests, or of the scenarios, that fails with this mistake.
fn named_test(mutant: &str, target: &[&str]) -> Result<Option<String>> {
    let mut command = tests(target);
    command.args(["--", "--format=pretty"]);
    command.env("SPILO_MUTANT", mutant).stderr(Stdio::null());
    let answer = command
        .output()
        .with_context(|| format!("cannot start {}", shown(&command)))?;
    let text = String::from_utf8_lossy(&answer.stdout).into_owned();
    let failed = text.lines().find_map(|line| {
        let name = line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?;
        Some(name.to_owned())
    });
    Ok(failed)
}

fn tests(what: &[&str]) -> Command {
    let mut command = cargo();
    command
        .current_dir(workspace_root())
        .args(["test", "--quiet", "--profile", "sim"])
        .args(["-p", "spilo-core", "--features", "sim"])
        .args(what)
        .env("RUSTFLAGS", "--cfg spilo_mutants")
        // Beside the other builds, which would all be made anew after this one.
        .env("CARGO_TARGET_DIR", target_directory().join("mutants"));
    command
}

fn output(mut command: Command, what: &str) -> Result<String> {
    let answer = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {what}"))?;
    if !answer.status.success() {
        bail!(
            "{what}: {}; to repeat it: {}",
            answer.status,
            shown(&command)
        );
    }
    Ok(String::from_utf8_lossy(&answer.stdout).into_owned())
}
