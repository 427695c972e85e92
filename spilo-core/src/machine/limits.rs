//! How long a driver waits for what it sent.

use std::time::Duration;

use super::facts::Facts;

/// How long requests may take under the configuration in force. A request whose time is over is
/// reported as what it is: one that may have been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// One of the lease: short enough that a second try fits before the deadline.
    pub lease: Duration,
    /// Any other to the store.
    pub request: Duration,
    /// A round of consent.
    pub consent: Duration,
}

impl Limits {
    /// Returns the limits under the configuration that `facts` have.
    pub fn of(facts: &Facts) -> Self {
        let ttl = facts.ttl_in_force();
        Self {
            lease: (ttl / 4).max(Duration::from_millis(500)),
            request: facts.config.retry_timeout.min(ttl / 2),
            consent: (ttl / 8)
                .max(Duration::from_millis(300))
                .min(Duration::from_secs(2)),
        }
    }
}
