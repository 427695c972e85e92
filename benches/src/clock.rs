//! The clocks that the harness reads: the node's own (`CLOCK_BOOTTIME`) and the wall's.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Returns the milliseconds since the machine started, on the clock that spilo's leases are counted
/// on.
///
/// # Panics
///
/// Panics where the kernel has no `CLOCK_BOOTTIME`.
pub fn boot_ms() -> u64 {
    read_us(ClockId::CLOCK_BOOTTIME) / 1000
}

/// Returns the microseconds of the wall clock since 1970.
///
/// # Panics
///
/// Panics where the kernel has no `CLOCK_REALTIME`.
pub fn wall_us() -> u64 {
    read_us(ClockId::CLOCK_REALTIME)
}

/// Both clocks, read at one moment, to carry an instant from one to the other.
#[derive(Clone, Copy, Debug)]
pub struct ClockPair {
    boot_us: u64,
    wall_us: u64,
}

impl ClockPair {
    /// Reads both clocks, as close together as three tries allow.
    pub fn read() -> Self {
        let sample = || {
            let before = read_us(ClockId::CLOCK_BOOTTIME);
            let wall_us = wall_us();
            let after = read_us(ClockId::CLOCK_BOOTTIME);
            (
                after - before,
                Self {
                    boot_us: before.midpoint(after),
                    wall_us,
                },
            )
        };
        let tries = [sample(), sample(), sample()];
        tries
            .into_iter()
            .min_by_key(|(width_us, _)| *width_us)
            .map_or_else(|| sample().1, |(_, pair)| pair)
    }

    /// Returns the wall clock, in microseconds since 1970, at a moment of the boot clock.
    pub fn wall_us_at(&self, boot_ms: u64) -> u64 {
        (boot_ms * 1000 + self.wall_us).saturating_sub(self.boot_us)
    }

    /// Returns the boot clock, in milliseconds, at a moment of the wall clock.
    pub fn boot_ms_at(&self, wall_us: u64) -> u64 {
        (wall_us + self.boot_us).saturating_sub(self.wall_us) / 1000
    }
}

/// Returns a span in whole milliseconds.
pub fn as_ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn read_us(clock: ClockId) -> u64 {
    let now = clock_gettime(clock).expect("Linux has this clock");
    u64::try_from(now.tv_sec()).expect("no clock runs before its origin") * 1_000_000
        + u64::try_from(now.tv_nsec()).expect("nanoseconds are never negative") / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_survive_the_way_to_the_other_clock_and_back() {
        let pair = ClockPair::read();
        let now = boot_ms();
        assert!(pair.boot_ms_at(pair.wall_us_at(now)).abs_diff(now) <= 1);
    }
}
