//! HTTP in, capabilities out: `/counter/NAME/…` reaches the object NAME of class Counter, and
//! routes lead to others.
//!
//! A gateway holds the namespaces that it was given by reference, and the capabilities of the
//! references in routes and requests: there is no path to anything else. It keeps no state about
//! objects, and never answers for one.

mod ask;
mod bearer;
mod capnp;
mod classes;
mod clients;
mod connection;
mod cors;
mod door;
mod download;
mod encrypted;
#[cfg(fuzzing)]
mod fuzzed;
mod head;
mod holdings;
mod http;
mod json;
mod limits;
mod link;
mod manner;
mod objects;
mod paced;
mod refusals;
mod route;
mod route_shares;
mod routes;
mod socket;
mod upload;
mod way;

pub(crate) use capnp::CapnpDoor;
pub(crate) use clients::Proxies;
pub(crate) use door::{Door, Reach, is_loopback};
#[cfg(fuzzing)]
pub(crate) use fuzzed::{
    connection as fuzz_connection, connection_samples, frame_samples, frames as fuzz_frames,
    routes as fuzz_routes, samples as route_samples,
};
pub(crate) use holdings::Gateway;
pub(crate) use http::Entrance;
pub use limits::HttpLimits;
pub(crate) use objects::{Given, NamespaceRestore};
pub(crate) use routes::{Routes, Row, parse as parse_routes};
