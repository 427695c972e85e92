//! Files of the log, into the archive and back.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use spilo_core::backup::{BackupError, BackupErrorKind};
use spilo_core::history::History;
use spilo_core::ids::SystemId;
use spilo_core::segment::{ArchiveFile, SegmentName};

use crate::archive::{Archive, DOCUMENT};
use crate::blocking;
use crate::body::{Body, PIECE};
use crate::codec::Codec;
use crate::forks::{Fork, GivenUp};
use crate::layout::{self, WAL};
use crate::page::{self, FirstPage};
use crate::unpack::Unpacked;

/// What became of a file of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It was not in the archive, and is now.
    New,
    /// It was there already, with these bytes.
    Already,
    /// It was not put there, and need not be: this server has left its timeline for a later one
    /// before the end of the file.
    GivenUp,
}

impl Archive {
    /// Archives a file of the log. Returns once it is durable in the store.
    ///
    /// # Errors
    /// `Conflict` when the archive has a file of this name with other bytes, which is left as it
    /// is: the error says whose it is. `Refused` when the file is not what its name says, and when
    /// it does not end before the point at which another server has left its timeline for a later
    /// one: the histories in the archive tell, for which it is asked once.
    ///
    /// # Cancellation
    /// The file is in the archive whole or not at all.
    pub async fn push_wal(&self, path: &Path) -> Result<Pushed, BackupError> {
        let action = || format!("archive {}", path.display());
        let refused = |problem: String| self.error(BackupErrorKind::Refused, action(), problem);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let file: ArchiveFile = name
            .parse()
            .map_err(|error: spilo_core::segment::BadSegmentName| refused(error.to_string()))?;
        let source = path.to_owned();
        let checked = blocking(move || check_file(&source, file)).await;
        let ours = match checked {
            Ok(page) => page.map_err(refused)?,
            Err(error) => {
                let kind = BackupErrorKind::Unavailable;
                let error = self.error(kind, action(), error.to_string()).because(error);
                return Err(error);
            }
        };
        let (stored, given_up) =
            tokio::try_join!(self.stored(&file), self.given_up(file, ours, path))?;
        let given_up = given_up.map(|given_up| match given_up {
            GivenUp::Here(Fork { next, at }) => {
                tracing::info!(
                    "{name} is not archived: timeline {next} begins at {at}, before its end"
                );
                Ok(Pushed::GivenUp)
            }
            GivenUp::Elsewhere(refused) => Err(refused),
        });
        if let Some((key, codec)) = stored.into_iter().next() {
            let compared = self.same(path, ours, &key, codec).await;
            // What is there with the same bytes is there, wherever timelines parted.
            return match (compared, given_up) {
                (Err(error), Some(given_up)) if error.kind() == BackupErrorKind::Conflict => {
                    given_up
                }
                (compared, _) => compared,
            };
        }
        if let Some(given_up) = given_up {
            return given_up;
        }
        let codec = self.options.codec;
        let key = layout::wal(&file, codec);
        match self.objects.put(&key, self.packed(path)).await {
            // Somebody was faster, or the answer to the same request of ours was lost.
            Err(error) if error.kind() == BackupErrorKind::Conflict => {
                self.same(path, ours, &key, codec).await
            }
            // A server that has it says so before it has read the rest, and closes the line; that
            // may be all one sees of the answer.
            Err(error) if error.kind() == BackupErrorKind::Unavailable => {
                match self.same(path, ours, &key, codec).await {
                    Ok(Pushed::Already) => Ok(Pushed::New),
                    Err(other) if other.kind() == BackupErrorKind::Conflict => Err(other),
                    _ => Err(error),
                }
            }
            outcome => outcome.map(|()| Pushed::New),
        }
    }

    /// Fetches a file of the log to a path, on which it appears whole or not at all.
    ///
    /// # Errors
    /// `NotFound` when the archive has no such file, `Damaged` when what it has is not what the
    /// name says.
    ///
    /// # Cancellation
    /// Nothing is at the path. A file whose name ends in `.spilo` may be beside it, which the next
    /// attempt replaces.
    pub async fn fetch_wal(&self, name: &str, into: &Path) -> Result<(), BackupError> {
        let action = format!("fetch {name}");
        let file: ArchiveFile =
            name.parse()
                .map_err(|error: spilo_core::segment::BadSegmentName| {
                    self.error(BackupErrorKind::Refused, &action, error.to_string())
                })?;
        // Most often it is compressed as this archive would do it, which saves asking.
        let expected = layout::wal(&file, self.options.codec);
        let mut failed = match self
            .fetch_one(file, &expected, self.options.codec, into)
            .await
        {
            Ok(()) => return Ok(()),
            Err(error) if goes_on(&error) => error,
            Err(error) => return Err(error),
        };
        for (key, codec) in self.stored(&file).await? {
            // One that was not there a moment ago, and is listed, has come since.
            if key == expected && failed.kind() == BackupErrorKind::Damaged {
                continue;
            }
            match self.fetch_one(file, &key, codec, into).await {
                Ok(()) => return Ok(()),
                Err(error) if goes_on(&error) => failed = error,
                Err(error) => return Err(error),
            }
        }
        Err(failed)
    }

