//! Caveats: the restrictions of a reference. A list of them has one encoding.
//!
//! Lists combine by taking the stricter of each; nothing here can widen one. The set of methods for
//! namespaces and the set for their objects count separately: no later set gives back what an
//! earlier one took away.

use super::bytes::{self, Bytes, LAYOUT};
use super::refused::Flaw;
use super::{Method, Methods, PublicKey, Refused};
use crate::interface::{Interface, named};
use crate::sturdyref_capnp::{
    CAVEAT_CRITICAL, CAVEAT_DEPENDENT, CAVEAT_HOLDER, CAVEAT_METHODS, CAVEAT_NOT_AFTER,
    CAVEAT_OBJECT_METHODS, CAVEATS_MAX,
};
use capnp::Error;
use ed25519_dalek::{PUBLIC_KEY_LENGTH, VerifyingKey};

/// The most holders that one list can name, because a caveat's length is stored in two bytes.
const HOLDERS_MAX: usize = u16::MAX as usize / PUBLIC_KEY_LENGTH;

/// The restrictions of one payload or one link, or of several of them together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caveats {
    not_after_ms: Option<u64>,
    methods: Option<Methods>,
    /// The only methods allowed on objects that a namespace gives out. Invariant: `None` where
    /// `methods` says the same.
    object_methods: Option<Methods>,
    dependent: bool,
    /// Invariant: strictly ascending, and each key is sound.
    holders: Vec<PublicKey>,
    /// A critical caveat of a kind that this version doesn't know is present. Such lists never
    /// leave this module.
    unknown_critical: bool,
}

impl Caveats {
    /// No restriction.
    pub const fn none() -> Self {
        Self {
            not_after_ms: None,
            methods: None,
            object_methods: None,
            dependent: false,
            holders: Vec::new(),
            unknown_critical: false,
        }
    }

    /// Valid up to and including this millisecond since the start of 1970 in UTC.
    pub const fn not_after(ms: u64) -> Self {
        let mut caveats = Self::none();
        caveats.not_after_ms = Some(ms);
        caveats
    }

    /// The same, and valid up to and including this millisecond at most.
    #[must_use]
    pub fn with_not_after(self, ms: u64) -> Self {
        self.and(&Self::not_after(ms))
    }

    /// The same, and only these methods may be called: names in the schema of `C`, such as `read`
    /// or `Counter.read`, or in the interfaces that every object answers, such as `Facet.grants`.
    /// If one of them is a method that no namespace has, the set also restricts everything reached
    /// through a namespace.
    ///
    /// # Errors
    /// A name has no method, or more than one; the error lists the methods that exist. Or there are
    /// more than 256 methods.
    pub fn with_methods_of<'a, C: Interface>(
        self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> capnp::Result<Self> {
        self.with_methods(named::<C>(names)?)
    }

    /// The same, and only these methods, named as for [`with_methods_of`](Self::with_methods_of),
    /// may be called on everything reached through the namespace. It has no effect on a reference
    /// to an object.
    ///
    /// # Errors
    /// As for [`with_methods_of`](Self::with_methods_of).
    pub fn with_object_methods_of<'a, C: Interface>(
        self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> capnp::Result<Self> {
        self.with_object_methods(named::<C>(names)?)
    }

    /// As [`with_methods_of`](Self::with_methods_of), for callers without generated code: each
    /// method is the id of an interface and an ordinal in it.
    ///
    /// # Errors
    /// There are more than 256 of them.
    pub fn with_methods(self, methods: impl IntoIterator<Item = Method>) -> capnp::Result<Self> {
        let methods = Some(Methods::new(methods)?);
        Ok(self.and(&Self { methods, ..Self::none() }))
    }

    /// As [`with_object_methods_of`](Self::with_object_methods_of), for callers without generated
    /// code.
    ///
    /// # Errors
    /// There are more than 256 of them.
    pub fn with_object_methods(
        self,
        methods: impl IntoIterator<Item = Method>,
    ) -> capnp::Result<Self> {
        let object_methods = Some(Methods::new(methods)?);
        Ok(self.and(&Self { object_methods, ..Self::none() }))
    }

