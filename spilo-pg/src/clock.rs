//! The clock of a node.

use spilo_core::{Clock, NodeTime};

/// `CLOCK_BOOTTIME`, which the guard measures its deadline on: never goes back, and goes on while
/// the machine is suspended.
#[derive(Clone, Copy, Debug, Default)]
pub struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> NodeTime {
        crate::guard::boot_time()
    }
}
