//! Which host gets which shards: a pure function, so that every part computes the same.

use std::ops::RangeInclusive;

/// Host `number` of `hosts` owns these shards: the shards are cut into ranges of equal size.
pub(super) fn shards_of(number: u16, hosts: u16) -> RangeInclusive<u16> {
    const SHARDS: u32 = 1 << 16;
    let bound = |n: u32| n * SHARDS / u32::from(hosts);
    let (first, end) = (bound(number.into()), bound(u32::from(number) + 1));
    first as u16..=(end - 1) as u16
}

/// The host that owns `shard`.
pub(super) fn owner_of(shard: u16, hosts: u16) -> u16 {
    (0..hosts)
        .find(|number| shards_of(*number, hosts).contains(&shard))
        .expect("the ranges cover all shards")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shard_has_one_owner() {
        for hosts in [1, 2, 3, 7, 64] {
            let mut next = 0_u32;
            for number in 0..hosts {
                let range = shards_of(number, hosts);
                assert_eq!(u32::from(*range.start()), next);
                assert_eq!(owner_of(*range.start(), hosts), number);
                assert_eq!(owner_of(*range.end(), hosts), number);
                next = u32::from(*range.end()) + 1;
            }
            assert_eq!(next, 1 << 16);
        }
    }
}
