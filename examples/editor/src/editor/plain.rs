//! A look at a change before `yrs` decodes it: it is plain if it has only what changes to a text
//! have, and all its numbers add up.
//!
//! `yrs` decodes nested values by recursion and makes room for lists before it reads them, so a few
//! bytes could overflow the stack or take gigabytes; and numbers that don't add up make it panic.
//! The format is that of Yjs' updates, version 1.
//!
//! Invariant: it reads a change as `yrs` does, or refuses it. Otherwise there would be changes of
//! which the two see different parts.

use std::collections::HashMap;

use yrs::encoding::read::{Cursor, Error, Read};

use super::refused::{Outcome, Refused};

/// The longest text that is inserted at once, in bytes: a deletion within it copies half of it.
const TEXT_BYTES_MAX: usize = 1 << 20;
/// The letters that one client may write. Documents are far smaller.
const CLOCK_MAX: u32 = 1 << 31;
/// Names of clients are integers of JavaScript.
const CLIENT_MAX: u64 = (1 << 53) - 1;

/// The most that a part of a text takes beside its letters: a byte, the letters that it stands
/// between, and a length. Each name has up to 8 bytes, and each number of a letter up to 5.
const PART_BYTES: usize = 1 + 2 * (8 + 5) + 5;
/// A deletion within a part makes it three, and stands in the list of deletions.
const DELETION_BYTES: usize = 2 * PART_BYTES + 2 * 5;

const GC: u8 = 0;
const DELETED: u8 = 1;
const STRING: u8 = 4;
const SKIP: u8 = 10;
/// The bits of a block's first byte that tell its content.
const CONTENT: u8 = 0b1_1111;
const HAS_ORIGIN: u8 = 0x80;
const HAS_RIGHT_ORIGIN: u8 = 0x40;
/// It is the value of a key, which no part of a text is.
const HAS_KEY: u8 = 0x20;
/// The parent is named by its key in the document, and isn't another block.
const IS_ROOT: u32 = 1;

/// The places at which a plain change may divide parts of the text that others have written.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cuts {
    /// On both sides of what is inserted.
    insertions: usize,
    pub(super) deletions: usize,
}

impl Cuts {
    /// The bytes that a document may become larger by, beyond those of the change.
    pub(super) fn growth(self) -> usize {
        self.insertions * PART_BYTES + self.deletions * DELETION_BYTES
    }
}

pub(super) fn check(change: &[u8]) -> Outcome<Cuts> {
    match look(&mut Cursor::new(change)) {
        Ok(Look::Plain(cuts)) => Ok(cuts),
        Ok(Look::TooLarge) => Err(Refused::TooLarge),
        Ok(Look::Other) | Err(_) => Err(Refused::NotYjs),
    }
}

/// The name of a client, which `yrs` takes for granted to be one.
pub(super) fn client(list: &mut Cursor<'_>) -> Result<u64, Error> {
    let client: u64 = list.read_var()?;
    if client <= CLIENT_MAX { Ok(client) } else { Err(Error::UnexpectedValue) }
}

/// The result for one block is the number of its letters.
enum Look<T> {
    Plain(T),
    TooLarge,
    Other,
}

fn look(change: &mut Cursor<'_>) -> Result<Look<Cuts>, Error> {
    let mut inserted = Inserted::default();
    for _ in 0..change.read_var::<u32>()? {
        let (blocks, client): (u32, u64) = (change.read_var()?, client(change)?);
        let mut clock: u32 = change.read_var()?;
        let mut borders = vec![clock];
        for _ in 0..blocks {
            match look_at_block(change, &mut inserted)? {
                Look::Plain(letters) => clock = after(clock, letters)?,
                Look::TooLarge => return Ok(Look::TooLarge),
                Look::Other => return Ok(Look::Other),
            }
            borders.push(clock);
        }
        // Each has one list: `yrs` joins several as if one went on where the other ends.
        if inserted.borders.insert(client, borders).is_some() {
            return Ok(Look::Other);
        }
    }
    let mut deletions = 0;
    for _ in 0..change.read_var::<u32>()? {
        let (_client, ranges): (u64, u32) = (client(change)?, change.read_var()?);
        for _ in 0..ranges {
            deletions += 1;
            let (clock, letters): (u32, u32) = (change.read_var()?, change.read_var()?);
            after(clock, letters)?;
        }
    }
    Ok(Look::Plain(Cuts { insertions: inserted.cuts(), deletions }))
}

