//! The files that the write-ahead log is kept in, and what an archive of it holds.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::wal::{Lsn, Timeline};

/// How large each file of the log is: a power of two from 1 MiB to 1 GiB, as `initdb` was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct SegmentSize(u64);

/// The name of one file of the log.
///
/// What it says depends on the [`SegmentSize`]: where the file begins and ends is asked for with it.
/// Has no order of its own, since two timelines have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SegmentName {
    timeline: Timeline,
    /// The upper half of the position at which it begins.
    high: u32,
    /// Which of the files with that upper half it is, from 0.
    nth: u32,
}

/// What the name of a file in an archive says that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ArchiveFile {
    /// A whole file of the log.
    Segment(SegmentName),
    /// The beginning of a file of the log, which a promotion left on its old timeline.
    Partial(SegmentName),
    /// The history of a timeline.
    History(Timeline),
    /// What a base backup that began in this file, at this offset, tells of itself.
    Label(SegmentName, u32),
}

/// A size that no file of the log has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} bytes are no size of a WAL segment: it is a power of two from 1 MiB to 1 GiB")]
pub struct BadSegmentSize(u64);

/// A name that no file of the log or of its archive has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name of a file of the write-ahead log")]
pub struct BadSegmentName(String);

impl SegmentSize {
    /// The size where nobody chose another: 16 MiB.
    pub const DEFAULT: Self = Self(16 << 20);

    /// Takes a size in bytes.
    ///
    /// # Errors
    /// A size that `initdb` would not take.
    pub fn new(bytes: u64) -> Result<Self, BadSegmentSize> {
        if bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes) {
            Ok(Self(bytes))
        } else {
            Err(BadSegmentSize(bytes))
        }
    }

    /// Returns the size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// Returns the file that holds the byte at `lsn`. What ends at `lsn` ends in the file before it
    /// where `lsn` is a boundary.
    pub fn segment_at(self, timeline: Timeline, lsn: Lsn) -> SegmentName {
        let low = |number: u64| u32::try_from(number & 0xFFFF_FFFF).unwrap_or(u32::MAX);
        SegmentName {
            timeline,
            high: low(lsn.0 >> 32),
            nth: low((lsn.0 & 0xFFFF_FFFF) / self.0),
        }
    }
}

impl Default for SegmentSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl TryFrom<u64> for SegmentSize {
    type Error = BadSegmentSize;

    fn try_from(bytes: u64) -> Result<Self, BadSegmentSize> {
        Self::new(bytes)
    }
}

impl From<SegmentSize> for u64 {
    fn from(size: SegmentSize) -> Self {
        size.0
    }
}

impl SegmentName {
    /// Returns the timeline that it belongs to.
    pub fn timeline(self) -> Timeline {
        self.timeline
    }

    /// Returns the position of its first byte, or `None` where files of that size have no such
    /// name.
    pub fn begin(self, size: SegmentSize) -> Option<Lsn> {
        let low = u64::from(self.nth) * size.0;
        (low < 1 << 32).then(|| Lsn(u64::from(self.high) << 32 | low))
    }

    /// Returns the position after its last byte, or `None` as [`begin`](Self::begin) and for the
    /// last file that there can be.
    pub fn end(self, size: SegmentSize) -> Option<Lsn> {
        self.begin(size)?.0.checked_add(size.0).map(Lsn)
    }

    /// Returns the file after it on the same timeline.
    pub fn next(self, size: SegmentSize) -> Option<Self> {
        Some(size.segment_at(self.timeline, self.end(size)?))
    }
}

impl FromStr for SegmentName {
    type Err = BadSegmentName;

    fn from_str(text: &str) -> Result<Self, BadSegmentName> {
        let parse = || {
            let part = |range| number(text.get(range)?);
            let name = Self {
                timeline: Timeline(part(0..8)?),
                high: part(8..16)?,
                nth: part(16..24)?,
            };
            // The smallest files are 1 MiB, of which 4 GiB have 4096.
            let is_one = name.timeline.0 > 0 && name.nth < 0x1000;
            (text.len() == 24 && is_one).then_some(name)
        };
        parse().ok_or_else(|| BadSegmentName(text.to_owned()))
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:08X}{:08X}{:08X}",
            self.timeline.0, self.high, self.nth
        )
    }
}

impl FromStr for ArchiveFile {
    type Err = BadSegmentName;

