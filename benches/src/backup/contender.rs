//! Who is measured, and in what.

use std::fmt;

use clap::ValueEnum;
use serde::Serialize;

/// One of the things that are measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Row {
    /// `archive_command` for one file of the log after the other.
    WalPush,
    /// `restore_command` for the same.
    WalFetch,
    /// A base backup of the server.
    BackupPush,
    /// Its return to an empty directory.
    BackupFetch,
}

/// How the floor compresses.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum FloorCodec {
    /// At level 1.
    Zstd,
    /// With the program `lzop`, at its default level.
    Lzo,
}

/// Who is measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contender {
    /// No tool: the least that has to be done with a codec.
    Floor(FloorCodec),
    /// The command of this project.
    Spilo(FloorCodec),
    /// Stock WAL-E.
    WalE,
    /// Stock pgBackRest.
    PgBackRest,
}

impl Row {
    /// All of them. Every push comes before its fetch, which needs what was pushed.
    pub const ALL: [Self; 4] = [
        Self::WalPush,
        Self::WalFetch,
        Self::BackupPush,
        Self::BackupFetch,
    ];

    /// Reports whether it is about files of the log.
    pub fn is_of_log(self) -> bool {
        matches!(self, Self::WalPush | Self::WalFetch)
    }
}

impl Contender {
    /// Returns its codec and level.
    pub fn codec(self) -> &'static str {
        match self {
            Self::Floor(FloorCodec::Zstd) | Self::Spilo(FloorCodec::Zstd) => "zstd 1",
            Self::Floor(FloorCodec::Lzo) | Self::Spilo(FloorCodec::Lzo) => "lzo",
            Self::WalE => "lzo (lzop)",
            Self::PgBackRest => "zst 1",
        }
    }

    /// Returns the floor that it stands on.
    pub fn floor(self) -> FloorCodec {
        match self {
            Self::Floor(codec) | Self::Spilo(codec) => codec,
            Self::WalE => FloorCodec::Lzo,
            Self::PgBackRest => FloorCodec::Zstd,
        }
    }

    /// Reports whether the acceptance asks spilo to be faster than this.
    pub fn is_peer(self) -> bool {
        matches!(self, Self::WalE | Self::PgBackRest)
    }

    /// Returns a word that can be part of a name in the store.
    pub(crate) fn slug(self) -> &'static str {
        match self {
            Self::Floor(FloorCodec::Zstd) => "floor-zstd",
            Self::Floor(FloorCodec::Lzo) => "floor-lzo",
            Self::Spilo(FloorCodec::Zstd) => "spilo-zstd",
            Self::Spilo(FloorCodec::Lzo) => "spilo-lzo",
            Self::WalE => "wal-e",
            Self::PgBackRest => "pgbackrest",
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WalPush => "WAL push",
            Self::WalFetch => "WAL fetch",
            Self::BackupPush => "backup push",
            Self::BackupFetch => "backup fetch",
        })
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Floor(_) => "floor",
            Self::Spilo(_) => "spilo",
            Self::WalE => "WAL-E 1.1",
            Self::PgBackRest => "pgBackRest",
        })
    }
}

impl fmt::Display for FloorCodec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zstd => "zstd",
            Self::Lzo => "lzo",
        })
    }
}
