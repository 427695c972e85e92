//! The files of a data directory that belong into a base backup.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// What a base backup is made of.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) entries: Vec<Entry>,
    /// Tablespaces by their object identifiers, and where they lie.
    pub(crate) tablespaces: Vec<(u32, PathBuf)>,
}

/// A file or a folder of a data directory.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Its path in the data directory, tablespaces under `pg_tblspc`.
    pub(crate) path: PathBuf,
    pub(crate) is_folder: bool,
    /// How long it was when it was looked at.
    pub(crate) bytes: u64,
    pub(crate) mode: u32,
    pub(crate) modified: u64,
}

/// Folders of which only the folder itself belongs in: PostgreSQL's list, and the server's log.
const EMPTY: [&str; 11] = [
    "log",
    "pg_dynshmem",
    "pg_log",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_wal",
    "pg_xlog",
];

/// Files that belong to the running server or to another backup. `global/pg_control` is read last,
/// by whoever ends the backup.
const LEFT_OUT: [&str; 11] = [
    "backup_label",
    "backup_label.old",
    "backup_manifest",
    "current_logfiles",
    "global/pg_control",
    "postgresql.auto.conf.tmp",
    "postmaster.opts",
    "postmaster.pid",
    "recovery.signal",
    "standby.signal",
    "tablespace_map",
];

/// More files than this are not put into one tar file.
const MOST_FILES: usize = 6000;

impl Plan {
    /// Looks at a data directory. What goes while it looks is left out: replay makes up for it.
    pub(crate) fn of(data_dir: &Path) -> io::Result<Self> {
        let mut plan = Self {
            entries: Vec::new(),
            tablespaces: Vec::new(),
        };
        plan.walk(data_dir, Path::new(""))?;
        Ok(plan)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.bytes).sum()
    }

    /// Cuts it into parts of about `part_bytes` each.
    pub(crate) fn into_parts(self, part_bytes: u64) -> Vec<Vec<Entry>> {
        let mut parts = vec![Vec::new()];
        let mut bytes = 0;
        for entry in self.entries {
            let full = bytes + entry.bytes > part_bytes && bytes > 0;
            let part = match parts.last_mut() {
                Some(part) if !full && part.len() < MOST_FILES => part,
                _ => {
                    bytes = 0;
                    parts.push(Vec::new());
                    let last = parts.len() - 1;
                    &mut parts[last]
                }
            };
            bytes += entry.bytes;
            part.push(entry);
        }
        parts
    }

    fn walk(&mut self, data_dir: &Path, folder: &Path) -> io::Result<()> {
        let Some(entries) = there(fs::read_dir(data_dir.join(folder)))? else {
            return Ok(());
        };
        let mut names = entries
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        for name in names {
            let path = folder.join(&name);
            let Some(meta) = there(fs::symlink_metadata(data_dir.join(&path)))? else {
                continue;
            };
            let in_tablespaces = folder == Path::new("pg_tblspc");
            if meta.is_symlink() && in_tablespaces {
                self.tablespace(data_dir, path)?;
            } else if meta.is_symlink() && path == Path::new("pg_wal") {
                self.push(path, true, &meta);
            } else if meta.is_dir() {
                self.folder(data_dir, path, &meta)?;
            } else if meta.is_file() {
                if !is_left_out(&path) {
                    self.push(path, false, &meta);
                }
            } else {
                tracing::warn!(
                    "{} is neither a file nor a folder, and is not backed up",
                    data_dir.join(&path).display()
                );
            }
        }
        Ok(())
    }

    fn folder(&mut self, data_dir: &Path, path: PathBuf, meta: &Metadata) -> io::Result<()> {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or("");
        if name == "lost+found" || name.starts_with("pgsql_tmp") {
            return Ok(());
        }
        let stays_empty = EMPTY.iter().any(|empty| Path::new(empty) == path);
        self.push(path.clone(), true, meta);
        if stays_empty {
            return Ok(());
        }
        self.walk(data_dir, &path)
    }

    fn tablespace(&mut self, data_dir: &Path, path: PathBuf) -> io::Result<()> {
        let oid = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        let Some(oid) = oid else {
            return Ok(());
        };
        let link = data_dir.join(&path);
        let (Some(place), Some(meta)) = (there(fs::read_link(&link))?, there(fs::metadata(&link))?)
        else {
            return Ok(());
        };
        self.tablespaces.push((oid, place));
        self.push(path.clone(), true, &meta);
        self.walk(data_dir, &path)
    }

    fn push(&mut self, path: PathBuf, is_folder: bool, meta: &Metadata) {
        self.entries.push(Entry {
            path,
            is_folder,
            bytes: if is_folder { 0 } else { meta.len() },
            mode: if meta.is_symlink() {
                0o700
            } else {
                meta.mode() & 0o7777
            },
            modified: u64::try_from(meta.mtime()).unwrap_or(0),
        });
    }
}

