//! WebSockets: the handshake, the frames that wait for a client, the message that comes from it,
//! the task that moves frames both ways, and what survives the end of an object's host.
//!
//! The object decides whether a socket is accepted. From then on it has one capability by which it
//! sends (`outbox`), and the gateway one by which what comes reaches the object.

#[cfg(fuzzing)]
mod fuzzed;
mod handshake;
mod outbox;
mod pump;
mod surviving;
mod under_way;
mod wire;

#[cfg(fuzzing)]
pub(super) use fuzzed::{frames, samples};
pub(super) use handshake::{asked, choose, hide, response, say_version, wanted};
pub(super) use outbox::{Down, Line, Outbox};
pub(super) use pump::{Pump, Up};
pub(super) use surviving::{Again, Surviving};
