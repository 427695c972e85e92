//! Chance that comes from a seed.

/// Numbers that look drawn by chance, and are the same for the same seed (SplitMix64).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Chance(u64);

impl Chance {
    /// Creates the chance of a seed.
    pub fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns a number below `below`, or zero if that is zero.
    pub fn below(&mut self, below: u64) -> u64 {
        if below == 0 { 0 } else { self.next() % below }
    }

    /// Returns whether something happens that does in so many of a thousand cases.
    pub fn happens(&mut self, thousandths: u64) -> bool {
        thousandths > 0 && self.below(1000) < thousandths
    }

    /// Returns one of several, which must not be none.
    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        let n = self.index(of.len());
        of[n].clone()
    }

    /// Returns a number below `len`, as an index.
    pub(super) fn index(&mut self, len: usize) -> usize {
        let len = u64::try_from(len).unwrap_or(u64::MAX);
        usize::try_from(self.below(len)).unwrap_or(0)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}
