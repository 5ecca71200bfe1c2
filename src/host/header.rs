//! The record by which an object exists: its class and, if it has one, its name.

use super::slot::Birth;
use crate::error::{Result, failed};

const VERSION: u8 = 1;
const ANONYMOUS: u8 = 0;
const NAMED: u8 = 1;

/// Layout: version (1) ‖ length of the class's name (1) ‖ class ‖ kind (1) ‖ the object's name.
pub(super) struct Header<'a> {
    pub(super) class: &'a str,
    pub(super) key: Option<&'a str>,
}

impl<'a> Header<'a> {
    pub(super) fn of(birth: &'a Birth) -> Self {
        Self { class: birth.class.name, key: birth.key.as_deref() }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let key = self.key.unwrap_or_default();
        let mut bytes = Vec::with_capacity(3 + self.class.len() + key.len());
        bytes.extend([VERSION, self.class.len() as u8]);
        bytes.extend(self.class.as_bytes());
        bytes.push(if self.key.is_some() { NAMED } else { ANONYMOUS });
        bytes.extend(key.as_bytes());
        bytes
    }

    /// # Errors
    /// When the record isn't one that this version writes.
    pub(super) fn decode(bytes: &'a [u8]) -> Result<Self> {
        Self::parse(bytes)
            .ok_or_else(|| failed("the object's header is of a newer format, or damaged"))
    }

    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (&[version, class_len], rest) = bytes.split_first_chunk()?;
        let (class, rest) = rest.split_at_checked(class_len.into())?;
        let (&kind, key) = rest.split_first()?;
        let key = std::str::from_utf8(key).ok()?;
        let key = match kind {
            ANONYMOUS if key.is_empty() => None,
            NAMED => Some(key),
            _ => return None,
        };
        (version == VERSION).then_some(Self { class: std::str::from_utf8(class).ok()?, key })
    }

    /// # Errors
    /// When this is the header of an object of another class.
    pub(super) fn is_of(&self, birth: &Birth) -> Result<bool> {
        if self.class == birth.class.name {
            return Ok(true);
        }
        Err(failed(format!("the object is a {} and not a {}", self.class, birth.class.name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written() {
        for key in [None, Some(""), Some("room 7")] {
            let bytes = Header { class: "Counter", key }.encode();
            let read = Header::decode(&bytes).unwrap();
            assert_eq!((read.class, read.key), ("Counter", key));
        }
    }

    #[test]
    fn a_damaged_or_newer_header_is_refused() {
        let bytes = Header { class: "Counter", key: Some("x") }.encode();
        for end in 0..10 {
            assert!(Header::decode(&bytes[..end]).is_err(), "{end} bytes");
        }
        for (at, value) in [(0, 2), (1, 200), (9, 7)] {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            assert!(Header::decode(&bytes).is_err(), "byte {at}");
        }
    }
}
