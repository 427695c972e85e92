//! Files of and beside the data directory.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use spilo_core::pg::PgOpKind;

use super::disk;

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
    let mut file = create(&temporary, owner)?;
    file.write_all(text.as_bytes())?;
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

/// Creates a file that only its owner may read, in the place of whatever has its name.
///
/// The agent may be root and the directory is the server's user's, who can put a link there: the
/// name is taken away and made anew, never opened.
pub(crate) fn create(path: &Path, owner: Owner) -> io::Result<File> {
    ignore_missing(fs::remove_file(path))?;
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
    }
    Ok(file)
}

/// Opens a file that the server's user has made, and nothing else that this user has put there: no
/// link, no pipe, no file of another user.
///
/// # Errors
/// With the path in the text, when it is something else.
pub(crate) fn open_own(path: &Path, how: &mut OpenOptions, owner: Owner) -> io::Result<File> {
    // Not to wait for whoever opens the other end of a pipe.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = how.custom_flags(flags.bits().cast_signed()).open(path);
    let file = opened.map_err(|error| match fs::read_link(path) {
        Ok(target) => denied(format!(
            "{} is a link to {}, and is not followed",
            path.display(),
            target.display()
        )),
        Err(_) => error,
    })?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(denied(format!("{} is no file", path.display())));
    }
    match owner {
        Some((uid, _)) if metadata.uid() != uid => {
            let theirs = metadata.uid();
            let problem = format!("{} is user {theirs}'s, not user {uid}'s", path.display());
            Err(denied(problem))
        }
        _ => Ok(file),
    }
}

/// Reads the text of a file that the server's user has made, as [`open_own`] opens it.
pub(crate) fn read_own(path: &Path, owner: Owner) -> io::Result<String> {
    io::read_to_string(open_own(path, OpenOptions::new().read(true), owner)?)
}

/// Creates a directory that only its owner may enter, or makes an existing one so.
///
/// # Errors
/// Also when it is a link that [`open_directory`] does not follow.
pub(crate) fn private_directory(path: &Path, owner: Owner) -> io::Result<()> {
    fs::create_dir_all(path)?;
    let directory = open_directory(path)?;
    directory.set_permissions(Permissions::from_mode(0o700))?;
    match owner {
        Some((uid, gid)) => std::os::unix::fs::fchown(&directory, Some(uid), Some(gid)),
        None => Ok(()),
    }
}

