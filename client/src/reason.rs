//! The words with which Capstead's errors begin, each with its kind.
//!
//! The kind of an error says in general what a caller can do; the word says which case it is:
//! `over-quota: the object would store …`. Only this table spells the words, so code that makes an
//! error and code that looks for it can't disagree. The page `docs/errors.md` has the same table
//! for people, and a test compares the two.

use std::fmt;

use capnp::{Error, ErrorKind};

/// The RPC system that receives an error puts this before its text.
const REMOTE: &str = "remote exception: ";

/// Makes the type `Reason` and its tables of words and kinds.
macro_rules! reasons {
    ($($(#[$doc:meta])+ $name:ident = $word:literal, $kind:ident;)+) => {
        /// The word that an error begins with: the case in which a call failed.
        ///
        /// ```
        /// use capnp::Error;
        /// use capstead_client::Reason;
        ///
        /// /// Tells whether the call had no effect, so that it may be made again.
        /// fn is_harmless(error: &Error) -> bool {
        ///     Reason::of(error) == Some(Reason::NotBegun)
        /// }
        ///
        /// assert!(is_harmless(&Reason::NotBegun.error("the server is shutting down")));
        /// assert!(!is_harmless(&Error::failed("the lights are out".into())));
        /// ```
        ///
        /// A class may use all of these words but four: the server doesn't let a class's error
        /// begin with the word of [`Revoked`](Reason::Revoked), [`Expired`](Reason::Expired),
        /// [`NotBegun`](Reason::NotBegun) or [`TooManyRequestIds`](Reason::TooManyRequestIds), nor
        /// with another word than those of its kind.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[$doc])+ $name,)+
        }

        impl Reason {
            /// All reasons.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The word, without the colon.
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)+
                }
            }

            /// The kind of errors with this word.
            pub const fn kind(self) -> ErrorKind {
                match self {
                    $(Self::$name => ErrorKind::$kind,)+
                }
            }

            fn of_word(word: &str) -> Option<Self> {
                match word {
                    $($word => Some(Self::$name),)+
                    _ => None,
                }
            }
        }
    };
}

reasons! {
    /// The call ended before its method started, and had no effect; restore the reference and
    /// repeat it.
    NotBegun = "not-begun", Disconnected;
    /// The grant was revoked, and restoring is in vain; ask its giver for another one.
    Revoked = "revoked", Failed;
    /// The capability's time is over; ask its giver for another one.
    Expired = "expired", Failed;
    /// The call contradicts the object's present state; look at that state first.
    Conflict = "conflict", Failed;
    /// The call would wait for itself; call in another order, or don't wait for the answer.
    Deadlock = "deadlock", Failed;
    /// Too many objects are awake; try again soon.
    Overloaded = "overloaded", Overloaded;

    /// A call with this request id began and was cut short; look at its effects, and don't repeat
    /// it.
    Unknown = "unknown", Failed;
    /// Another method was called with this request id; take a fresh id for every call.
    RequestIdReused = "request-id-reused", Failed;
    /// The request id is too short to be unguessable, or too long; use 16 to 64 random bytes.
    RequestIdLength = "request-id-length", Failed;
    /// Too many request ids are kept, for the object or for the caller's grant, and the call did
    /// not happen; make it again when the oldest are forgotten.
    TooManyRequestIds = "too-many-request-ids", Overloaded;
    /// The call happened, and its reply can't be kept for a retry; look at its effects.
    ReplyNotStorable = "reply-not-storable", Failed;
    /// The method or the capability takes no request id; make the call without one.
    NotRepeatable = "not-repeatable", Failed;

    /// The message would be too large to be sent; divide it.
    TooLarge = "too-large", Failed;
    /// The message has too many capabilities in it; divide it.
    TooManyCapabilities = "too-many-capabilities", Failed;
    /// The call came through too many hosts; its promise may lead back to itself.
    TooManyHops = "too-many-hops", Failed;
    /// Several pointers in the parameters lead to one part; write each part once.
    Malformed = "malformed", Failed;

    /// The key is empty or too long; use a shorter one.
    KeyLength = "key-length", Failed;
    /// The value is too long; divide it over several keys.
    ValueLength = "value-length", Failed;
    /// One turn would write too much; write less between two awaits.
    BatchSize = "batch-size", Failed;
    /// The object, its class or the caller's grant would store more than it may; delete something
    /// first.
    OverQuota = "over-quota", Failed;
    /// The disk has too little room left; delete something, or try again when the operator has made
    /// room.
    LowSpace = "low-space", Overloaded;
    /// The write came from outside the object's own methods; write from its handlers.
    OutsideTurn = "outside-turn", Failed;
    /// The key holds a value of another type; read it as that type, or use another key.
    WrongType = "wrong-type", Failed;
    /// A record isn't what was written; tell the operator, who has a backup.
    Damaged = "damaged", Failed;
    /// A struct that is kept as bytes has a capability in it; store the capability as a reference.
    LiveCapability = "live-capability", Failed;
    /// The stored reference belongs to another object or cluster; get the capability again.
    SealedElsewhere = "sealed-elsewhere", Failed;
    /// Not all of the object was imported; the operator has to import it again.
    ImportUnfinished = "import-unfinished", Failed;

    /// The capability lives in memory only, as long as its owner, and can't be kept; use the object
    /// that it comes from.
    NotAReference = "not-a-reference", Failed;
    /// No grant with this id was made from the caller's; list the grants.
    NoSuchGrant = "no-such-grant", Failed;
    /// The caller's grant doesn't allow a grant that survives it; ask for a dependent one.
    NotAllowed = "not-allowed", Failed;
    /// The grant's chain of parents is too long; make it from an earlier grant.
    TooDeep = "too-deep", Failed;
    /// Too many grants were made from one grant; revoke some first.
    TooManyGrants = "too-many-grants", Failed;
    /// The reference would be bound to too many keys; name fewer holders.
    TooManyHolders = "too-many-holders", Failed;
    /// The restriction names too many methods; name fewer.
    TooManyMethods = "too-many-methods", Failed;

    /// The class reaches no such namespace; bind it where the server is put together.
    Unbound = "unbound", Failed;
    /// The storage failed under an operator's tool; start the server again.
    StorageFailed = "storage-failed", Failed;
}

