//! The record in a target's own storage that makes a reference valid. Deleting it revokes it.
//!
//! Grants form a tree: each may have been made from another grant of the same target, or from one
//! of the namespace that its object belongs to. A grant that isn't independent is in force only
//! while its parent is.

use capstead_client::sturdyref::{Caveats, GrantId, TargetId};
use sha2::{Digest, Sha256};

use crate::cursor::Cursor;
use crate::error::{Reason, Result};
use crate::id::ObjectId;

const VERSION: u8 = 4;
/// Had ancestors only in grants that were made from one of a namespace.
const VERSION_WITHOUT_OWN_BEFORE: u8 = 3;
/// Had a parent of a namespace, and no further ancestors.
const VERSION_WITHOUT_BEFORE: u8 = 2;
/// Had neither caveats nor flags, and only parents of the same target.
const VERSION_WITHOUT_FLAGS: u8 = 1;

const INDEPENDENT: u8 = 1;
const ALLOWS_INDEPENDENT: u8 = 2;
const REVOKED: u8 = 4;
const BY_HOLDER: u8 = 8;

const NO_PARENT: u8 = 0;
const OWN_PARENT: u8 = 1;
const PARENT_OF_NAMESPACE: u8 = 2;

/// The record of one grant.
///
/// Layout: version (1) ‖ flags (1) ‖ depth (1) ‖ kind of parent (1) ‖ the parent's target (16, if
/// it is of a namespace) ‖ the parent (16, if there is one) ‖ its ancestors (count (1) and 16 each,
/// if there is a parent) ‖ created (8) ‖ last restored (8) ‖ length of the caveats (2) ‖ caveats,
/// as in references ‖ label (UTF-8, the rest). Numbers are big-endian, and times are milliseconds
/// since 1970. The flags: 1 it survives its parent; 2 grants made from it may survive it; 4 it was
/// revoked, which has a record only where one is needed; 8 who had no grant had it made by a call.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "they are the flags of the record")]
pub(crate) struct Grant {
    pub(crate) parent: Parent,
    /// The grant's receiver, or its purpose.
    pub(crate) label: String,
    /// All caveats in force, including those of its parent.
    pub(crate) caveats: Caveats,
    /// Set if it survives its parent.
    pub(crate) independent: bool,
    /// Set if grants made from it may survive it.
    pub(crate) allows_independent: bool,
    /// The number of grants in the chain from which it was made.
    pub(crate) depth: u8,
    pub(crate) created_ms: u64,
    /// The time at which it was last restored, accurate to a minute; 0 means never.
    pub(crate) restored_ms: u64,
    pub(crate) is_revoked: bool,
    /// It has no parent, and was made by a call of somebody who had a capability without a grant,
    /// rather than by the operator or the class.
    pub(crate) by_holder: bool,
    /// The grants from which its parent was made, the nearest first. Those of a namespace may be on
    /// another host, and a revoked one may have no record. Sixteen zeros at the end: the first of
    /// them was made by a holder without a grant.
    pub(crate) before: Vec<GrantId>,
}

/// A grant by the target in whose storage its record lies, and by its id there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct GrantRef {
    pub(crate) target: ObjectId,
    pub(crate) grant: GrantId,
}

impl GrantRef {
    pub(crate) fn new(target: ObjectId, grant: GrantId) -> Self {
        Self { target, grant }
    }
}

/// The grant from which another grant was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Parent {
    /// None: it was made by the operator, by the object itself, or by a class that reached the
    /// object through a binding.
    #[default]
    None,
    /// Another grant of the same target.
    Own(GrantId),
    /// A grant of the namespace through which its object was reached.
    OfNamespace(TargetId, GrantId),
}

impl Parent {
    /// The parent's id, of either kind.
    pub(crate) fn id(&self) -> Option<GrantId> {
        match self {
            Self::None => None,
            Self::Own(id) | Self::OfNamespace(_, id) => Some(*id),
        }
    }
}

/// The grant in the root reference that a cluster's operator gets for a class.
pub(crate) fn root_grant(class: &str) -> GrantId {
    let mut hash = Sha256::new();
    hash.update(b"capstead root grant v1");
    hash.update(class);
    let hash: [u8; 32] = hash.finalize().into();
    let (id, _) = hash.split_first_chunk().expect("32 bytes begin with 16");
    GrantId::from_bytes(*id)
}

/// The kind of target in whose storage a grant lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TargetKind {
    Object,
    Namespace,
}

