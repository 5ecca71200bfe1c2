//! The status of a call that failed, and what became of it.

use capnp::ErrorKind;
use http::StatusCode;

use super::super::refusals::refusal;
use crate::error::{Reason, is_not_begun};
use crate::http::Refusal;

/// The object answered, with results or an error of its own, and what it wrote stays.
pub(super) const HAPPENED: &str = "happened";
/// The method wasn't started.
pub(super) const NOT: &str = "not";
/// It isn't known here.
pub(super) const UNKNOWN: &str = "unknown";

/// The answer to a client whose call failed so, and its outcome.
pub(super) fn refusal_of(error: &capnp::Error) -> (Refusal, &'static str) {
    let outcome = outcome(error);
    let status = match Reason::of(error) {
        Some(Reason::Expired) => Some(StatusCode::FORBIDDEN),
        Some(Reason::RequestIdReused) => Some(StatusCode::CONFLICT),
        Some(Reason::TooLarge | Reason::TooManyCapabilities) => Some(StatusCode::PAYLOAD_TOO_LARGE),
        Some(Reason::OverQuota) => Some(StatusCode::TOO_MANY_REQUESTS),
        _ => None,
    };
    let refusal = match status {
        Some(status) => Refusal::of(status, error),
        None => refusal(error.clone()),
    };
    (refusal.with_outcome(outcome), outcome)
}

/// `not-begun:` and `too-many-request-ids:` say that the method wasn't started: a class never
/// passes them on. With any other reason, the class may pass on the error of a call that it made
/// itself, after it wrote something.
fn outcome(error: &capnp::Error) -> &'static str {
    if is_not_begun(error) {
        return NOT;
    }
    match Reason::of(error) {
        Some(Reason::TooManyRequestIds) => NOT,
        Some(
            Reason::Expired
            | Reason::Deadlock
            | Reason::Overloaded
            | Reason::RequestIdReused
            | Reason::RequestIdLength
            | Reason::NotRepeatable
            | Reason::TooManyHops
            | Reason::Malformed
            | Reason::ImportUnfinished
            | Reason::Damaged
            | Reason::Unknown
            | Reason::Revoked
            | Reason::TooLarge
            | Reason::TooManyCapabilities
            | Reason::OverQuota
            | Reason::LowSpace
            | Reason::StorageFailed,
        ) => UNKNOWN,
        Some(_) => HAPPENED,
        None => match error.kind {
            // The object wasn't called, or it refused while it ran.
            ErrorKind::Unimplemented | ErrorKind::Overloaded | ErrorKind::Disconnected => UNKNOWN,
            _ => HAPPENED,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{of_class, overloaded};

    #[test]
    fn a_call_for_whose_id_there_is_no_room_has_not_happened() {
        let full = Reason::TooManyRequestIds.error("too many are kept");
        let (refusal, outcome) = refusal_of(&full);
        assert_eq!((refusal.reason(), outcome), (Some(Reason::TooManyRequestIds), NOT));
        // A class may pass such an error on after it wrote something.
        assert_eq!(refusal_of(&of_class(full)).1, UNKNOWN);
        assert_eq!(refusal_of(&overloaded("not now")).1, UNKNOWN);
    }
}
