//! How long a failover takes.

use serde_json::json;

use super::{Chance, Conditions, Fault, Sim};

/// Returns how long, in milliseconds, three nodes are without a primary after the node of the
/// primary died, for each of so many seeds, smallest first. The seed draws when it dies; the
/// network takes up to three milliseconds each way.
///
/// # Panics
/// If there is no successor within four times the time to live.
pub fn failover_ms(ttl: u64, hints: bool, seeds: u64) -> Vec<u64> {
    let conditions = Conditions {
        way_ms: 2,
        hints,
        ..Conditions::default()
    };
    let mut settled = Sim::with(["a", "b", "c"], &json!({ "ttl": ttl }), conditions, 0);
    settled.run_until("a healthy cluster", 60, Sim::is_healthy);
    settled.run_for(std::time::Duration::from_secs(2 * ttl));
    let mut times: Vec<u64> = (0..seeds)
        .map(|seed| {
            let mut sim = settled.clone();
            let mut chance = Chance::seeded(seed);
            sim.set_seed(chance.below(u64::MAX));
            sim.run_for(std::time::Duration::from_millis(chance.below(ttl * 1000)));
            if let Some(primary) = sim.primary() {
                sim.begin(Fault::KillNode(primary));
            }
            sim.run_until("a successor", 4 * ttl, |sim| sim.primary().is_some())
        })
        .collect();
    times.sort_unstable();
    times
}
