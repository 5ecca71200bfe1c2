//! The generated code of `forwarder.capnp`.
#![allow(
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    dead_code,
    missing_debug_implementations,
    missing_docs,
    unreachable_pub,
    reason = "generated code is not ours to change"
)]

include!(concat!(env!("OUT_DIR"), "/forwarder_capnp.rs"));
