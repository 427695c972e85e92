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

    /// Returns an address of a host on which somebody takes connections.
    ///
    /// # Errors
    /// Why there is none; nothing was sent to anybody.
    ///
    /// # Cancellation
    /// Safe.
    pub(super) async fn reach(
        &self,
        host: &str,
        port: u16,
        time: Duration,
    ) -> io::Result<SocketAddr> {
        let deadline = Instant::now() + time;
        let addresses = self.of(host, port, Instant::now() + time / 3).await?;
        let mut last = None;
        let count = addresses.len();
        for (n, ip) in addresses.into_iter().enumerate() {
            let untried = u32::try_from(count - n).unwrap_or(u32::MAX);
            let share = deadline.saturating_duration_since(Instant::now()) / untried;
            let address = SocketAddr::new(ip, port);
            let tried = timeout_at(Instant::now() + share, TcpStream::connect(address)).await;
            match tried.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(_) => return Ok(address),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| io::Error::other(format!("{host} has no address"))))
    }

    async fn of(&self, host: &str, port: u16, deadline: Instant) -> io::Result<Vec<IpAddr>> {
        let known = held(&self.0).get(host).cloned();
        if let Some(known) = known.as_ref().filter(|known| known.told) {
            return Ok(known.addresses.clone());
        }
        let found = timeout_at(deadline, lookup_host((host, port))).await;
        let problem = match found {
            Ok(Ok(found)) => {
                let addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
                let found = Known {
                    addresses: addresses.clone(),
                    told: false,
                };
                held(&self.0).insert(host.to_owned(), found);
                return Ok(addresses);
            }
            Ok(Err(error)) => error,
            Err(_) => io::Error::new(io::ErrorKind::TimedOut, "the name is not resolved in time"),
        };
        match known {
            Some(known) => {
                tracing::debug!(host, %problem, "a name leads where it led before");
                Ok(known.addresses)
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
        addresses.reach(name, port, TIME).await.unwrap_err();
        let before = Known {
            // One that nobody listens on first: the next is tried.
            addresses: vec!["127.0.0.2".parse().unwrap(), "127.0.0.1".parse().unwrap()],
            told: false,
        };
        held(&addresses.0).insert(name.to_owned(), before);
        let reached = addresses.reach(name, port, TIME).await.unwrap();
        assert_eq!(reached, listener.local_addr().unwrap());
    }

    #[tokio::test]
    async fn a_name_that_is_resolved_anew_leads_there() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let addresses = Addresses::default();
        let old = Known {
            addresses: vec!["192.0.2.1".parse().unwrap()],
            told: false,
        };
        held(&addresses.0).insert("localhost".to_owned(), old);
        let reached = addresses.reach("localhost", port, TIME).await.unwrap();
        assert_eq!(reached, listener.local_addr().unwrap());
    }
}
