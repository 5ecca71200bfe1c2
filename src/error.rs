//! Errors as a caller sees them: the kind says what the caller should do, the text says why.
//!
//! Cap'n Proto knows four kinds. `failed`: don't repeat the call as it is. `overloaded`: try later.
//! `disconnected`: the stub is broken for ever; restore the reference and ask what happened.
//! `unimplemented`: the object has no such method.

use std::any::Any;

use capnp::Error;

/// What methods of objects return.
pub type Result<T> = capnp::Result<T>;

/// The call can't succeed as it stands; the caller should change it.
pub fn failed(reason: impl Into<String>) -> Error {
    Error::failed(reason.into())
}

/// There is too much to do right now; the caller should try again later.
pub fn overloaded(reason: impl Into<String>) -> Error {
    Error::overloaded(reason.into())
}

/// The path to the object is gone; the caller should restore its reference.
pub fn disconnected(reason: impl Into<String>) -> Error {
    Error::disconnected(reason.into())
}

/// The object has no such method, or the reference doesn't allow it.
pub fn unimplemented(reason: impl Into<String>) -> Error {
    Error::unimplemented(reason.into())
}

const CONFLICT: &str = "conflict: ";

/// The call contradicts the object's present state; the caller should look at that first.
///
/// Over RPC it is a `failed` whose text begins with `conflict:`; over HTTP it is status 409.
pub fn conflict(reason: impl AsRef<str>) -> Error {
    Error::failed(format!("{CONFLICT}{}", reason.as_ref()))
}

/// The reason of a [`conflict`], if `error` is one.
pub(crate) fn conflict_reason(error: &Error) -> Option<&str> {
    // An error that crossed the wire is prefixed by the RPC system.
    error.extra.find(CONFLICT).map(|at| &error.extra[at + CONFLICT.len()..])
}

/// What errors begin with that tell a holder of something that it was taken back.
const REVOKED: &str = "revoked: ";

/// Who gave the caller the right to call has taken it back; restoring the reference is in vain.
pub(crate) fn revoked(reason: &str) -> Error {
    Error::failed(format!("{REVOKED}{reason}"))
}

/// Whether `error` is such a one, also from another vat.
pub(crate) fn is_revoked(error: &Error) -> bool {
    error.extra.contains(REVOKED)
}

/// What a panic said.
pub(crate) fn panic_reason(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no reason given")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_is_known_again_after_it_crossed_the_wire() {
        let local = conflict("the counter is full");
        assert_eq!(conflict_reason(&local), Some("the counter is full"));
        let remote = failed(format!("remote exception: {}", local.extra));
        assert_eq!(conflict_reason(&remote), Some("the counter is full"));
        assert_eq!(conflict_reason(&failed("no")), None);
    }
}
