//! What the documentation shows works for those who have nothing but the documentation: its
//! examples, and the dependencies that it names, make a crate outside of this workspace.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A directory that is gone when this is dropped.
struct Directory(PathBuf);

#[test]
fn the_documentation_is_all_that_a_crate_of_ones_own_needs() {
    let place = Directory::new();
    let files = [
        ("Cargo.toml", manifest()),
        ("Cargo.lock", read("../Cargo.lock")),
        ("src/lib.rs", String::new()),
        ("tests/own_store.rs", own_store()),
        ("tests/failover.rs", failover()),
    ];
    for (path, text) in files {
        place.write(path, &text);
    }
    let output = cargo_test(&place.0);
    // Both have run, and not just been built.
    for test in [
        "test failover ... ok",
        "test tests::an_unknown_outcome_is_one_of_two_worlds ... ok",
    ] {
        assert!(output.contains(test), "{test} is not in\n{output}");
    }
}

#[test]
fn a_store_takes_less_than_200_lines_and_a_failover_less_than_30() {
    let store = own_store();
    let (store, _) = store.split_once("#[cfg(test)]").unwrap();
    for (what, text, limit) in [("store", store, 200), ("failover", &failover(), 30)] {
        let lines = text.lines().count();
        assert!(lines < limit, "the {what} takes {lines} lines");
    }
}

/// Runs the tests of a crate, without a network, and returns what cargo wrote.
#[expect(
    clippy::disallowed_methods,
    reason = "the cargo that runs us says so from outside"
)]
fn cargo_test(place: &Path) -> String {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(place)
        .args(["test", "--offline", "--quiet", "--tests"])
        .args(["--", "--format=pretty"])
        // Kept from run to run, and beside the other builds, whose profiles differ.
        .env(
            "CARGO_TARGET_DIR",
            Path::new(env!("CARGO_TARGET_TMPDIR")).join("outside"),
        )
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    let text = text.concat();
    assert!(output.status.success(), "{}\n{text}", output.status);
    text
}

/// Returns a manifest with the dependencies that the suite's documentation names, from here in
/// place of a registry.
fn manifest() -> String {
    let named = block(&read("src/conformance/dcs.rs"), "toml");
    let (published, here) = (
        "\"0.1\"",
        format!("path = {:?}", env!("CARGO_MANIFEST_DIR")),
    );
    let named = named
        .replace(&format!("version = {published}"), &here)
        .replace(published, &format!("{{ {here} }}"))
        // The simulator is another feature, and its documentation names nothing else.
        .replace("[\"conformance\"]", "[\"conformance\", \"sim\"]");
    assert!(named.contains("\"sim\"") && !named.contains(published));
    format!(
        "[package]\nname = \"newcomer\"\nedition = \"2024\"\n\n{named}\n\
         [profile.dev]\ndebug = false\nincremental = false\n"
    )
}

fn own_store() -> String {
    read("tests/own_store.rs")
}

/// Returns the simulator's first example as a test.
fn failover() -> String {
    let body = block(&read("src/sim.rs"), "");
    format!("#[test]\nfn failover() {{\n{body}}}\n")
}

/// Returns the first block of a language in a module's documentation.
fn block(source: &str, language: &str) -> String {
    let fence = format!("//! ```{language}");
    let lines = source.lines().skip_while(|line| *line != fence).skip(1);
    let lines = lines.take_while(|line| *line != "//! ```");
    lines
        .map(|line| {
            let line = line.strip_prefix("//!").unwrap();
            format!("{}\n", line.strip_prefix(' ').unwrap_or(line))
        })
        .collect()
}

/// Reads a file of this package.
fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

impl Directory {
    /// Creates one that was not there, away from the workspace: cargo looks for one above it.
    fn new() -> Self {
        let name = format!("spilo-outside-{}", std::process::id());
        let path = env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Best effort: it is in a place for what is temporary.
        fs::remove_dir_all(&self.0).ok();
    }
}
