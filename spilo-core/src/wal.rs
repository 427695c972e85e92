//! Positions in the write-ahead log.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A byte position in the write-ahead log. Meaningful along one line of history only.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
pub struct Lsn(pub u64);

/// The number of a timeline. A greater number is not a longer history: ask [`History`].
///
/// [`History`]: crate::History
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Timeline(pub u32);

/// A position on a timeline. Has no order of its own: comparing two takes a
/// [`History`](crate::History).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WalPosition {
    /// The timeline that the position is on.
    pub timeline: Timeline,
    /// The position.
    pub lsn: Lsn,
}

/// Text that is not a log position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("log position {0:?}: wanted two hexadecimal numbers with a slash between, like 0/3000028")]
pub struct BadLsn(String);

impl Lsn {
    /// Returns how many bytes this position is past `other`, or zero.
    pub fn bytes_past(self, other: Self) -> u64 {
        self.0.saturating_sub(other.0)
    }
}

impl FromStr for Lsn {
    type Err = BadLsn;

    fn from_str(text: &str) -> Result<Self, BadLsn> {
        let parse = || {
            let (high, low) = text.split_once('/')?;
            let part = |s: &str| {
                let plain =
                    !s.is_empty() && s.len() <= 8 && s.bytes().all(|b| b.is_ascii_hexdigit());
                plain.then(|| u64::from_str_radix(s, 16).ok()).flatten()
            };
            Some(Self(part(high)? << 32 | part(low)?))
        };
        parse().ok_or_else(|| BadLsn(text.to_owned()))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for WalPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on timeline {}", self.lsn, self.timeline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_read_back_what_they_print() {
        for (text, value) in [
            ("0/3000028", 0x300_0028),
            ("4/0", 4 << 32),
            ("FFFFFFFF/FFFFFFFF", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(Lsn(value)));
            assert_eq!(Lsn(value).to_string(), text);
        }
        for text in ["", "/", "0", "0/", "g/0", "0/123456789", "+1/0", "0/-1"] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }
}
