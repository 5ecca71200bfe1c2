//! The limits of a connection, and counters of how often each was hit.
//!
//! Over a soft limit, the peer's calls wait; over any other limit the connection ends. Nothing here
//! measures anything: this file only says how much is too much.

use capnp::Error;
use capnp::message::ReaderOptions;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The factor by which a limit may be exceeded for a while.
pub(crate) const BURST: usize = 4;

/// The largest message that is sent, in bytes: every peer accepts this much by default.
pub(crate) const MESSAGE_BYTES_SENT_MAX: usize = 8 << 20;

/// The largest parameters or results that can be sent, in bytes; the protocol needs the rest.
pub const CONTENT_BYTES_SENT_MAX: usize = MESSAGE_BYTES_SENT_MAX - (64 << 10);

/// The most capabilities in a sent message: every peer accepts this many by default.
pub const CAPABILITIES_SENT_MAX: usize = 64;

/// The longest error text that is sent, in bytes; a longer text is cut, with a note that says so.
pub const ERROR_BYTES_MAX: usize = 64 << 10;

/// Messages from another part of the same system, and from the peer that was dialled, may be this
/// many times as large as sent ones. So a message that one vat may send is never refused by
/// another.
const MARGIN: usize = 2;

/// The limits on one connection's demands on us.
///
/// A time of [`Duration::MAX`] is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest message that is accepted, in bytes.
    pub message_bytes: usize,
    /// The depth to which structs and lists in a message may be nested, and the number of fields
    /// that a path into an answer may have.
    pub nesting: u16,
    /// Capabilities in one message.
    pub capabilities: usize,
    /// Soft: the peer's calls that have begun and have no answer yet.
    pub calls: usize,
    /// Soft: bytes of the messages of these calls.
    pub call_bytes: usize,
    /// Bytes of the messages that wait for a soft limit, plus a fixed cost for each. Over this
    /// limit reading stops, so that the peer can't send. But while the peer owes answers to calls
    /// of ours, reading continues up to four times as much, where the connection ends.
    pub queued_bytes: usize,
    /// The peer's calls that it has not finished, answered or not.
    pub answers: usize,
    /// Our capabilities that the peer holds.
    pub exports: usize,
    /// The peer's capabilities that we hold.
    pub imports: usize,
    /// Our calls that the peer has not answered, including those whose caller gave up.
    pub questions: usize,
    /// Soft: bytes sent that the peer has not read yet.
    pub unread_bytes: usize,
    /// Bytes sent that the peer has not read yet, after writing as much as it accepts; and four
    /// times as much at any time.
    pub unsent_bytes: usize,
    /// The time for which the peer may read none of the bytes waiting for it, or send no more of a
    /// message that it began.
    pub slow_reader: Duration,
    /// The time for which calls may wait for a soft limit without any call being answered.
    pub stall: Duration,
    /// The time without a message while neither side has an open call or holds a capability of the
    /// other.
    pub idle: Duration,
    /// The time for which a peer may send nothing while it owes answers to calls of ours.
    pub silence: Duration,
    /// Set between parts of one system: they tell each other the number of hosts that a call came
    /// through, and believe it. Any other peer could use this to have its calls refused.
    pub tells_hops: bool,
    /// The least that a peer must send of a message that it began, and read of the bytes waiting
    /// for it, in bytes a second, each over the time of [`slow_reader`](Self::slow_reader).
    pub rate: usize,
    /// Bytes of the calls whose answers gave the peer the capabilities that it holds. The memory
    /// kept for a capability came in such a call.
    pub export_bytes: usize,
    /// As [`message_bytes`](Self::message_bytes), for a stranger: a peer that has shown no
    /// reference yet. While its reference is being checked, a larger message waits.
    pub stranger_message_bytes: usize,
    /// Soft: as [`calls`](Self::calls), for a stranger.
    pub stranger_calls: usize,
    /// The time for which a peer may be a stranger.
    pub stranger_time: Duration,
    /// Bytes that all connections hold together: messages received in part or whole, bytes not yet
    /// read by peers, and the memory for what peers hold. Each connection may hold as much as is
    /// left.
    pub total_bytes: usize,
    /// The most connections in all. Listeners enforce this limit and the next; a single connection
    /// can't.
    pub connections: usize,
    /// Connections from one address.
    pub connections_per_peer: usize,
}

