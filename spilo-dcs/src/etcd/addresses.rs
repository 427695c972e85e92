//! Where the names of endpoints lead.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::lane::held;

/// How many names are looked up at a time: each takes a thread, for as long as the system's resolver
/// waits for name servers that do not answer.
const LOOKUPS: usize = 8;

/// The addresses of hosts, remembered: names that cannot be resolved for a while lead where they
/// led before.
#[derive(Debug)]
pub(super) struct Addresses {
    known: Arc<Mutex<HashMap<String, Known>>>,
    lookups: Arc<Semaphore>,
}

impl Default for Addresses {
    fn default() -> Self {
        Self {
            known: Arc::default(),
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
        }
    }
}

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
        held(&self.known).insert(host, told);
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
                Ok(_) => {
                    self.use_last(host, ip);
                    return Ok(Some(address));
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| io::Error::other(format!("{host} has no address"))))
    }

    /// Puts an address behind the others of its host: whoever comes again found nothing good there.
    fn use_last(&self, host: &str, used: IpAddr) {
        if let Some(known) = held(&self.known).get_mut(host) {
            known.addresses.sort_by_key(|ip| *ip == used);
        }
    }

    /// Resolves a name, and returns what it led to before if that fails; `None` if it does not.
    async fn remembered(
        &self,
        host: &str,
        port: u16,
        deadline: Instant,
    ) -> io::Result<Option<Vec<IpAddr>>> {
        let known = held(&self.known).get(host).cloned();
        if let Some(known) = known.as_ref().filter(|known| known.told) {
            return Ok(Some(known.addresses.clone()));
        }
        // In a task of its own: an answer that comes too late for us is there for the next one.
        let (told, name) = (Arc::clone(&self.known), host.to_owned());
        let lookups = Arc::clone(&self.lookups);
        let lookup = tokio::spawn(async move {
            let Ok(_place) = lookups.try_acquire() else {
                return Err(io::Error::other("enough names are being resolved already"));
            };
            let found = lookup_host((name.as_str(), port)).await?;
            let found = Known {
                addresses: found.map(|address| address.ip()).collect(),
                told: false,
            };
            held(&told).insert(name, found);
            io::Result::Ok(())
        });
        // Where something is known, it is not waited for long.
        let deadline = match &known {
            Some(_) => deadline.min(Instant::now() + PATIENCE),
            None => deadline,
        };
        let problem = match timeout_at(deadline, lookup).await {
            Ok(Ok(Ok(()))) => return Ok(None),
            Ok(Ok(Err(error))) => error,
            Ok(Err(panic)) => io::Error::other(panic),
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

/// How long a name is looked up whose addresses are known.
const PATIENCE: Duration = Duration::from_millis(200);

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
        held(&addresses.known).insert(name.to_owned(), before);
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
        held(&addresses.known).insert("localhost".to_owned(), old);
        let instead = addresses.instead("localhost", 1, TIME).await.unwrap();
        assert_eq!(instead, None);
        let known = held(&addresses.known)["localhost"].addresses.clone();
        assert!(known.iter().all(IpAddr::is_loopback), "{known:?}");
    }
}
