//! Typed access to one section of a document whose kinds have been checked.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};

use super::address::Address;
use super::error::{ConfigErrorKind, Problems};
use super::options::{self, ToolOption};
use super::scalar::{integer, text};
use super::secret::Secret;
use super::services::Credentials;
use crate::config::{boolean, span};

/// One section, possibly absent; every read of something that is not there or not of its kind
/// gives `None`, the latter because [`check`](super::check) has said so already.
#[derive(Debug)]
pub(super) struct Section<'a> {
    path: String,
    map: Option<&'a Map<String, Value>>,
    /// There is something, but no section; what it lacks is not worth saying any more.
    broken: bool,
}

impl<'a> Section<'a> {
    pub(super) fn root(document: &'a Map<String, Value>) -> Self {
        Self {
            path: String::new(),
            map: Some(document),
            broken: false,
        }
    }

    pub(super) fn inner(&self, name: &str) -> Self {
        let (value, path) = (self.value(name), self.path(name));
        let map = value.and_then(Value::as_object);
        Self {
            path,
            map,
            broken: self.broken || (value.is_some() && map.is_none()),
        }
    }

    pub(super) fn path(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    pub(super) fn exists(&self) -> bool {
        self.map.is_some()
    }

    pub(super) fn value(&self, name: &str) -> Option<&'a Value> {
        self.map?.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        text(self.value(name)?)
    }

    pub(super) fn words(&self, name: &str) -> Option<String> {
        self.text(name).map(|text| text.to_ascii_lowercase())
    }

    pub(super) fn file(&self, name: &str) -> Option<PathBuf> {
        self.text(name)
            .filter(|text| !text.is_empty())
            .map(PathBuf::from)
    }

    pub(super) fn secret(&self, name: &str) -> Option<Secret> {
        self.text(name).map(Secret::new)
    }

    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        boolean(self.value(name)?)
    }

    pub(super) fn count<T: TryFrom<i64>>(&self, name: &str) -> Option<T> {
        integer(self.value(name)?)?.try_into().ok()
    }

    pub(super) fn span(&self, name: &str) -> Option<Duration> {
        span(self.value(name)?)
    }

    /// Reads a list, or text with commas.
    pub(super) fn list(&self, name: &str) -> Option<Vec<String>> {
        match self.value(name)? {
            Value::String(text) => {
                let items = text
                    .split(',')
                    .map(|item| item.trim().trim_matches(['\'', '"']));
                Some(
                    items
                        .filter(|item| !item.is_empty())
                        .map(str::to_owned)
                        .collect(),
                )
            }
            _ => self.lines(name),
        }
    }

    pub(super) fn lines(&self, name: &str) -> Option<Vec<String>> {
        Some(
            self.value(name)?
                .as_array()?
                .iter()
                .filter_map(text)
                .collect(),
        )
    }

    pub(super) fn map(&self, name: &str) -> Option<Map<String, Value>> {
        self.value(name)?.as_object().cloned()
    }

    pub(super) fn options(&self, name: &str) -> Vec<ToolOption> {
        self.value(name)
            .and_then(|value| options::parse(value).ok())
            .unwrap_or_default()
    }

    pub(super) fn required(&self, name: &str, problems: &mut Problems) -> Option<String> {
        if self.value(name).is_none() && !self.broken {
            problems.error(
                &self.path(name),
                ConfigErrorKind::Missing,
                "is missing".to_owned(),
            );
        }
        self.text(name)
    }

    pub(super) fn address(&self, name: &str, problems: &mut Problems) -> Option<Address> {
        let text = self.text(name)?;
        let parsed = Address::parse(&text, None);
        self.valid(name, parsed, problems)
    }

    pub(super) fn credentials(&self, problems: &mut Problems) -> Option<Credentials> {
        match (self.text("username"), self.secret("password")) {
            (None, None) => None,
            (Some(username), Some(password)) => Some(Credentials { username, password }),
            (Some(_), None) => self.lacks("password", "username", problems),
            (None, Some(_)) => self.lacks("username", "password", problems),
        }
    }

    pub(super) fn valid<T>(
        &self,
        name: &str,
        parsed: Result<T, String>,
        problems: &mut Problems,
    ) -> Option<T> {
        match parsed {
            Ok(value) => Some(value),
            Err(problem) => {
                problems.error(&self.path(name), ConfigErrorKind::Invalid, problem);
                None
            }
        }
    }

    /// Notes that `missing` must be there because `given` is.
    pub(super) fn lacks<T>(
        &self,
        missing: &str,
        given: &str,
        problems: &mut Problems,
    ) -> Option<T> {
        if self.value(missing).is_none() {
            let problem = format!("is missing, and `{}` needs it", self.path(given));
            problems.error(&self.path(missing), ConfigErrorKind::Missing, problem);
        }
        None
    }
}