impl Default for Limits {
    /// The limits for a peer that is not trusted. 8 MiB is twice the largest value in an object's
    /// storage. 1,024 calls keep a host busy over any distance. 65,536 answers and capabilities
    /// allow for a burst that the peer had no time to process.
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
    /// The limits for the dialling side. They are those of [`Limits::default`] with three
    /// exceptions: a busy listener may read late, it may need to call back before it reads, and the
    /// program itself bounds the number of its calls.
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

    /// The limits for another part of the same system, which carries the calls of many clients.
    /// Only the form of messages is checked. Calls wait only while so much is to be sent that more
    /// would endanger the process. The other part always keeps reading, so the two don't wait for
    /// each other.
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
            // Reading a part again counts again: a handler may read everything 8 times.
            traversal_limit_in_words: Some(self.message_bytes),
            nesting_limit: i32::from(self.nesting),
        }
    }
}

/// The nesting for content of other peers: within a message of ours it lies some levels deeper than
/// the limit under which it was read.
fn nesting_of_others() -> u16 {
    2 * Limits::default().nesting
}

macro_rules! names {
    ($($(#[doc = $help:literal])+ $variant:ident = $name:literal,)+) => {
        /// The limits that can be hit: each field of [`Limits`], and two rules without a number.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Limit { $($(#[doc = $help])+ $variant,)+ }

        impl Limit {
            /// All limits.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$variant),+];

            /// The name that operators use.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

names! {
    /// See [`Limits::message_bytes`].
    MessageBytes = "message-bytes",
    /// See [`Limits::nesting`]. Counts paths into answers; too deep a message only fails its call.
    Nesting = "nesting",
    /// See [`Limits::capabilities`].
    Capabilities = "capabilities",
    /// See [`Limits::calls`]. Counted when calls begin to wait.
    Calls = "calls",
    /// See [`Limits::call_bytes`]. Counted when calls begin to wait.
    CallBytes = "call-bytes",
    /// See [`Limits::queued_bytes`]. Counted when reading pauses, and when the connection ends.
    QueuedBytes = "queued-bytes",
    /// See [`Limits::answers`].
    Answers = "answers",
    /// See [`Limits::exports`].
    Exports = "exports",
    /// See [`Limits::imports`].
    Imports = "imports",
    /// See [`Limits::questions`].
    Questions = "questions",
    /// See [`Limits::unread_bytes`]. Counted when calls begin to wait.
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
    /// See [`Limits::rate`]. A hit is counted as [`SlowReader`](Self::SlowReader).
    Rate = "rate",
    /// See [`Limits::export_bytes`].
    ExportBytes = "export-bytes",
    /// See [`Limits::stranger_message_bytes`].
    StrangerMessageBytes = "stranger-message-bytes",
    /// See [`Limits::stranger_calls`]. Counted when calls begin to wait.
    StrangerCalls = "stranger-calls",
    /// See [`Limits::stranger_time`].
    StrangerTime = "stranger-time",
    /// See [`Limits::total_bytes`].
    TotalBytes = "total-bytes",
    /// See [`Limits::connections`].
    Connections = "connections",
    /// See [`Limits::connections_per_peer`].
    ConnectionsPerPeer = "connections-per-peer",
    /// A kind of message that isn't used between two vats.
    UnknownKind = "unknown-kind",
    /// A capability that the peer was not given, or a call that it never made.
    UnknownCapability = "unknown-capability",
}

/// The number of times that each limit was hit, summed over any number of connections.
#[derive(Debug, Default)]
pub struct Bites([AtomicU64; Limit::ALL.len()]);

impl Bites {
    /// The number of times that this limit was hit.
    pub fn get(&self, limit: Limit) -> u64 {
        self.0[limit as usize].load(Ordering::Relaxed)
    }

    /// Counts one more hit. Listeners do so for the limits that no connection can see.
    pub fn count(&self, limit: Limit) {
        self.0[limit as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// The reason why a message is refused. It ends the connection.
#[derive(Debug)]
pub(crate) enum Rejection {
    /// A limit was hit; the peer gets this sentence.
    Over(Limit, String),
    /// The message can't be read.
    Malformed(Error),
}

impl Rejection {
    pub(crate) fn over<T>(limit: Limit, reason: impl Into<String>) -> Result<T, Self> {
        Err(Self::Over(limit, reason.into()))
    }
}

impl<E: Into<Error>> From<E> for Rejection {
    fn from(error: E) -> Self {
        Self::Malformed(error.into())
    }
}
