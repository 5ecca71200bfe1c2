//! JSON as it came: a tree that borrows its texts, keeps the order of keys, and has each key once.
//!
//! Numbers stay the texts that they came as, since a float has lost what is beyond its 53 bits.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json<'a> {
    Null,
    Bool(bool),
    /// In the grammar of JSON, and within the range of a float.
    Number(&'a str),
    Text(Cow<'a, str>),
    List(Vec<Json<'a>>),
    Object(Vec<(Cow<'a, str>, Json<'a>)>),
}

/// The JSON in a body.
///
/// # Errors
/// A sentence with the place. Values nested deeper than serde's limit aren't taken for JSON.
pub(crate) fn parse(text: &[u8]) -> Result<Json<'_>, serde_json::Error> {
    let mut from = serde_json::Deserializer::from_slice(text);
    let json = Tree(&mut Numbers(text)).deserialize(&mut from)?;
    from.end()?;
    Ok(json)
}

/// The texts of the numbers in JSON, in their order.
struct Numbers<'a>(&'a [u8]);

impl<'a> Iterator for Numbers<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let mut is_in_text = false;
        while let [first, rest @ ..] = self.0 {
            match first {
                b'"' => is_in_text = !is_in_text,
                b'\\' if is_in_text => {
                    self.0 = rest.get(1..)?;
                    continue;
                }
                b'-' | b'0'..=b'9' if !is_in_text => {
                    let is_of_number =
                        |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
                    let length = self.0.iter().take_while(|byte| is_of_number(byte)).count();
                    let (number, rest) = self.0.split_at(length);
                    self.0 = rest;
                    return std::str::from_utf8(number).ok();
                }
                _ => {}
            }
            self.0 = rest;
        }
        None
    }
}

impl Json<'_> {
    /// Its kind, for an error.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a bool",
            Self::Number(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "an array",
            Self::Object(_) => "an object",
        }
    }
}

/// Reads a value whose numbers are the next of these.
struct Tree<'n, 'de>(&'n mut Numbers<'de>);

impl<'de> Tree<'_, 'de> {
    fn number<E: Error>(self) -> Result<Json<'de>, E> {
        self.0.next().map(Json::Number).ok_or_else(|| E::custom("a number was lost"))
    }
}

impl<'de> DeserializeSeed<'de> for Tree<'_, 'de> {
    type Value = Json<'de>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_, 'de> {
    type Value = Json<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
        self.number()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Self::Value, E> {
        self.number()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        self.number()
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
        Ok(Json::Text(Cow::Borrowed(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Json::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = from.next_element_seed(Tree(&mut *self.0))? {
            list.push(value);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
        let mut entries: Vec<(Cow<'de, str>, Json<'de>)> = Vec::new();
        while let Some(Key(key)) = from.next_key()? {
            entries.push((key, from.next_value_seed(Tree(&mut *self.0))?));
        }
        let mut keys: Vec<&str> = entries.iter().map(|(key, _)| &**key).collect();
        keys.sort_unstable();
        if let Some((key, _)) = keys.iter().zip(keys.iter().skip(1)).find(|(one, next)| one == next)
        {
            return Err(A::Error::custom(format_args!("the key {key:?} is there twice")));
        }
        Ok(Json::Object(entries))
    }
}

/// A key, borrowed where it has no escapes.
struct Key<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Borrowed(value)))
            }

            fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Owned(value.to_owned())))
            }
        }
        from.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_is_there_once() {
        assert!(
            matches!(parse(br#"{"b": 1, "a": [{"b": 2}]}"#), Ok(Json::Object(of)) if of.len() == 2)
        );
        for text in [r#"{"a": 1, "b": 2, "a": 3}"#, r#"[{"a": 1, "\u0061": 1}]"#] {
            let said = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(said.contains("the key \"a\" is there twice"), "{said}");
        }
    }

    #[test]
    fn numbers_stay_as_they_came_wherever_they_stand() {
        let text = br#" [1,-0 , {"2": 3.50e+1, "a\\\"4": ["5", 6E-7]}, "\u00318\\", 9007199254740993.0,0]"#;
        let mut found = Vec::new();
        let mut rest = vec![parse(text).unwrap()];
        while let Some(next) = rest.pop() {
            match next {
                Json::Number(number) => found.push(number.to_owned()),
                Json::List(list) => rest.extend(list.into_iter().rev()),
                Json::Object(of) => rest.extend(of.into_iter().rev().map(|(_, value)| value)),
                _ => {}
            }
        }
        assert_eq!(found, ["1", "-0", "3.50e+1", "6E-7", "9007199254740993.0", "0"]);
    }

    #[test]
    fn what_is_no_json_is_refused() {
        let deep = "[".repeat(100_000);
        for text in ["", "{", "{}}", "1e999", "nul", "{\"a\" 1}", "\"\u{1}\"", &deep] {
            assert!(parse(text.as_bytes()).is_err());
        }
        assert!(parse(b"\"\xff\"").is_err());
    }
}
