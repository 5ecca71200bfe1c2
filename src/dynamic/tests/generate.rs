//! Random JSON of a struct of `every.capnp`, in the form in which it comes back.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{read, round, table, write};
use crate::dynamic::tests::accessors;

/// Random choices, which proptest makes fewer and smaller.
pub(super) struct Dice(pub(super) Vec<u64>, pub(super) Colours);

/// The values of enums that there may be.
#[derive(PartialEq)]
pub(super) enum Colours {
    All,
    /// Those that generated code can write.
    Named,
}

/// Makes the JSON of one field.
type Field = fn(&mut Dice) -> Value;

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0.pop().unwrap_or_default()
    }

    fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }

    fn text(&mut self) -> String {
        let length = self.below(9);
        (0..length)
            .map(|_| char::from_u32(self.roll() as u32 % 0x300).unwrap_or('\u{10ffff}'))
            .collect()
    }

    fn float(&mut self, bits: u64) -> Value {
        let value = match bits {
            32 => f32::from_bits(self.roll() as u32).to_string().parse().unwrap(),
            _ => f64::from_bits(self.roll()),
        };
        match value {
            value if value.is_nan() => json!("NaN"),
            value if value == f64::INFINITY => json!("Infinity"),
            value if value == f64::NEG_INFINITY => json!("-Infinity"),
            value => json!(value),
        }
    }

    fn data(&mut self) -> Value {
        use base64::Engine as _;
        let bytes: Vec<u8> = (0..self.below(9)).map(|_| self.roll() as u8).collect();
        json!(base64::engine::general_purpose::STANDARD.encode(bytes))
    }

    fn colour(&mut self) -> Value {
        let end = if self.1 == Colours::All { 5 } else { 3 };
        match self.below(end) {
            0 => json!("red"),
            1 => json!("darkGreen"),
            2 => json!("blue"),
            _ => json!(3 + self.below(65_533)),
        }
    }

    fn list(&mut self, mut element: impl FnMut(&mut Self) -> Value) -> Value {
        (0..self.below(5)).map(|_| element(self)).collect()
    }

    fn point(&mut self) -> Value {
        json!({"x": self.roll().cast_signed().to_string(), "y": self.roll().cast_signed().to_string()})
    }

    fn inner(&mut self) -> Value {
        json!({
            "number": self.roll() as i16,
            "flag": self.below(2) == 1,
            "text": self.text(),
            "data": self.data(),
            "colour": self.colour(),
            "float": self.float(64),
            "list": self.list(|dice| json!(dice.roll() as u32)),
            "point": self.point(),
            "short": self.float(32),
            "long": self.roll().to_string(),
        })
    }

    fn shape(&mut self) -> Value {
        match self.below(7) {
            0 => json!({"none": null}),
            1 => json!({"circle": self.float(64)}),
            // Generated code can't set such a member.
            2 if self.1 == Colours::All => json!({"name": null}),
            2 | 3 => json!({"name": self.text()}),
            4 => json!({"square": {"side": self.roll() as u32}}),
            5 => json!({"square": {"side": self.roll() as u32, "label": self.text()}}),
            _ => json!({"inner": self.inner()}),
        }
    }

    pub(super) fn every(&mut self, depth: usize) -> Value {
        let mut every = json!({
            "void": null,
            "bool": self.below(2) == 1,
            "int8": self.roll() as i8,
            "int16": self.roll() as i16,
            "int32": self.roll() as i32,
            "int64": self.roll().cast_signed().to_string(),
            "uInt8": self.roll() as u8,
            "uInt16": self.roll() as u16,
            "uInt32": self.roll() as u32,
            "uInt64": self.roll().to_string(),
            "float32": self.float(32),
            "float64": self.float(64),
            "colour": self.colour(),
            "group": {"left": self.roll() as i32, "deeper": {"flag": self.below(2) == 1}},
            "shape": self.shape(),
        });
        let object = every.as_object_mut().unwrap();
        self.pointers(object);
        if self.below(2) == 1 {
            object["group"]["right"] = json!(self.text());
        }
        if depth < 3 && self.below(2) == 1 {
            object.insert("every".to_owned(), self.every(depth + 1));
        }
        every
    }

    fn pointers(&mut self, object: &mut Map<String, Value>) {
        let all: [(&str, Field); 23] = [
            ("text", |dice| json!(dice.text())),
            ("data", Self::data),
            ("inner", Self::inner),
            ("voids", |dice| dice.list(|_| Value::Null)),
            ("bools", |dice| dice.list(|dice| json!(dice.below(2) == 1))),
            ("int8s", |dice| dice.list(|dice| json!(dice.roll() as i8))),
            ("int16s", |dice| dice.list(|dice| json!(dice.roll() as i16))),
            ("int32s", |dice| dice.list(|dice| json!(dice.roll() as i32))),
            ("int64s", |dice| dice.list(|dice| json!(dice.roll().cast_signed().to_string()))),
            ("uInt8s", |dice| dice.list(|dice| json!(dice.roll() as u8))),
            ("uInt16s", |dice| dice.list(|dice| json!(dice.roll() as u16))),
            ("uInt32s", |dice| dice.list(|dice| json!(dice.roll() as u32))),
            ("uInt64s", |dice| dice.list(|dice| json!(dice.roll().to_string()))),
            ("float32s", |dice| dice.list(|dice| dice.float(32))),
            ("float64s", |dice| dice.list(|dice| dice.float(64))),
            ("texts", |dice| dice.list(|dice| json!(dice.text()))),
            ("datas", |dice| dice.list(Self::data)),
            ("colours", |dice| dice.list(Self::colour)),
            ("inners", |dice| dice.list(Self::inner)),
            ("grid", |dice| dice.list(|dice| dice.list(|dice| json!(dice.roll() as u16)))),
            ("cube", |dice| dice.list(|dice| dice.list(|dice| dice.list(Self::inner)))),
            ("pair", |dice| json!({"first": dice.text(), "second": dice.inner()})),
            ("pairs", |dice| {
                dice.list(|dice| {
                    json!({"first": dice.inner(), "second": dice.list(|dice| json!(dice.roll() as u8))})
                })
            }),
        ];
        for (name, value) in all {
            if self.below(2) == 1 {
                object.insert(name.to_owned(), value(self));
            }
        }
    }
}

fn dice() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(prop_oneof![any::<u64>(), 0..8_u64], 0..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn json_comes_back_from_a_message_as_it_was(dice in dice()) {
        let json = Dice(dice, Colours::All).every(0);
        prop_assert_eq!(round("Every", &json), Ok(json));
    }

    #[test]
    fn generated_code_reads_what_was_written_from_json(dice in dice()) {
        let json = Dice(dice, Colours::All).every(0);
        let message = write(&table(), "Every", &json).unwrap();
        let every = message.get_root_as_reader().unwrap();
        prop_assert_eq!(accessors::read(every), json);
    }

    #[test]
    fn json_tells_what_generated_code_wrote(dice in dice()) {
        let json = Dice(dice, Colours::Named).every(0);
        let mut message = capnp::message::Builder::new_default();
        accessors::write(&json, message.init_root());
        prop_assert_eq!(read(&table(), "Every", &message), Ok(json));
    }
}
