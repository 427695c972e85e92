//! How the floor cuts a data directory into objects.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// The objects of a base backup without a tool.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Plan {
    /// All directories, parents first.
    pub(crate) directories: Vec<PathBuf>,
    /// What each object holds.
    pub(crate) objects: Vec<Vec<Piece>>,
}

/// A part of a file.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Piece {
    /// The file, from the data directory.
    pub(crate) file: PathBuf,
    /// Where in it the part begins.
    pub(crate) offset: u64,
    /// How long it is.
    pub(crate) bytes: u64,
}

impl Plan {
    /// Looks at a data directory.
    ///
    /// # Errors
    ///
    /// Fails where it cannot be read.
    pub(crate) fn of(data_dir: &Path) -> Result<Self> {
        let mut plan = Self {
            directories: Vec::new(),
            objects: Vec::new(),
        };
        let (mut object, mut room) = (Vec::new(), OBJECT_BYTES);
        for (file, mut bytes) in plan.walk(data_dir)? {
            let mut offset = 0;
            loop {
                let part = bytes.min(room);
                let file = file.clone();
                object.push(Piece {
                    file,
                    offset,
                    bytes: part,
                });
                (offset, bytes, room) = (offset + part, bytes - part, room - part);
                if room == 0 {
                    plan.objects.push(std::mem::take(&mut object));
                    room = OBJECT_BYTES;
                }
                if bytes == 0 {
                    break;
                }
            }
        }
        if !object.is_empty() {
            plan.objects.push(object);
        }
        Ok(plan)
    }

    /// Returns how much there is.
    pub(crate) fn bytes(&self) -> u64 {
        self.objects.iter().flatten().map(|piece| piece.bytes).sum()
    }

    fn walk(&mut self, data_dir: &Path) -> Result<Vec<(PathBuf, u64)>> {
        let mut files = Vec::new();
        let mut ahead = vec![PathBuf::new()];
        while let Some(directory) = ahead.pop() {
            let path = data_dir.join(&directory);
            self.directories.push(directory.clone());
            let entries = fs::read_dir(&path);
            for entry in entries.with_context(|| format!("cannot read {}", path.display()))? {
                let entry = entry?;
                let name = directory.join(entry.file_name());
                let kind = entry.file_type()?;
                if kind.is_dir() && !LEFT_OUT.iter().any(|out| name.as_path() == Path::new(out)) {
                    ahead.push(name);
                } else if kind.is_file() && name.as_path() != Path::new("postmaster.pid") {
                    files.push((name, entry.metadata()?.len()));
                }
            }
        }
        Ok(files)
    }
}

/// Enough to make requests rare, and little enough for several to be in memory.
const OBJECT_BYTES: u64 = 16 << 20;

/// What no tool takes into a base backup.
const LEFT_OUT: [&str; 3] = ["pg_wal", "pg_stat_tmp", "pg_replslot"];
