//! Messages and JSON that somebody made to do harm.

use capnp::message::{Builder, ReaderOptions};
use capnp::{any_pointer, serialize};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::generate::{Colours, Dice};
use super::{BYTES_MAX, read, table, write};
use crate::dynamic::{DEPTH_MAX, NoCapSink, NoCapSource, Root, RootBuilder, parse};
use crate::schema::every_capnp::every;

/// So many of `every` in each other.
fn nested(count: usize) -> Value {
    (0..count).fold(json!({}), |inner, _| json!({"every": inner}))
}

#[test]
fn values_nest_up_to_the_limit_and_no_further() {
    let table = table();
    let message = write(&table, "Every", &nested(DEPTH_MAX - 3)).unwrap();
    assert!(read(&table, "Every", &message).is_ok());
    // Texts of JSON nest as deeply as that.
    let said = write(&table, "Every", &nested(DEPTH_MAX + 1)).err().unwrap();
    assert!(said.ends_with(": there are more than 64 values in each other"), "{said}");
    let mut message = Builder::new_default();
    let mut every = message.init_root::<every::Builder<'_>>();
    for _ in 0..10_000 {
        every = every.init_every();
    }
    let said = read(&table, "Every", &message).unwrap_err();
    assert!(said.ends_with(": there are more than 64 values in each other"), "{said}");
}

#[test]
fn a_few_bytes_of_a_message_make_no_gigabytes_of_json() {
    let mut message = Builder::new_default();
    message.init_root::<every::Builder<'_>>().init_voids((1 << 29) - 1);
    let said = read(&table(), "Every", &message).unwrap_err();
    assert!(said.contains("as JSON it has more than 1048576 bytes"), "{said}");
    // It ends where the limit is, and not where the list does.
    let index = said.strip_prefix("voids[").and_then(|said| said.split(']').next());
    assert!(index.unwrap().parse::<usize>().unwrap() < BYTES_MAX / 4, "{said}");
    let mut message = Builder::new_default();
    let mut every = message.init_root::<every::Builder<'_>>();
    every.set_text("\u{1}".repeat(BYTES_MAX / 4));
    let said = read(&table(), "Every", &message).unwrap_err();
    assert!(said.contains("as JSON it has more than 1048576 bytes"), "{said}");
    let mut message = Builder::new_default();
    message.init_root::<every::Builder<'_>>().init_data(BYTES_MAX as u32);
    assert!(read(&table(), "Every", &message).is_err());
}

#[test]
fn a_few_bytes_of_json_make_no_gigabytes_of_a_message() {
    let many: Value = (0..100_000).map(|_| json!({})).collect();
    for json in [json!({"inners": many}), json!({"text": "x".repeat(BYTES_MAX)})] {
        let said = write(&table(), "Every", &json).err().unwrap();
        let (_, why) = said.split_once(": ").unwrap();
        assert_eq!(why, "it is larger than a message may be: divide it");
    }
    let every: Value = (0..20_000).map(|_| json!([])).collect();
    assert!(write(&table(), "Every", &json!({"cube": every})).is_ok());
    let every: Value = (0..20_000).map(|_| json!([[{}]])).collect();
    assert!(write(&table(), "Every", &json!({"cube": every})).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_damaged_message_is_an_error_or_some_other_json(
        dice in prop::collection::vec(any::<u64>(), 0..200),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..9),
    ) {
        let table = table();
        let message = write(&table, "Every", &Dice(dice, Colours::All).every(0)).unwrap();
        let mut bytes = serialize::write_message_to_words(&message);
        for (at, byte) in damage {
            let at = at.index(bytes.len() - 8) + 8;
            bytes[at] = byte;
        }
        let message = serialize::read_message(&bytes[..], ReaderOptions::new()).unwrap();
        let Ok(root) = message.get_root::<any_pointer::Reader<'_>>() else { return Ok(()) };
        let root = Root::of(root).unwrap();
        let read = table.read(&table.struct_named("Every"), root, BYTES_MAX, &mut NoCapSink);
        if let Ok(json) = read {
            prop_assert!(json.len() <= BYTES_MAX);
            prop_assert!(serde_json::from_slice::<Value>(&json).is_ok());
        }
    }

    #[test]
    fn damaged_json_is_an_error_or_some_other_message(
        dice in prop::collection::vec(any::<u64>(), 0..200),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..9),
    ) {
        let (table, json) = (table(), Dice(dice, Colours::All).every(0).to_string());
        let mut bytes = json.into_bytes();
        for (at, from) in damage {
            let (at, from) = (at.index(bytes.len()), from.index(bytes.len()));
            bytes[at] = bytes[from];
        }
        let Ok(json) = parse(&bytes) else { return Ok(()) };
        let mut message = Builder::new_default();
        let root = RootBuilder::of(message.init_root::<any_pointer::Builder<'_>>());
        let of = table.struct_named("Every");
        if table.write(&of, &json, root, BYTES_MAX, &mut NoCapSource).is_ok() {
            prop_assert!(read(&table, "Every", &message).is_ok());
        }
    }
}
