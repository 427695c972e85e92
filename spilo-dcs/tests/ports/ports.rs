//! Ports for the servers of tests.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::{Mutex, PoisonError};

/// Returns ports that nobody listens on, and that no test takes until this process has ended.
///
/// A port that the system gives out for a moment may be given to another test before its server
/// listens there, and the two would then speak to one server. So these are below those that the
/// system gives out, and each is held by an abstract Unix socket of its name, as it is by the
/// harness in `benches`.
pub(crate) fn free_ports(count: usize) -> Vec<u16> {
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    let start = u16::try_from(std::process::id().wrapping_mul(40_503) % u32::from(LAST - FIRST));
    let start = start.unwrap();
    let free: Vec<u16> = (0..LAST - FIRST)
        .map(|step| FIRST + (start + step) % (LAST - FIRST))
        .filter(|port| {
            let name = SocketAddr::from_abstract_name(format!("spilo-harness-port-{port}"));
            let Ok(reservation) = UnixListener::bind_addr(&name.unwrap()) else {
                return false;
            };
            held.push(reservation);
            TcpListener::bind(("0.0.0.0", *port)).is_ok()
        })
        .take(count)
        .collect();
    assert_eq!(free.len(), count, "no port is free");
    free
}

static HELD: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());

const FIRST: u16 = 12_000;
const LAST: u16 = 32_000;
