//! The turns that the lab runs. The writes of each follow from the seed and its number alone.
//!
//! So a program that finds the data later knows what must be there after any number of turns. Every
//! turn stores its own number in its object, so no two numbers of turns leave the same state. This
//! file does no input or output.

use std::collections::BTreeMap;
use std::rc::Rc;

use clap::Args;

use crate::id::{ObjectId, Pool};

/// The key under which each turn stores its number.
pub(super) const LAST: &[u8] = b"last";

const OBJECTS: u64 = 5;
const WRITES_MAX: u64 = 3;

/// The turns.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct Script {
    /// The seed from which the turns follow.
    #[arg(long)]
    seed: u64,
    /// Keys of each object; with many of them the data grow for long.
    #[arg(long, default_value_t = 8)]
    keys: u64,
}

/// One key of one object.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) object: ObjectId,
    pub(super) key: Vec<u8>,
}

/// The writes of one turn, in order; a `None` value deletes the key.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) object: ObjectId,
    pub(super) writes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// The values of all objects.
pub(super) type State = BTreeMap<(ObjectId, Vec<u8>), Rc<[u8]>>;

impl Script {
    pub(super) fn objects() -> impl Iterator<Item = ObjectId> {
        (0..OBJECTS).map(object)
    }

    /// All records that any turn may write.
    pub(super) fn records(&self) -> impl Iterator<Item = Record> + use<> {
        let keys = self.keys;
        Self::objects().flat_map(move |object| {
            let keys = (0..keys).map(key).chain([LAST.to_vec(), b"large".to_vec()]);
            keys.map(move |key| Record { object, key })
        })
    }

    /// The turn with that number, from 1.
    pub(super) fn turn(&self, number: u64) -> Turn {
        let mut random = Random(self.seed.wrapping_mul(0x1_0000_0001).wrapping_add(number << 20));
        let object = object(random.below(OBJECTS));
        let mut writes = vec![(LAST.to_vec(), Some(number.to_be_bytes().to_vec()))];
        for _ in 0..random.below(WRITES_MAX) {
            let key = key(random.below(self.keys));
            let value = (random.below(5) > 0).then(|| {
                let longest = [16, 200, 2_000, 5_000][random.below(4) as usize];
                random.bytes(longest)
            });
            writes.push((key, value));
        }
        // Large enough to have pages of its own.
        if random.below(12) == 0 {
            let value = (random.below(2) > 0).then(|| {
                let mut value = random.bytes(40_000);
                value.resize(value.len() + 20_000, number as u8);
                value
            });
            writes.push((b"large".to_vec(), value));
        }
        Turn { object, writes }
    }
}

/// The expected states, cached for the numbers of turns that were asked for.
#[derive(Debug)]
pub(super) struct States {
    script: Script,
    known: BTreeMap<u64, Rc<State>>,
}

impl States {
    pub(super) fn new(script: Script) -> Self {
        Self { script, known: BTreeMap::from([(0, Rc::default())]) }
    }

    pub(super) fn script(&self) -> Script {
        self.script
    }

    /// The state once turns 1 to `turns` have happened.
    pub(super) fn after(&mut self, turns: u64) -> Rc<State> {
        let nearest = self.known.range(..=turns).next_back();
        let (from, state) =
            nearest.map_or_else(Default::default, |(at, state)| (*at, state.clone()));
        if from == turns {
            return state;
        }
        let mut state = State::clone(&state);
        for turn in (from + 1..=turns).map(|number| self.script.turn(number)) {
            for (key, value) in turn.writes {
                match value {
                    Some(value) => drop(state.insert((turn.object, key), value.into())),
                    None => drop(state.remove(&(turn.object, key))),
                }
            }
        }
        let state = Rc::new(state);
        self.known.insert(turns, state.clone());
        state
    }
}

fn object(number: u64) -> ObjectId {
    ObjectId::named(Pool::default(), "Lab", &number.to_string())
}

fn key(number: u64) -> Vec<u8> {
    format!("key-{number}").into_bytes()
}

/// SplitMix64, which gives the same numbers on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// At most this many bytes.
    fn bytes(&mut self, longest: u64) -> Vec<u8> {
        let length = self.below(longest) as usize;
        let words = std::iter::repeat_with(|| self.next().to_le_bytes());
        words.take(length.div_ceil(8)).flatten().take(length).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: Script = Script { seed: 7, keys: 8 };

    #[test]
    fn the_state_after_some_turns_is_the_same_however_it_is_asked_for() {
        let (mut forth, mut back) = (States::new(SCRIPT), States::new(SCRIPT));
        let one: Vec<_> = (0..60).map(|turns| forth.after(turns)).collect();
        let mut other: Vec<_> = (0..60).rev().map(|turns| back.after(turns)).collect();
        other.reverse();
        assert_eq!(one, other);
        assert!(one.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn the_turns_write_only_known_records_and_have_large_values_and_deletions() {
        let records: Vec<_> = SCRIPT.records().map(|record| (record.object, record.key)).collect();
        let (mut large, mut deleted) = (0, 0);
        for turn in (1..200).map(|number| SCRIPT.turn(number)) {
            for (key, value) in turn.writes {
                large += usize::from(value.as_ref().is_some_and(|value| value.len() >= 20_000));
                deleted += usize::from(value.is_none());
                assert!(records.contains(&(turn.object, key)));
            }
        }
        assert!(large > 3 && deleted > 10, "{large} large values, {deleted} deletions");
    }
}
