//! The record in a target's own storage that makes a reference valid. Deleting it revokes it.

use capstead_client::sturdyref::GrantId;
use sha2::{Digest, Sha256};

use crate::error::{Result, failed};

const VERSION: u8 = 1;

/// What is known of one grant.
///
/// Layout: version (1) ‖ parent (1 if any, then 16 bytes; else 0) ‖ created (8, big-endian
/// milliseconds since 1970) ‖ last millisecond in which it is valid (1 if any, then 8; else 0) ‖
/// label (UTF-8, the rest).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    parent: Option<GrantId>,
    created_ms: u64,
    not_after_ms: Option<u64>,
    label: String,
}

/// The grant of the reference that the operator of a cluster gets for a class.
pub(crate) fn root_grant(class: &str) -> GrantId {
    let mut hash = Sha256::new();
    hash.update(b"capstead root grant v1");
    hash.update(class);
    let hash: [u8; 32] = hash.finalize().into();
    let (id, _) = hash.split_first_chunk().expect("32 bytes begin with 16");
    GrantId::from_bytes(*id)
}

impl Grant {
    /// The first grant of a namespace: without parent or end.
    pub(crate) fn root(now_ms: u64) -> Self {
        Self { parent: None, created_ms: now_ms, not_after_ms: None, label: "root".to_owned() }
    }

    pub(crate) fn is_valid_at(&self, now_ms: u64) -> bool {
        self.not_after_ms.is_none_or(|last| now_ms <= last)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION, u8::from(self.parent.is_some())];
        bytes.extend(self.parent.iter().flat_map(GrantId::as_bytes));
        bytes.extend(self.created_ms.to_be_bytes());
        bytes.push(u8::from(self.not_after_ms.is_some()));
        bytes.extend(self.not_after_ms.iter().flat_map(|last| last.to_be_bytes()));
        bytes.extend(self.label.as_bytes());
        bytes
    }

    /// # Errors
    /// When the record isn't one that this version writes.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        Self::parse(bytes).ok_or_else(|| failed("the grant is of a newer format, or damaged"))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (&version, rest) = bytes.split_first()?;
        let (parent, rest) = optional::<16>(rest)?;
        let (created, rest) = rest.split_first_chunk()?;
        let (last, rest) = optional::<8>(rest)?;
        (version == VERSION).then_some(Self {
            parent: parent.map(GrantId::from_bytes),
            created_ms: u64::from_be_bytes(*created),
            not_after_ms: last.map(u64::from_be_bytes),
            label: String::from_utf8(rest.to_vec()).ok()?,
        })
    }
}

fn optional<const N: usize>(bytes: &[u8]) -> Option<(Option<[u8; N]>, &[u8])> {
    match bytes.split_first()? {
        (0, rest) => Some((None, rest)),
        (1, rest) => rest.split_first_chunk().map(|(value, rest)| (Some(*value), rest)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_read_as_it_was_written() {
        let child = Grant {
            parent: Some(root_grant("Counter")),
            created_ms: 7,
            not_after_ms: Some(9),
            label: "for the kiosk".to_owned(),
        };
        for grant in [Grant::root(5), child.clone()] {
            assert_eq!(Grant::decode(&grant.encode()).unwrap(), grant);
        }
        assert!(child.is_valid_at(9) && !child.is_valid_at(10));
    }

    #[test]
    fn a_damaged_or_newer_grant_is_refused() {
        let bytes = Grant::root(5).encode();
        for end in 0..11 {
            assert!(Grant::decode(&bytes[..end]).is_err(), "{end} bytes");
        }
        for (at, value) in [(0, 2), (1, 2), (10, 7)] {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            assert!(Grant::decode(&bytes).is_err(), "byte {at}");
        }
    }
}
