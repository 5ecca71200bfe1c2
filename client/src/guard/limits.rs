//! The limits of a connection, and how often each of them bit.
//!
//! Over a soft limit, calls of the peer wait; over any other one the connection ends. Nothing here
//! measures anything: it says how much is too much.

use capnp::Error;
use capnp::message::ReaderOptions;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The factor by which a limit may be exceeded for a while.
pub(crate) const BURST: usize = 4;

/// Largest message that is sent, in bytes: what every peer takes by default.
pub(crate) const MESSAGE_BYTES_SENT_MAX: usize = 8 << 20;

/// Largest parameters and results that can be sent, in bytes: the protocol adds the rest.
pub const CONTENT_BYTES_SENT_MAX: usize = MESSAGE_BYTES_SENT_MAX - (64 << 10);

/// Most capabilities of a message that is sent: what every peer takes by default.
pub const CAPABILITIES_SENT_MAX: usize = 64;

/// Longest text of an error that is sent, in bytes; a longer one is cut, and says so.
pub const ERROR_BYTES_MAX: usize = 64 << 10;

/// The factor by which more is taken than may be sent, from another part of the same system and by
/// whoever dials: so what one vat may send, no other one has to refuse.
const MARGIN: usize = 2;

/// The limits of what one connection may ask of us.
///
/// A time of [`Duration::MAX`] is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest message that is taken, in bytes.
    pub message_bytes: usize,
    /// The depth to which structures and lists may lie in each other in a message; and the number of
    /// fields that a path into an answer may have.
    pub nesting: u16,
    /// Capabilities in one message.
    pub capabilities: usize,
    /// Soft: calls of the peer that have begun and have no answer yet.
    pub calls: usize,
    /// Soft: bytes of the messages of these calls.
    pub call_bytes: usize,
    /// Bytes of the messages that wait for a soft limit, with some for the trouble of each. Over it
    /// nothing more is read, so that the peer can't send; but while the peer has calls of ours to
    /// answer, reading goes on to four times as much, where the connection ends.
    pub queued_bytes: usize,
    /// Calls of the peer that it has not finished, answered or not.
    pub answers: usize,
    /// Capabilities of ours that the peer holds.
    pub exports: usize,
    /// Capabilities of the peer that we hold.
    pub imports: usize,
    /// Calls of ours that the peer has not answered, also those that were given up.
    pub questions: usize,
    /// Soft: bytes that the peer has not read yet.
    pub unread_bytes: usize,
    /// Bytes that the peer has not read yet, when all was written that it takes; and four times as
    /// much at any time.
    pub unsent_bytes: usize,
    /// The time for which the peer may read nothing of what waits for it, or send nothing more of a
    /// message that it began.
    pub slow_reader: Duration,
    /// The time for which calls may wait for a soft limit while no call is answered.
    pub stall: Duration,
    /// The time for which there may be no message while neither side has an open call or holds
    /// anything.
    pub idle: Duration,
    /// The time for which a peer may send nothing while it has calls of ours to answer.
    pub silence: Duration,
    /// Set between parts of one system: they tell each other the number of hosts that a call came
    /// through, and believe it. A peer of which this is not true could have its calls refused by it.
    pub tells_hops: bool,
    /// The least that a peer may send of a message that it began, and read of what waits for it, in bytes
    /// a second, each over the time of [`slow_reader`](Self::slow_reader).
    pub rate: usize,
    /// Bytes of the calls by whose answers the peer has what it holds of us: what we keep of a capability
    /// was in them.
    pub export_bytes: usize,
    /// As [`message_bytes`](Self::message_bytes), of a stranger: who has shown no reference yet. While its
    /// reference is looked at, a larger message waits.
    pub stranger_message_bytes: usize,
    /// Soft: as [`calls`](Self::calls), of a stranger.
    pub stranger_calls: usize,
    /// The time for which a peer may be a stranger.
    pub stranger_time: Duration,
    /// Bytes that all connections hold together: of messages that came, in part or whole, of what was not
    /// read yet, and of what is held of us. Each may hold as much as is left of them.
    pub total_bytes: usize,
    /// Connections in all. A listener heeds it, and the next one; a connection can't.
    pub connections: usize,
    /// Connections from one address.
    pub connections_per_peer: usize,
}

impl Default for Limits {
    /// For a peer that is not trusted. 8 MiB is the largest value of an object's storage twice. 1,024
    /// calls keep a host busy over any distance. 65,536 answers and capabilities are a burst that the
    /// peer had no time to look at.
    fn default() -> Self {
        Self {
            message_bytes: 8 << 20,
            nesting: 32,
            capabilities: 64,
            calls: 1024,
            call_bytes: 8 << 20,
            queued_bytes: 8 << 20,
            answers: 1 << 16,
            exports: 1 << 16,
            imports: 8192,
            questions: 1 << 16,
            unread_bytes: 4 << 20,
            unsent_bytes: 64 << 20,
            slow_reader: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            idle: Duration::from_mins(1),
            silence: Duration::MAX,
            tells_hops: false,
            rate: 4 << 10,
            export_bytes: 16 << 20,
            stranger_message_bytes: 64 << 10,
            stranger_calls: 16,
            stranger_time: Duration::from_secs(10),
            total_bytes: 256 << 20,
            connections: 16_384,
            connections_per_peer: 4096,
        }
    }
}

