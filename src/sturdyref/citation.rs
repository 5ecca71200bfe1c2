//! The meaning of a stored reference, as data: enough to make the capability again.
//!
//! There is exactly one encoding: everything that this version wouldn't write is refused. A
//! citation doesn't say who may have it; `cipher` restricts that.
//!
//! Layout: version (1) ‖ target (16) ‖ length (1) ‖ class ‖ name: 0, or 1 ‖ length (2) ‖ name ‖
//! authority: 0, or 1 ‖ target (16) and id (16) of a grant ‖ length (4) ‖ caveats. Numbers are
//! big-endian.

use crate::id::ObjectId;

const VERSION: u8 = 1;
const ABSENT: u8 = 0;
const PRESENT: u8 = 1;

/// A capability to an object, written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Citation {
    /// The object.
    pub(crate) target: ObjectId,
    /// The name of its class.
    pub(crate) class: String,
    /// Its name; `None` for an anonymous object.
    pub(crate) name: Option<String>,
    /// The authority by which it was held.
    pub(crate) authority: Authority,
    /// The caveats that hold, encoded as in references.
    pub(crate) caveats: Vec<u8>,
}

/// The authority that keeps a stored reference valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Authority {
    /// The object had it through a binding, or got it from an object that did.
    Binding,
    /// It came from this grant, and ends with it.
    Grant {
        /// The object whose storage has the grant.
        target: ObjectId,
        /// The grant's id.
        grant: [u8; 16],
    },
}

impl Citation {
    /// Appends the citation's bytes.
    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.push(VERSION);
        bytes.extend(self.target.as_bytes());
        // The lengths were checked when the class was registered and the object named.
        bytes.push(self.class.len() as u8);
        bytes.extend(self.class.as_bytes());
        match &self.name {
            None => bytes.push(ABSENT),
            Some(name) => {
                bytes.push(PRESENT);
                bytes.extend((name.len() as u16).to_be_bytes());
                bytes.extend(name.as_bytes());
            }
        }
        match &self.authority {
            Authority::Binding => bytes.push(ABSENT),
            Authority::Grant { target, grant } => {
                bytes.push(PRESENT);
                bytes.extend(target.as_bytes());
                bytes.extend(grant);
            }
        }
        bytes.extend((self.caveats.len() as u32).to_be_bytes());
        bytes.extend(&self.caveats);
    }

    /// All citations encoded in these bytes, in order; `None` when the bytes contain anything else.
    pub(crate) fn decode_all(mut bytes: &[u8]) -> Option<Vec<Self>> {
        let mut citations = Vec::new();
        while !bytes.is_empty() {
            citations.push(Self::take(&mut bytes)?);
        }
        Some(citations)
    }

    fn take(bytes: &mut &[u8]) -> Option<Self> {
        if byte(bytes)? != VERSION {
            return None;
        }
        let target = ObjectId::from_bytes(array(bytes)?);
        let length = byte(bytes)?;
        let class = text(bytes, length.into())?;
        let name = match byte(bytes)? {
            ABSENT => None,
            PRESENT => {
                let length = u16::from_be_bytes(array(bytes)?);
                Some(text(bytes, length.into())?)
            }
            _ => return None,
        };
        let authority = match byte(bytes)? {
            ABSENT => Authority::Binding,
            PRESENT => {
                let target = ObjectId::from_bytes(array(bytes)?);
                Authority::Grant { target, grant: array(bytes)? }
            }
            _ => return None,
        };
        let length = u32::from_be_bytes(array(bytes)?);
        let caveats = part(bytes, usize::try_from(length).ok()?)?.to_vec();
        Some(Self { target, class, name, authority, caveats })
    }
}

fn part<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (part, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(part)
}

fn array<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    part(bytes, N)?.try_into().ok()
}

fn byte(bytes: &mut &[u8]) -> Option<u8> {
    array(bytes).map(|[byte]| byte)
}

fn text(bytes: &mut &[u8], length: usize) -> Option<String> {
    String::from_utf8(part(bytes, length)?.to_vec()).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn citation() -> impl Strategy<Value = Citation> {
        let id = any::<[u8; 16]>().prop_map(ObjectId::from_bytes);
        let authority = prop_oneof![
            Just(Authority::Binding),
            any::<[[u8; 16]; 2]>().prop_map(|[target, grant]| {
                Authority::Grant { target: ObjectId::from_bytes(target), grant }
            }),
        ];
        let name = proptest::option::of("[a-zé]{0,20}");
        (id, "[A-Z][a-zé]{0,20}", name, authority, vec(any::<u8>(), 0..20)).prop_map(
            |(target, class, name, authority, caveats)| Citation {
                target,
                class,
                name,
                authority,
                caveats,
            },
        )
    }

    fn encode(citations: &[Citation]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for citation in citations {
            citation.encode(&mut bytes);
        }
        bytes
    }

    proptest! {
        #[test]
        fn a_list_is_read_as_it_was_written(citations in vec(citation(), 0..4)) {
            prop_assert_eq!(Citation::decode_all(&encode(&citations)), Some(citations));
        }

        #[test]
        fn there_is_one_encoding_and_a_part_is_none(
            citations in vec(citation(), 1..3), at in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let mut bytes = encode(&citations);
            let at = at.index(bytes.len());
            if let Some(part) = Citation::decode_all(&bytes[..at]) {
                prop_assert!(part.len() < citations.len());
            }
            bytes[at] = byte;
            if let Some(decoded) = Citation::decode_all(&bytes) {
                prop_assert_eq!(encode(&decoded), bytes);
            }
        }
    }

    #[test]
    fn a_newer_version_is_refused() {
        let citation = Citation {
            target: ObjectId::from_bytes([7; 16]),
            class: "Counter".to_owned(),
            name: Some("x".to_owned()),
            authority: Authority::Binding,
            caveats: Vec::new(),
        };
        let mut bytes = encode(&[citation]);
        assert_eq!(bytes.len(), 1 + 16 + 1 + 7 + 4 + 1 + 4);
        bytes[0] = 2;
        assert_eq!(Citation::decode_all(&bytes), None);
    }
}
