//! The Counter: its schema and its class.

capnp::generated_code!(pub mod counter_capnp);
pub mod counter;
