//! Durable objects as object capabilities, served over Cap'n Proto RPC.
#![forbid(unsafe_code)]

// The bundled classes use this crate by its name, as everybody else's do.
extern crate self as capstead;

pub mod classes;
pub(crate) mod cli;
pub(crate) mod clock;
pub(crate) mod error;
pub(crate) mod gate;
pub(crate) mod gateway;
pub(crate) mod host;
pub mod http;
pub(crate) mod id;
pub(crate) mod limits;
pub(crate) mod membrane;
pub(crate) mod metrics;
pub(crate) mod net;
pub(crate) mod schema;
pub(crate) mod server;
pub(crate) mod storage;
pub(crate) mod sturdyref;
pub(crate) mod supervisor;

// Generated code names itself by this path.
use schema::cluster_capnp;
#[cfg(test)]
use schema::trial_capnp;
pub use schema::{counter_capnp, poll_capnp};

pub use cli::main;
pub use error::{Result, conflict, disconnected, failed, overloaded, unimplemented};
pub use host::{Context, Namespace, Object, Storable, Storage, Stored};
pub use server::{Running, Server, ServerError};
