//! Where something listens, and where others reach it.

use std::fmt;

/// A host and a port that others connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// A name or an IP address, without brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

/// The hosts that one port is opened on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Listen {
    /// Names, IP addresses without brackets, or `*`; never empty.
    pub hosts: Vec<String>,
    /// The TCP port.
    pub port: u16,
}

impl Address {
    /// Reads `host:port`, `[ipv6]:port`, `ipv6:port`, or a bare host where a default port exists.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence about it.
    pub(super) fn parse(text: &str, default_port: Option<u16>) -> Result<Self, String> {
        let (host, port) = split(text.trim(), default_port)?;
        if host.contains(',') {
            return Err("must be one address, found several".to_owned());
        }
        Ok(Self {
            host: bare(host)?,
            port,
        })
    }
}

impl Listen {
    /// Reads `host:port` or `host1,host2:port`.
    pub(super) fn parse(text: &str, default_port: Option<u16>) -> Result<Self, String> {
        let (hosts, port) = split(text.trim(), default_port)?;
        let hosts = hosts.split(',').map(bare).collect::<Result<_, _>>()?;
        Ok(Self { hosts, port })
    }

    /// Returns where a process on this node reaches it, which is also what others use when they
    /// are told nothing else; `None` if it listens on all addresses and so names none.
    pub fn address(&self) -> Option<Address> {
        let host = self.hosts.iter().find(|host| !is_wildcard(host))?;
        Some(Address {
            host: host.clone(),
            port: self.port,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.hosts.as_slice() {
            [host] => Address {
                host: host.clone(),
                port: self.port,
            }
            .fmt(f),
            hosts => write!(f, "{}:{}", hosts.join(","), self.port),
        }
    }
}

fn split(text: &str, default_port: Option<u16>) -> Result<(&str, u16), String> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => {
            let port = port.parse().ok().filter(|port| *port > 0);
            (
                host,
                port.ok_or_else(|| format!("{text:?} has no port between 1 and 65535"))?,
            )
        }
        _ => match default_port {
            Some(port) => (text, port),
            None => return Err(format!("must be HOST:PORT, found {text:?}")),
        },
    };
    Ok((host, port))
}

fn bare(host: &str) -> Result<String, String> {
    let host = host.trim();
    let inner = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    if inner.is_empty() {
        return Err("has no host".to_owned());
    }
    let fine = |c: char| c.is_alphanumeric() || "-._:%*/".contains(c);
    if let Some(bad) = inner.chars().find(|c| !fine(*c)) {
        return Err(format!("has a host with {bad:?} in it"));
    }
    Ok(inner.to_owned())
}

fn is_wildcard(host: &str) -> bool {
    matches!(host, "*" | "0.0.0.0" | "::" | "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_every_form_that_patroni_takes() {
        for (text, host, port) in [
            ("127.0.0.1:5432", "127.0.0.1", 5432),
            ("db-1.example.com", "db-1.example.com", 5432),
            ("[::1]:5433", "::1", 5433),
            ("::1:5433", "::1", 5433),
            ("[::1]", "::1", 5432),
        ] {
            let address = Address::parse(text, Some(5432)).unwrap();
            assert_eq!(
                address,
                Address {
                    host: host.to_owned(),
                    port
                },
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_address_says_why() {
        for (text, problem) in [
            ("localhost", "must be HOST:PORT, found \"localhost\""),
            (
                "localhost:http",
                "\"localhost:http\" has no port between 1 and 65535",
            ),
            (
                "localhost:0",
                "\"localhost:0\" has no port between 1 and 65535",
            ),
            (
                "localhost:70000",
                "\"localhost:70000\" has no port between 1 and 65535",
            ),
            (":8008", "has no host"),
            ("a,b:1", "must be one address, found several"),
            ("a b:1", "has a host with ' ' in it"),
        ] {
            assert_eq!(
                Address::parse(text, None),
                Err(problem.to_owned()),
                "{text}"
            );
        }
    }

    #[test]
    fn only_a_listener_on_a_named_address_says_where_it_is_reached() {
        let reached = |text| {
            Listen::parse(text, None)
                .unwrap()
                .address()
                .map(|a| a.to_string())
        };
        assert_eq!(reached("10.0.0.1:5432"), Some("10.0.0.1:5432".to_owned()));
        assert_eq!(reached("*,10.0.0.1:5432"), Some("10.0.0.1:5432".to_owned()));
        for all in ["*:5432", "0.0.0.0:5432", "[::]:5432"] {
            assert_eq!(reached(all), None, "{all}");
        }
    }
}
