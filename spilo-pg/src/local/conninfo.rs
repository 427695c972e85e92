//! Connection strings: reading members' `conn_url`, writing and reading `primary_conninfo`.

use std::fmt::Write as _;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Endpoint {
    /// Reads a member's `conn_url`, like `postgres://10.0.0.1:5432/postgres`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(url: &str) -> Result<Self, String> {
        let problem = |what: &str| format!("conn_url {url:?}: {what}");
        let rest = url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"))
            .ok_or_else(|| problem("does not begin with postgres://"))?;
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        let address = authority.rsplit('@').next().unwrap_or_default();
        let (host, port) = match address.strip_prefix('[') {
            Some(v6) => {
                let (host, port) = v6.split_once(']').ok_or_else(|| problem("has no ]"))?;
                (host, port.strip_prefix(':'))
            }
            None => match address.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (address, None),
            },
        };
        if host.is_empty() || host.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(problem("names no host"));
        }
        let port = match port {
            None | Some("") => 5432,
            Some(port) => port
                .parse()
                .map_err(|_| problem("has a port that is no number"))?,
        };
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

/// Writes how one of PostgreSQL's programs connects to another server: so that it notices within
/// half a minute when the machine there is gone.
///
/// The kernel's own two hours are what a clone would wait for a machine that lost its power. What
/// the server's walreceiver connects by needs none of it: that has `wal_receiver_timeout`.
pub(crate) fn for_program(keywords: &str) -> String {
    format!("{keywords} {}", write(KEEPALIVES))
}

/// Writes keywords and values the way Patroni does: quoted only by backslashes.
pub(crate) fn write(keywords: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (keyword, value) in keywords {
        if !text.is_empty() {
            text.push(' ');
        }
        let _ = write!(text, "{keyword}=");
        if value.is_empty() {
            text.push_str("''");
        }
        for c in value.chars() {
            if matches!(c, '\'' | '\\' | ' ') {
                text.push('\\');
            }
            text.push(c);
        }
    }
    text
}

/// Returns the host and port that a `primary_conninfo` names, whoever wrote it.
pub(crate) fn target(conninfo: &str) -> Option<(String, u16)> {
    let mut host = None;
    let mut port = 5432;
    for (keyword, value) in read(conninfo) {
        match keyword.as_str() {
            "host" => host = Some(value),
            "port" => port = value.parse().ok()?,
            _ => {}
        }
    }
    host.filter(|host| !host.is_empty())
        .map(|host| (host, port))
}

/// Takes a keyword/value string apart; stops at what it cannot read.
fn read(conninfo: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut rest = conninfo.trim_start();
    while let Some((keyword, value)) = rest.split_once('=') {
        let value = value.trim_start();
        let quoted = value.starts_with('\'');
        let mut text = String::new();
        let mut chars = value.char_indices().skip(usize::from(quoted));
        let mut end = value.len();
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => text.extend(chars.next().map(|(_, escaped)| escaped)),
                '\'' if quoted => {
                    end = at + 1;
                    break;
                }
                c if c.is_whitespace() && !quoted => {
                    end = at;
                    break;
                }
                c => text.push(c),
            }
        }
        pairs.push((keyword.trim().to_owned(), text));
        rest = value[end..].trim_start();
    }
    pairs
}

/// The other end is asked after ten seconds of silence, and given up after fifteen more. What was
/// sent and is not acknowledged, to which no question follows, is given up after thirty.
const KEEPALIVES: &[(&str, &str)] = &[
    ("keepalives_idle", "10"),
    ("keepalives_interval", "5"),
    ("keepalives_count", "3"),
    ("tcp_user_timeout", "30000"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_members_are_read() {
        for (url, host, port) in [
            ("postgres://127.0.0.1:5433/postgres", "127.0.0.1", 5433),
            ("postgresql://db.example", "db.example", 5432),
            ("postgres://u:p@[::1]:5434/x?a=b", "::1", 5434),
        ] {
            let endpoint = Endpoint {
                host: host.to_owned(),
                port,
            };
            assert_eq!(Endpoint::parse(url), Ok(endpoint), "{url}");
        }
        for url in [
            "",
            "http://x",
            "postgres://",
            "postgres://h:p",
            "postgres://[::1",
            "postgres://a b",
        ] {
            assert!(Endpoint::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let text = write(&[
            ("user", "o'brien \\ co"),
            ("host", "10.0.0.1"),
            ("port", "5433"),
            ("x", ""),
        ]);
        assert_eq!(text, r"user=o\'brien\ \\\ co host=10.0.0.1 port=5433 x=''");
        assert_eq!(target(&text), Some(("10.0.0.1".to_owned(), 5433)));
        assert_eq!(read(&text)[0].1, "o'brien \\ co");
    }

    #[test]
    fn a_program_notices_that_the_other_machine_is_gone() {
        assert_eq!(
            for_program("user=u host=h"),
            "user=u host=h keepalives_idle=10 keepalives_interval=5 keepalives_count=3 \
             tcp_user_timeout=30000"
        );
    }

    #[test]
    fn foreign_conninfos_are_read() {
        for (text, found) in [
            ("host = 'a b' port = 1", Some(("a b".to_owned(), 1))),
            ("user=x", None),
            ("host=h", Some(("h".to_owned(), 5432))),
            ("host=h port=x", None),
            ("", None),
            ("=", None),
            ("host='unfinished", Some(("unfinished".to_owned(), 5432))),
            ("host=\\", None),
        ] {
            assert_eq!(target(text), found, "{text:?}");
        }
    }
}