fn is_left_out(path: &Path) -> bool {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or("");
    LEFT_OUT.iter().any(|file| Path::new(file) == path)
        // Caches, and files of a server that runs.
        || name.starts_with("pg_internal.init")
        || name.starts_with("pgsql_tmp")
}

/// What went in the meantime is not there.
fn there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_the_running_server_stays_out_and_tablespaces_come_along() {
        let place = tempfile::tempdir().unwrap();
        let data_dir = place.path().join("data");
        let fast = place.path().join("fast");
        for folder in [
            "base/1/pgsql_tmp1",
            "global",
            "pg_wal/archive_status",
            "pg_tblspc",
            "log",
        ] {
            fs::create_dir_all(data_dir.join(folder)).unwrap();
        }
        fs::create_dir_all(fast.join("PG_15_202209061/1")).unwrap();
        for file in [
            "base/1/1249",
            "base/1/pg_internal.init",
            "base/1/pgsql_tmp1/x",
            "global/pg_control",
            "log/today",
            "pg_wal/000000010000000000000001",
            "postgresql.conf",
            "postmaster.pid",
            "standby.signal",
        ] {
            fs::write(data_dir.join(file), "12345678").unwrap();
        }
        fs::write(fast.join("PG_15_202209061/1/9"), "123").unwrap();
        std::os::unix::fs::symlink(&fast, data_dir.join("pg_tblspc/16384")).unwrap();

        let plan = Plan::of(&data_dir).unwrap();
        assert_eq!(plan.tablespaces, [(16_384, fast)]);
        assert_eq!(plan.bytes(), 19);
        let shown = |entry: &Entry| {
            let end = if entry.is_folder { "/" } else { "" };
            format!("{}{end}", entry.path.display())
        };
        let shown: Vec<String> = plan.entries.iter().map(shown).collect();
        let expected = [
            "base/",
            "base/1/",
            "base/1/1249",
            "global/",
            "log/",
            "pg_tblspc/",
            "pg_tblspc/16384/",
            "pg_tblspc/16384/PG_15_202209061/",
            "pg_tblspc/16384/PG_15_202209061/1/",
            "pg_tblspc/16384/PG_15_202209061/1/9",
            "pg_wal/",
            "postgresql.conf",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn parts_are_about_as_long_as_asked_for() {
        let entry = |bytes| Entry {
            path: PathBuf::new(),
            is_folder: false,
            bytes,
            mode: 0,
            modified: 0,
        };
        let plan = Plan {
            entries: [1, 4, 6, 20, 3, 3, 3].map(entry).into(),
            tablespaces: Vec::new(),
        };
        let parts = plan.into_parts(10);
        let bytes = |part: &Vec<Entry>| part.iter().map(|entry| entry.bytes).collect();
        let bytes: Vec<Vec<u64>> = parts.iter().map(bytes).collect();
        assert_eq!(bytes, [vec![1, 4], vec![6], vec![20], vec![3, 3, 3]]);
    }
}
