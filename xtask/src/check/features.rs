//! Every feature of every library, alone: it must build without its neighbours.

use std::path::Path;

use anyhow::{Context as _, Result};

/// Returns each library with none and with each one of its features.
///
/// # Errors
/// When a manifest cannot be read.
pub(super) fn alone(workspace: &Path) -> Result<Vec<(String, Option<String>)>> {
    let mut pairs = Vec::new();
    for library in LIBRARIES {
        let manifest = workspace.join(library).join("Cargo.toml");
        let text = std::fs::read_to_string(&manifest)
            .with_context(|| format!("cannot read {}", manifest.display()))?;
        pairs.push((library.to_owned(), None));
        pairs.extend(named(&text).map(|feature| (library.to_owned(), Some(feature.to_owned()))));
    }
    Ok(pairs)
}

/// Returns the features that a manifest names, but for `default`.
fn named(manifest: &str) -> impl Iterator<Item = &str> {
    manifest
        .lines()
        .map(str::trim)
        .skip_while(|line| *line != "[features]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.starts_with('#'))
        // A list may go on over several lines; only its first holds a name.
        .filter_map(|line| {
            line.split_once('=')
                .map(|(name, _)| name.trim().trim_matches('"'))
        })
        .filter(|name| *name != "default")
}

/// What is published; the order is that of their dependencies, so that the first mistake shows first.
const LIBRARIES: [&str; 5] = [
    "spilo-core",
    "spilo-dcs",
    "spilo-pg",
    "spilo-backup",
    "spilo-api",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read_from_their_own_section_only() {
        let manifest = "\
[package]
name = \"x\"

[features]
default = []
# etcd = [\"no\"]
etcd = [
    \"dep:etcd-client\",
]
\"tls\" = [\"etcd-client?/tls\"]

[dependencies]
bytes = \"1\"
";
        assert_eq!(named(manifest).collect::<Vec<_>>(), ["etcd", "tls"]);
        assert_eq!(named("[package]\nname = \"x\"\n").count(), 0);
    }

    #[test]
    fn every_library_of_this_workspace_is_checked_without_features() {
        let pairs = alone(&crate::tools::workspace_root()).unwrap();
        for library in LIBRARIES {
            assert!(pairs.contains(&(library.to_owned(), None)), "{library}");
        }
        assert!(pairs.contains(&("spilo-core".to_owned(), Some("agent".to_owned()))));
    }
}
