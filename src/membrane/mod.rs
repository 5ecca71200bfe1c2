//! The wrapper around every capability that crosses the border of an object.
//!
//! capnp-rpc's own local client starts a call when its promise is first polled, answers pipelined
//! calls before the reply may leave, and lets a connection look through wrappers. None of that
//! keeps our promises, so these hooks of our own take its place.
//!
//! Invariants:
//! - A call is handed to its target when it is made, in the order made, polled or not.
//! - A hook answers none to `get_resolved` and `when_more_resolved`, and its `get_ptr` and
//!   `get_brand` are its own: so capnp-rpc never strips it on export, and the path of what was
//!   exported never changes.
//! - An answer that is dropped without an outcome tells its caller so, and no caller waits in vain.
//! - Promises whose end a peer decides never come back to the RPC system as they are.
//!
//! It never decides whether a call is allowed, starts a handler, or knows what a turn is.

mod answer;
mod body;
mod call;
mod call_end;
mod chain;
mod early;
mod forward;
mod hook;
mod hops;
mod keeper;
mod pipeline;
mod relay;
mod results;
mod serve;

pub(crate) use body::{Body, BodySlot, Caps};
pub(crate) use call::{Call, Dispatch, Params, Reply, deliver, dispatch};
pub(crate) use chain::Chain;
pub(crate) use forward::all_passed_on;
pub(crate) use hook::{CallTarget, broken, find, forget, wrap};
pub(crate) use keeper::Keeper;
pub(crate) use results::Results;
pub(crate) use serve::{caller, serve};
