//! What is asked of a resident archiver, and what it answers: a line each.
//!
//! ```text
//! push 000000010000000000000003 /var/lib/postgresql/15/main/pg_wal/000000010000000000000003
//! fetch 000000010000000000000003 /var/lib/postgresql/15/main/pg_wal/RECOVERYXLOG
//! status
//!
//! ok
//! error refused directory: cannot archive …
//! stopping
//! status {"pushing":[], …}
//! ```

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use spilo_core::backup::BackupErrorKind;

/// One request. A connection carries one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Archives a file of the log. With a path, it has to be that file.
    Push { name: String, path: Option<PathBuf> },
    /// Fetches a file of the log to a path.
    Fetch { name: String, into: PathBuf },
    /// Tells what it knows.
    Status,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is done.
    Done,
    /// It is not.
    Failed(BackupErrorKind, String),
    /// It is not, and nobody will answer any more.
    Stopping,
    /// What the archiver knows, as JSON.
    Status(String),
}

/// The longest line: a path may have 4096 bytes.
pub(crate) const LONGEST: usize = 16 << 10;

impl Request {
    /// Returns the line, unless the path has a line break.
    pub(crate) fn line(&self) -> Option<Vec<u8>> {
        let (words, path) = match self {
            Self::Push { name, path } => (format!("push {name}"), path.as_deref()),
            Self::Fetch { name, into } => (format!("fetch {name}"), Some(into.as_path())),
            Self::Status => ("status".to_owned(), None),
        };
        let mut line = words.into_bytes();
        if let Some(path) = path {
            line.push(b' ');
            line.extend_from_slice(path.as_os_str().as_bytes());
        }
        let fits = !line.contains(&b'\n') && line.len() < LONGEST;
        line.push(b'\n');
        fits.then_some(line)
    }

    /// Reads a line, without its end.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn read(line: &[u8]) -> Result<Self, String> {
        let (verb, rest) = split(line);
        let (name, path) = split(rest);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let name = text(name);
        let path = (!path.is_empty()).then(|| Path::new(OsStr::from_bytes(path)).to_owned());
        match (verb, path) {
            (b"push", path) => Ok(Self::Push { name, path }),
            (b"fetch", Some(into)) if into.is_absolute() => Ok(Self::Fetch { name, into }),
            (b"fetch", _) => Err("a file is fetched to an absolute path".to_owned()),
            (b"status", _) => Ok(Self::Status),
            (verb, _) => Err(format!("{:?} cannot be asked", text(verb))),
        }
    }
}

impl Answer {
    /// Returns the line.
    pub(crate) fn line(&self) -> String {
        match self {
            Self::Done => "ok\n".to_owned(),
            Self::Failed(kind, text) => {
                let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
                format!("error {} {text}\n", word(*kind))
            }
            Self::Stopping => "stopping\n".to_owned(),
            Self::Status(json) => format!("status {json}\n"),
        }
    }

    /// Reads a line; `None` for one that is not whole, or that nobody here would write.
    pub(crate) fn read(line: &str) -> Option<Self> {
        let line = line.strip_suffix('\n')?;
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        Some(match verb {
            "ok" => Self::Done,
            "error" => {
                let (kind, text) = rest.split_once(' ')?;
                Self::Failed(kind_of(kind), text.to_owned())
            }
            "stopping" => Self::Stopping,
            "status" => Self::Status(rest.to_owned()),
            _ => return None,
        })
    }
}

fn split(line: &[u8]) -> (&[u8], &[u8]) {
    match line.iter().position(|&byte| byte == b' ') {
        Some(at) => (&line[..at], &line[at + 1..]),
        None => (line, &[]),
    }
}

fn word(kind: BackupErrorKind) -> &'static str {
    WORDS
        .iter()
        .find(|(known, _)| *known == kind)
        .map_or("unavailable", |(_, word)| word)
}

fn kind_of(word: &str) -> BackupErrorKind {
    WORDS
        .iter()
        .find(|(_, known)| *known == word)
        .map_or(BackupErrorKind::Unavailable, |(kind, _)| *kind)
}

const WORDS: [(BackupErrorKind, &str); 5] = [
    (BackupErrorKind::Unavailable, "unavailable"),
    (BackupErrorKind::NotFound, "absent"),
    (BackupErrorKind::Damaged, "damaged"),
    (BackupErrorKind::Conflict, "conflict"),
    (BackupErrorKind::Refused, "refused"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_read_back_what_they_print() {
        let name = "000000010000000000000003".to_owned();
        for request in [
            Request::Push {
                name: name.clone(),
                path: None,
            },
            Request::Push {
                name: name.clone(),
                path: Some(PathBuf::from("/with a space/x")),
            },
            Request::Fetch {
                name,
                into: PathBuf::from(OsStr::from_bytes(b"/a  b/\xff ")),
            },
            Request::Status,
        ] {
            let line = request.line().unwrap();
            assert_eq!(
                Request::read(line.strip_suffix(b"\n").unwrap()),
                Ok(request)
            );
        }
        for kind in WORDS.map(|(kind, _)| kind) {
            let answer = Answer::Failed(kind, "s3: cannot x".to_owned());
            assert_eq!(Answer::read(&answer.line()), Some(answer));
        }
        for answer in [
            Answer::Done,
            Answer::Stopping,
            Answer::Status("{\"a b\":1}".to_owned()),
        ] {
            assert_eq!(Answer::read(&answer.line()), Some(answer));
        }
        let broken = Answer::Failed(BackupErrorKind::Refused, "two\nlines".to_owned());
        assert_eq!(broken.line(), "error refused two lines\n");
    }

    /// A resident that was killed while it wrote has said nothing.
    #[test]
    fn what_is_not_whole_is_no_answer() {
        for line in ["", "o", "ok", "error", "error refused x", "yes\n"] {
            assert_eq!(Answer::read(line), None, "{line:?}");
        }
        for line in ["", "push", "fetch x", "fetch x pg_wal/y", "pull x"] {
            let read = Request::read(line.as_bytes());
            let is_nameless = matches!(&read, Ok(Request::Push { name, .. }) if name.is_empty());
            assert!(read.is_err() || is_nameless, "{line:?}");
        }
        let into = PathBuf::from("/two\nlines");
        let name = "x".to_owned();
        assert_eq!(Request::Fetch { name, into }.line(), None);
    }
}
