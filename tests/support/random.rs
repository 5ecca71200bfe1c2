//! Random numbers that a failed test can repeat: every run prints its seed.
#![allow(dead_code, reason = "each file of tests starts in one of two ways")]

/// SplitMix64.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// Starts from a new seed, or from the one in `CAPSTEAD_TEST_SEED`, and prints it.
    pub(crate) fn from_printed_seed() -> Self {
        let given = std::env::var("CAPSTEAD_TEST_SEED").ok();
        let seed = given.map(|seed| seed.parse().expect("CAPSTEAD_TEST_SEED is a number"));
        let seed = seed.unwrap_or_else(|| getrandom::u64().expect("there is randomness"));
        eprintln!("to repeat this: CAPSTEAD_TEST_SEED={seed}");
        Self(seed)
    }

    /// Starts from this seed, which the caller prints.
    pub(crate) fn from_seed(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Another generator, for a thread of its own.
    pub(crate) fn fork(&mut self) -> Self {
        Self(self.next())
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
