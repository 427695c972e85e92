//! Names and numbers that identify things, each with a type of its own.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The name of a cluster, as in Patroni's `scope`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Scope(String);

/// The name of a node, unique in its cluster; also its `application_name` in replication.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemberName(String);

/// The identifier that `initdb` gave a database cluster and that all its copies share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SystemId(pub u64);

/// One holding of the lock, from one acquisition (or succession) to its end.
///
/// It is the store's revision of the leader key, so a later holding has a greater epoch, and the
/// store itself can refuse a write that names an older one.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
pub struct Epoch(pub u64);

/// A version of the store or of one key in it; greater is later.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
pub struct Revision(pub u64);

/// The number of one long operation on PostgreSQL, given out by the machine.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct OpId(pub u64);

/// The name of a physical replication slot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SlotName(String);

/// A name that cannot be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {name:?}: {problem}")]
pub struct BadName {
    what: &'static str,
    name: String,
    problem: &'static str,
}

impl Scope {
    /// Checks and wraps `name`.
    ///
    /// # Errors
    /// An empty name, a slash, or a control character: the name is part of a key in the store.
    pub fn new(name: impl Into<String>) -> Result<Self, BadName> {
        checked("scope", name.into()).map(Self)
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl MemberName {
    /// Checks and wraps `name`.
    ///
    /// # Errors
    /// An empty name, a slash, a control character, or the placeholder that Patroni reserves for
    /// strict synchronous mode.
    pub fn new(name: impl Into<String>) -> Result<Self, BadName> {
        let name = checked("member name", name.into())?;
        if name == RESERVED {
            return Err(BadName {
                what: "member name",
                name,
                problem: "is reserved",
            });
        }
        Ok(Self(name))
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name of the slot that this member streams from.
    ///
    /// Lower case; `-` and `.` become `_`; any other character that a slot name may not have
    /// becomes `u` and its code point in at least four decimals; cut at 63 (contract section 0).
    pub fn slot(&self) -> SlotName {
        let mut slot = String::new();
        for c in self.0.to_lowercase().chars() {
            match c {
                'a'..='z' | '0'..='9' | '_' => slot.push(c),
                '-' | '.' => slot.push('_'),
                other => slot.push_str(&format!("u{:04}", u32::from(other))),
            }
        }
        slot.truncate(63);
        SlotName(slot)
    }
}

impl SystemId {
    /// Reads the decimal text of the `initialize` key.
    ///
    /// Returns `None` unless it is all digits and at least ten of them, which is what Patroni
    /// takes for valid.
    pub fn parse(text: &str) -> Option<Self> {
        let valid = text.len() >= 10 && text.bytes().all(|b| b.is_ascii_digit());
        valid.then(|| text.parse().ok().map(Self)).flatten()
    }
}

impl SlotName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for MemberName {
    type Err = BadName;

    fn from_str(name: &str) -> Result<Self, BadName> {
        Self::new(name)
    }
}

macro_rules! text_id {
    ($($name:ident),*) => {$(
        impl TryFrom<String> for $name {
            type Error = BadName;

            fn try_from(name: String) -> Result<Self, BadName> {
                Self::new(name)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }
    )*};
}

macro_rules! shown {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    )*};
}

text_id!(Scope, MemberName);
shown!(Scope, MemberName, SystemId, Epoch, Revision, OpId, SlotName);

fn checked(what: &'static str, name: String) -> Result<String, BadName> {
    let problem = if name.is_empty() {
        "is empty"
    } else if name.contains('/') {
        "has a slash, which separates keys in the store"
    } else if name.chars().any(char::is_control) {
        "has a control character"
    } else {
        return Ok(name);
    };
    Err(BadName {
        what,
        name,
        problem,
    })
}

/// What Patroni writes into `synchronous_standby_names` when no standby may be named.
const RESERVED: &str = "__patroni_strict_sync_replica_placeholder__";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_names_follow_patroni() {
        for (name, slot) in [
            ("postgres-0", "postgres_0"),
            ("PG.1", "pg_1"),
            ("a b", "au0032b"),
            ("é", "u0233"),
        ] {
            assert_eq!(
                MemberName::new(name).unwrap().slot().as_str(),
                slot,
                "{name}"
            );
        }
        let long = MemberName::new("x".repeat(80)).unwrap();
        assert_eq!(long.slot().as_str().len(), 63);
    }

    #[test]
    fn names_that_would_break_a_key_are_refused() {
        for name in ["", "a/b", "a\nb", RESERVED] {
            assert!(MemberName::new(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_system_identifier_has_at_least_ten_digits() {
        assert_eq!(
            SystemId::parse("7710822623212245678"),
            Some(SystemId(7_710_822_623_212_245_678))
        );
        for text in ["", "123456789", "77108226232x", "99999999999999999999999"] {
            assert_eq!(SystemId::parse(text), None, "{text}");
        }
    }
}
