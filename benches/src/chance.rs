//! Seeded chance, so that a run can be repeated.

use std::time::Duration;

/// A small generator (`SplitMix64`): enough to spread faults over a lease.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// Starts from a seed.
    pub fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// Draws a span below a limit.
    pub fn span(&mut self, below: Duration) -> Duration {
        Duration::from_millis(self.draw() % crate::clock::as_ms(below).max(1))
    }

    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_spans() {
        let draw = |seed| {
            let mut chance = Chance::seeded(seed);
            [
                chance.span(Duration::from_secs(9)),
                chance.span(Duration::from_secs(9)),
            ]
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }
}
