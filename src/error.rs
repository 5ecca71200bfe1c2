//! Errors as a caller sees them: the kind says what the caller should do, the text says why.
//!
//! Cap'n Proto has four kinds. `failed`: don't repeat the call as it is. `overloaded`: try later.
//! `disconnected`: the stub is broken for good; restore the reference and ask what happened.
//! `unimplemented`: the object has no such method.
//!
//! The text begins with the word of a [`Reason`] where a program may want to tell the cases apart;
//! `docs/errors.md` lists all of them. Only [`conflict`] and [`Reason::error`] make such texts: one
//! that is made from words alone never begins with a word of the table, so nobody says by chance
//! what programs, and the status over HTTP, go by.

use std::any::Any;

use capnp::{Error, ErrorKind};
pub use capstead_client::Reason;
use capstead_client::sturdyref::Method;

/// The result of the methods of objects.
pub type Result<T> = capnp::Result<T>;

/// The call can't succeed as it stands; the caller should change it.
pub fn failed(reason: impl Into<String>) -> Error {
    Error::failed(without_word(reason.into()))
}

/// There is too much to do right now; the caller should try again later.
pub fn overloaded(reason: impl Into<String>) -> Error {
    Error::overloaded(without_word(reason.into()))
}

/// The path to the object is gone; the caller should restore its reference.
pub fn disconnected(reason: impl Into<String>) -> Error {
    Error::disconnected(without_word(reason.into()))
}

/// The object has no such method, or the reference doesn't allow it.
pub fn unimplemented(reason: impl Into<String>) -> Error {
    Error::unimplemented(without_word(reason.into()))
}

/// The text, which doesn't begin with a word of the table, nor as the error of a method that isn't
/// there.
fn without_word(text: String) -> String {
    let said = capstead_client::said(&text);
    if Reason::parse(said).is_some() || said.starts_with(NO_SUCH_METHOD) {
        return format!("{PASSED_ON}{said}");
    }
    text
}

/// Stands before a text that isn't the server's own.
const PASSED_ON: &str = "passed on: ";

/// The call contradicts the object's present state; the caller should look at that state first.
///
/// Over RPC this is a `failed` whose text begins with `conflict:`; over HTTP it is status 409.
pub fn conflict(reason: impl AsRef<str>) -> Error {
    Reason::Conflict.error(reason.as_ref())
}

/// The reason of a [`conflict`], if `error` is one.
pub(crate) fn conflict_reason(error: &Error) -> Option<&str> {
    match Reason::parse(&error.extra) {
        Some((Reason::Conflict, why)) if error.kind == ErrorKind::Failed => Some(why),
        _ => None,
    }
}

/// The text without the prefixes that RPC systems added on its way from another vat.
pub(crate) fn said(error: &Error) -> &str {
    capstead_client::said(&error.extra)
}

/// The end of the text for a caller whose call had begun when its right ended.
const UNDER_WAY: &str = " while the call was under way";

/// The giver of the caller's right has revoked it; restoring the reference is in vain.
pub(crate) fn revoked(reason: &str) -> Error {
    Reason::Revoked.error(reason)
}

/// As [`revoked`], for a call that may have had effects.
pub(crate) fn revoked_under_way(reason: &str) -> Error {
    Reason::Revoked.error(format_args!("{reason}{UNDER_WAY}"))
}

/// Tells whether `error` says so, even if it comes from another vat. Classes can't say it.
pub(crate) fn is_revoked(error: &Error) -> bool {
    Reason::of(error) == Some(Reason::Revoked)
}

/// The time of the caller's right is over.
pub(crate) fn expired() -> Error {
    Reason::Expired.error("the time of this capability is over")
}

/// As [`expired`], for a call that may have had effects.
pub(crate) fn expired_under_way() -> Error {
    Reason::Expired.error(format_args!("the time of this capability was over{UNDER_WAY}"))
}

/// Tells whether `error` says that a right has come to its end, by a revocation or by its time.
pub(crate) fn is_of_ended_right(error: &Error) -> bool {
    matches!(Reason::of(error), Some(Reason::Revoked | Reason::Expired))
}

/// The call failed for this reason before its method started.
pub(crate) fn not_begun(error: Error) -> Error {
    match error.kind {
        ErrorKind::Disconnected if !is_not_begun(&error) => Reason::NotBegun.error(error.extra),
        _ => error,
    }
}

/// Tells whether the server says that a call's method never started, so that the call may be
/// repeated. Classes can't say it.
pub(crate) fn is_not_begun(error: &Error) -> bool {
    match Reason::of(error) {
        Some(Reason::NotBegun) => true,
        Some(Reason::Revoked) => !error.extra.ends_with(UNDER_WAY),
        _ => false,
    }
}

