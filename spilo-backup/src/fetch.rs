//! A base backup, out of the archive.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use spilo_core::backup::{BackupError, BackupErrorKind, BackupName};
use spilo_core::pg::Progress;
use tar::EntryType;
use tokio::task::JoinSet;

use crate::archive::Archive;
use crate::blocking;
use crate::body::PIECE;
use crate::codec::Codec;
use crate::digest::Digest;
use crate::layout;
use crate::meter::Meter;
use crate::sentinel::Part;
use crate::unpack::Unpacked;

/// Where the parts of a backup go.
#[derive(Debug)]
struct Target {
    data_dir: PathBuf,
    tablespaces: Vec<(u32, PathBuf)>,
    meter: Meter,
    /// A part failed: the others are not needed any more.
    failed: AtomicBool,
}

/// Tells the threads to stop when it is dropped.
struct Ends(Arc<Target>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.failed.store(true, Ordering::Relaxed);
    }
}

/// Without this file no server starts on a directory: it appears last.
const CONTROL: &str = "global/pg_control";

/// What it is called until then.
const HELD_BACK: &str = "global/pg_control.unfinished";

impl Archive {
    /// Unpacks a backup, as [`BackupStore::restore`](spilo_core::backup::BackupStore::restore) says.
    ///
    /// Tablespaces go where they were; their directories have to be empty too.
    pub(crate) async fn fetch_backup(
        &self,
        name: &BackupName,
        into: &Path,
        progress: Progress,
    ) -> Result<(), BackupError> {
        let action = format!("restore {name} into {}", into.display());
        let sentinel = self.sentinel(name).await.map_err(|error| {
            if error.kind() == BackupErrorKind::NotFound {
                let kind = BackupErrorKind::NotFound;
                return self.error(kind, &action, "there is no whole backup of this name");
            }
            error
        })?;
        let folder = layout::parts(name);
        let listed = self.objects.list(&folder).await?;
        let names = listed.iter().filter_map(|object| {
            let name = object.key.strip_prefix(&folder)?;
            Some((name.to_owned(), layout::read_part(name)?))
        });
        let mut parts: Vec<(String, Codec)> = names.collect();
        let own = sentinel.own.as_ref().map(|own| &own.parts[..]);
        let damaged = |problem| self.error(BackupErrorKind::Damaged, &action, problem);
        if let Some(lost) = lost(&parts, own) {
            return Err(damaged(format!("its part {lost} is not in the archive")));
        }
        if let Some(own) = own {
            // What was left of another attempt is not of this backup.
            parts.retain(|(name, _)| own.iter().any(|part| part.name == *name));
        }
        let total = sentinel.info.size.unwrap_or(0);
        let target = Target {
            data_dir: into.to_owned(),
            tablespaces: sentinel.tablespaces.clone(),
            meter: Meter::new(format!("restore of {name}"), total, progress),
            failed: AtomicBool::new(false),
        };
        let target = Arc::new(target);
        // Whatever ends this ends its threads.
        let _ends = Ends(Arc::clone(&target));
        let local = |error: io::Error| {
            let kind = match error.kind() {
                io::ErrorKind::DirectoryNotEmpty => BackupErrorKind::Refused,
                _ => BackupErrorKind::Unavailable,
            };
            self.error(kind, &action, error.to_string()).because(error)
        };
        let prepared = Arc::clone(&target);
        blocking(move || prepared.prepare()).await.map_err(local)?;
        let expected = own.unwrap_or_default();
        self.fetch_parts(&folder, parts, expected, &target).await?;
        if !into.join(HELD_BACK).is_file() {
            return Err(damaged(format!("it has no {CONTROL}")));
        }
        blocking(move || target.finish()).await.map_err(local)
    }

