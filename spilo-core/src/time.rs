//! This node's own time.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

/// Milliseconds of this node's own clock that never goes back and counts while the machine is
/// suspended (`CLOCK_BOOTTIME`). Comparable on one node only.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
pub struct NodeTime(pub u64);

/// Where an agent gets the time from.
///
/// # Contract
/// Never goes back within one boot of the machine, goes on while the machine is suspended, and is
/// the clock that the [`Guard`](crate::Guard) of the same node measures its deadline on.
#[async_trait]
pub trait Clock: Send + Sync + fmt::Debug {
    /// Returns the time now.
    fn now(&self) -> NodeTime;

    /// Waits until it shows this time, or a moment longer.
    ///
    /// # Cancellation
    /// Dropping the future ends the wait and nothing else.
    async fn sleep_until(&self, at: NodeTime);
}

impl NodeTime {
    /// Returns how long ago `earlier` was, or zero if it was not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Returns the time `span` before this one, or zero.
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(millis(span)))
    }
}

impl Add<Duration> for NodeTime {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(millis(span)))
    }
}

impl Sub for NodeTime {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.since(earlier)
    }
}

impl fmt::Display for NodeTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}s", self.0 / 1000, self.0 % 1000)
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