impl Grant {
    /// The first grant of a namespace: without a parent or an end. No grant made from it survives
    /// it, since it doesn't allow that.
    pub(crate) fn root(now_ms: u64) -> Self {
        Self {
            parent: Parent::None,
            label: "root".to_owned(),
            caveats: Caveats::none(),
            independent: false,
            allows_independent: false,
            depth: 0,
            created_ms: now_ms,
            restored_ms: 0,
            is_revoked: false,
            by_holder: false,
            before: Vec::new(),
        }
    }

    /// The record that is left when it is revoked. There is one only if the grant would be made
    /// again where none is found. Grants that survive it keep their own list of ancestors.
    pub(crate) fn revoked(self, target: TargetKind) -> Option<Vec<u8>> {
        let is_root = target == TargetKind::Namespace && self.parent == Parent::None;
        is_root.then(|| Self { is_revoked: true, ..self }.encode())
    }

    /// Tells whether its own record allows restoring it.
    pub(crate) fn is_valid_at(&self, now_ms: u64) -> bool {
        !self.is_revoked && !self.is_over(now_ms)
    }

    /// Tells whether it has expired.
    pub(crate) fn is_over(&self, now_ms: u64) -> bool {
        self.caveats.not_after_ms().is_some_and(|last| now_ms > last)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let flag = |set: bool, flag| if set { flag } else { 0 };
        let flags = flag(self.independent, INDEPENDENT)
            | flag(self.allows_independent, ALLOWS_INDEPENDENT)
            | flag(self.is_revoked, REVOKED)
            | flag(self.by_holder, BY_HOLDER);
        let mut bytes = vec![VERSION, flags, self.depth];
        match &self.parent {
            Parent::None => bytes.push(NO_PARENT),
            Parent::Own(parent) => {
                bytes.push(OWN_PARENT);
                bytes.extend(parent.as_bytes());
            }
            Parent::OfNamespace(namespace, parent) => {
                bytes.push(PARENT_OF_NAMESPACE);
                bytes.extend(namespace.as_bytes());
                bytes.extend(parent.as_bytes());
            }
        }
        if self.parent != Parent::None {
            // At most as many as a chain of grants can have, once in the object and once in its
            // namespace.
            bytes.push(self.before.len() as u8);
            bytes.extend(self.before.iter().flat_map(GrantId::as_bytes));
        }
        bytes.extend(self.created_ms.to_be_bytes());
        bytes.extend(self.restored_ms.to_be_bytes());
        let caveats = self.caveats.encode();
        bytes.extend((caveats.len() as u16).to_be_bytes());
        bytes.extend(caveats);
        bytes.extend(self.label.as_bytes());
        bytes
    }

