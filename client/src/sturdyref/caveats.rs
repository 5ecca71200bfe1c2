//! Caveats: what a reference is restricted by. A list of them has one encoding.
//!
//! Lists combine by taking the stricter of each; nothing here can widen one.

use super::Refused;
use super::codec::{Bytes, LAYOUT};
use crate::sturdyref_capnp::{CAVEAT_CRITICAL, CAVEAT_NOT_AFTER, CAVEATS_MAX};

/// The restrictions of one payload or one link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caveats {
    not_after_ms: Option<u64>,
    /// A critical kind that this version doesn't know: whoever verifies must refuse.
    unknown: Option<u8>,
}

impl Caveats {
    /// No restriction.
    pub const fn none() -> Self {
        Self { not_after_ms: None, unknown: None }
    }

    /// Valid up to and including this millisecond since the start of 1970 in UTC.
    pub const fn not_after(ms: u64) -> Self {
        Self { not_after_ms: Some(ms), unknown: None }
    }

    /// The last millisecond since the start of 1970 in UTC, if there is one.
    pub const fn not_after_ms(&self) -> Option<u64> {
        self.not_after_ms
    }

    pub(super) const fn unknown_critical(&self) -> Option<u8> {
        self.unknown
    }

    /// Both restrictions together.
    pub(super) fn and(self, other: Self) -> Self {
        let not_after_ms = match (self.not_after_ms, other.not_after_ms) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
        Self { not_after_ms, unknown: self.unknown.or(other.unknown) }
    }

    pub(super) fn encode_into(self, out: &mut Vec<u8>) {
        let Some(ms) = self.not_after_ms else { return out.push(0) };
        out.push(1);
        out.push(CAVEAT_NOT_AFTER);
        out.extend((size_of::<u64>() as u16).to_be_bytes());
        out.extend(ms.to_be_bytes());
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
            // Ascending kinds leave one order for each set of them.
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
                kind if kind & CAVEAT_CRITICAL != 0 => caveats.unknown = Some(kind),
                _ => {}
            }
        }
        Ok(caveats)
    }
}