/// The blocks of a change, and where they stand.
#[derive(Default)]
struct Inserted {
    /// The letters of each client at which its blocks begin, and the one after the last, in order.
    borders: HashMap<u64, Vec<u32>>,
    /// The clients and letters before which something is inserted, or after whose predecessor.
    places: Vec<(u64, u32)>,
}

impl Inserted {
    /// The places that aren't between blocks of the change itself.
    fn cuts(&self) -> usize {
        let is_cut = |(client, letter): &&(u64, u32)| {
            self.borders.get(client).is_none_or(|borders| borders.binary_search(letter).is_err())
        };
        self.places.iter().filter(is_cut).count()
    }
}

fn look_at_block(change: &mut Cursor<'_>, inserted: &mut Inserted) -> Result<Look<u32>, Error> {
    let info = change.read_u8()?;
    if info == GC || info == SKIP {
        return change.read_var().map(Look::Plain);
    }
    if info & HAS_KEY != 0 {
        return Ok(Look::Other);
    }
    for (has, letters) in [(HAS_ORIGIN, 1), (HAS_RIGHT_ORIGIN, 0)] {
        if info & has != 0 {
            let place = (client(change)?, after(change.read_var()?, letters)?);
            inserted.places.push(place);
        }
    }
    if info & (HAS_ORIGIN | HAS_RIGHT_ORIGIN) == 0 {
        if change.read_var::<u32>()? != IS_ROOT {
            return Ok(Look::Other);
        }
        let _root = change.read_buf()?;
    }
    match info & CONTENT {
        DELETED => change.read_var().map(Look::Plain),
        STRING => {
            let text = change.read_string()?;
            if text.len() > TEXT_BYTES_MAX {
                return Ok(Look::TooLarge);
            }
            Ok(Look::Plain(text.encode_utf16().count() as u32))
        }
        _ => Ok(Look::Other),
    }
}

/// The number of the letter after so many.
fn after(clock: u32, letters: u32) -> Result<u32, Error> {
    let end = clock.checked_add(letters).filter(|end| *end <= CLOCK_MAX);
    end.ok_or(Error::UnexpectedValue)
}

#[cfg(test)]
mod tests {
    use yrs::updates::decoder::Decode;
    use yrs::{Array, Doc, GetString, ReadTxn, StateVector, Text, Transact, Update};

    use super::*;

    fn whole(doc: &Doc) -> Vec<u8> {
        doc.transact().encode_state_as_update_v1(&StateVector::default())
    }

    #[test]
    fn changes_to_a_text_are_plain_and_stay_readable() {
        let doc = Doc::new();
        let text = doc.get_or_insert_text("codemirror");
        for at in 0..20 {
            text.insert(&mut doc.transact_mut(), at, "a");
            text.insert(&mut doc.transact_mut(), 0, "b");
            text.remove_range(&mut doc.transact_mut(), at / 2, 1);
        }
        let change = whole(&doc);
        assert!(check(&change).is_ok());
        let other = Doc::new();
        let copy = other.get_or_insert_text("codemirror");
        other.transact_mut().apply_update(Update::decode_v1(&change).unwrap()).unwrap();
        assert_eq!(copy.get_string(&other.transact()), text.get_string(&doc.transact()));
    }

