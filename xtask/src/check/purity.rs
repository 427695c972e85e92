//! The core decides and does nothing else: its dependencies must not be able to do more.

use anyhow::{Result, bail};

use crate::shell::{cargo, quietly, shown};
use crate::terminal::warn;
use crate::tools::workspace_root;

/// Checks that the core, without features, depends on no runtime, no TLS and no randomness.
///
/// # Errors
/// Names the crates that must not be there.
pub(super) fn check() -> Result<()> {
    let mut tree = cargo();
    tree.current_dir(workspace_root())
        .args(["tree", "-p", "spilo-core", "--no-default-features"]);
    tree.args(["-e", "normal", "--prefix", "none", "--format", "{p}"]);
    let listing = quietly(&mut tree)?;
    let crates = names(&listing);
    let intruders: Vec<&str> = crates
        .iter()
        .copied()
        .filter(|name| is_forbidden(name))
        .collect();
    // An empty listing would pass as well, and prove nothing.
    if !crates.contains(&"spilo-core") {
        bail!("{} does not list spilo-core", shown(&tree));
    }
    if !intruders.is_empty() {
        bail!(
            "spilo-core must not depend on {}; see: {}",
            intruders.join(", "),
            shown(&tree)
        );
    }
    warn(&format!(
        "    no {} among: {}",
        FORBIDDEN.join(", "),
        crates.join(", ")
    ));
    Ok(())
}

/// Returns the names of the crates in a listing, each once.
fn names(listing: &str) -> Vec<&str> {
    let mut names: Vec<&str> = listing
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Returns whether a crate is forbidden, or belongs to the family of one that is.
fn is_forbidden(name: &str) -> bool {
    FORBIDDEN.iter().any(|forbidden| {
        name.strip_prefix(forbidden)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_']))
    })
}

/// Runtimes, TLS, randomness; with each its family, as in `rand_core` and `tokio-util`.
const FORBIDDEN: [&str; 15] = [
    "async-std",
    "mio",
    "smol",
    "socket2",
    "tokio", // runtimes and what they stand on
    "aws-lc",
    "native-tls",
    "openssl",
    "ring",
    "rustls",
    "schannel", // TLS
    "fastrand",
    "getrandom",
    "oorandom",
    "rand", // randomness
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_gives_each_name_once() {
        let listing = "\
spilo-core v0.1.0 (/somewhere/spilo-core)
serde v1.0.0
serde_derive v1.0.0 (proc-macro)
serde v1.0.0 (*)

";
        assert_eq!(names(listing), ["serde", "serde_derive", "spilo-core"]);
    }

    #[test]
    fn families_are_forbidden_and_namesakes_are_not() {
        for name in [
            "tokio",
            "tokio-util",
            "rustls-pki-types",
            "rand",
            "rand_core",
            "openssl-sys",
        ] {
            assert!(is_forbidden(name), "{name}");
        }
        for name in [
            "serde",
            "tracing",
            "once_cell",
            "string",
            "random-sounding",
            "bytes",
        ] {
            assert!(!is_forbidden(name), "{name}");
        }
    }
}
