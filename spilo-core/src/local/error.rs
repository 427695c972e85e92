//! What is wrong with a configuration, all of it at once.

use std::collections::BTreeMap;
use std::fmt;

/// One thing that is wrong with the local configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}{}", Origin(.variable))]
#[non_exhaustive]
pub struct ConfigError {
    /// The key, its sections before it with dots between; empty for the document itself.
    pub path: String,
    /// What is wrong, and where it helps, what to do.
    pub problem: String,
    /// The environment variable that the value came from, if it did.
    pub variable: Option<String>,
    kind: ConfigErrorKind,
}

/// The classes of things that can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConfigErrorKind {
    /// No such key.
    Unknown,
    /// The value is not of the kind that the key holds.
    WrongType,
    /// The kind fits, the value does not.
    Invalid,
    /// A key that must be there is not.
    Missing,
    /// A known key that is not built, and that it would not be safe to ignore.
    Refused,
}

impl ConfigError {
    /// Creates an error about the key at `path`.
    pub fn new(kind: ConfigErrorKind, path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            problem: problem.into(),
            variable: None,
            kind,
        }
    }

    /// Returns its class.
    pub fn kind(&self) -> ConfigErrorKind {
        self.kind
    }
}

/// What has been found so far.
#[derive(Debug, Default)]
pub(super) struct Problems {
    pub(super) errors: Vec<ConfigError>,
    pub(super) warnings: Vec<String>,
    /// The environment variable behind each path that one has set.
    pub(super) variables: BTreeMap<String, String>,
}

impl Problems {
    pub(super) fn error(&mut self, path: &str, kind: ConfigErrorKind, problem: String) {
        let variable = self.variables.get(path).cloned();
        self.errors.push(ConfigError {
            path: path.to_owned(),
            problem,
            variable,
            kind,
        });
    }

    pub(super) fn warn(&mut self, path: &str, problem: &str) {
        let origin = self.variables.get(path).cloned();
        self.warnings
            .push(format!("{path}: {problem}{}", Origin(&origin)));
    }
}

struct Origin<'a>(&'a Option<String>);

impl fmt::Display for Origin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(variable) => write!(f, " (from {variable})"),
            None => Ok(()),
        }
    }
}
