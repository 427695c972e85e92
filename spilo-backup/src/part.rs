//! One tar file of a base backup, on its way into the archive.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, mpsc};

use spilo_core::backup::{BackupError, BackupErrorKind, BackupName};
use tar::{Builder, EntryType, Header};

use crate::archive::Archive;
use crate::body::Body;
use crate::codec::Encode;
use crate::digest::Digest;
use crate::files::Entry;
use crate::layout;
use crate::push::seconds_since_1970;
use crate::sentinel::Part;

impl Archive {
    /// Stores one tar file of a backup, with what `add` puts into it.
    pub(crate) async fn push_part(
        &self,
        name: &BackupName,
        number: usize,
        add: impl FnOnce(&mut Builder<Counted>) -> io::Result<()> + Send + 'static,
    ) -> Result<Part, BackupError> {
        let options = Arc::clone(&self.options);
        let file = layout::part_name(number, options.codec);
        let key = format!("{}{file}", layout::parts(name));
        let (told, counted) = mpsc::channel();
        let (archive, place) = (self.clone(), self.objects.place(&key));
        let body = Body::written_by(move |writer| {
            let pack = || {
                let encoder = options.codec.encoder(options.level, writer)?;
                let mut tar = Builder::new(Counted {
                    encoder,
                    digest: Digest::default(),
                });
                add(&mut tar)?;
                tar.into_inner()?.finish()
            };
            let counts = pack().map_err(|error: io::Error| {
                let action = format!("pack {place}");
                archive
                    .error(BackupErrorKind::Unavailable, action, error.to_string())
                    .because(error)
            })?;
            // Whoever wanted to know is gone.
            told.send(counts).unwrap_or_default();
            Ok(())
        });
        let stored = self.objects.put(&key, body).await;
        let (bytes, crc32) = match (stored, counted.recv()) {
            (Ok(()), Ok(counts)) => counts,
            (Ok(()), Err(_)) => {
                let action = format!("pack {}", self.objects.place(&key));
                let kind = BackupErrorKind::Unavailable;
                return Err(self.error(kind, action, "it was not finished"));
            }
            // The name is ours alone: an answer was lost, and the request not.
            (Err(error), Ok(counts)) if error.kind() == BackupErrorKind::Conflict => {
                if self.digest(&key, self.options.codec).await? != counts {
                    return Err(error);
                }
                counts
            }
            (Err(error), _) => return Err(error),
        };
        Ok(Part {
            name: file,
            bytes,
            crc32,
        })
    }

    /// Stores what is known only once the backup has ended.
    pub(crate) async fn push_last(
        &self,
        name: &BackupName,
        number: usize,
        files: Vec<(&'static str, Vec<u8>)>,
    ) -> Result<Part, BackupError> {
        let modified = seconds_since_1970();
        let add = move |tar: &mut Builder<Counted>| {
            for (path, bytes) in &files {
                let mut header = header(EntryType::Regular, 0o600, modified, bytes.len() as u64);
                tar.append_data(&mut header, path, &bytes[..])?;
            }
            Ok(())
        };
        self.push_part(name, number, add).await
    }
}

/// Adds a file, or a folder. One that went in the meantime is left out.
pub(crate) fn add_entry(tar: &mut Builder<Counted>, root: &Path, entry: &Entry) -> io::Result<()> {
    if entry.is_folder {
        let mut header = header(EntryType::Directory, entry.mode, entry.modified, 0);
        return tar.append_data(&mut header, &entry.path, io::empty());
    }
    let path = root.join(&entry.path);
    let file = match File::open(&path) {
        // Replay makes up for it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            let text = format!("{}: {error}", path.display());
            return Err(io::Error::new(error.kind(), text));
        }
        Ok(file) => file,
    };
    // As long as it is now: what is replaced whole, like configuration, may have another length.
    let left = file.metadata()?.len();
    let mut header = header(EntryType::Regular, entry.mode, entry.modified, left);
    let bytes = Padded { file, left };
    tar.append_data(&mut header, &entry.path, bytes)
}

fn header(kind: EntryType, mode: u32, modified: u64, bytes: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(modified);
    header.set_size(bytes);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// A file as long as it was when it was opened: what it grew by is left out, what it was cut off
/// is zeros. Replay writes both anew.
struct Padded {
    file: File,
    left: u64,
}

impl Read for Padded {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(into.len());
        let into = &mut into[..most];
        let mut read = self.file.read(into)?;
        if read == 0 {
            into.fill(0);
            read = most;
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// What is compressed, counted before it is.
pub(crate) struct Counted {
    encoder: Box<dyn Encode>,
    digest: Digest,
}

impl Counted {
    fn finish(self) -> io::Result<(u64, u32)> {
        self.encoder.finish()?;
        Ok(self.digest.finish())
    }
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.encoder.write(bytes)?;
        self.digest.add(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.encoder.flush()
    }
}
