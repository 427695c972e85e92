//! Files of and beside the data directory.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use spilo_core::pg::PgOpKind;

/// The user and group that files are given to; none keeps those of the agent.
pub(crate) type Owner = Option<(u32, u32)>;

/// Replaces a file as a whole, so that a crash leaves the old text or the new. Returns whether it
/// had another text before.
pub(crate) fn replace(path: &Path, text: &str, owner: Owner) -> io::Result<bool> {
    if fs::read(path).is_ok_and(|old| old == text.as_bytes()) && is_private(path, owner) {
        return Ok(false);
    }
    let mut temporary = path.file_name().unwrap_or_default().to_owned();
    temporary.push(".spilo-new");
    let temporary = path.with_file_name(temporary);
    ignore_missing(fs::remove_file(&temporary))?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(text.as_bytes())?;
    give(&temporary, owner)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_directory_of(path)?;
    Ok(true)
}

/// Returns whether a file is its owner's and nobody else's; libpq ignores a password file that
/// others may read.
fn is_private(path: &Path, owner: Owner) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| {
        let owned = owner.is_none_or(|(uid, gid)| (metadata.uid(), metadata.gid()) == (uid, gid));
        owned && metadata.is_file() && metadata.mode() & 0o077 == 0
    })
}

/// Creates a directory that only its owner may enter, or makes an existing one so.
pub(crate) fn private_directory(path: &Path, owner: Owner) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o700))?;
    give(path, owner)
}

/// Removes what is in a data directory and keeps the directory, which may be a mount point. What
/// its links to a separate log directory and to tablespaces point at is emptied too.
pub(crate) fn empty(data_dir: &Path) -> io::Result<()> {
    for wal in ["pg_wal", "pg_xlog"] {
        let link = data_dir.join(wal);
        if link.is_symlink() && link.is_dir() {
            empty_plain(&link)?;
        }
    }
    match fs::read_dir(data_dir.join("pg_tblspc")) {
        Ok(spaces) => {
            for space in spaces {
                let space = space?.path();
                if space.is_symlink() && space.is_dir() {
                    empty_plain(&space)?;
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    empty_plain(data_dir)
}

/// Returns whether a directory is missing or has nothing in it.
pub(crate) fn is_empty(path: &Path) -> io::Result<bool> {
    match fs::read_dir(path) {
        // The mount point of a file system of its own has this directory from the start.
        Ok(entries) => {
            for entry in entries {
                if entry?.file_name() != "lost+found" {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Removes a file that may be missing.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    ignore_missing(fs::remove_file(path))?;
    sync_directory_of(path)
}

/// Gives a file to its owner.
pub(crate) fn give(path: &Path, owner: Owner) -> io::Result<()> {
    match owner {
        Some((uid, gid)) => std::os::unix::fs::lchown(path, Some(uid), Some(gid)),
        None => Ok(()),
    }
}

/// The marker of an operation that makes a data directory anew and is not done.
///
/// It lies beside the data directory, because the programs that fill one want it empty.
#[derive(Clone, Debug)]
pub(crate) struct Marker(PathBuf);

impl Marker {
    /// Creates the marker's handle; nothing is written.
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self(state_dir.join("operation"))
    }

    /// Writes the marker, before anything else is touched.
    pub(crate) fn set(&self, kind: PgOpKind, owner: Owner) -> io::Result<()> {
        replace(&self.0, &format!("{kind}\n"), owner).map(drop)
    }

    /// Makes the marker say that the bootstrap is done and waits to be confirmed.
    pub(crate) fn set_provisional(&self, owner: Owner) -> io::Result<()> {
        replace(&self.0, &format!("{PROVISIONAL}\n"), owner).map(drop)
    }

    /// Removes the marker, after everything else is on disk.
    pub(crate) fn clear(&self) -> io::Result<()> {
        remove(&self.0)
    }

    /// Reads the marker.
    ///
    /// # Errors
    /// Also for a marker that names no operation: what lies under it cannot be trusted.
    pub(crate) fn read(&self) -> io::Result<Option<Mark>> {
        let text = match fs::read_to_string(&self.0) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        for kind in [PgOpKind::Bootstrap, PgOpKind::Clone, PgOpKind::Rewind] {
            if kind.as_str() == text.trim() {
                return Ok(Some(Mark::Unfinished(kind)));
            }
        }
        if text.trim() == PROVISIONAL {
            return Ok(Some(Mark::Provisional));
        }
        let problem = format!("{}: {text:?} names no operation", self.0.display());
        Err(io::Error::new(io::ErrorKind::InvalidData, problem))
    }
}

/// What a marker says of the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// It is half made by this operation.
    Unfinished(PgOpKind),
    /// It was bootstrapped, and the store does not know of it yet.
    Provisional,
}

/// Makes everything in a directory, and its name, last through a loss of power.
///
/// PostgreSQL's programs sync what they write; this is for their directory entries.
pub(crate) fn sync_directory_of(path: &Path) -> io::Result<()> {
    match path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        Some(parent) => match File::open(parent) {
            Ok(directory) => directory.sync_all(),
            Err(error) => ignore_missing(Err(error)),
        },
        None => Ok(()),
    }
}

fn empty_plain(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => return ignore_missing(Err(error)),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name() == "lost+found" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

const PROVISIONAL: &str = "provisional";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.conf");
        assert!(replace(&path, "a", None).unwrap());
        assert!(!replace(&path, "a", None).unwrap());
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert!(replace(&path, "a", None).unwrap());
        assert!(replace(&path, "b", None).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "b");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_emptied_directory_stays_and_its_links_are_emptied() {
        let dir = tempfile::tempdir().unwrap();
        let (data, wal) = (dir.path().join("data"), dir.path().join("wal"));
        for path in [&data.join("base/1"), &wal] {
            fs::create_dir_all(path).unwrap();
        }
        fs::write(wal.join("000000010000000000000001"), "x").unwrap();
        std::os::unix::fs::symlink(&wal, data.join("pg_wal")).unwrap();
        assert!(!is_empty(&data).unwrap());
        empty(&data).unwrap();
        assert!(data.is_dir() && is_empty(&data).unwrap());
        assert!(wal.is_dir() && is_empty(&wal).unwrap());
        assert!(is_empty(&dir.path().join("missing")).unwrap());
    }

    #[test]
    fn a_marker_that_names_nothing_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let marker = Marker::new(dir.path());
        assert_eq!(marker.read().unwrap(), None);
        for kind in [PgOpKind::Bootstrap, PgOpKind::Clone, PgOpKind::Rewind] {
            marker.set(kind, None).unwrap();
            assert_eq!(marker.read().unwrap(), Some(Mark::Unfinished(kind)));
        }
        marker.set_provisional(None).unwrap();
        assert_eq!(marker.read().unwrap(), Some(Mark::Provisional));
        fs::write(dir.path().join("operation"), "garbage").unwrap();
        assert!(marker.read().is_err());
        marker.clear().unwrap();
        assert_eq!(marker.read().unwrap(), None);
    }
}
