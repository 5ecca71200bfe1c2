//! A look at a change before `yrs` decodes it: it is plain if it has only what changes to a text
//! have.
//!
//! `yrs` decodes nested values by recursion and makes room for lists before it reads them, so a few
//! bytes could overflow the stack or take gigabytes; and each deletion splits a string, so many of
//! them take long. The format is that of Yjs' updates, version 1.

use yrs::encoding::read::{Cursor, Error, Read};

use super::refused::{Outcome, Refused};

/// The most deletions of one change; Yjs sends all those of a document when a client comes back.
const DELETIONS_MAX: u32 = 20_000;
/// The longest text that is inserted at once, in bytes: a deletion within it copies half of it.
const TEXT_BYTES_MAX: usize = 1 << 20;

const GC: u8 = 0;
const DELETED: u8 = 1;
const STRING: u8 = 4;
const SKIP: u8 = 10;
/// The bits of a block's first byte that tell its content.
const CONTENT: u8 = 0b1_1111;
const HAS_ORIGIN: u8 = 0x80;
const HAS_RIGHT_ORIGIN: u8 = 0x40;
/// The parent is named by its key in the document, and isn't another block.
const IS_ROOT: u32 = 1;

pub(super) fn check(change: &[u8]) -> Outcome<()> {
    match look(&mut Cursor::new(change)) {
        Ok(Look::Plain) => Ok(()),
        Ok(Look::TooLarge) => Err(Refused::TooLarge),
        Ok(Look::Other) | Err(_) => Err(Refused::NotYjs),
    }
}

enum Look {
    Plain,
    TooLarge,
    Other,
}

fn look(change: &mut Cursor<'_>) -> Result<Look, Error> {
    for _ in 0..change.read_var::<u32>()? {
        let blocks: u32 = change.read_var()?;
        let (_client, _clock): (u64, u32) = (change.read_var()?, change.read_var()?);
        for _ in 0..blocks {
            match look_at_block(change)? {
                Look::Plain => {}
                other => return Ok(other),
            }
        }
    }
    let mut deletions = 0_u32;
    for _ in 0..change.read_var::<u32>()? {
        let (_client, ranges): (u64, u32) = (change.read_var()?, change.read_var()?);
        deletions = deletions.saturating_add(ranges);
        if deletions > DELETIONS_MAX {
            return Ok(Look::TooLarge);
        }
        for _ in 0..ranges {
            let (_clock, _length): (u32, u32) = (change.read_var()?, change.read_var()?);
        }
    }
    Ok(Look::Plain)
}

fn look_at_block(change: &mut Cursor<'_>) -> Result<Look, Error> {
    let info = change.read_u8()?;
    if info == GC || info == SKIP {
        let _length: u32 = change.read_var()?;
        return Ok(Look::Plain);
    }
    for has in [HAS_ORIGIN, HAS_RIGHT_ORIGIN] {
        if info & has != 0 {
            let (_client, _clock): (u64, u32) = (change.read_var()?, change.read_var()?);
        }
    }
    if info & (HAS_ORIGIN | HAS_RIGHT_ORIGIN) == 0 {
        if change.read_var::<u32>()? != IS_ROOT {
            return Ok(Look::Other);
        }
        let _root = change.read_buf()?;
    }
    match info & CONTENT {
        DELETED => change.read_var::<u32>().map(|_| Look::Plain),
        STRING if change.read_buf()?.len() > TEXT_BYTES_MAX => Ok(Look::TooLarge),
        STRING => Ok(Look::Plain),
        _ => Ok(Look::Other),
    }
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
        let deletions = [&[0, 1, 1, 0xa1, 0x9c, 1][..], &[0, 1].repeat(20_001)].concat();
        assert!(matches!(check(&deletions), Err(Refused::TooLarge)), "20,001 deletions");
    }
}