/// Removes what is in a data directory and keeps the directory, which may be a mount point. What
/// its link to a separate log directory points at is emptied too, and its tablespaces lose what is
/// this data directory's.
///
/// # Errors
/// Before anything is removed, when one of the links is not to be followed; see
/// [`open_directory`].
pub(crate) fn empty(data_dir: &Path) -> io::Result<()> {
    let mut logs = Vec::new();
    for name in ["pg_wal", "pg_xlog"] {
        logs.extend(open_linked(&data_dir.join(name))?);
    }
    let mut tablespaces = Vec::new();
    let spaces = data_dir.join("pg_tblspc");
    match fs::read_dir(&spaces) {
        // What a link leads to is not where the server keeps its tablespaces' links.
        Ok(_) if spaces.is_symlink() => {}
        Ok(links) => {
            for link in links {
                let link = link?.path();
                let location = fs::read_link(&link).unwrap_or_else(|_| link.clone());
                tablespaces.extend(open_linked(&link)?.map(|directory| (location, directory)));
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let own = match open_directory(data_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let version = disk::data_version(data_dir).ok();
    for log in &logs {
        remove_entries(log, |_| true)?;
    }
    for (location, directory) in &tablespaces {
        let is_ours = |name: &str| {
            version
                .as_deref()
                .is_some_and(|version| is_of_version(name, version))
        };
        let left = remove_entries(directory, is_ours)?;
        if !left.is_empty() {
            let location = location.display();
            tracing::warn!(%location, ?left, "left in a tablespace: not this data directory's");
        }
    }
    remove_entries(&own, |_| true).map(drop)
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

    /// Returns where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
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

/// Opens a directory, through a link only where the one who made the link could have done there
/// what is about to be done: the owner of what it points at, or root.
///
/// The server's user owns the directories that the agent, which may be root, empties and gives
/// away, and could put a link to anything in their place.
fn open_directory(path: &Path) -> io::Result<File> {
    let name = fs::symlink_metadata(path)?;
    let mut flags = OFlags::DIRECTORY;
    if !name.is_symlink() {
        flags |= OFlags::NOFOLLOW;
    }
    let directory = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    let (maker, owner) = (name.uid(), directory.metadata()?.uid());
    if name.is_symlink() && maker != 0 && maker != owner {
        let target = fs::read_link(path).unwrap_or_default();
        return Err(denied(format!(
            "{} is a link of user {maker} to {}, which is user {owner}'s, and is not followed",
            path.display(),
            target.display()
        )));
    }
    Ok(directory)
}

/// Opens the directory that a link points at; nothing if it is no link to a directory.
fn open_linked(link: &Path) -> io::Result<Option<File>> {
    if link.is_symlink() && link.is_dir() {
        open_directory(link).map(Some)
    } else {
        Ok(None)
    }
}

/// Removes the entries of a directory whose names are `wanted`. Returns the names of the others.
fn remove_entries(directory: &File, wanted: impl Fn(&str) -> bool) -> io::Result<Vec<String>> {
    // By its descriptor: by its path it might be another directory by now.
    let inside = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    let mut left = Vec::new();
    for entry in fs::read_dir(&inside)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == "lost+found" {
            continue;
        }
        if !wanted(&name) {
            left.push(name);
        } else if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    left.sort();
    Ok(left)
}

/// Returns whether a tablespace's directory, such as `PG_15_202209061`, is of this major version.
/// Within one version the name is taken by the first cluster that uses the location.
fn is_of_version(name: &str, version: &str) -> bool {
    let catalog = name
        .strip_prefix("PG_")
        .and_then(|rest| rest.strip_prefix(version))
        .and_then(|rest| rest.strip_prefix('_'));
    catalog.is_some_and(|catalog| {
        !catalog.is_empty() && catalog.bytes().all(|byte| byte.is_ascii_digit())
    })
}

fn denied(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, problem)
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
    fn a_tablespace_loses_only_what_is_this_data_directorys() {
        let dir = tempfile::tempdir().unwrap();
        let (data, space) = (dir.path().join("data"), dir.path().join("space"));
        fs::create_dir_all(data.join("pg_tblspc")).unwrap();
        for name in ["PG_15_202209061", "PG_16_202307071", "PG_15_x", "photos"] {
            fs::create_dir_all(space.join(name).join("1")).unwrap();
        }
        std::os::unix::fs::symlink(&space, data.join("pg_tblspc/16384")).unwrap();
        let names = || {
            let entries = fs::read_dir(&space).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        fs::write(data.join("PG_VERSION"), "15\n").unwrap();
        empty(&data).unwrap();
        assert_eq!(names(), ["PG_15_x", "PG_16_202307071", "photos"]);
        assert!(is_empty(&data).unwrap());

        // Whose tablespace it was is not known any more.
        fs::create_dir_all(data.join("pg_tblspc")).unwrap();
        std::os::unix::fs::symlink(&space, data.join("pg_tblspc/16384")).unwrap();
        empty(&data).unwrap();
        assert_eq!(names(), ["PG_15_x", "PG_16_202307071", "photos"]);
    }

    /// A user that the agent is not, and its directory with what must not be touched outside it;
    /// nothing where the test is not root, and could not be led astray.
    fn stranger() -> Option<(tempfile::TempDir, PathBuf, PathBuf, Owner)> {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "needs to be root");
            eprintln!("NOT RUN: needs to be root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let (theirs, ours) = (dir.path().join("theirs"), dir.path().join("ours"));
        for path in [&theirs, &ours] {
            fs::create_dir(path).unwrap();
        }
        fs::set_permissions(&ours, Permissions::from_mode(0o755)).unwrap();
        fs::write(ours.join("canary"), "alive").unwrap();
        std::os::unix::fs::lchown(&theirs, Some(STRANGER), Some(STRANGER)).unwrap();
        Some((dir, theirs, ours, Some((STRANGER, STRANGER))))
    }

    fn plant(link: &Path, target: &Path) {
        std::os::unix::fs::symlink(target, link).unwrap();
        std::os::unix::fs::lchown(link, Some(STRANGER), Some(STRANGER)).unwrap();
    }

    fn is_untouched(ours: &Path) -> bool {
        let (directory, canary) = (
            fs::metadata(ours).unwrap(),
            fs::metadata(ours.join("canary")).unwrap(),
        );
        fs::read_to_string(ours.join("canary")).unwrap() == "alive"
            && (directory.uid(), directory.mode() & 0o777, canary.uid()) == (0, 0o755, 0)
    }

    #[test]
    fn root_writes_and_reads_nothing_through_a_planted_link() {
        let Some((_dir, theirs, ours, owner)) = stranger() else {
            return;
        };
        let canary = ours.join("canary");
        let link = theirs.join("promote");
        plant(&link, &canary);
        for how in [
            OpenOptions::new().read(true),
            OpenOptions::new().append(true),
        ] {
            let error = open_own(&link, how, owner).unwrap_err().to_string();
            assert!(error.contains(canary.to_str().unwrap()), "{error}");
        }
        create(&link, owner).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_file());
        assert!(open_own(&link, OpenOptions::new().read(true), owner).is_ok());
        plant(&theirs.join("x.conf.spilo-new"), &canary);
        replace(&theirs.join("x.conf"), "theirs", owner).unwrap();
        let error = read_own(&canary, owner).unwrap_err().to_string();
        assert!(error.contains("is user 0's, not user 54321's"), "{error}");
        assert!(is_untouched(&ours));
    }

    #[test]
    fn root_empties_and_gives_away_nothing_through_a_planted_link() {
        let Some((_dir, theirs, ours, owner)) = stranger() else {
            return;
        };
        let state = theirs.join("state");
        plant(&state, &ours);
        let error = private_directory(&state, owner).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("user 54321"), "{error}");
        assert!(empty(&state).is_err());
        for name in ["pg_wal", "pg_tblspc/1"] {
            let data = theirs.join(name.replace('/', "-"));
            fs::create_dir_all(data.join("pg_tblspc")).unwrap();
            fs::write(data.join("PG_VERSION"), "15").unwrap();
            fs::create_dir_all(ours.join("PG_15_1")).unwrap();
            plant(&data.join(name), &ours);
            let error = empty(&data).unwrap_err().to_string();
            assert!(error.contains(ours.to_str().unwrap()), "{error}");
            assert!(data.join("PG_VERSION").exists() && ours.join("PG_15_1").exists());
        }
        assert!(is_untouched(&ours));
        // A link that root made is root's will.
        let data = theirs.join("linked");
        std::os::unix::fs::symlink(theirs.join("pg_wal"), &data).unwrap();
        private_directory(&data, owner).unwrap();
        let given = fs::metadata(theirs.join("pg_wal")).unwrap();
        assert_eq!((given.uid(), given.mode() & 0o777), (STRANGER, 0o700));
    }

    const STRANGER: u32 = 54321;

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
