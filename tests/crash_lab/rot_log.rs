//! The lab `rot`, second part: a bit of the log has changed. Is it found, and is its entry named?
//!
//! Every entry that another one follows, or a tail, or that was applied, was acknowledged: the
//! start must be refused, with the number of the entry. The last entry of a log that wasn't applied
//! and has no tail can't be told from one that was being written at a crash: it may be missing,
//! alone and as a whole.

use std::fs;

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
const HEAD_BYTES: usize = 120;
const MAGIC: (usize, &[u8]) = (16, b"CAPSTLOG");
const KIND: usize = 26;
const TAIL: u8 = 2;
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

/// The page of a tail.
#[derive(Clone, Debug)]
struct Tail {
    number: u64,
    file: String,
    at: usize,
}

/// Processes that may end before they say that their log rests, which takes them a moment.
const PROCESSES: usize = 20;

pub(crate) fn run(tier: Tier, seed: u64) -> Found {
    let mut counts = Counts::new();
    for (end, has_tail) in [(End::Behind, true), (End::Behind, false), (End::Applied, true)] {
        add(&mut counts, rot(tier, seed, end, has_tail)?);
    }
    let taken = counts.get(TAKEN).copied().unwrap_or(0);
    ensure(taken > 0, || "no change of a last entry was tried".to_owned())?;
    let found = counts.get(LAST_FOUND).copied().unwrap_or(0);
    ensure(found > 0, || "no change of a last entry was found out by its tail".to_owned())?;
    Ok(counts)
}

const FOUND: &str = "changes of the log found out";
const TAKEN: &str = "changed last entries taken for torn ones";
const LAST_FOUND: &str = "changes of a last entry found out by its tail";
const UNUSED: &str = "changes of unused parts of the log";

fn rot(tier: Tier, seed: u64, end: End, has_tail: bool) -> Found {
    let (folder, script) = (quick_scratch(), Script { seed, keys: KEYS });
    let environment = folder.path().join("environment");
    fs::create_dir(&environment).expect("a folder");
    let log = if end == End::Behind { Log::Behind } else { Log::Slow };
    let mut made = (1..=PROCESSES).map(|process| {
        let environment = folder.path().join(process.to_string());
        script.make(&environment, TURNS, log, end);
        folder::read(&environment)
    });
    let last_tail = |files: &Files| {
        let (entries, tails) = entries(files);
        let last = entries.last().map(|last| last.number);
        tails.into_iter().find(|tail| Some(tail.number) == last)
    };
    let mut whole = made.find(|files| last_tail(files).is_some());
    let whole = whole.as_mut().ok_or("no log has a tail after its last entry")?;
    let tail = last_tail(whole).expect("it was found");
    if !has_tail {
        let file = whole.get_mut(&tail.file).expect("it is there");
        file[tail.at..tail.at + PAGE_BYTES].fill(0);
    }
    let (entries, _) = entries(whole);
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
        let is_last = Some(entry.number) == entries.last().map(|last| last.number);
        let may_be_torn = end == End::Behind && is_last && !has_tail;
        let found = judge(entry, at, may_be_torn, checker.look(&environment)).map_err(|error| {
            format!("{end:?}, bit {bit} of byte {at} of {}, {entry:?}: {error}", entry.file)
        })?;
        let by_tail = found == FOUND && end == End::Behind && is_last && has_tail;
        *counts.entry(if by_tail { LAST_FOUND } else { found }).or_default() += 1;
    }
    for bit in 0..HEAD_BYTES * 8 {
        let mut changed = whole.clone();
        changed.get_mut(&tail.file).expect("it is there")[tail.at + bit / 8] ^= 1 << (bit % 8);
        folder::write(&environment, &changed);
        let found = checker.look(&environment);
        ensure(found == Ok(TURNS), || format!("bit {bit} of a tail is changed: {found:?}"))?;
    }
    *counts.entry("changes of tails, which say nothing then").or_default() += HEAD_BYTES as u64 * 8;
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

/// The entries of the log, in order, and its tails.
fn entries(files: &Files) -> (Vec<Entry>, Vec<Tail>) {
    let (mut entries, mut tails) = (Vec::new(), Vec::new());
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
            if head[KIND] == TAIL {
                tails.push(Tail { number: number(NUMBER), file: name.clone(), at });
                break;
            }
            let length = usize::try_from(number(LENGTH)).expect("it is short");
            let to = at + HEAD_BYTES + length;
            entries.push(Entry { number: number(NUMBER), file: name.clone(), from: at, to });
            at = to.next_multiple_of(PAGE_BYTES);
        }
    }
    entries.sort_by_key(|entry| entry.number);
    (entries, tails)
}