/// Makes an error into one that a class may return: it doesn't begin with a word that only the
/// server may use, even if the class made the word up or passes on an error that it got itself; and
/// it has the kind of its word, without which nobody made it but from words.
pub(crate) fn of_class(mut error: Error) -> Error {
    let is_taken = match Reason::of(&error) {
        // They speak of the caller's own reference or call.
        Some(Reason::Revoked | Reason::Expired | Reason::NotBegun | Reason::TooManyRequestIds) => {
            true
        }
        Some(reason) => reason.kind() != error.kind,
        None => false,
    };
    if is_taken {
        error.extra = format!("{PASSED_ON}{}", said(&error));
    }
    error
}

/// There is no such method. A method that isn't allowed gives the same error.
pub(crate) fn no_such_method(Method { interface, ordinal }: Method) -> Error {
    Error::unimplemented(format!("{NO_SUCH_METHOD}: interface 0x{interface:x}, method {ordinal}"))
}

const NO_SUCH_METHOD: &str = "Method not implemented";

/// Tells whether this is the text of [`no_such_method`], with or without the method's name: there
/// is no such method, or none that is allowed. A class's own text is longer or shorter.
pub(crate) fn is_no_such_method(said: &str) -> bool {
    let named = said.strip_prefix(NO_SUCH_METHOD).and_then(|rest| rest.strip_prefix(": "));
    let Some((name, numbers)) = named.and_then(|named| named.rsplit_once("interface 0x")) else {
        return false;
    };
    let is_number = |text: &str, radix| u64::from_str_radix(text, radix).is_ok();
    let is_method = numbers
        .split_once(", method ")
        .is_some_and(|(interface, ordinal)| is_number(interface, 16) && is_number(ordinal, 10));
    is_method && (name.is_empty() || name.ends_with(", "))
}

/// Tells whether a restore failed by the fault of its reference: that is none, or good no more.
/// With any other error it may be as good as before.
pub(crate) fn is_reference_refused(error: &Error) -> bool {
    match Reason::of(error) {
        Some(Reason::Revoked | Reason::Expired) => true,
        Some(_) => false,
        None => matches!(error.kind, ErrorKind::Failed | ErrorKind::Unimplemented),
    }
}

/// Names the missing method as the schema does. Generated code doesn't name it, or names it as in
/// Rust.
pub(crate) fn name_method(error: Error, method: Method) -> Error {
    if error.kind != ErrorKind::Unimplemented {
        return error;
    }
    if error.extra.strip_suffix('.') == Some(NO_SUCH_METHOD) {
        return no_such_method(method);
    }
    let in_rust =
        error.extra.strip_prefix("method ").and_then(|rest| rest.strip_suffix(" not implemented"));
    match in_rust.and_then(|path| path.split_once("::Server::")) {
        Some((module, name)) => Error::unimplemented(format!(
            "{NO_SUCH_METHOD}: {}.{}, interface 0x{:x}, method {}",
            in_schema(module, Initial::Upper),
            in_schema(name, Initial::Lower),
            method.interface,
            method.ordinal
        )),
        None => error,
    }
}

/// The form of a name's first letter: upper for types, lower for methods.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Initial {
    Upper,
    Lower,
}

/// The name in the schema of a name in generated code: `http_service` is `HttpService`, and `once_`
/// is `once`.
fn in_schema(name: &str, initial: Initial) -> String {
    let mut begins = initial == Initial::Upper;
    let mut camel = String::with_capacity(name.len());
    for letter in name.chars() {
        match letter {
            '_' => begins = !camel.is_empty(),
            _ if begins => {
                begins = false;
                camel.extend(letter.to_uppercase());
            }
            _ => camel.push(letter),
        }
    }
    camel
}