    /// Fetches an archived file for a recovery that ends where the log does: that a file of the log is
    /// not there means that, unless its timeline goes on after it.
    ///
    /// # Errors
    /// As [`fetch_wal`](Self::fetch_wal); `Damaged` where the file is missing in the middle of the log,
    /// and does not come within ten seconds either, as one does that is pushed at the same time as
    /// those after it.
    ///
    /// # Cancellation
    /// As [`fetch_wal`](Self::fetch_wal).
    pub async fn fetch_wal_to_the_end(&self, name: &str, into: &Path) -> Result<(), BackupError> {
        for _ in 0..LATE {
            match self.fetch_wal(name, into).await {
                Err(error) if error.kind() == BackupErrorKind::NotFound => {
                    if !self.goes_on_after(name).await? {
                        return Err(error);
                    }
                }
                fetched => return fetched,
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let problem = "it is not in the archive, and later files of its timeline are: the log has a \
                       hole here and not its end; see `wal-verify`, and take a newer backup";
        let action = format!("fetch {name}");
        Err(self.error(BackupErrorKind::Damaged, action, problem))
    }

    /// Returns whether a timeline goes on after a file of its log.
    async fn goes_on_after(&self, name: &str) -> Result<bool, BackupError> {
        let Ok(ArchiveFile::Segment(_)) = name.parse() else {
            return Ok(false);
        };
        let timeline = name.get(..8).unwrap_or_default();
        let listed = self.objects.list(&format!("{WAL}{timeline}")).await?;
        let mut files = listed
            .iter()
            .filter_map(|object| layout::read_wal(&object.key));
        // Names of one timeline are in the order of the log.
        Ok(files
            .any(|(file, _)| matches!(file, ArchiveFile::Segment(_)) && *file.to_string() > *name))
    }

    /// Returns the objects that hold a file of the log, compressed however.
    pub(crate) async fn stored(
        &self,
        file: &ArchiveFile,
    ) -> Result<Vec<(String, Codec)>, BackupError> {
        let listed = self.objects.list(&layout::wal(file, Codec::None)).await?;
        self.not_sealed(&listed)?;
        let of_it = listed.into_iter().filter_map(|object| {
            let (stored, codec) = layout::read_wal(&object.key)?;
            (stored == *file).then_some((object.key, codec))
        });
        Ok(of_it.collect())
    }

    /// Returns the cluster that wrote an archived file of the log.
    pub(crate) async fn writer_of(
        &self,
        key: &str,
        codec: Codec,
        name: SegmentName,
    ) -> Result<SystemId, BackupError> {
        self.unpack(key, codec, move |mut unpacked| {
            let mut begin = [0; page::LENGTH];
            let read = fill(&mut unpacked, &mut begin).map_err(|error| unpacked.broken(&error))?;
            let page = FirstPage::read(&begin[..read], name);
            let page = page.map_err(|problem| unpacked.damaged(problem))?;
            Ok(page.system)
        })
        .await
    }

    async fn fetch_one(
        &self,
        file: ArchiveFile,
        key: &str,
        codec: Codec,
        into: &Path,
    ) -> Result<(), BackupError> {
        let into = into.to_owned();
        self.unpack(key, codec, move |mut unpacked| {
            let mut beside = into.clone().into_os_string();
            beside.push(".spilo");
            let beside = PathBuf::from(beside);
            let written = write_file(&mut unpacked, file, &beside);
            if written.is_err() {
                drop(fs::remove_file(&beside));
            }
            written?;
            let renamed = fs::rename(&beside, &into);
            renamed.map_err(|error| unpacked.local("write", &into, error))
        })
        .await
    }

    /// Compares a file with the one in the archive.
    async fn same(
        &self,
        path: &Path,
        ours: Option<FirstPage>,
        key: &str,
        codec: Codec,
    ) -> Result<Pushed, BackupError> {
        let source = path.to_owned();
        let compared = self.unpack(key, codec, move |unpacked| compare(unpacked, &source));
        let Some(difference) = compared.await? else {
            return Ok(Pushed::Already);
        };
        let name: Option<SegmentName> = path
            .file_name()
            .and_then(|name| name.to_str()?.get(..24)?.parse().ok());
        let theirs = name.and_then(|name| FirstPage::read(&difference.begin, name).ok());
        let whose = match (ours, theirs) {
            (Some(ours), Some(theirs)) if ours.system != theirs.system => format!(
                "it is of the cluster {}, and this one of {}: each cluster needs an archive of \
                 its own",
                theirs.system, ours.system
            ),
            (Some(_), Some(_)) => "it is of the same cluster: two servers have written this part \
                                   of the log, and the archive keeps what was there first"
                .to_owned(),
            _ => "the archive keeps what was there first".to_owned(),
        };
        let place = self.objects.place(key);
        let problem = format!(
            "{place} is there with other bytes from byte {} on; {whose}",
            difference.at
        );
        let action = format!("archive {}", path.display());
        Err(self.error(BackupErrorKind::Conflict, action, problem))
    }

    /// Returns what an object of the file is made of.
    fn packed(&self, path: &Path) -> Body {
        let (archive, path) = (self.clone(), path.to_owned());
        Body::written_by(move |writer| {
            let options = &archive.options;
            let pack = || {
                let mut file = File::open(&path)?;
                let mut encoder = options.codec.encoder(options.level, writer)?;
                let mut piece = vec![0; PIECE];
                loop {
                    match file.read(&mut piece)? {
                        0 => return encoder.finish(),
                        read => encoder.write_all(&piece[..read])?,
                    }
                }
            };
            pack().map_err(|error: io::Error| {
                let action = format!("archive {}", path.display());
                archive
                    .error(BackupErrorKind::Unavailable, action, error.to_string())
                    .because(error)
            })
        })
    }
}

/// Whether the same file may be there in another form that is good.
fn goes_on(error: &BackupError) -> bool {
    matches!(
        error.kind(),
        BackupErrorKind::NotFound | BackupErrorKind::Damaged
    )
}

/// Returns the first page of a file that has one, or why it is not what its name says.
fn check_file(path: &Path, file: ArchiveFile) -> io::Result<Result<Option<FirstPage>, String>> {
    let (ArchiveFile::Segment(name) | ArchiveFile::Partial(name)) = file else {
        fs::metadata(path)?;
        return Ok(Ok(None));
    };
    let mut begin = Vec::with_capacity(page::LENGTH);
    let mut opened = File::open(path)?;
    let limit = page::LENGTH as u64;
    (&mut opened).take(limit).read_to_end(&mut begin)?;
    let page = match FirstPage::read(&begin, name) {
        Ok(page) => page,
        Err(problem) => return Ok(Err(problem)),
    };
    let length = opened.metadata()?.len();
    if length != page.size.bytes() {
        let whole = page.size.bytes();
        let problem = format!("it has {length} bytes, and files of its log have {whole}");
        return Ok(Err(problem));
    }
    Ok(Ok(Some(page)))
}

/// Writes what an object holds, and checks that it is what its name says.
fn write_file(unpacked: &mut Unpacked, file: ArchiveFile, path: &Path) -> Result<(), BackupError> {
    let created = File::create(path).map_err(|error| unpacked.local("write", path, error))?;
    let mut kept = Kept {
        file: created,
        begin: Vec::with_capacity(page::LENGTH),
    };
    let length = unpacked.write_to(&mut kept, path)?;
    match file {
        ArchiveFile::Segment(name) | ArchiveFile::Partial(name) => {
            let page = FirstPage::read(&kept.begin, name);
            let page = page.map_err(|problem| unpacked.damaged(problem))?;
            let whole = page.size.bytes();
            if length != whole {
                let problem = format!("it holds {length} bytes of a file of {whole}");
                return Err(unpacked.damaged(problem));
            }
        }
        ArchiveFile::History(timeline) => {
            if length > DOCUMENT as u64 {
                return Err(unpacked.damaged("no history is so long"));
            }
            let text = fs::read(path).map_err(|error| unpacked.local("read", path, error))?;
            // A restore point may have a name in any encoding.
            let read = History::parse(timeline, &String::from_utf8_lossy(&text));
            read.map_err(|error| unpacked.damaged(error.to_string()))?;
        }
        ArchiveFile::Label(..) => {}
    }
    Ok(())
}

/// A file, and what was written to its beginning.
struct Kept {
    file: File,
    begin: Vec<u8>,
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        let room = page::LENGTH - self.begin.len();
        self.begin.extend_from_slice(&bytes[..written.min(room)]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Where an object differs from a file.
struct Difference {
    at: u64,
    /// The beginning of what the object holds.
    begin: Vec<u8>,
}

fn compare(mut stored: Unpacked, path: &Path) -> Result<Option<Difference>, BackupError> {
    let mut ours = File::open(path).map_err(|error| stored.local("read", path, error))?;
    let (mut theirs, mut own) = (vec![0; PIECE], vec![0; PIECE]);
    let mut begin = Vec::new();
    let mut at: u64 = 0;
    loop {
        let read = fill(&mut stored, &mut theirs).map_err(|error| stored.broken(&error))?;
        let mine = fill(&mut ours, &mut own).map_err(|error| stored.local("read", path, error))?;
        if at == 0 {
            begin = theirs[..read.min(page::LENGTH)].to_vec();
        }
        let mut pairs = theirs[..read].iter().zip(&own[..mine]);
        let differs = pairs.position(|(theirs, ours)| theirs != ours);
        if differs.is_some() || read != mine {
            let common = differs.unwrap_or_else(|| read.min(mine));
            let at = at + common as u64;
            return Ok(Some(Difference { at, begin }));
        }
        if read == 0 {
            return Ok(None);
        }
        at += read as u64;
    }
}

/// Reads until the buffer is full or there is no more.
fn fill(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match from.read(&mut into[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// How many seconds a file may come later than those after it.
const LATE: u32 = 10;
