//! The placement of shards on hosts: a pure function, so that every part computes the same.

use std::ops::RangeInclusive;

/// The highest bits of a shard's number are its pool; the bits below are its place in the pool.
const POOL_BITS: u32 = 4;
const SHARDS_OF_POOL: u32 = 1 << (u16::BITS - POOL_BITS);

/// The shards of host `number` of `hosts`: one range of each pool, all of about the same size.
///
/// Each pool is divided separately, since a namespace has all of its objects in one pool.
pub(crate) fn shards_of(number: u16, hosts: u16) -> impl Iterator<Item = RangeInclusive<u16>> {
    let bound = move |n: u32| n * SHARDS_OF_POOL / u32::from(hosts);
    let (first, end) = (bound(number.into()), bound(u32::from(number) + 1));
    let pools = (0..1 << POOL_BITS).map(|pool: u32| pool * SHARDS_OF_POOL);
    pools.map(move |pool| (pool + first) as u16..=(pool + end - 1) as u16)
}

/// The host that owns `shard`.
pub(crate) fn owner_of(shard: u16, hosts: u16) -> u16 {
    (0..hosts)
        .find(|number| shards_of(*number, hosts).any(|range| range.contains(&shard)))
        .expect("the ranges cover all shards")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shard_has_one_owner() {
        for hosts in [1, 2, 3, 7, 64] {
            let mut owners = vec![None; 1 << 16];
            for number in 0..hosts {
                for shard in shards_of(number, hosts).flatten() {
                    assert_eq!(owners[usize::from(shard)].replace(number), None);
                }
            }
            assert!(owners.iter().all(Option::is_some));
            for shard in (0..=u16::MAX).step_by(251).chain([u16::MAX]) {
                assert_eq!(Some(owner_of(shard, hosts)), owners[usize::from(shard)]);
            }
        }
    }

    /// All objects of a namespace are in one pool, and must not all be on one host.
    #[test]
    fn each_pool_is_spread_over_all_hosts() {
        for hosts in [2, 3, 64] {
            for pool in 0..16 {
                let of_pool = |shard: &u16| shard >> 12 == pool;
                let counts =
                    (0..hosts).map(|host| shards_of(host, hosts).flatten().filter(of_pool).count());
                let even = 4096 / usize::from(hosts);
                assert!(counts.into_iter().all(|count| count == even || count == even + 1));
            }
        }
    }
}