    /// The same, and no grant made through the reference survives the reference's own grant.
    #[must_use]
    pub fn dependent(self) -> Self {
        Self { dependent: true, ..self }
    }

    /// The same, and restoring the reference takes a proof of having the secret of `holder`.
    ///
    /// # Errors
    /// The key is weak, so that anybody could make a signature for it, or has a second encoding.
    pub fn with_holder(self, holder: VerifyingKey) -> capnp::Result<Self> {
        if !bytes::is_sound(holder.as_bytes()) {
            return Err(Error::failed("the key of the holder is not a sound Ed25519 key".into()));
        }
        let holders = vec![PublicKey::from(holder)];
        Ok(self.and(&Self { holders, ..Self::none() }))
    }

    /// The last valid millisecond since the start of 1970 in UTC, if there is one.
    pub const fn not_after_ms(&self) -> Option<u64> {
        self.not_after_ms
    }

    /// The only methods that may be called; `None` if all may.
    pub const fn methods(&self) -> Option<&Methods> {
        self.methods.as_ref()
    }

    /// The only methods that may be called on what is reached through a namespace, where they
    /// differ from those of [`methods`](Self::methods).
    pub const fn object_methods(&self) -> Option<&Methods> {
        self.object_methods.as_ref()
    }

    /// Tells whether all grants made through the reference end with its own.
    pub const fn is_dependent(&self) -> bool {
        self.dependent
    }

    /// Tells whether this method of this interface may be called.
    pub fn allows(&self, interface: u64, method: u16) -> bool {
        self.methods.as_ref().is_none_or(|methods| methods.contains(Method::new(interface, method)))
    }

    /// The holders who must all give a proof to restore the reference, in ascending order of the
    /// keys' bytes. Empty if no proof is needed.
    pub fn holders(&self) -> &[PublicKey] {
        &self.holders
    }

    /// Tells whether nothing is restricted.
    pub fn is_none(&self) -> bool {
        *self == Self::none()
    }