impl Limits {
    /// For whoever dials: as [`Limits::default`], but a listener that is busy may read late, and may
    /// need to call before it does; and how many calls are made is for the program to say.
    pub fn of_dialler() -> Self {
        Self {
            message_bytes: MARGIN * MESSAGE_BYTES_SENT_MAX,
            nesting: nesting_of_others(),
            capabilities: MARGIN * CAPABILITIES_SENT_MAX,
            questions: usize::MAX,
            unread_bytes: usize::MAX,
            slow_reader: Duration::MAX,
            rate: 0,
            export_bytes: usize::MAX,
            total_bytes: usize::MAX,
            ..Self::default()
        }
    }

    /// For another part of the same system, which carries the calls of many: only the form of messages is
    /// checked, and calls wait only while so much is to be sent that more would be a danger to the process.
    /// The other part always reads on, so that they don't wait for each other.
    pub fn of_trusted() -> Self {
        Self {
            message_bytes: MARGIN * MESSAGE_BYTES_SENT_MAX,
            nesting: nesting_of_others(),
            capabilities: usize::MAX,
            calls: usize::MAX,
            call_bytes: usize::MAX,
            queued_bytes: usize::MAX,
            answers: usize::MAX,
            exports: usize::MAX,
            imports: usize::MAX,
            questions: usize::MAX,
            unread_bytes: 16 << 20,
            unsent_bytes: usize::MAX,
            slow_reader: Duration::MAX,
            stall: Duration::MAX,
            idle: Duration::MAX,
            silence: Duration::MAX,
            tells_hops: true,
            rate: 0,
            export_bytes: usize::MAX,
            stranger_message_bytes: usize::MAX,
            stranger_calls: usize::MAX,
            stranger_time: Duration::MAX,
            total_bytes: usize::MAX,
            connections: usize::MAX,
            connections_per_peer: usize::MAX,
        }
    }

    pub(crate) fn reader_options(self) -> ReaderOptions {
        ReaderOptions {
            // Reading the same part again counts again: a handler may look at everything 8 times.
            traversal_limit_in_words: Some(self.message_bytes),
            nesting_limit: i32::from(self.nesting),
        }
    }
}

/// Content that was read at one limit, and is within a message of ours now, lies some steps deeper.
fn nesting_of_others() -> u16 {
    2 * Limits::default().nesting
}

macro_rules! names {
    ($($(#[doc = $help:literal])+ $variant:ident = $name:literal,)+) => {
        /// The things that can bite: each of [`Limits`], and two rules that have no number.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Limit { $($(#[doc = $help])+ $variant,)+ }

        impl Limit {
            /// All of them.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$variant),+];

            /// Its name, as operators write it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

names! {
    /// See [`Limits::message_bytes`].
    MessageBytes = "message-bytes",
    /// See [`Limits::nesting`]. Bites in paths into answers; within a message the call alone fails.
    Nesting = "nesting",
    /// See [`Limits::capabilities`].
    Capabilities = "capabilities",
    /// See [`Limits::calls`]. Bites when calls begin to wait.
    Calls = "calls",
    /// See [`Limits::call_bytes`]. Bites when calls begin to wait.
    CallBytes = "call-bytes",
    /// See [`Limits::queued_bytes`]. Bites when reading pauses, and when the connection ends.
    QueuedBytes = "queued-bytes",
    /// See [`Limits::answers`].
    Answers = "answers",
    /// See [`Limits::exports`].
    Exports = "exports",
    /// See [`Limits::imports`].
    Imports = "imports",
    /// See [`Limits::questions`].
    Questions = "questions",
    /// See [`Limits::unread_bytes`]. Bites when calls begin to wait.
    UnreadBytes = "unread-bytes",
    /// See [`Limits::unsent_bytes`].
    UnsentBytes = "unsent-bytes",
    /// See [`Limits::slow_reader`].
    SlowReader = "slow-reader",
    /// See [`Limits::stall`].
    Stall = "stall",
    /// See [`Limits::idle`].
    Idle = "idle",
    /// See [`Limits::silence`].
    Silence = "silence",
    /// See [`Limits::rate`]. Counted as [`SlowReader`](Self::SlowReader) when it bites.
    Rate = "rate",
    /// See [`Limits::export_bytes`].
    ExportBytes = "export-bytes",
    /// See [`Limits::stranger_message_bytes`].
    StrangerMessageBytes = "stranger-message-bytes",
    /// See [`Limits::stranger_calls`]. Bites when calls begin to wait.
    StrangerCalls = "stranger-calls",
    /// See [`Limits::stranger_time`].
    StrangerTime = "stranger-time",
    /// See [`Limits::total_bytes`].
    TotalBytes = "total-bytes",
    /// See [`Limits::connections`].
    Connections = "connections",
    /// See [`Limits::connections_per_peer`].
    ConnectionsPerPeer = "connections-per-peer",
    /// A kind of message that is not in use between two vats.
    UnknownKind = "unknown-kind",
    /// A capability or a call that the peer was not given or never made.
    UnknownCapability = "unknown-capability",
}

/// The number of times that each limit bit, counted by any number of connections.
#[derive(Debug, Default)]
pub struct Bites([AtomicU64; Limit::ALL.len()]);

impl Bites {
    /// The number of times that this one bit.
    pub fn get(&self, limit: Limit) -> u64 {
        self.0[limit as usize].load(Ordering::Relaxed)
    }

    /// Counts one more. A listener does so for what no connection can see.
    pub fn count(&self, limit: Limit) {
        self.0[limit as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// Why a message is not let through. It ends the connection.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Of a limit, with the sentence that the peer gets.
    Over(Limit, String),
    /// It can't be read.
    Malformed(Error),
}

impl Refusal {
    pub(crate) fn over<T>(limit: Limit, reason: impl Into<String>) -> Result<T, Self> {
        Err(Self::Over(limit, reason.into()))
    }
}

impl<E: Into<Error>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Malformed(error.into())
    }
}
