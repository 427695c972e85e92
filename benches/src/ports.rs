//! TCP ports that no other harness on this machine takes at the same time.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use anyhow::{Result, bail};

use crate::clock::wall_us;

/// A port of this machine that is kept for one harness until this is dropped.
///
/// The reservation is an abstract Unix socket named for the port: it ends with the process that
/// holds it, however that ends, and leaves no file behind. Ports below the ephemeral range are
/// used, so that no outgoing connection takes one between its reservation and its use.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _reservation: UnixListener,
}

impl Port {
    /// Reserves a free port.
    ///
    /// # Errors
    ///
    /// Fails where none of the range is free.
    pub fn reserve() -> Result<Self> {
        let span = u64::from(LAST - FIRST);
        let start = (wall_us() ^ u64::from(std::process::id()).wrapping_mul(2_654_435_761)) % span;
        for step in 0..span {
            let number = FIRST + u16::try_from((start + step) % span)?;
            let name = SocketAddr::from_abstract_name(format!("spilo-harness-port-{number}"))?;
            let Ok(reservation) = UnixListener::bind_addr(&name) else {
                continue;
            };
            // Anything may listen here, on any address: a port is free only when the wildcard can
            // be bound.
            if TcpListener::bind(("0.0.0.0", number)).is_ok() {
                return Ok(Self {
                    number,
                    _reservation: reservation,
                });
            }
        }
        bail!("no port between {FIRST} and {LAST} is free")
    }

    /// Returns the port's number.
    pub fn number(&self) -> u16 {
        self.number
    }
}

const FIRST: u16 = 12_000;
const LAST: u16 = 32_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_reservations_are_two_ports() {
        let ports: Vec<Port> = (0..20).map(|_| Port::reserve().unwrap()).collect();
        let mut numbers: Vec<u16> = ports.iter().map(Port::number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), ports.len());
    }
}
