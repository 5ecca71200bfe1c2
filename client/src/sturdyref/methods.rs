//! A set of methods: the part of an object's interface that a caveat allows. A set has one
//! encoding.
//!
//! A set never grows.

use super::Refused;
use super::bytes::{Bytes, LAYOUT};
use crate::facet_capnp::{facet, persistent};
use crate::interface::Method;
use crate::restorer_capnp::namespace;
use crate::sturdyref_capnp::METHODS_MAX;
use capnp::traits::HasTypeId;
use std::sync::Arc;

/// The interfaces of a namespace.
const OF_NAMESPACES: [u64; 3] =
    [namespace::Client::TYPE_ID, facet::Client::TYPE_ID, persistent::Client::TYPE_ID];

/// The length of a method in its encoding, in bytes: the interface's id and the ordinal.
const METHOD_BYTES: usize = 10;

/// Some methods of some interfaces. Clones share their memory, which is about as large as the
/// message that brought the methods, so a client pays for the sets that it makes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Methods {
    /// Each interface with the index at which its methods end. Invariant: ids and ends are strictly
    /// ascending, so no interface is without methods.
    interfaces: Arc<[(u64, u16)]>,
    /// Invariant: strictly ascending within each interface, and no more than `METHODS_MAX`.
    ordinals: Arc<[u16]>,
}

impl Methods {
    /// Tells whether the method is in the set.
    pub fn contains(&self, method: Method) -> bool {
        let found = self.interfaces.binary_search_by_key(&method.interface, |&(id, _)| id);
        found.is_ok_and(|at| self.of(at).binary_search(&method.ordinal).is_ok())
    }

    /// The interfaces in ascending order, each with the ordinals of its methods.
    pub fn by_interface(&self) -> impl ExactSizeIterator<Item = (u64, &[u16])> {
        self.interfaces.iter().enumerate().map(|(at, &(interface, _))| (interface, self.of(at)))
    }

    /// The methods in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Method> {
        self.by_interface()
            .flat_map(|(id, ordinals)| ordinals.iter().map(move |&of| Method::new(id, of)))
    }

    fn of(&self, at: usize) -> &[u16] {
        let start = at.checked_sub(1).map_or(0, |before| self.interfaces[before].1);
        &self.ordinals[usize::from(start)..usize::from(self.interfaces[at].1)]
    }

    /// Makes a set of at most `METHODS_MAX` methods, which must be strictly ascending.
    fn of_sorted(sorted: impl IntoIterator<Item = Method>) -> Self {
        let (mut interfaces, mut ordinals) = (Vec::<(u64, u16)>::new(), Vec::new());
        for Method { interface, ordinal } in sorted {
            ordinals.push(ordinal);
            let end = ordinals.len() as u16;
            match interfaces.last_mut() {
                Some(last) if last.0 == interface => last.1 = end,
                _ => interfaces.push((interface, end)),
            }
        }
        Self { interfaces: interfaces.into(), ordinals: ordinals.into() }
    }

    pub(super) fn new(methods: impl IntoIterator<Item = Method>) -> capnp::Result<Self> {
        let mut sorted: Vec<_> = methods.into_iter().collect();
        sorted.sort_unstable();
        sorted.dedup();
        if sorted.len() > usize::from(METHODS_MAX) {
            let reason = format!("a set has at most {METHODS_MAX} methods");
            return Err(capnp::Error::failed(reason));
        }
        Ok(Self::of_sorted(sorted))
    }

    /// Tells whether the set has a method that no namespace has, so that it restricts objects too.
    pub(super) fn restricts_objects(&self) -> bool {
        self.interfaces.iter().any(|(interface, _)| !OF_NAMESPACES.contains(interface))
    }

    /// The methods that are in both sets.
    pub(super) fn and(&self, other: &Self) -> Self {
        if other == self {
            return self.clone();
        }
        Self::of_sorted(self.iter().filter(|&method| other.contains(method)))
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.ordinals.len() * METHOD_BYTES);
        for method in self.iter() {
            bytes.extend(method.interface.to_be_bytes());
            bytes.extend(method.ordinal.to_be_bytes());
        }
        bytes
    }

    pub(super) fn parse(value: &[u8]) -> Result<Self, Refused> {
        let (methods, rest) = value.as_chunks::<METHOD_BYTES>();
        // Big-endian numbers sort as their bytes do.
        let ascending = methods.is_sorted_by(|one, two| one < two);
        if !rest.is_empty() || !ascending || methods.len() > usize::from(METHODS_MAX) {
            return Err(LAYOUT);
        }
        let methods = methods.iter().map(parse_method).collect::<Result<Vec<_>, _>>()?;
        Ok(Self::of_sorted(methods))
    }
}

fn parse_method(method: &[u8; METHOD_BYTES]) -> Result<Method, Refused> {
    let mut bytes = Bytes::new(method);
    let interface = u64::from_be_bytes(bytes.array()?);
    Ok(Method { interface, ordinal: u16::from_be_bytes(bytes.array()?) })
}
