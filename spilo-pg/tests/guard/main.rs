//! The guard with real processes and a real PostgreSQL.

#![expect(clippy::unwrap_used, reason = "a test fails where it is surprised")]
#![expect(
    clippy::print_stdout,
    reason = "what was measured belongs to the result"
)]

mod faults;
mod fixture;
mod life;
mod socket;
