//! An archive in a directory, of a disk or of a network file system.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use spilo_core::backup::{BackupError, BackupErrorKind};
use tempfile::NamedTempFile;

use crate::blocking;
use crate::body::{Body, PIECE};
use crate::objects::{Object, Objects};

/// Objects as files under one directory.
///
/// An object is written under a name that begins with a dot, made durable and then given its own
/// name, which fails where that is taken. A writer that was killed leaves a file with a dot; no
/// listing has it.
#[derive(Clone, Debug)]
pub struct Directory {
    root: PathBuf,
}

impl Directory {
    /// Takes the directory, which has to be there: one that is not may be one that is not mounted.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    fn is_there(&self, action: &str, key: &str) -> Result<(), BackupError> {
        if self.root.is_dir() {
            return Ok(());
        }
        let action = format!("{action} {}", self.place(key));
        let root = self.root.display();
        let problem = format!("there is no directory {root}: make it, or mount what belongs there");
        let kind = BackupErrorKind::Refused;
        Err(BackupError::new(self.kind(), kind, action, problem))
    }

    fn error(&self, action: &str, key: &str, error: io::Error) -> BackupError {
        let place = self.place(key);
        let (kind, remedy) = match error.kind() {
            io::ErrorKind::NotFound => (BackupErrorKind::NotFound, ""),
            io::ErrorKind::AlreadyExists => (BackupErrorKind::Conflict, ""),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => (
                BackupErrorKind::Refused,
                "; give the user that runs this the right to write there",
            ),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                (BackupErrorKind::Unavailable, "; make room there")
            }
            _ => (BackupErrorKind::Unavailable, ""),
        };
        let problem = format!("{error}{remedy}");
        BackupError::new(self.kind(), kind, format!("{action} {place}"), problem).because(error)
    }
}

#[async_trait]
impl Objects for Directory {
    fn kind(&self) -> &'static str {
        "directory"
    }

    fn place(&self, key: &str) -> String {
        self.path(key).display().to_string()
    }

    async fn put(&self, key: &str, mut body: Body) -> Result<(), BackupError> {
        let path = self.path(key);
        let failed = |error| self.error("write", key, error);
        let folder = path.parent().unwrap_or(&self.root).to_owned();
        let root = self.root.clone();
        self.is_there("write", key)?;
        let made = blocking(move || {
            make_folders(&root, &folder)?;
            tempfile::Builder::new().prefix(".new-").tempfile_in(folder)
        });
        let mut file = made.await.map_err(failed)?;
        while let Some(bytes) = body.next().await? {
            let written = blocking(move || {
                io::Write::write_all(&mut file, &bytes)?;
                Ok(file)
            });
            file = written.await.map_err(failed)?;
        }
        let kept = blocking(move || keep(file, &path));
        kept.await.map_err(failed)
    }

    async fn get(&self, key: &str) -> Result<Body, BackupError> {
        let path = self.path(key);
        let opened = blocking(move || File::open(path)).await;
        let mut file = match opened {
            Ok(file) => file,
            Err(error) => {
                self.is_there("read", key)?;
                return Err(self.error("read", key, error));
            }
        };
        let (this, key) = (self.clone(), key.to_owned());
        Ok(Body::made_by(move |sender| async move {
            loop {
                let read = blocking(move || {
                    let mut piece = Vec::with_capacity(PIECE);
                    let limit = u64::try_from(PIECE).unwrap_or(u64::MAX);
                    file.by_ref().take(limit).read_to_end(&mut piece)?;
                    Ok((file, piece))
                });
                let read = read.await.map_err(|error| this.error("read", &key, error));
                let piece;
                (file, piece) = read?;
                if piece.is_empty() || !sender.send(Bytes::from(piece)).await {
                    return Ok(());
                }
            }
        }))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Object>, BackupError> {
        // Whatever stands before the last slash is a folder.
        let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
        let (root, begin) = (self.root.clone(), self.path(folder));
        self.is_there("list", prefix)?;
        let wanted = prefix.to_owned();
        let walked = blocking(move || {
            let mut found = Vec::new();
            walk(&root, &begin, &wanted, &mut found)?;
            found.sort();
            Ok(found)
        });
        walked
            .await
            .map_err(|error| self.error("list", prefix, error))
    }

    async fn delete(&self, key: &str) -> Result<(), BackupError> {
        let (root, path) = (self.root.clone(), self.path(key));
        let deleted = blocking(move || match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => {
                // A folder without objects is none; one that has some stays.
                let mut folder = path.parent();
                while let Some(empty) = folder.filter(|at| **at != *root) {
                    if fs::remove_dir(empty).is_err() {
                        break;
                    }
                    folder = empty.parent();
                }
                Ok(())
            }
        });
        deleted
            .await
            .map_err(|error| self.error("delete", key, error))
    }
}

/// Makes a folder, and what it lies in, durable.
fn make_folders(root: &Path, folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    let mut made = folder;
    while let Some(parent) = made.parent() {
        File::open(parent)?.sync_all()?;
        if made == root {
            break;
        }
        made = parent;
    }
    Ok(())
}

/// Gives a file that is written its name, unless that is taken.
fn keep(file: NamedTempFile, path: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    file.persist_noclobber(path)
        .map_err(|failed| failed.error)?;
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    File::open(folder)?.sync_all()
}

fn walk(root: &Path, folder: &Path, prefix: &str, found: &mut Vec<Object>) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let Some(key) = path.strip_prefix(root).ok().and_then(Path::to_str) else {
            continue;
        };
        let hidden = key
            .rsplit('/')
            .next()
            .is_some_and(|name| name.starts_with('.'));
        if hidden || !(key.starts_with(prefix) || prefix.starts_with(key)) {
            continue;
        }
        // What went in the meantime is not there.
        let Ok(meta) = fs::metadata(&path) else {
            continue;
        };
        if meta.is_dir() {
            walk(root, &path, prefix, found)?;
        } else if key.starts_with(prefix) {
            found.push(Object {
                key: key.to_owned(),
                size: meta.len(),
            });
        }
    }
    Ok(())
}
