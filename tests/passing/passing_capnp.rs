//! The generated code of `passing.capnp`, for the server and for its test.
#![allow(
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    missing_debug_implementations,
    missing_docs,
    unreachable_pub,
    reason = "generated code is not ours to change"
)]

include!(concat!(env!("OUT_DIR"), "/passing_capnp.rs"));
