//! A set of methods: what a caveat leaves of an object's interface. A set has one encoding.
//!
//! A set never grows.

use super::Refused;
use super::codec::{Bytes, LAYOUT};
use crate::facet_capnp::{facet, persistent};
use crate::restorer_capnp::namespace;
use crate::sturdyref_capnp::METHODS_MAX;
use capnp::traits::HasTypeId;
use std::sync::Arc;

/// The interfaces of a namespace.
const OF_NAMESPACES: [u64; 3] =
    [namespace::Client::TYPE_ID, facet::Client::TYPE_ID, persistent::Client::TYPE_ID];

/// How long a method is in its encoding, in bytes: the interface's id and the ordinal.
const METHOD_BYTES: usize = 10;

/// Some methods of some interfaces. Clones share their memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Methods {
    /// Invariant: strictly ascending, and no more than `METHODS_MAX`.
    sorted: Arc<[(u64, u16)]>,
}

impl Methods {
    /// Whether this method of this interface is in the set.
    pub fn contains(&self, interface: u64, method: u16) -> bool {
        self.sorted.binary_search(&(interface, method)).is_ok()
    }

    /// The methods in ascending order, each as its interface's id and its ordinal.
    pub fn as_slice(&self) -> &[(u64, u16)] {
        &self.sorted
    }

    pub(super) fn new(methods: impl IntoIterator<Item = (u64, u16)>) -> capnp::Result<Self> {
        let mut sorted: Vec<_> = methods.into_iter().collect();
        sorted.sort_unstable();
        sorted.dedup();
        if sorted.len() > usize::from(METHODS_MAX) {
            let reason = format!("a set has at most {METHODS_MAX} methods");
            return Err(capnp::Error::failed(reason));
        }
        Ok(Self { sorted: sorted.into() })
    }

    /// Whether there is a method in it that no namespace has, so that it restricts objects too.
    pub(super) fn restricts_objects(&self) -> bool {
        self.sorted.iter().any(|(interface, _)| !OF_NAMESPACES.contains(interface))
    }

    /// The methods that are in both sets.
    pub(super) fn and(&self, other: &Self) -> Self {
        let both = self.sorted.iter().filter(|method| other.sorted.binary_search(method).is_ok());
        Self { sorted: both.copied().collect() }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.sorted.len() * METHOD_BYTES);
        for (interface, method) in &*self.sorted {
            bytes.extend(interface.to_be_bytes());
            bytes.extend(method.to_be_bytes());
        }
        bytes
    }

    pub(super) fn parse(value: &[u8]) -> Result<Self, Refused> {
        let (methods, rest) = value.as_chunks::<METHOD_BYTES>();
        // Big-endian numbers have the order of their bytes.
        let ascending = methods.is_sorted_by(|one, two| one < two);
        if !rest.is_empty() || !ascending || methods.len() > usize::from(METHODS_MAX) {
            return Err(LAYOUT);
        }
        Ok(Self { sorted: methods.iter().map(parse_method).collect::<Result<_, _>>()? })
    }
}

fn parse_method(method: &[u8; METHOD_BYTES]) -> Result<(u64, u16), Refused> {
    let mut bytes = Bytes::new(method);
    Ok((u64::from_be_bytes(bytes.array()?), u16::from_be_bytes(bytes.array()?)))
}
