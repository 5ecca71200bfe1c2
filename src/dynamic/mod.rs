//! Cap'n Proto messages as JSON, by the schema that a class brought along, without generated code.
//!
//! Generated Rust code knows its messages at compile time; a gateway, an operator's tool or a
//! bridge meets classes that were written after it. A [`Table`] is what they know of a class
//! instead: its structs, enums, interfaces and methods, from the bytes that `capstead_build` embeds
//! beside each generated client. By it [`Table::read`] and [`Table::write`] turn messages into JSON
//! and back. `docs/json.md` has the mapping.
//!
//! Nothing here knows HTTP, makes a call, or restores a reference: capabilities pass through
//! [`CapSource`] and [`CapSink`], which the caller brings.
//!
//! Invariant: no JSON and no message makes this panic, nest the stack deeper than [`DEPTH_MAX`], or
//! take more memory than its limit of bytes.

mod error;
mod parse;
mod raw;
mod read;
mod scalar;
mod shape;
mod table;
#[cfg(test)]
mod tests;
mod types;
mod write;

pub(crate) use error::Unfit;
pub(crate) use parse::parse;
pub(crate) use raw::{Root, RootBuilder};
pub(crate) use read::{CapSink, NoCapSink};
pub(crate) use shape::Shapes;
pub(crate) use table::{MethodShape, Table};
pub(crate) use write::CapSource;
#[cfg(any(test, fuzzing))]
pub(crate) use write::NoCapSource;

/// Structs, groups and lists in each other, both in JSON and in messages: Cap'n Proto's own limit.
pub(crate) const DEPTH_MAX: usize = 64;
