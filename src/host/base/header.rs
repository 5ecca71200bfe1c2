//! The record by which an object exists: its class and, if it has one, its name.

use crate::error::{Reason, Result, failed};

const VERSION: u8 = 1;
const ANONYMOUS: u8 = 0;
const NAMED: u8 = 1;
/// An import of the object began, and has not ended.
const UNFINISHED: u8 = 2;
/// As [`UNFINISHED`], of an object that keeps the grants that it has.
const UNFINISHED_WITH_GRANTS: u8 = 3;

/// Layout: version (1) ‖ length of the class's name (1) ‖ class ‖ kind (1) ‖ the object's name. The
/// kind is 0 for an anonymous object, 1 for a named one, and while an import of either is under
/// way 2, or 3 if the object keeps the grants that it has.
pub(in crate::host) struct Header<'a> {
    pub(in crate::host) class: &'a str,
    pub(in crate::host) name: Option<&'a str>,
}

impl<'a> Header<'a> {
    pub(in crate::host) fn encode(&self) -> Vec<u8> {
        let name = self.name.unwrap_or_default();
        let mut bytes = Vec::with_capacity(3 + self.class.len() + name.len());
        bytes.extend([VERSION, self.class.len() as u8]);
        bytes.extend(self.class.as_bytes());
        bytes.push(if self.name.is_some() { NAMED } else { ANONYMOUS });
        bytes.extend(name.as_bytes());
        bytes
    }

    /// The record in the place of a header while not all of its object is there.
    pub(in crate::host) fn unfinished(header: &[u8]) -> Vec<u8> {
        Self::unfinished_as(header, UNFINISHED)
    }

    /// The same, of an object that keeps the grants that it has.
    pub(in crate::host) fn unfinished_with_grants(header: &[u8]) -> Vec<u8> {
        Self::unfinished_as(header, UNFINISHED_WITH_GRANTS)
    }

    fn unfinished_as(header: &[u8], unfinished: u8) -> Vec<u8> {
        let mut bytes = header.to_vec();
        let class_len = header.get(1).copied().unwrap_or_default();
        if let Some(kind) = bytes.get_mut(2 + usize::from(class_len)) {
            *kind = unfinished;
        }
        bytes
    }

    /// # Errors
    /// When the record isn't one that this version writes, or says that not all of the object is
    /// there.
    pub(in crate::host) fn decode(bytes: &'a [u8]) -> Result<Self> {
        match Self::parse(bytes) {
            Some((header, UNFINISHED | UNFINISHED_WITH_GRANTS)) => Err(Reason::ImportUnfinished
                .error(format_args!(
                    "not all of this {} was imported: import it again",
                    header.class
                ))),
            Some((header, _)) => Ok(header),
            None => {
                Err(Reason::Damaged.error("the object's header is of a newer format, or damaged"))
            }
        }
    }

    /// The class, also while not all of the object is there.
    pub(in crate::host) fn class_of(bytes: &'a [u8]) -> Option<&'a str> {
        Self::parse(bytes).map(|(header, _)| header.class)
    }

    /// Tells whether an import of the object began and has not ended.
    pub(in crate::host) fn is_unfinished(bytes: &[u8]) -> bool {
        matches!(Header::parse(bytes), Some((_, UNFINISHED | UNFINISHED_WITH_GRANTS)))
    }

    /// Tells whether that import leaves the object the grants that it has.
    pub(in crate::host) fn keeps_grants(bytes: &[u8]) -> bool {
        matches!(Header::parse(bytes), Some((_, UNFINISHED_WITH_GRANTS)))
    }

    fn parse(bytes: &'a [u8]) -> Option<(Self, u8)> {
        let (&[version, class_len], rest) = bytes.split_first_chunk()?;
        let (class, rest) = rest.split_at_checked(class_len.into())?;
        let (&kind, name) = rest.split_first()?;
        let name = std::str::from_utf8(name).ok()?;
        let name = match kind {
            ANONYMOUS if name.is_empty() => None,
            NAMED | UNFINISHED | UNFINISHED_WITH_GRANTS => Some(name),
            _ => return None,
        };
        let header = Self { class: std::str::from_utf8(class).ok()?, name };
        (version == VERSION).then_some((header, kind))
    }

    /// # Errors
    /// When this is the header of an object of another class.
    pub(in crate::host) fn check_class(&self, class: &str) -> Result<()> {
        if self.class == class {
            return Ok(());
        }
        Err(failed(format!("the object is a {} and not a {class}", self.class)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written() {
        for name in [None, Some(""), Some("room 7")] {
            let bytes = Header { class: "Counter", name }.encode();
            let read = Header::decode(&bytes).unwrap();
            assert_eq!((read.class, read.name), ("Counter", name));
        }
    }

    #[test]
    fn an_unfinished_object_has_a_class_and_nothing_else() {
        let bytes = Header::unfinished(&Header { class: "Counter", name: Some("x") }.encode());
        let refused = Header::decode(&bytes).err().unwrap();
        assert!(refused.extra.starts_with("import-unfinished:"), "{}", refused.extra);
        assert!(Header::is_unfinished(&bytes) && !Header::keeps_grants(&bytes));
        let keeps =
            Header::unfinished_with_grants(&Header { class: "Counter", name: None }.encode());
        assert!(Header::is_unfinished(&keeps) && Header::keeps_grants(&keeps));
        assert!(Header::decode(&keeps).err().unwrap().extra.starts_with("import-unfinished:"));
        assert_eq!(Header::class_of(&bytes), Some("Counter"));
        assert!(!Header::is_unfinished(&Header { class: "Counter", name: Some("x") }.encode()));
    }

    #[test]
    fn a_damaged_or_newer_header_is_refused() {
        let bytes = Header { class: "Counter", name: Some("x") }.encode();
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
