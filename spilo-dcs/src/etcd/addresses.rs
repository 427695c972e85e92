//! Where the names of endpoints lead.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};

use super::lane::held;

/// The addresses of hosts, remembered: names that cannot be resolved for a while lead where they
/// led before.
#[derive(Debug, Default)]
pub(super) struct Addresses(Mutex<HashMap<String, Known>>);

#[derive(Clone, Debug)]
struct Known {
    addresses: Vec<IpAddr>,
    /// Told by the name servers that the configuration names, which are asked instead of the
    /// system's.
    told: bool,
}

impl Addresses {
    /// Remembers what name servers of the configuration said.
    #[cfg(feature = "srv")]
    pub(super) fn tell(&self, host: String, addresses: Vec<IpAddr>) {
        let told = Known {
            addresses,
            told: true,
        };
        held(&self.0).insert(host, told);
    }

    /// Returns the address to connect to instead of a host's name: one on which somebody takes
    /// connections, where the system's name servers do not count or do not answer; `None` where the
    /// name can be used as it is.
    ///
    /// # Errors
    /// Why the host cannot be reached; nothing was sent to anybody.
    ///
    /// # Cancellation
    /// Safe.
    pub(super) async fn instead(
        &self,
        host: &str,
        port: u16,
        time: Duration,
    ) -> io::Result<Option<SocketAddr>> {
        let deadline = Instant::now() + time;
        let Some(addresses) = self
            .remembered(host, port, Instant::now() + time / 2)
            .await?
        else {
            return Ok(None);
        };
        let mut last = None;
        let count = addresses.len();
        for (n, ip) in addresses.into_iter().enumerate() {
            let untried = u32::try_from(count - n).unwrap_or(u32::MAX);
            let share = deadline.saturating_duration_since(Instant::now()) / untried;
            let address = SocketAddr::new(ip, port);
            let tried = timeout_at(Instant::now() + share, TcpStream::connect(address)).await;
            match tried.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(_) => return Ok(Some(address)),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| io::Error::other(format!("{host} has no address"))))
    }

    /// Resolves a name, and returns what it led to before if that fails; `None` if it does not.
    async fn remembered(
        &self,
        host: &str,
        port: u16,
        deadline: Instant,
    ) -> io::Result<Option<Vec<IpAddr>>> {
        let known = held(&self.0).get(host).cloned();
        if let Some(known) = known.as_ref().filter(|known| known.told) {
            return Ok(Some(known.addresses.clone()));
        }
        let problem = match timeout_at(deadline, lookup_host((host, port))).await {
            Ok(Ok(found)) => {
                let found = Known {
                    addresses: found.map(|address| address.ip()).collect(),
                    told: false,
                };
                held(&self.0).insert(host.to_owned(), found);
                return Ok(None);
            }
            Ok(Err(error)) => error,
            Err(_) => io::Error::new(io::ErrorKind::TimedOut, "the name is not resolved in time"),
        };
        match known {
            Some(known) => {
                tracing::debug!(host, %problem, "a name leads where it led before");
                Ok(Some(known.addresses))
            }
            None => Err(problem),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_secs(2);

    #[tokio::test]
    async fn a_name_that_cannot_be_resolved_leads_where_it_led_before() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let addresses = Addresses::default();
        let name = "etcd.spilo.invalid";
        addresses.instead(name, port, TIME).await.unwrap_err();
        let before = Known {
            // One that nobody listens on first: the next is tried.
            addresses: vec!["127.0.0.2".parse().unwrap(), "127.0.0.1".parse().unwrap()],
            told: false,
        };
        held(&addresses.0).insert(name.to_owned(), before);
        let address = addresses.instead(name, port, TIME).await.unwrap();
        assert_eq!(address, listener.local_addr().ok());
    }

    #[tokio::test]
    async fn a_name_that_is_resolved_is_used_as_it_is_and_remembered_anew() {
        let addresses = Addresses::default();
        let old = Known {
            addresses: vec!["192.0.2.1".parse().unwrap()],
            told: false,
        };
        held(&addresses.0).insert("localhost".to_owned(), old);
        let instead = addresses.instead("localhost", 1, TIME).await.unwrap();
        assert_eq!(instead, None);
        let known = held(&addresses.0)["localhost"].addresses.clone();
        assert!(known.iter().all(IpAddr::is_loopback), "{known:?}");
    }
}
