//! Making references: keys, root references and the records that keep them valid.
//!
//! Checking and narrowing are the holder's side and stand in the client crate. Everything here is
//! pure: what time it is, and randomness, are arguments.

mod grant;
mod keys;

pub(crate) use grant::{Grant, root_grant};
pub(crate) use keys::{KeyRing, Keys};