    /// Both restrictions together: the earlier time, the methods that both allow on a namespace and
    /// on its objects, and the holders of both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let not_after_ms = match (self.not_after_ms, other.not_after_ms) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
        let methods = in_both(self.methods.as_ref(), other.methods.as_ref());
        let of_objects = in_both(self.of_objects(), other.of_objects());
        let object_methods = unless_said(methods.as_ref(), of_objects);
        let mut holders = [&self.holders[..], &other.holders].concat();
        holders.sort_unstable();
        holders.dedup();
        let dependent = self.dependent || other.dependent;
        let unknown_critical = self.unknown_critical || other.unknown_critical;
        if holders.len() > HOLDERS_MAX {
            // More holders than can be written down. None may be left out, so nothing is allowed at
            // all.
            holders.truncate(HOLDERS_MAX);
            let (not_after_ms, nothing) = (Some(0), Some(Methods::default()));
            let (methods, object_methods) = (nothing.clone(), nothing);
            return Self {
                not_after_ms,
                methods,
                object_methods,
                dependent,
                holders,
                unknown_critical,
            };
        }
        Self { not_after_ms, methods, object_methods, dependent, holders, unknown_critical }
    }

    /// The restrictions of objects reached through a namespace that has these restrictions.
    #[must_use]
    pub fn for_objects(self) -> Self {
        let methods = self.of_objects().cloned();
        Self { methods, object_methods: None, ..self }
    }

    /// The same restrictions for an object, which gives access to no others.
    #[must_use]
    pub fn of_object(self) -> Self {
        Self { object_methods: None, ..self }
    }

    /// The methods allowed on objects reached through a namespace.
    fn of_objects(&self) -> Option<&Methods> {
        self.object_methods.as_ref().or_else(|| said_of_objects(self.methods.as_ref()))
    }

    /// The bytes of the list, as they appear in a reference.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encode_into(&mut bytes);
        bytes
    }

    /// Reads exactly one list.
    ///
    /// # Errors
    /// The bytes are not those that [`encode`](Self::encode) makes of any list.
    pub fn decode(all: &[u8]) -> Result<Self, Refused> {
        let caveats = Self::parse(&mut Bytes::new(all))?.understood()?;
        // Bytes after the list, and kinds that were ignored, would be missing here.
        if caveats.encode() == all { Ok(caveats) } else { Err(LAYOUT) }
    }

    pub(super) fn understood(self) -> Result<Self, Refused> {
        if self.unknown_critical { Err(Refused::because(Flaw::Caveat)) } else { Ok(self) }
    }

    pub(super) fn encode_into(&self, out: &mut Vec<u8>) {
        let count_at = out.len();
        out.push(0);
        let mut put = |kind: u8, value: &[u8]| {
            let length = u16::try_from(value.len()).expect("methods and holders have limits");
            out[count_at] += 1;
            out.push(kind);
            out.extend(length.to_be_bytes());
            out.extend(value);
        };
        if let Some(ms) = self.not_after_ms {
            put(CAVEAT_NOT_AFTER, &ms.to_be_bytes());
        }
        if let Some(methods) = &self.methods {
            put(CAVEAT_METHODS, &methods.encode());
        }
        if !self.holders.is_empty() {
            let holders: Vec<_> = self.holders.iter().map(|key| *key.as_bytes()).collect();
            put(CAVEAT_HOLDER, holders.as_flattened());
        }
        if let Some(methods) = &self.object_methods {
            put(CAVEAT_OBJECT_METHODS, &methods.encode());
        }
        if self.dependent {
            put(CAVEAT_DEPENDENT, &[]);
        }
    }

    pub(super) fn parse(bytes: &mut Bytes) -> Result<Self, Refused> {
        let count = bytes.u8()?;
        if count > CAVEATS_MAX {
            return Err(LAYOUT);
        }
        let mut caveats = Self::none();
        let mut last = None;
        for _ in 0..count {
            let kind = bytes.u8()?;
            // Strictly ascending kinds, so that each set of them has one order.
            if last.is_some_and(|last| last >= kind) {
                return Err(LAYOUT);
            }
            last = Some(kind);
            let length = u16::from_be_bytes(bytes.array()?);
            let value = bytes.take(usize::from(length))?;
            match kind {
                CAVEAT_NOT_AFTER => {
                    let ms = value.try_into().map_err(|_| LAYOUT)?;
                    caveats.not_after_ms = Some(u64::from_be_bytes(ms));
                }
                CAVEAT_METHODS => caveats.methods = Some(Methods::parse(value)?),
                CAVEAT_HOLDER => caveats.holders = parse_holders(value)?,
                CAVEAT_OBJECT_METHODS => caveats.object_methods = Some(Methods::parse(value)?),
                CAVEAT_DEPENDENT if value.is_empty() => caveats.dependent = true,
                CAVEAT_DEPENDENT => return Err(LAYOUT),
                kind => caveats.unknown_critical |= kind & CAVEAT_CRITICAL != 0,
            }
        }
        // Two sets in one list mean the same as in two lists.
        let of_objects =
            in_both(caveats.object_methods.as_ref(), said_of_objects(caveats.methods.as_ref()));
        if caveats.object_methods != unless_said(caveats.methods.as_ref(), of_objects) {
            return Err(LAYOUT);
        }
        Ok(caveats)
    }
}

fn in_both(one: Option<&Methods>, two: Option<&Methods>) -> Option<Methods> {
    match (one, two) {
        (Some(one), Some(two)) => Some(one.and(two)),
        (one, two) => one.or(two).cloned(),
    }
}

/// The part of a set of methods that concerns the objects of a namespace.
fn said_of_objects(methods: Option<&Methods>) -> Option<&Methods> {
    methods.filter(|methods| methods.restricts_objects())
}

/// The methods of objects, or `None` if the other set says the same of them.
fn unless_said(methods: Option<&Methods>, of_objects: Option<Methods>) -> Option<Methods> {
    of_objects.filter(|of_objects| said_of_objects(methods) != Some(of_objects))
}

fn parse_holders(value: &[u8]) -> Result<Vec<PublicKey>, Refused> {
    let (keys, rest) = value.as_chunks::<PUBLIC_KEY_LENGTH>();
    if keys.is_empty() || !rest.is_empty() || !keys.is_sorted_by(|one, two| one < two) {
        return Err(LAYOUT);
    }
    keys.iter().copied().map(bytes::key).collect()
}
