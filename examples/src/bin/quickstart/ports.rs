//! TCP ports for the nodes.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use anyhow::{Result, bail};

/// A port of the loopback interface that is kept for this program, also while nothing listens on
/// it because its node is dead.
///
/// It is below those that outgoing connections get, so that none of them takes it meanwhile. The
/// reservation is an abstract Unix socket, by a name that the tests of this project use too: it
/// ends with the process and leaves no file.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    _reservation: UnixListener,
}

impl Port {
    /// Reserves a free port.
    pub(crate) fn reserve() -> Result<Self> {
        // Another beginning for each process, so that few are tried in vain.
        let begin = std::process::id().wrapping_mul(2_654_435_761) % u32::from(LAST - FIRST);
        for step in 0..u32::from(LAST - FIRST) {
            let offset = u16::try_from((begin + step) % u32::from(LAST - FIRST))?;
            let number = FIRST + offset;
            let name = SocketAddr::from_abstract_name(format!("spilo-harness-port-{number}"))?;
            let Ok(reservation) = UnixListener::bind_addr(&name) else {
                continue;
            };
            if TcpListener::bind(("0.0.0.0", number)).is_ok() {
                return Ok(Self {
                    number,
                    _reservation: reservation,
                });
            }
        }
        bail!("no port between {FIRST} and {LAST} is free")
    }

    /// Returns its number.
    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}

const FIRST: u16 = 12_000;
const LAST: u16 = 32_000;
