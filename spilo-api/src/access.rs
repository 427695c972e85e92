//! Who may give orders.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use axum::extract::ConnectInfo;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, StatusCode, header, request};
use spilo_core::Cluster;
use tokio::sync::Semaphore;

use crate::reply::Refusal;

/// Who may use the endpoints that change something.
///
/// By default everybody, as in Patroni. What is set must all be met.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Access {
    /// The user and password that a request must carry.
    pub authentication: Option<Credentials>,
    /// The addresses that requests may come from; empty means any.
    pub allowlist: Vec<Allowed>,
    /// Whether the members' own addresses are allowed as well. An empty `allowlist` then means
    /// nobody else.
    pub allowlist_include_members: bool,
    /// Whether a client certificate is needed: `verify_client` is `optional` or `required`.
    pub certificate: bool,
}

/// A user and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub username: String,
    /// The password.
    pub password: String,
}

/// An entry of an allowlist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// A network, or one address.
    Network {
        /// The address.
        address: IpAddr,
        /// How many leading bits count.
        bits: u8,
    },
    /// The addresses of a host name, looked up for each request.
    Host(String),
}

/// An entry of an allowlist that cannot be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("allowlist: {entry:?} is no address, network or host name")]
pub struct BadAllowed {
    entry: String,
}

/// Where a request came from; the server puts it among the request's extensions.
///
/// An embedder that mounts the router in a server of its own inserts it, or lets axum insert its
/// `ConnectInfo<SocketAddr>`. A request without either comes from nowhere, and no allowlist has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The address of the other end.
    pub address: IpAddr,
    /// Whether it showed a certificate that was verified.
    pub certificate: bool,
}

impl Access {
    /// Checks a request, all of it.
    ///
    /// # Errors
    /// Why it is refused.
    pub(crate) async fn check(
        &self,
        parts: &request::Parts,
        cluster: Option<&Cluster>,
    ) -> Result<(), Refusal> {
        let address = caller(parts).map(|c| c.address);
        if !self.is_of_network(address) {
            // Looking names up is not for anybody who asks.
            self.check_identity(parts)?;
            if !self.is_of_host(address, cluster).await {
                return Err(Refusal::new(StatusCode::FORBIDDEN, "Access is denied"));
            }
        }
        self.check_identity(parts)
    }

    /// Checks a request whose address does not matter.
    ///
    /// # Errors
    /// Why it is refused.
    pub(crate) fn check_identity(&self, parts: &request::Parts) -> Result<(), Refusal> {
        if self.certificate && !caller(parts).is_some_and(|c| c.certificate) {
            return Err(Refusal::new(
                StatusCode::FORBIDDEN,
                "client certificate required",
            ));
        }
        let Some(wanted) = &self.authentication else {
            return Ok(());
        };
        let problem = match parts.headers.get(header::AUTHORIZATION) {
            None => "no auth header received",
            Some(value) if wanted.are_in(value) => return Ok(()),
            Some(_) => "not authenticated",
        };
        Err(Refusal::unknown_user(problem))
    }

    /// Whether anybody may call, or a caller from this address whatever its name.
    fn is_of_network(&self, caller: Option<IpAddr>) -> bool {
        if self.allowlist.is_empty() && !self.allowlist_include_members {
            return true;
        }
        self.allowlist.iter().any(|entry| match (entry, caller) {
            (Allowed::Network { address, bits }, Some(caller)) => contains(*address, *bits, caller),
            (Allowed::Network { .. } | Allowed::Host(_), _) => false,
        })
    }

    /// Whether a name leads to the caller that may.
    async fn is_of_host(&self, caller: Option<IpAddr>, cluster: Option<&Cluster>) -> bool {
        let Some(caller) = caller else { return false };
        let mut hosts = BTreeSet::new();
        hosts.extend(self.allowlist.iter().filter_map(|entry| match entry {
            Allowed::Host(name) => Some(name.clone()),
            Allowed::Network { .. } => None,
        }));
        if self.allowlist_include_members {
            let members = cluster.into_iter().flat_map(|c| c.members.values());
            hosts.extend(members.filter_map(|m| host(m.api_url.as_deref()?)));
        }
        let looked_up = tokio::time::timeout(LOOKUP_TIMEOUT, any_is(hosts, caller));
        looked_up.await.unwrap_or(false)
    }
}

impl Credentials {
    /// Returns the value of an `Authorization` header with them.
    pub(crate) fn to_header(&self) -> String {
        format!("Basic {}", STANDARD.encode(self.joined()))
    }

