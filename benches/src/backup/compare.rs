//! Whether what came back is what was there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// Compares all files of two directories.
///
/// # Errors
///
/// Names the first file that is missing, too much, or other.
pub(crate) fn directories(original: &Path, copy: &Path) -> Result<()> {
    let (mut there, came) = (files(original)?, files(copy)?);
    for (name, bytes) in came {
        match there.remove(&name) {
            None => bail!("{} was not there, and came back", name.display()),
            Some(expected) if expected != bytes => bail!(
                "{} had {expected} bytes and came back with {bytes}",
                name.display()
            ),
            Some(_) => same(&original.join(&name), &copy.join(&name))?,
        }
    }
    match there.into_keys().next() {
        Some(name) => bail!("{} did not come back", name.display()),
        None => Ok(()),
    }
}

/// Compares two files, in pieces: they may be long, and this process must stay small.
///
/// # Errors
///
/// Fails where they differ.
pub(crate) fn same(original: &Path, copy: &Path) -> Result<()> {
    let opened = File::open(copy).with_context(|| format!("{} is missing", copy.display()));
    let mut ours = BufReader::with_capacity(PIECE, opened?);
    let mut theirs = BufReader::with_capacity(PIECE, File::open(original)?);
    let (mut one, mut other) = (Vec::with_capacity(PIECE), Vec::with_capacity(PIECE));
    loop {
        one.clear();
        other.clear();
        let limit = u64::try_from(PIECE)?;
        ours.by_ref().take(limit).read_to_end(&mut one)?;
        theirs.by_ref().take(limit).read_to_end(&mut other)?;
        if one != other {
            bail!("{} came back with other bytes", original.display());
        }
        if one.is_empty() {
            return Ok(());
        }
    }
}

fn files(root: &Path) -> Result<BTreeMap<PathBuf, u64>> {
    let mut files = BTreeMap::new();
    let mut ahead = vec![root.to_owned()];
    while let Some(directory) = ahead.pop() {
        let entries = fs::read_dir(&directory);
        for entry in entries.with_context(|| format!("cannot read {}", directory.display()))? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            if kind.is_dir() && entry.file_name() != "pgsql_tmp" {
                ahead.push(path);
            } else if kind.is_file() && entry.file_name() != "pg_internal.init" {
                let name = path.strip_prefix(root)?.to_owned();
                files.insert(name, entry.metadata()?.len());
            }
        }
    }
    Ok(files)
}

const PIECE: usize = 1 << 18;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_other_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        for (root, text) in [(&one, "same"), (&other, "same")] {
            fs::create_dir_all(root.join("base/1")).unwrap();
            fs::write(root.join("base/1/2"), text).unwrap();
        }
        directories(&one, &other).unwrap();
        fs::write(other.join("base/1/2"), "SAME").unwrap();
        let error = directories(&one, &other).unwrap_err().to_string();
        assert!(error.contains("base/1/2"), "{error}");
        fs::remove_file(other.join("base/1/2")).unwrap();
        let error = directories(&one, &other).unwrap_err().to_string();
        assert_eq!(error, "base/1/2 did not come back");
    }
}
