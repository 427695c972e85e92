//! Files on their way from the working directory to where the server wants them.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use spilo_core::segment::SegmentSize;
use tempfile::TempDir;

use crate::blocking;

/// A place of its own for one file. What lies there goes with it, also what is still written.
#[derive(Debug)]
pub(crate) struct Berth {
    folder: TempDir,
    path: PathBuf,
}

impl Berth {
    /// Makes one in the working directory.
    pub(crate) fn new(fetched: &Path, name: &str) -> io::Result<Self> {
        let folder = tempfile::Builder::new().tempdir_in(fetched)?;
        let path = folder.path().join(name);
        Ok(Self { folder, path })
    }

    /// Returns where the file lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns how long the files of its log are, by this one.
    pub(crate) fn size(&self) -> Option<SegmentSize> {
        let length = fs::metadata(&self.path).ok()?.len();
        SegmentSize::new(length).ok()
    }

    /// Moves the file to a path, on which it appears whole.
    ///
    /// # Cancellation
    /// It does not appear any more, except where it was being renamed.
    pub(crate) async fn hand_over(self, into: &Path) -> io::Result<()> {
        let (from, to) = (self.path.clone(), into.to_owned());
        match blocking(move || fs::rename(from, to)).await {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {}
            renamed => return renamed,
        }
        let mut beside = into.to_owned().into_os_string();
        beside.push(".spilo");
        let beside = PathBuf::from(beside);
        let (from, to) = (self.path.clone(), beside.clone());
        let copied = blocking(move || {
            let mut file = File::create(&to)?;
            let copied = io::copy(&mut File::open(from)?, &mut file);
            let copied = copied.and_then(|_| file.sync_all());
            if copied.is_err() {
                fs::remove_file(to).ok();
            }
            copied
        });
        copied.await?;
        let to = into.to_owned();
        // It is another step, so that nothing appears for a server that has given up waiting.
        blocking(move || fs::rename(beside, to)).await?;
        drop(self.folder);
        Ok(())
    }
}