    fn are_in(&self, value: &HeaderValue) -> bool {
        let given = value
            .to_str()
            .ok()
            .and_then(|text| text.strip_prefix("Basic "))
            .and_then(|text| STANDARD.decode(text.trim()).ok())
            .unwrap_or_default();
        let wanted = self.joined();
        // Looks at every byte whatever differs, so that the time taken says nothing of where.
        let differences = given
            .iter()
            .zip(wanted.as_bytes())
            .fold(0, |sum, (a, b)| sum | (a ^ b));
        differences == 0 && given.len() == wanted.len()
    }

    fn joined(&self) -> String {
        format!("{}:{}", self.username, self.password)
    }
}

impl FromStr for Allowed {
    type Err = BadAllowed;

    fn from_str(text: &str) -> Result<Self, BadAllowed> {
        let bad = || BadAllowed {
            entry: text.to_owned(),
        };
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().map_err(|_| bad())?)),
            None => (text, None),
        };
        match address.parse::<IpAddr>() {
            Ok(address) => {
                let most = if address.is_ipv4() { 32 } else { 128 };
                let bits = bits.unwrap_or(most);
                if bits > most {
                    Err(bad())
                } else {
                    Ok(Self::Network { address, bits })
                }
            }
            Err(_) if bits.is_none() && is_host_name(text) => Ok(Self::Host(text.to_owned())),
            Err(_) => Err(bad()),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

fn caller(parts: &request::Parts) -> Option<Caller> {
    let own = parts.extensions.get::<Caller>().copied();
    own.or_else(|| {
        let ConnectInfo(address) = parts.extensions.get::<ConnectInfo<SocketAddr>>()?;
        Some(Caller {
            address: address.ip(),
            certificate: false,
        })
    })
}

async fn any_is(hosts: BTreeSet<String>, caller: IpAddr) -> bool {
    for host in hosts {
        let found = match host.parse::<IpAddr>() {
            Ok(address) => address.to_canonical() == caller.to_canonical(),
            Err(_) => match look_up(host).await {
                Ok(addresses) => addresses
                    .iter()
                    .any(|address| address.to_canonical() == caller.to_canonical()),
                // A name that means nothing now allows nobody; the others may.
                Err(_) => false,
            },
        };
        if found {
            return true;
        }
    }
    false
}

/// Resolves a name. What is asked of the system cannot be called back, and takes a thread for as
/// long as it lasts: a caller that gives up leaves its place taken until then.
async fn look_up(host: String) -> io::Result<Vec<IpAddr>> {
    let place = LOOKUPS.acquire().await.map_err(io::Error::other)?;
    let asked = tokio::spawn(async move {
        let _place = place;
        let found = tokio::net::lookup_host((host.as_str(), 0)).await?;
        Ok(found.map(|address| address.ip()).collect())
    });
    asked.await.map_err(io::Error::other)?
}

/// How many names are looked up at a time, whoever asks: everybody may, before it is known who it
/// is, and the agent needs threads of its own.
static LOOKUPS: Semaphore = Semaphore::const_new(4);

fn host(url: &str) -> Option<String> {
    let uri: http::Uri = url.parse().ok()?;
    Some(uri.host()?.trim_matches(['[', ']']).to_owned())
}

fn contains(network: IpAddr, bits: u8, address: IpAddr) -> bool {
    let same = |a: u128, b: u128, width: u32| {
        let ignored = width.saturating_sub(u32::from(bits));
        a.checked_shr(ignored).unwrap_or(0) == b.checked_shr(ignored).unwrap_or(0)
    };
    match (network, address.to_canonical()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(u32::from(a).into(), u32::from(b).into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(a.into(), b.into(), 128),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

fn is_host_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    !text.is_empty() && text.len() <= 253 && text.chars().all(plain)
}

/// A name service that is slower than this refuses the request rather than holding it.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(entry: &str, caller: &str) -> bool {
        match entry.parse().unwrap() {
            Allowed::Network { address, bits } => contains(address, bits, caller.parse().unwrap()),
            Allowed::Host(name) => panic!("{name} is no network"),
        }
    }

    #[test]
    fn networks_contain_their_addresses() {
        for (entry, caller, expected) in [
            ("10.0.0.0/8", "10.200.3.4", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
            ("10.0.0.0/8", "::ffff:10.1.1.1", true),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "fe80::1", true),
            ("fd00::/8", "fd12::1", true),
            ("fd00::/8", "fe12::1", false),
        ] {
            assert_eq!(allowed(entry, caller), expected, "{entry} {caller}");
        }
    }

    #[test]
    fn an_entry_that_is_nothing_is_refused() {
        for entry in ["", "10.0.0.0/33", "::/129", "10.0.0.0/x", "a b", "host/8"] {
            assert!(entry.parse::<Allowed>().is_err(), "{entry:?}");
        }
        assert_eq!(
            "db-1.example".parse(),
            Ok(Allowed::Host("db-1.example".to_owned()))
        );
    }
}
