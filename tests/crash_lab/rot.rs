//! The lab `rot`, first part: a bit of LMDB's file has changed. Does a reader ever get wrong data?
//!
//! A reader must get the data that were written, or an error. A process that dies has returned no
//! wrong answer; it is counted.
//!
//! LMDB has no checksum for its own numbers: which root is newer, where a page is, and where on it
//! a record begins. A wrong number can lead to an older page that is whole in itself. Undetected
//! changes of these numbers are counted, and must stay rare; all other changes must be detected.

use std::fs;

use crate::checker::Checker;
use crate::folder::DATA;
use crate::lab::{Counts, Found, ensure, quick_scratch};
use crate::options::Tier;
use crate::support::random::Random;
use crate::writer::{End, Log, Script};

const TURNS: u64 = 80;
const KEYS: u64 = 8;
const UNSEEN: &str = "changes of LMDB's own numbers with an effect that nobody finds out";
const PAGE_BYTES: usize = 4_096;
/// The number of changes in a thousand that may have an undetected effect.
const UNSEEN_MAX: u64 = 5;

pub(crate) fn run(tier: Tier, seed: u64) -> Found {
    let changes = tier.pick(600, 20_000);
    let (folder, script) = (quick_scratch(), Script { seed, keys: KEYS });
    let environment = folder.path().join("environment");
    script.make(&environment, TURNS, Log::Usual, End::InOrder);
    let data = environment.join(DATA);
    let whole = fs::read(&data).expect("the data are there");
    let (mut random, mut checker) = (Random::from_seed(seed), Checker::new(script.arguments()));
    let mut counts = Counts::new();
    for _ in 0..changes {
        let (at, bit) = (random.below(whole.len() as u64) as usize, random.below(8));
        let mut changed = whole.clone();
        changed[at] ^= 1 << bit;
        fs::write(&data, &changed).expect("the data are written");
        let told = |wrong| format!("with bit {bit} of byte {at} changed: {wrong}");
        let found = match checker.look(&environment) {
            Ok(TURNS) => "changes without effect",
            Err(death) if death.contains("dies with") => "deaths of the reader",
            Err(found) if !found.contains("what no turn wrote") => "changes found out",
            Ok(applied) if !is_of_lmdb(&whole, at) => {
                return Err(told(format!("{applied} turns are there")));
            }
            Err(wrong) if !is_of_lmdb(&whole, at) => return Err(told(wrong)),
            _ => UNSEEN,
        };
        *counts.entry(found).or_default() += 1;
    }
    let unseen = counts.get(UNSEEN).copied().unwrap_or(0);
    ensure(unseen * 1_000 <= UNSEEN_MAX * changes, || format!("{unseen} {UNSEEN}"))?;
    Ok(counts)
}

/// Tells whether the byte belongs to LMDB's own numbers, and not to a record or its key.
fn is_of_lmdb(whole: &[u8], at: usize) -> bool {
    const BRANCH: u16 = 1;
    const LEAF: u16 = 2;
    const META: u16 = 8;
    let (page, at) = (&whole[at / PAGE_BYTES * PAGE_BYTES..][..PAGE_BYTES], at % PAGE_BYTES);
    let number = |at: usize| u16::from_ne_bytes([page[at], page[at + 1]]);
    let (flags, nodes) = (number(10), usize::from(number(12)));
    let is_of_the_page = at < nodes && flags & (BRANCH | LEAF) != 0;
    // In these places a branch refers to the next page.
    let mut heads = (16..nodes).step_by(2).map(|node| usize::from(number(node)));
    let is_in_a_head = flags & BRANCH != 0 && heads.any(|head| (head..head + 8).contains(&at));
    flags & META != 0 || is_of_the_page || is_in_a_head
}
