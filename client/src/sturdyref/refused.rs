//! The refusal of a reference, which doesn't tell callers what is wrong with it.

use std::fmt;

/// The reference was refused. Callers learn nothing else.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Refused(Flaw);

/// The fault in a reference, for the log alone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    Text,
    Cut,
    Version,
    Layout,
    Cluster,
    Key,
    Caveat,
    Signature,
    Proof,
    Holder,
    Expired,
    Grant,
    Sealed,
    TooManyLinks,
}

impl Refused {
    pub(super) const fn because(flaw: Flaw) -> Self {
        Self(flaw)
    }

    /// The target's own refusal: the grant named by the reference is not in force.
    pub const fn by_grant() -> Self {
        Self(Flaw::Grant)
    }

    /// The reason, for a log. It must never be sent to the peer that showed the reference. It holds
    /// no secret.
    pub const fn reason(&self) -> &'static str {
        match self.0 {
            Flaw::Text => "the text is not that of a reference",
            Flaw::Cut => "it is cut off: its end is missing",
            Flaw::Version => "the version of the layout is unknown",
            Flaw::Layout => "the bytes are not laid out as a reference",
            Flaw::Cluster => "it belongs to another cluster",
            Flaw::Key => "the signing key is unknown",
            Flaw::Caveat => "it has a critical caveat of an unknown kind",
            Flaw::Signature => "a signature is wrong",
            Flaw::Proof => "the holder's proof is wrong",
            Flaw::Holder => "the proof of a holder is missing or wrong",
            Flaw::Expired => "it has expired",
            Flaw::Grant => "its grant is not, or no longer, in force",
            Flaw::Sealed => "it is sealed",
            Flaw::TooManyLinks => "it was narrowed too often",
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("the reference was refused")
    }
}

impl fmt::Debug for Refused {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Refused")
    }
}

impl std::error::Error for Refused {}

impl From<Refused> for capnp::Error {
    fn from(refused: Refused) -> Self {
        Self::failed(refused.to_string())
    }
}
