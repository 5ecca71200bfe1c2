//! Identities: newtypes that are checked when they are made.
//!
//! An object id is a name, never authority: knowing one gives no right to call. Its first two bytes
//! are the object's home shard, which never changes.

use std::fmt;

use sha2::{Digest, Sha256};

/// One of 65,536 fixed groups of objects: 4 bits of pool, 12 bits of hash or placement.
///
/// The number of shards is part of the format of the data and of references.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Shard(pub(crate) u16);

impl Shard {
    /// The pool that the shard belongs to.
    pub(crate) const fn pool(self) -> Pool {
        Pool((self.0 >> (u16::BITS - Pool::BITS as u32)) as u8)
    }
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shard({:04x})", self.0)
    }
}

/// One of 16 sets of shards, each with its own placement rule. A namespace always stays in one
/// pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pool(u8);

impl Pool {
    const BITS: u16 = 4;

    fn shard(self, hash: u16) -> Shard {
        Shard(u16::from(self.0) << (16 - Self::BITS) | hash >> Self::BITS)
    }
}

/// The number of an ownership of a shard, which grows with each new owner: appends with an older
/// epoch are refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Epoch(pub(crate) u64);

/// The identity of an object: home shard (2 bytes, big-endian), then 14 bytes of hash or
/// randomness.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ObjectId([u8; Self::LEN]);

impl ObjectId {
    /// Length in bytes.
    pub(crate) const LEN: usize = 16;

    /// The object called `name` in the namespace of `class`: always the same one.
    ///
    /// The id is a SHA-256 of a domain, the class (prefixed by its length) and the name; names are
    /// compared byte by byte.
    pub(crate) fn named(pool: Pool, class: &str, name: &str) -> Self {
        Self::hashed(b"capstead named object v1", pool, class, name)
    }

    /// The system object that holds the grants of a namespace.
    pub(crate) fn namespace(pool: Pool, class: &str) -> Self {
        Self::hashed(b"capstead namespace v1", pool, class, "")
    }

    /// A new identity that nobody can guess, in a shard of the caller's choice.
    ///
    /// # Errors
    /// The operating system has no randomness.
    pub(crate) fn anonymous(shard: Shard) -> Result<Self, getrandom::Error> {
        let mut bytes = [0; Self::LEN];
        bytes[..2].copy_from_slice(&shard.0.to_be_bytes());
        getrandom::fill(&mut bytes[2..])?;
        Ok(Self(bytes))
    }

    fn hashed(domain: &[u8], pool: Pool, class: &str, name: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(domain);
        hash.update((class.len() as u32).to_be_bytes());
        hash.update(class);
        hash.update(name);
        let hash: [u8; 32] = hash.finalize().into();
        let mut bytes = [0; Self::LEN];
        bytes.copy_from_slice(&hash[..Self::LEN]);
        let shard = pool.shard(u16::from_be_bytes([bytes[0], bytes[1]]));
        bytes[..2].copy_from_slice(&shard.0.to_be_bytes());
        Self(bytes)
    }

    /// The id with these bytes; any 16 bytes are an id.
    pub(crate) const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The bytes of the id.
    pub(crate) const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// The shard in which this object was created.
    pub(crate) const fn home_shard(self) -> Shard {
        Shard(u16::from_be_bytes([self.0[0], self.0[1]]))
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The ids of several objects in one piece of memory, as the record of a value's edges has them: 16
/// bytes each, one after the other, in order, and one that comes twice stands there twice. Without
/// ids it takes no memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ObjectIds(Vec<u8>);

impl ObjectIds {
    /// No ids.
    pub(crate) const NONE: Self = Self(Vec::new());

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The record that has them.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromIterator<ObjectId> for ObjectIds {
    fn from_iter<I: IntoIterator<Item = ObjectId>>(ids: I) -> Self {
        Self(ids.into_iter().flat_map(|id| id.0).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_classes_are_told_apart() {
        let id = |class, name| ObjectId::named(Pool::default(), class, name);
        assert_eq!(id("Counter", "x"), id("Counter", "x"));
        assert_ne!(id("Counter", "x"), id("Counter", "y"));
        assert_ne!(id("Counter", "x"), id("Counterx", ""));
        assert_ne!(id("Counter", ""), ObjectId::namespace(Pool::default(), "Counter"));
    }

    #[test]
    fn a_pool_is_the_top_four_bits_of_the_shard() {
        for name in 0..1000 {
            let id = ObjectId::named(Pool(5), "Counter", &name.to_string());
            assert_eq!(id.home_shard().0 >> 12, 5);
            assert_eq!(id.home_shard().pool(), Pool(5));
        }
        let shard = Shard(0x1234);
        assert_eq!(ObjectId::anonymous(shard).unwrap().home_shard(), shard);
    }

    #[test]
    fn ids_stand_in_their_record_one_after_the_other() {
        let [one, two] = [1, 2].map(|byte| ObjectId::from_bytes([byte; ObjectId::LEN]));
        let ids: ObjectIds = [two, one, two].into_iter().collect();
        assert_eq!(ids.as_bytes(), [[2; 16], [1; 16], [2; 16]].concat());
        assert!(!ids.is_empty());
        let none: ObjectIds = [].into_iter().collect();
        assert_eq!((none.as_bytes(), none.is_empty()), (&[][..], true));
        assert_eq!(none, ObjectIds::NONE);
    }
}