    async fn fetch_parts(
        &self,
        folder: &str,
        parts: Vec<(String, Codec)>,
        expected: &[Part],
        target: &Arc<Target>,
    ) -> Result<(), BackupError> {
        let mut waiting = parts.into_iter();
        let mut running = JoinSet::new();
        let mut outcome = Ok(());
        loop {
            while outcome.is_ok()
                && running.len() < self.options.parallel.max(1)
                && let Some((name, codec)) = waiting.next()
            {
                let archive = self.clone();
                let (key, target) = (format!("{folder}{name}"), Arc::clone(target));
                let part = expected.iter().find(|part| part.name == name).cloned();
                running.spawn(async move {
                    let work = move |unpacked| take_part(unpacked, part.as_ref(), &target);
                    archive.unpack(&key, codec, work).await
                });
            }
            let done = match running.join_next().await {
                Some(Ok(done)) => done,
                Some(Err(error)) => {
                    let kind = BackupErrorKind::Unavailable;
                    Err(self.error(kind, "unpack a part", error.to_string()))
                }
                None => return outcome,
            };
            if done.is_err() && outcome.is_ok() {
                // The others stop soon, and are waited for: nobody writes there afterwards.
                target.failed.store(true, Ordering::Relaxed);
                outcome = done;
            }
        }
    }
}

/// Returns a part that ought to be there and is not.
fn lost(parts: &[(String, Codec)], own: Option<&[Part]>) -> Option<String> {
    let there: BTreeSet<&str> = parts.iter().map(|(name, _)| name.as_str()).collect();
    match own {
        Some(own) => {
            let lost = own.iter().find(|part| !there.contains(&part.name[..]));
            lost.map(|part| part.name.clone())
        }
        // WAL-E does not say how many there are, but numbers them from 0.
        None => {
            let numbers = there.iter().filter_map(|name| {
                let digits = name.strip_prefix("part_")?.split('.').next()?;
                digits.parse::<usize>().ok()
            });
            let numbers: BTreeSet<usize> = numbers.collect();
            let last = numbers.last().copied().unwrap_or(0);
            let lost = (0..=last).find(|number| !numbers.contains(number));
            lost.map(|number| format!("part_{number:08}"))
        }
    }
}

