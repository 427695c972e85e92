//! The project's programs that xtask builds and then becomes.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::shell::{cargo, loudly};
use crate::terminal::warn;
use crate::tools::{Tools, target_directory, workspace_root};

/// Builds the programs and becomes `quickstart`; returns only when that fails.
///
/// # Errors
/// When something does not build or cannot be started.
pub(crate) fn demo(tools: &Tools, arguments: &[String]) -> Result<()> {
    warn("building (the first time takes some minutes)");
    // Not in release mode: the demo waits for leases and servers, not for our own code, and an
    // optimised build of everything would keep a newcomer waiting several times as long.
    let mut which = vec!["--bins"];
    if arguments.iter().any(|argument| argument == "--backup") {
        which.extend(["-p", "spilo-backup-example"]);
    }
    build(&which)?;
    become_program(
        "spilo-examples",
        "quickstart",
        &[],
        tools,
        "debug",
        arguments,
    )
}

/// Builds the daemon and a program of the harness in release mode, and becomes that program;
/// returns only when that fails.
///
/// # Errors
/// When something does not build or cannot be started.
pub(crate) fn harness(tools: &Tools, name: &str, arguments: &[String]) -> Result<()> {
    // Nothing else: optimised as they are for production, each takes a minute to link.
    let features = format!("--features={}", daemon_features(name, arguments).join(","));
    let daemon = ["--bin", "spilo-agent", "--bin", "spilo-guard"];
    let lean = ["--release", "--no-default-features", &features];
    build(&[&lean[..], &daemon].concat())?;
    become_program(
        "spilo-benches",
        name,
        &["--release"],
        tools,
        "release",
        arguments,
    )
}

/// Returns what the daemon has to have built in: what it is asked for where its memory is measured,
/// and every store where faults of each are run.
fn daemon_features(name: &str, arguments: &[String]) -> Vec<&'static str> {
    let mut features = vec!["consul", "srv", "zookeeper"];
    if name != "chaos" {
        let named = |store: &str| arguments.iter().any(|argument| argument.contains(store));
        features.retain(|store| named(store));
    }
    features
}

/// Builds the command that archives and the bench of it in release mode, and becomes that bench;
/// returns only when that fails.
///
/// # Errors
/// When something does not build or cannot be started.
pub(crate) fn backup(tools: &Tools, arguments: &[String]) -> Result<()> {
    let mut build = cargo();
    build.current_dir(workspace_root());
    loudly(build.args(["build", "--release", "-p", "spilo-backup-example"]))?;
    become_program(
        "spilo-benches",
        "backup",
        &["--release"],
        tools,
        "release",
        arguments,
    )
}

/// Builds `simulate` and becomes it; returns only when that fails. It starts no server, so that
/// nothing need be installed for it.
///
/// # Errors
/// When it does not build or cannot be started.
pub(crate) fn simulate(arguments: &[String]) -> Result<()> {
    let mut run = cargo();
    run.args(["run", "--quiet", "--manifest-path"])
        .arg(workspace_root().join("Cargo.toml"))
        .args(["--profile", "sim", "-p", "spilo-simulate", "--"])
        .args(arguments);
    let failure = run.exec();
    Err(failure).context("cannot start simulate")
}

/// Builds programs of `spilo-examples` and `spilo-pg`.
fn build(which: &[&str]) -> Result<()> {
    let mut build = cargo();
    build.current_dir(workspace_root()).arg("build").args(which);
    loudly(build.args(["-p", "spilo-examples", "-p", "spilo-pg"]))
}

fn become_program(
    package: &str,
    name: &str,
    mode: &[&str],
    tools: &Tools,
    profile: &str,
    arguments: &[String],
) -> Result<()> {
    let mut run: Command = cargo();
    // Not `current_dir`: the arguments may name files from where the user stands.
    run.args(["run", "--quiet", "--manifest-path"])
        .arg(workspace_root().join("Cargo.toml"));
    run.args(mode)
        .args(["-p", package, "--bin", name, "--"])
        .args(arguments);
    run.env("SPILO_AGENT", agent(profile))
        .env(
            "SPILO_BACKUP",
            agent(profile).with_file_name("spilo-backup"),
        )
        .stdin(Stdio::inherit());
    // We become cargo, and cargo becomes the program: signals and the exit status need no help.
    let failure = tools.export(&mut run).exec();
    Err(failure).with_context(|| format!("cannot start {name}"))
}

/// Returns where cargo puts the daemon.
pub(crate) fn agent(profile: &str) -> PathBuf {
    target_directory().join(profile).join("spilo-agent")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_has_each_store_whose_faults_are_run_and_no_other_where_it_is_measured() {
        let features = |name, arguments: &[&str]| {
            let arguments: Vec<String> = arguments.iter().map(|&text| text.to_owned()).collect();
            daemon_features(name, &arguments)
        };
        assert_eq!(features("chaos", &[]), ["consul", "srv", "zookeeper"]);
        assert_eq!(features("failover", &[]), [""; 0]);
        assert_eq!(features("failover", &["--dcs", "etcd,consul"]), ["consul"]);
    }
}
