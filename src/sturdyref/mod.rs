//! Making references: keys, root references, the records that keep references valid, and values
//! that hold references.
//!
//! Checking and narrowing are the holder's side, and are in the client crate. Everything here is
//! pure: time and randomness are arguments.

mod cipher;
mod citation;
mod grant;
mod keys;

pub(crate) use cipher::{Nonce, OwnerToken, ReferenceCipher, ReferenceValue, holds_references};
pub(crate) use citation::{Authority, Citation};
pub(crate) use grant::{Grant, GrantRef, Parent, TargetKind, root_grant};
pub(crate) use keys::{KeyRing, Keys};