/// The message of a panic.
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
        let remote = Error::failed(format!("remote exception: {}", local.extra));
        assert_eq!(conflict_reason(&remote), Some("the counter is full"));
        let by_kind = Error::overloaded("conflict: no".into());
        for other in [failed("no"), failed("not a conflict: no"), by_kind] {
            assert_eq!(conflict_reason(&other), None, "{other}");
        }
    }

    #[test]
    fn words_alone_make_no_reason() {
        type Make = fn(String) -> Error;
        let makers: [Make; 4] = [failed, overloaded, disconnected, unimplemented];
        for make in makers {
            for reason in Reason::ALL {
                for before in ["", "remote exception: ", "remote exception: remote exception: "] {
                    let made = make(format!("{before}{reason}: why"));
                    assert_eq!(Reason::of(&made), None, "{made}");
                    assert_eq!(made.extra, format!("passed on: {reason}: why"));
                }
            }
            for method in
                ["Method not implemented.", "Method not implemented: interface 0x1, method 2"]
            {
                let made = name_method(make(method.into()), Method::new(1, 2));
                assert!(!is_no_such_method(&made.extra), "{made}");
            }
            for text in ["", "no", "conflict", "a conflict: no", "remote exception: no"] {
                assert_eq!(make(text.into()).extra, text);
            }
        }
    }

    #[test]
    fn only_the_servers_text_says_that_a_method_is_not_there() {
        let method = Method::new(0xab, 3);
        assert!(is_no_such_method(&no_such_method(method).extra));
        for generated in
            ["Method not implemented.", "method facet::Server::in_chain not implemented"]
        {
            let named = name_method(Error::unimplemented(generated.into()), method);
            assert!(is_no_such_method(&named.extra), "{named}");
        }
        for text in [
            "Method not implemented yet",
            "Method not implemented.",
            "Method not implemented: later",
            "Method not implemented: interface 0xab, method 3 is for others",
            "Method not implemented: your interface 0xab, method 3",
            "it says Method not implemented: interface 0xab, method 3",
        ] {
            assert!(!is_no_such_method(text), "{text}");
        }
    }

    #[test]
    fn only_some_failures_of_a_restore_are_the_fault_of_its_reference() {
        let none = failed("the reference is refused");
        for error in [none, revoked("it was taken back"), Reason::Expired.error("it is over")] {
            assert!(is_reference_refused(&error), "{error}");
        }
        for error in [
            Reason::ImportUnfinished.error("import it again"),
            Reason::Damaged.error("a record"),
            Reason::NotBegun.error("the object ended"),
            overloaded("later"),
            disconnected("gone"),
        ] {
            assert!(!is_reference_refused(&error), "{error}");
        }
    }

    #[test]
    fn a_class_cannot_speak_as_the_server() {
        let words = [revoked("it was taken back"), not_begun(disconnected("the object ended"))];
        for word in words {
            assert!(is_not_begun(&word));
            let remote =
                Error { extra: format!("remote exception: {}", word.extra), ..word.clone() };
            assert!(is_not_begun(&remote));
            for said in [word, remote] {
                let passed_on = of_class(said.clone());
                assert!(!is_not_begun(&passed_on) && !is_revoked(&passed_on), "{passed_on}");
                assert_eq!(passed_on.kind, said.kind);
                let again = of_class(passed_on.clone());
                assert_eq!(again.extra, passed_on.extra);
            }
        }
        // The kind doesn't matter: code that looks for the word may not check the kind.
        for said in [
            Error::overloaded("revoked: x".into()),
            Error::failed("remote exception: not-begun: x".into()),
            Error::failed("expired: x".into()),
            Error::disconnected("remote exception: expired: x".into()),
            // No other kind of error has these words.
            Error::overloaded("conflict: x".into()),
            Error::disconnected("over-quota: x".into()),
            Error::unimplemented("remote exception: too-large: x".into()),
            Error::failed("overloaded: x".into()),
        ] {
            assert_eq!(Reason::of(&of_class(said.clone())), None, "{said}");
        }
        let full = Reason::OverQuota.error("it is full");
        assert_eq!(of_class(full.clone()).extra, full.extra);
        let under_way = revoked_under_way("it was taken back");
        assert!(is_revoked(&under_way) && !is_not_begun(&under_way));
        assert!(!is_revoked(&failed("somebody wrote revoked: x")));
    }

    #[test]
    fn a_method_that_is_not_there_is_named() {
        let generated = |text: String| Error::unimplemented(text);
        let named = name_method(generated("Method not implemented.".into()), Method::new(0xab, 3));
        assert_eq!(named.extra, "Method not implemented: interface 0xab, method 3");
        for text in ["not today.", "method x not implemented", "method a::b not implemented here"] {
            assert_eq!(name_method(unimplemented(text), Method::new(0xab, 3)).extra, text);
        }
        for (rust, schema) in [
            ("facet::Server::once_", "Facet.once"),
            ("facet::Server::in_chain", "Facet.inChain"),
            ("http_service::Server::request", "HttpService.request"),
        ] {
            let named = name_method(
                generated(format!("method {rust} not implemented")),
                Method::new(0xab, 3),
            );
            let expected = format!("Method not implemented: {schema}, interface 0xab, method 3");
            assert_eq!(named.extra, expected);
        }
    }
}
