//! What cargo needs beside itself.

use anyhow::Result;

use crate::shell::{cargo, command, find_program, loudly, quietly};
use crate::terminal::warn;

/// Installs what is missing: cargo-nextest, and the formatter and linter of this toolchain.
///
/// # Errors
/// When one cannot be installed.
pub(super) fn install() -> Result<()> {
    for (subcommand, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        // With rustup the program is always there, but may only say that the component is not.
        if quietly(cargo().args([subcommand, "--version"])).is_err() {
            warn(&format!("installing the component {component} with rustup"));
            quietly(command("rustup").args(["component", "add", component]))?;
        }
    }
    if find_program("cargo-nextest").is_none() && !is_in_cargo_home("cargo-nextest") {
        warn("installing cargo-nextest with cargo (this takes some minutes)");
        loudly(cargo().args(["install", "cargo-nextest", "--locked"]))?;
    }
    Ok(())
}

/// Returns whether cargo finds a subcommand that the path does not lead to.
fn is_in_cargo_home(program: &str) -> bool {
    let home = std::env::var_os("CARGO_HOME").map(std::path::PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    home.is_some_and(|home| crate::shell::is_program(&home.join("bin").join(program)))
}