    /// # Errors
    /// The record isn't one that this version or an earlier one writes.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let parsed = match bytes.split_first() {
            Some((&version @ VERSION_WITHOUT_BEFORE..=VERSION, rest)) => Self::parse(rest, version),
            Some((&VERSION_WITHOUT_FLAGS, rest)) => Self::parse_without_flags(rest),
            _ => None,
        };
        parsed.ok_or_else(|| Reason::Damaged.error("the grant is of a newer format, or damaged"))
    }

    fn parse(bytes: &[u8], version: u8) -> Option<Self> {
        let mut bytes = Cursor::new(bytes);
        let [flags, depth, kind] = bytes.array()?;
        let parent = match kind {
            NO_PARENT => Parent::None,
            OWN_PARENT => Parent::Own(GrantId::from_bytes(bytes.array()?)),
            PARENT_OF_NAMESPACE => {
                let namespace = TargetId::from_bytes(bytes.array()?);
                Parent::OfNamespace(namespace, GrantId::from_bytes(bytes.array()?))
            }
            _ => return None,
        };
        let has_before = match kind {
            PARENT_OF_NAMESPACE => version >= VERSION_WITHOUT_OWN_BEFORE,
            OWN_PARENT => version > VERSION_WITHOUT_OWN_BEFORE,
            _ => false,
        };
        let mut before = Vec::new();
        if has_before {
            for _ in 0..bytes.byte()? {
                before.push(GrantId::from_bytes(bytes.array()?));
            }
        }
        let created_ms = u64::from_be_bytes(bytes.array()?);
        let restored_ms = u64::from_be_bytes(bytes.array()?);
        let length = u16::from_be_bytes(bytes.array()?);
        let caveats = Caveats::decode(bytes.slice(length.into())?).ok()?;
        (flags & !(INDEPENDENT | ALLOWS_INDEPENDENT | REVOKED | BY_HOLDER) == 0).then_some(Self {
            parent,
            label: String::from_utf8(bytes.rest().to_vec()).ok()?,
            caveats,
            independent: flags & INDEPENDENT != 0,
            allows_independent: flags & ALLOWS_INDEPENDENT != 0,
            depth,
            created_ms,
            restored_ms,
            is_revoked: flags & REVOKED != 0,
            by_holder: flags & BY_HOLDER != 0,
            before,
        })
    }

    /// Layout: parent (1 if any, then 16 bytes; else 0) ‖ created (8) ‖ last millisecond (1 if any,
    /// then 8; else 0) ‖ label.
    fn parse_without_flags(bytes: &[u8]) -> Option<Self> {
        let mut bytes = Cursor::new(bytes);
        let parent = match bytes.byte()? {
            0 => Parent::None,
            1 => Parent::Own(GrantId::from_bytes(bytes.array()?)),
            _ => return None,
        };
        let created_ms = u64::from_be_bytes(bytes.array()?);
        let caveats = match bytes.byte()? {
            0 => Caveats::none(),
            1 => Caveats::not_after(u64::from_be_bytes(bytes.array()?)),
            _ => return None,
        };
        let label = String::from_utf8(bytes.rest().to_vec()).ok()?;
        Some(Self { parent, label, caveats, ..Self::root(created_ms) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants() -> [Grant; 3] {
        let child = Grant {
            parent: Parent::Own(root_grant("Counter")),
            label: "for the kiosk".to_owned(),
            caveats: Caveats::not_after(9),
            restored_ms: 8,
            ..Grant::root(7)
        };
        let namespace = TargetId::from_bytes([3; 16]);
        let other = Grant {
            parent: Parent::OfNamespace(namespace, root_grant("Counter")),
            independent: true,
            allows_independent: true,
            depth: 3,
            is_revoked: true,
            before: vec![GrantId::from_bytes([8; 16]), GrantId::from_bytes([9; 16])],
            ..Grant::root(7)
        };
        [Grant { by_holder: true, ..Grant::root(5) }, child, other]
    }

    #[test]
    fn a_grant_is_read_as_it_was_written() {
        for grant in grants() {
            assert_eq!(Grant::decode(&grant.encode()).unwrap(), grant);
        }
        let [root, child, revoked] = grants();
        assert!(child.is_valid_at(9) && !child.is_valid_at(10));
        assert!(root.is_valid_at(u64::MAX) && !revoked.is_valid_at(0));
    }

    /// Records of version 2, and some of version 3, end where the ancestors would begin.
    #[test]
    fn a_grant_without_those_before_is_read() {
        let [_, child, other] = grants();
        let nothing_before = Grant { before: Vec::new(), ..other.clone() };
        for (version, grant, at) in
            [(2, &child, 4 + 16), (3, &child, 4 + 16), (2, &nothing_before, 4 + 32)]
        {
            let mut bytes = grant.encode();
            bytes[0] = version;
            assert_eq!(bytes.remove(at), 0);
            assert_eq!(Grant::decode(&bytes).unwrap(), *grant);
        }
        let mut bytes = other.encode();
        bytes[0] = 3;
        assert_eq!(Grant::decode(&bytes).unwrap(), other);
    }

    #[test]
    fn a_grant_of_the_format_before_is_read() {
        let times = [&7_u64.to_be_bytes()[..], &[1], &9_u64.to_be_bytes(), b"kiosk"].concat();
        let bytes = [&[1, 1][..], root_grant("Counter").as_bytes(), &times].concat();
        let grant = Grant::decode(&bytes).unwrap();
        assert_eq!(grant.parent, Parent::Own(root_grant("Counter")));
        assert_eq!((grant.created_ms, grant.caveats.not_after_ms()), (7, Some(9)));
        assert_eq!(grant.label, "kiosk");
    }

    #[test]
    fn a_damaged_or_newer_grant_is_refused() {
        for grant in grants() {
            let bytes = grant.encode();
            for end in 0..bytes.len() - grant.label.len() {
                assert!(Grant::decode(&bytes[..end]).is_err(), "{end} bytes");
            }
            for (at, value) in [(0, 5), (1, 16), (3, 3)] {
                let mut bytes = bytes.clone();
                bytes[at] = value;
                assert!(Grant::decode(&bytes).is_err(), "byte {at}");
            }
        }
    }
}
