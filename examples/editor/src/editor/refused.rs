//! The reasons for which a socket is closed, and their codes.
//!
//! `y-websocket` connects again after every code but 4400 to 4499: those are for what another try
//! can't mend.

use capstead::http::Socket;

pub(super) enum Refused {
    /// Something that no client of Yjs sends.
    NotYjs,
    /// More clients on one socket than a browser has windows.
    TooManyClients,
    /// A colour that could be more than one.
    Colour,
    /// The document has no room for the change.
    Full,
    /// A change with more text, or more deletions, than is taken at once.
    TooLarge,
    /// More than a person can type, or than one document serves.
    TooFast,
    /// The object's own: it ends, and another try meets a fresh one.
    Failed(capnp::Error),
}

impl Refused {
    /// Closes the socket, or ends its handler with an error.
    pub(super) fn close(self, socket: &Socket) -> capstead::Result<()> {
        let (code, reason) = match self {
            Self::NotYjs => (4400, "this is not the protocol of y-websocket: use its client"),
            Self::TooManyClients => (4400, "one connection speaks for at most 16 windows"),
            Self::Colour => (4400, "a colour has letters, digits and #(),.%/- in it, 64 at most"),
            Self::Full => (4413, "the document is full: copy your last words, reload, delete some"),
            Self::TooLarge => {
                (4413, "the change is too large: copy your words, reload, paste less at once")
            }
            Self::TooFast => (4529, "too much at once: try again in a moment"),
            Self::Failed(error) => return Err(error),
        };
        socket.close(code, reason);
        Ok(())
    }
}

impl From<capnp::Error> for Refused {
    fn from(error: capnp::Error) -> Self {
        Self::Failed(error)
    }
}

pub(super) type Outcome<T> = std::result::Result<T, Refused>;