    fn from_str(text: &str) -> Result<Self, BadSegmentName> {
        let bad = || BadSegmentName(text.to_owned());
        let Some((name, kind)) = text.split_once('.') else {
            return text.parse().map(Self::Segment);
        };
        match kind {
            "partial" => name.parse().map(Self::Partial).map_err(|_| bad()),
            "history" => match number(name) {
                Some(timeline) if timeline > 0 => Ok(Self::History(Timeline(timeline))),
                _ => Err(bad()),
            },
            _ => {
                let offset = kind.strip_suffix(".backup").and_then(number);
                let offset = offset.ok_or_else(bad)?;
                let segment = name.parse().map_err(|_| bad())?;
                Ok(Self::Label(segment, offset))
            }
        }
    }
}

impl fmt::Display for ArchiveFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(name) => name.fmt(f),
            Self::Partial(name) => write!(f, "{name}.partial"),
            Self::History(timeline) => write!(f, "{:08X}.history", timeline.0),
            Self::Label(name, offset) => write!(f, "{name}.{offset:08X}.backup"),
        }
    }
}

/// Reads eight hexadecimal digits as PostgreSQL writes them.
fn number(text: &str) -> Option<u32> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte);
    let plain = text.len() == 8 && text.bytes().all(is_digit);
    plain.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_powers_of_two_from_one_mebibyte_to_one_gibibyte_are_sizes() {
        for shift in 20..=30 {
            assert_eq!(SegmentSize::new(1 << shift).unwrap().bytes(), 1 << shift);
        }
        for bytes in [0, 1, 1 << 19, (1 << 20) + 1, 3 << 20, 1 << 31, u64::MAX] {
            assert_eq!(SegmentSize::new(bytes), Err(BadSegmentSize(bytes)));
        }
    }

    /// As PostgreSQL's `pg_walfile_name` has it from version 17 on, for segments of each size.
    #[test]
    fn f37_names_are_those_of_postgresql_for_every_segment_size() {
        for (bytes, lsn, name) in [
            (16 << 20, 0x300_0028, "000000010000000000000003"),
            (16 << 20, 0xFF00_0000, "0000000100000000000000FF"),
            (16 << 20, 0x1_0000_0000, "000000010000000100000000"),
            (1 << 20, 0x300_0028, "000000010000000000000030"),
            (1 << 20, 0xFFFF_FFFF, "000000010000000000000FFF"),
            (64 << 20, 0x2_0800_0000, "000000010000000200000002"),
            (1 << 30, 0xC000_0000, "000000010000000000000003"),
        ] {
            let size = SegmentSize::new(bytes).unwrap();
            let segment = size.segment_at(Timeline(1), Lsn(lsn));
            assert_eq!(segment.to_string(), name);
            assert_eq!(name.parse(), Ok(segment));
            let begin = segment.begin(size).unwrap();
            assert_eq!(begin.0, lsn / bytes * bytes);
            assert_eq!(segment.end(size).unwrap().0, begin.0 + bytes);
        }
    }

    #[test]
    fn one_follows_the_other_without_a_gap_for_every_segment_size() {
        for shift in 20..=30 {
            let size = SegmentSize::new(1 << shift).unwrap();
            let begin = Lsn((1 << 32) - (2 << shift));
            let mut segment = size.segment_at(Timeline(7), begin);
            for n in 0..5 {
                assert_eq!(segment.begin(size), Some(Lsn(begin.0 + (n << shift))));
                segment = segment.next(size).unwrap();
            }
        }
        let last = SegmentSize::DEFAULT.segment_at(Timeline(1), Lsn(u64::MAX));
        assert_eq!(last.next(SegmentSize::DEFAULT), None);
        let of_small: SegmentName = "000000010000000000000100".parse().unwrap();
        assert_eq!(of_small.begin(SegmentSize::DEFAULT), None);
    }

    #[test]
    fn files_of_an_archive_read_back_what_they_print() {
        for text in [
            "000000010000000000000003",
            "000000010000000000000003.partial",
            "0000000A.history",
            "000000010000000000000003.00000028.backup",
        ] {
            let file: ArchiveFile = text.parse().unwrap();
            assert_eq!(file.to_string(), text);
        }
        for text in [
            "",
            ".",
            "0000000A",
            "00000000.history",
            "0000000a.history",
            "000000000000000000000003",
            "00000001000000000000000",
            "0000000100000000000000031",
            "+00000010000000000000003",
            "00000001000000000000000G",
            "000000010000000000001000",
            "000000010000000000000003.part",
            "000000010000000000000003.00000028.backup.lzo",
            "000000010000000000000003.28.backup",
            "000000010000000000000003.partial.partial",
            "00000001000000000000000\u{e9}",
        ] {
            assert!(text.parse::<ArchiveFile>().is_err(), "{text:?}");
        }
    }
}
