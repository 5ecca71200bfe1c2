//! The lab `rot`, second part: a bit of the log has changed. Is it found, and is its entry named?
//!
//! Every entry that another one follows, or that was applied, was acknowledged: the start must be
//! refused, with the number of the entry. The last entry of a log that wasn't applied can't be told
//! from one that was being written at a crash: it may be missing, alone and as a whole.

use crate::checker::Checker;
use crate::folder;
use crate::images::Files;
use crate::lab::{Counts, Found, add, ensure, quick_scratch};
use crate::options::Tier;
use crate::support::random::Random;
use crate::writer::{End, IN_FLIGHT, Log, Script};

const TURNS: u64 = 80;
const KEYS: u64 = 8;
/// An entry's head, and the places of its numbers in it: see docs/storage-format.md.
const HEAD_BYTES: usize = 104;
const MAGIC: (usize, &[u8]) = (16, b"CAPSTLOG");
const NUMBER: usize = 56;
const SEGMENT: usize = 72;
const LENGTH: usize = 80;
const PAGE_BYTES: usize = 4_096;

/// The place of an entry, without the zeros after it.
#[derive(Clone, Debug)]
struct Entry {
    number: u64,
    file: String,
    from: usize,
    to: usize,
}

pub(crate) fn run(tier: Tier, seed: u64) -> Found {
    let mut counts = Counts::new();
    for end in [End::Behind, End::Applied] {
        add(&mut counts, rot(tier, seed, end)?);
    }
    let taken = counts.get(TAKEN).copied().unwrap_or(0);
    ensure(taken > 0, || "no change of a last entry was tried".to_owned())?;
    Ok(counts)
}

const FOUND: &str = "changes of the log found out";
const TAKEN: &str = "changed last entries taken for torn ones";
const UNUSED: &str = "changes of unused parts of the log";

fn rot(tier: Tier, seed: u64, end: End) -> Found {
    let (folder, script) = (quick_scratch(), Script { seed, keys: KEYS });
    let environment = folder.path().join("environment");
    let log = if end == End::Behind { Log::Behind } else { Log::Slow };
    script.make(&environment, TURNS, log, end);
    let whole = folder::read(&environment);
    let entries = entries(&whole);
    ensure(!entries.is_empty(), || format!("the log is too short: {entries:?}"))?;
    let (mut random, mut checker) = (Random::from_seed(seed), Checker::new(script.arguments()));
    let mut counts = Counts::new();
    for change in 0..tier.pick(800, 20_000) {
        // The last one is a special case, so it is not left to chance.
        let entry = match change % 10 {
            0 => entries.last().expect("there are some"),
            _ => &entries[random.below(entries.len() as u64) as usize],
        };
        let length = match change % 3 {
            0 => HEAD_BYTES,
            1 => entry.to - entry.from,
            _ => (entry.to - entry.from).next_multiple_of(PAGE_BYTES),
        };
        let (at, bit) = (entry.from + random.below(length as u64) as usize, random.below(8));
        let mut changed = whole.clone();
        changed.get_mut(&entry.file).expect("it is there")[at] ^= 1 << bit;
        folder::write(&environment, &changed);
        let is_last = end == End::Behind && Some(entry.number) == entries.last().map(|e| e.number);
        let found = judge(entry, at, is_last, checker.look(&environment)).map_err(|error| {
            format!("{end:?}, bit {bit} of byte {at} of {}, {entry:?}: {error}", entry.file)
        })?;
        *counts.entry(found).or_default() += 1;
    }
    Ok(counts)
}

/// Judges the answer of a reader, given the entry with the changed byte.
fn judge(
    entry: &Entry,
    at: usize,
    is_last: bool,
    found: Result<u64, String>,
) -> Result<&'static str, String> {
    match found {
        Ok(TURNS) if at >= entry.to => Ok(UNUSED),
        Ok(turns) if is_last && at < entry.to && (TURNS - IN_FLIGHT..TURNS).contains(&turns) => {
            Ok(TAKEN)
        }
        Err(error) if at < entry.to => {
            let names = error.contains(&format!("entry {} ", entry.number));
            ensure(names, || format!("another one is named: {error}")).map(|()| FOUND)
        }
        found => Err(format!("the reader found {found:?}")),
    }
}

/// The entries of the log, in order.
fn entries(files: &Files) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (name, bytes) in files {
        let segment = name.strip_prefix("segment-").and_then(|text| text.parse::<u64>().ok());
        let Some(segment) = segment else {
            continue;
        };
        let mut at = 0;
        while let Some(head) = bytes.get(at..at + HEAD_BYTES) {
            let number = |place: usize| {
                let bytes = head[place..place + 8].try_into().expect("there are eight");
                u64::from_le_bytes(bytes)
            };
            let is_entry = head[MAGIC.0..].starts_with(MAGIC.1) && number(SEGMENT) == segment;
            if !is_entry {
                break;
            }
            let length = usize::try_from(number(LENGTH)).expect("it is short");
            let to = at + HEAD_BYTES + length;
            entries.push(Entry { number: number(NUMBER), file: name.clone(), from: at, to });
            at = to.next_multiple_of(PAGE_BYTES);
        }
    }
    entries.sort_by_key(|entry| entry.number);
    entries
}