impl Reason {
    /// The reason that `error` begins with, if any, no matter how often the error was passed on.
    ///
    /// Only the word decides, even if the error has another kind than the word's own.
    pub fn of(error: &Error) -> Option<Self> {
        Self::parse(&error.extra).map(|(reason, _)| reason)
    }

    /// The reason that the text of an error begins with, and the text after it.
    ///
    /// The word, a colon and a space must stand at the beginning, after the prefixes that receivers
    /// added are removed. Letter case matters, and a word later in the text doesn't count.
    pub fn parse(text: &str) -> Option<(Self, &str)> {
        let (word, rest) = said(text).split_once(": ")?;
        Some((Self::of_word(word)?, rest))
    }

    /// An error that begins with this word.
    pub fn error(self, text: impl fmt::Display) -> Error {
        Error { kind: self.kind(), extra: format!("{self}: {text}") }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The text of an error without the prefixes that receivers added on its way.
pub fn said(text: &str) -> &str {
    text.trim_start_matches(REMOTE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_known_again_however_far_it_came() {
        for &reason in Reason::ALL {
            let made = reason.error("why: because");
            assert_eq!(made.extra, format!("{}: why: because", reason.word()));
            assert_eq!(made.kind, reason.kind());
            for hops in 0..3 {
                let extra = REMOTE.repeat(hops) + &made.extra;
                assert_eq!(Reason::parse(&extra), Some((reason, "why: because")));
                assert_eq!(Reason::of(&Error { extra, kind: made.kind }), Some(reason));
            }
        }
    }

    #[test]
    fn each_word_is_one_word_and_there_once() {
        for (at, reason) in Reason::ALL.iter().enumerate() {
            let is_part =
                |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase());
            assert!(reason.word().split('-').all(is_part), "{reason}");
            assert!(Reason::ALL[..at].iter().all(|before| before.word() != reason.word()));
        }
    }

    #[test]
    fn only_the_beginning_of_a_text_is_a_reason() {
        for text in [
            "",
            "revoked",
            "revoked:",
            "revoked:at once",
            "Revoked: at once",
            " revoked: at once",
            "it says revoked: at once",
            "passed on: revoked: at once",
            "a remote exception: revoked: at once",
            "too-many-options: a class says so",
        ] {
            assert_eq!(Reason::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_kind_of_an_error_changes_nothing_of_its_word() {
        // Otherwise a class could say the server's words with another kind.
        let error = Error::overloaded("revoked: at once".into());
        assert_eq!(Reason::of(&error), Some(Reason::Revoked));
    }
}
