//! The names of an archive's objects: those of WAL-E.
//!
//! ```text
//! wal_005/<file><codec>
//! basebackups_005/<backup>/tar_partitions/part_<number>.tar<codec>
//! basebackups_005/<backup>/extended_version.txt
//! basebackups_005/<backup>_backup_stop_sentinel.json
//! ```
//!
//! Where objects are sealed, `.sealed` is behind each of these names.
//!
//! A backup is called `base_<segment>_<offset>` for where it begins. It is whole once its sentinel
//! is there, which is written last and deleted first.

use spilo_core::backup::BackupName;
use spilo_core::segment::{ArchiveFile, SegmentName};

use crate::codec::Codec;

/// What the names of all archived files of the log begin with.
pub(crate) const WAL: &str = "wal_005/";

/// What the names of all that belongs to base backups begin with.
pub(crate) const BACKUPS: &str = "basebackups_005/";

/// What the names of sealed objects end with.
pub(crate) const SEALED: &str = ".sealed";

const SENTINEL: &str = "_backup_stop_sentinel.json";

/// Where in the log a backup begins, as its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Beginning {
    pub(crate) segment: SegmentName,
    pub(crate) offset: u32,
}

pub(crate) fn wal(file: &ArchiveFile, codec: Codec) -> String {
    format!("{WAL}{file}{}", codec.suffix())
}

/// Reads the name of an archived file of the log.
pub(crate) fn read_wal(key: &str) -> Option<(ArchiveFile, Codec)> {
    let name = key.strip_prefix(WAL)?;
    Codec::ALL.into_iter().find_map(|codec| {
        let file = name.strip_suffix(codec.suffix())?.parse().ok()?;
        Some((file, codec))
    })
}

pub(crate) fn backup_name(segment: SegmentName, offset: u64) -> BackupName {
    // In decimal, as `pg_walfile_name_offset` gives it to WAL-E.
    BackupName(format!("base_{segment}_{offset:08}"))
}

/// Reads the name of a backup.
pub(crate) fn read_backup_name(name: &str) -> Option<Beginning> {
    let (segment, offset) = name.strip_prefix("base_")?.split_once('_')?;
    let plain = offset.len() >= 8 && offset.bytes().all(|byte| byte.is_ascii_digit());
    Some(Beginning {
        segment: segment.parse().ok()?,
        offset: plain.then(|| offset.parse().ok()).flatten()?,
    })
}

pub(crate) fn sentinel(backup: &BackupName) -> String {
    format!("{BACKUPS}{backup}{SENTINEL}")
}

/// Reads the name of a sentinel.
pub(crate) fn read_sentinel(key: &str) -> Option<BackupName> {
    let name = key.strip_prefix(BACKUPS)?.strip_suffix(SENTINEL)?;
    (!name.contains('/')).then(|| BackupName(name.to_owned()))
}

/// Returns what the names of all objects of a backup but its sentinel begin with.
pub(crate) fn backup_folder(backup: &BackupName) -> String {
    format!("{BACKUPS}{backup}/")
}

/// Returns what the names of a backup's partitions begin with.
pub(crate) fn parts(backup: &BackupName) -> String {
    format!("{BACKUPS}{backup}/tar_partitions/")
}

pub(crate) fn part_name(number: usize, codec: Codec) -> String {
    format!("part_{number:08}.tar{}", codec.suffix())
}

/// Returns how a partition is compressed, by its name.
pub(crate) fn read_part(name: &str) -> Option<Codec> {
    let mut codecs = Codec::ALL.into_iter();
    codecs.find(|codec| name.ends_with(&format!(".tar{}", codec.suffix())))
}

/// Returns the backup to which an object belongs, its sentinel or another.
pub(crate) fn owner(key: &str) -> Option<BackupName> {
    let name = key.strip_prefix(BACKUPS)?;
    match name.split_once('/') {
        Some((backup, _)) => Some(BackupName(backup.to_owned())),
        None => read_sentinel(key),
    }
}

pub(crate) fn version(backup: &BackupName) -> String {
    format!("{BACKUPS}{backup}/extended_version.txt")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_wal_e() {
        let file: ArchiveFile = "000000010000000000000003".parse().unwrap();
        let key = wal(&file, Codec::Lzo);
        assert_eq!(key, "wal_005/000000010000000000000003.lzo");
        assert_eq!(read_wal(&key), Some((file, Codec::Lzo)));
        for key in [
            "wal_005/x.lzo",
            "000000010000000000000003",
            "wal_005/00000001.history.br",
        ] {
            assert_eq!(read_wal(key), None, "{key}");
        }

        let ArchiveFile::Segment(segment) = file else {
            panic!("a segment");
        };
        let name = backup_name(segment, 40);
        assert_eq!(name.0, "base_000000010000000000000003_00000040");
        let offset = 40;
        assert_eq!(
            read_backup_name(&name.0),
            Some(Beginning { segment, offset })
        );
        let key = sentinel(&name);
        assert_eq!(
            key,
            "basebackups_005/base_000000010000000000000003_00000040_backup_stop_sentinel.json"
        );
        assert_eq!(read_sentinel(&key), Some(name.clone()));
        assert_eq!(owner(&key), Some(name.clone()));
        assert_eq!(owner(&version(&name)), Some(name));
        assert_eq!(part_name(3, Codec::Zstd), "part_00000003.tar.zst");
        assert_eq!(read_part("part_3.tar.lz4"), Some(Codec::Lz4));
        assert_eq!(read_part("part_3.tar"), Some(Codec::None));
        assert_eq!(read_part("part_3.zip"), None);
    }

    #[test]
    fn other_names_are_of_no_backup() {
        for name in [
            "",
            "base_000000010000000000000003",
            "base_000000010000000000000003_0000002G",
            "base_000000010000000000000007_D_000000010000000000000003",
            "base_../../000000010000000000000003_00000040",
        ] {
            assert_eq!(read_backup_name(name), None, "{name}");
        }
    }
}