impl Target {
    /// Makes sure that nothing is overwritten.
    fn prepare(&self) -> io::Result<()> {
        let places = self.tablespaces.iter().map(|(_, place)| place);
        for place in places.chain([&self.data_dir]) {
            match fs::read_dir(place) {
                Ok(mut entries) => {
                    if entries.next().is_some() {
                        let text = format!("{} is not empty", place.display());
                        return Err(io::Error::new(io::ErrorKind::DirectoryNotEmpty, text));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => make_folder(place)?,
                Err(error) => {
                    let text = format!("{}: {error}", place.display());
                    return Err(io::Error::new(error.kind(), text));
                }
            }
        }
        for (oid, place) in &self.tablespaces {
            make_folder(&self.data_dir.join("pg_tblspc"))?;
            symlink(place, self.data_dir.join(format!("pg_tblspc/{oid}")))?;
        }
        // WAL-E leaves these out altogether.
        for folder in ["pg_replslot", "pg_stat_tmp", "pg_wal"] {
            make_folder(&self.data_dir.join(folder))?;
        }
        Ok(())
    }

    /// Makes all of it durable, and then a data directory.
    fn finish(&self) -> io::Result<()> {
        let places = self.tablespaces.iter().map(|(_, place)| place);
        for place in places.chain([&self.data_dir]) {
            rustix::fs::syncfs(File::open(place)?)?;
        }
        if self.failed.load(Ordering::Relaxed) {
            return Err(io::Error::other("it was given up"));
        }
        let (held, control) = (self.data_dir.join(HELD_BACK), self.data_dir.join(CONTROL));
        fs::rename(held, control)?;
        File::open(self.data_dir.join("global"))?.sync_all()
    }

    /// Returns where an entry goes, or why it goes nowhere.
    fn place_of(&self, entry: &Path) -> Result<PathBuf, String> {
        let mut plain = PathBuf::new();
        for component in entry.components() {
            match component {
                Component::Normal(name) => plain.push(name),
                Component::CurDir => {}
                _ => return Err(format!("{} leads out of it", entry.display())),
            }
        }
        if plain == Path::new(CONTROL) {
            return Ok(self.data_dir.join(HELD_BACK));
        }
        for (oid, place) in &self.tablespaces {
            if let Ok(inside) = plain.strip_prefix(format!("pg_tblspc/{oid}")) {
                return Ok(place.join(inside));
            }
        }
        Ok(self.data_dir.join(plain))
    }
}

/// Unpacks one tar file.
fn take_part(
    unpacked: Unpacked,
    expected: Option<&Part>,
    target: &Target,
) -> Result<(), BackupError> {
    let mut tar = tar::Archive::new(Counted {
        unpacked,
        digest: Digest::default(),
    });
    let taken = take_entries(&mut tar, target);
    let mut rest = tar.into_inner();
    match taken {
        Ok(()) => {}
        Err(Failure::Reading(error)) => return Err(rest.unpacked.broken(&error)),
        Err(Failure::Entry(problem)) => return Err(rest.unpacked.damaged(problem)),
        Err(Failure::Writing(path, error)) => {
            return Err(rest.unpacked.local("write", &path, error));
        }
    }
    // Whatever comes after the end of the tar file is part of the object, and of its checksum.
    let rested = io::copy(&mut rest, &mut io::sink());
    rested.map_err(|error| rest.unpacked.broken(&error))?;
    let (bytes, crc32) = rest.digest.finish();
    match expected {
        Some(part) if (part.bytes, part.crc32) != (bytes, crc32) => {
            let problem = format!(
                "it holds {bytes} bytes with the checksum {crc32:08x} and should hold {} with {:08x}",
                part.bytes, part.crc32
            );
            Err(rest.unpacked.damaged(problem))
        }
        _ => Ok(()),
    }
}

enum Failure {
    Reading(io::Error),
    Entry(String),
    Writing(PathBuf, io::Error),
}

fn take_entries<R: Read>(tar: &mut tar::Archive<R>, target: &Target) -> Result<(), Failure> {
    for entry in tar.entries().map_err(Failure::Reading)? {
        let mut entry = entry.map_err(Failure::Reading)?;
        let path = entry.path().map_err(Failure::Reading)?.into_owned();
        // What WAL-E calls the data directory itself.
        if path == Path::new("/") {
            continue;
        }
        let place = target.place_of(&path).map_err(Failure::Entry)?;
        let failed = |error| Failure::Writing(place.clone(), error);
        if target.failed.load(Ordering::Relaxed) {
            return Err(Failure::Entry("another part failed".to_owned()));
        }
        match entry.header().entry_type() {
            EntryType::Directory => make_folder(&place).map_err(failed)?,
            EntryType::Regular | EntryType::Continuous => {
                if let Some(folder) = place.parent() {
                    make_folder(folder).map_err(failed)?;
                }
                let opened = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&place);
                let mut file = match opened {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                        let problem = format!("{} is in the backup twice", path.display());
                        return Err(Failure::Entry(problem));
                    }
                    opened => opened.map_err(failed)?,
                };
                let mut piece = vec![0; PIECE];
                loop {
                    let read = entry.read(&mut piece).map_err(Failure::Reading)?;
                    if read == 0 {
                        break;
                    }
                    if target.failed.load(Ordering::Relaxed) {
                        return Err(Failure::Entry("another part failed".to_owned()));
                    }
                    file.write_all(&piece[..read]).map_err(failed)?;
                    target.meter.add(read as u64);
                }
            }
            // Of WAL-E: where tablespaces are. They are made from the sentinel.
            EntryType::Symlink => {}
            other => {
                let problem = format!("{} is of the kind {other:?}", path.display());
                return Err(Failure::Entry(problem));
            }
        }
    }
    Ok(())
}

/// Makes a folder that only its owner enters, as PostgreSQL wants it.
fn make_folder(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(path)
}

/// What is unpacked, counted.
struct Counted {
    unpacked: Unpacked,
    digest: Digest,
}

impl Read for Counted {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.unpacked.read(into)?;
        self.digest.add(&into[..read]);
        Ok(read)
    }
}