    /// Chance, over and over, in messages of every kind that a text has.
    #[test]
    fn no_plain_change_makes_yrs_panic() {
        let doc = Doc::with_client_id(7);
        let text = doc.get_or_insert_text("text");
        text.insert(&mut doc.transact_mut(), 0, "some words");
        text.insert(&mut doc.transact_mut(), 4, " \u{1F600}");
        let before = doc.transact().state_vector();
        text.insert(&mut doc.transact_mut(), 2, "in the middle");
        text.remove_range(&mut doc.transact_mut(), 1, 3);
        text.remove_range(&mut doc.transact_mut(), 8, 2);
        let good = [whole(&doc), doc.transact().encode_state_as_update_v1(&before)];
        let (mut seed, mut plain) = (42_u64, 0);
        let mut below = |limit: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as usize % limit
        };
        for round in 0..200_000 {
            let mut change = good[round % 2].clone();
            for _ in 0..=below(4) {
                let at = below(change.len());
                match below(4) {
                    0 => change[at] = 0xff,
                    1 => change.insert(at, below(256) as u8),
                    _ => change[at] = below(256) as u8,
                }
            }
            if check(&change).is_err() {
                continue;
            }
            plain += 1;
            let Ok(update) = Update::decode_v1(&change) else { continue };
            let other = Doc::with_client_id(8);
            let copy = other.get_or_insert_text("text");
            copy.insert(&mut other.transact_mut(), 0, "here");
            let known = Update::decode_v1(&good[0]).unwrap();
            if round % 4 < 2 {
                other.transact_mut().apply_update(known).unwrap();
            }
            let _ = other.transact_mut().apply_update(update);
            let _ = whole(&other);
            let _ = yrs::merge_updates_v1([&good[0], &change]);
        }
        assert!(plain > 10_000, "{plain} were plain");
    }

    #[test]
    fn numbers_that_do_not_add_up_are_refused() {
        let far = [0xff, 0xff, 0xff, 0xff, 0x0f];
        // The number 2^53.
        let nobody = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
        let text = [4, 1, 1, b'a', 1, b'x'];
        for (what, change) in [
            ("a client that is none", [&[1, 1], &nobody[..], &[0], &text, &[0]].concat()),
            ("letters beyond all numbers", [&[1, 1, 7], &far[..], &text, &[0]].concat()),
            ("a gap without an end", [&[1, 1, 7, 1, SKIP], &far[..], &[0]].concat()),
            ("deletions by nobody", [&[0, 1], &nobody[..], &[1, 0, 1]].concat()),
            ("deletions without an end", [&[0, 1, 7, 1, 1], &far[..]].concat()),
            ("an origin of nobody", [&[1, 1, 7, 0, 0x84], &nobody[..], &[0, 1, b'x', 0]].concat()),
            ("a client twice", [&[2, 1, 7, 0], &text[..], &[1, 7, 0], &text, &[0]].concat()),
            // For `yrs` that is the value `x` of the key `a`, and not the text `a`.
            ("a key", [&[1, 1, 7, 0, 0x24, 1, 1, b'a', 1, b'a', 1, b'x', 0][..]].concat()),
        ] {
            assert!(matches!(check(&change), Err(Refused::NotYjs)), "{what}");
        }
        assert!(check(&[&[1, 1, 7, 0], &text[..], &[0]].concat()).is_ok());
    }

    /// A document is never larger than its parts were said to make it.
    #[test]
    fn growth_is_never_more_than_was_said() {
        let doc = Doc::with_client_id((1 << 53) - 1);
        let text = doc.get_or_insert_text("text");
        text.insert(&mut doc.transact_mut(), 0, &"ab".repeat(10_000));
        let mut said = whole(&doc).len();
        let mut txn = doc.transact_mut();
        for at in 0..5_000 {
            text.remove_range(&mut txn, at, 1);
        }
        let change = txn.encode_update_v1();
        drop(txn);
        said += change.len() + check(&change).unwrap_or_default().growth();
        let other = Doc::with_client_id((1 << 53) - 2);
        other.transact_mut().apply_update(Update::decode_v1(&whole(&doc)).unwrap()).unwrap();
        let copy = other.get_or_insert_text("text");
        for at in 0..2_000 {
            let mut txn = other.transact_mut();
            copy.insert(&mut txn, 14_000 - 2 * at, "x");
            let change = txn.encode_update_v1();
            said += change.len() + check(&change).unwrap_or_default().growth();
        }
        // All of it at once divides nothing.
        assert_eq!(check(&whole(&other)).unwrap_or_default().insertions, 0);
        let is = whole(&other).len();
        assert!(is <= said, "{is} bytes, and {said} were said");
        assert!(is > said / 4, "{is} bytes, and {said} were said");
    }

    #[test]
    fn nested_values_and_long_lists_are_refused_without_decoding() {
        let doc = Doc::new();
        doc.get_or_insert_array("list").push_back(&mut doc.transact_mut(), 5);
        assert!(check(&whole(&doc)).is_err(), "a list");
        // One client, one block of kind `Any` under the root `a`, of values within values.
        let deep = [&[1, 1, 1, 0, 8, 1, 1, b'a', 1][..], &[117, 1].repeat(1 << 20)].concat();
        assert!(check(&deep).is_err(), "deep");
        let texts = [&[1, 1, 1, 0, 4, 1, 1, b'a'][..], &[0xff, 0xff, 0xff, 0x7f]].concat();
        assert!(check(&texts).is_err(), "more text than bytes");
        let deletions = [&[0, 1, 1, 0xa1, 0x9c, 1][..], &[0, 1].repeat(20_000)].concat();
        assert!(check(&deletions).is_err(), "more deletions than bytes");
    }
}
