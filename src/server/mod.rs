//! Puts supervisor, hosts and gateway together in one process, on one data directory.
//!
//! This is the only module that knows all three; they know each other only by `cluster.capnp`.

mod admin;
mod builder;
mod classes;
mod data_dir;
mod error;
mod host;
mod host_thread;
mod link;
mod listen;
mod metrics_page;
mod namespaces;
mod operate;
mod routes_file;
mod start;
pub(crate) mod stderr;
#[cfg(test)]
mod tests;
mod watchdog;
mod web;

pub(crate) use builder::{CapnpOverHttp, DEFAULT_LISTEN};
pub(crate) use data_dir::{Group, Secrets};
pub(crate) use host_thread::host_runtime;
pub(crate) use operate::{OpenedData, Restoring, compact_all};

pub use builder::Server;
pub use error::ServerError;
pub use start::Running;
pub use watchdog::TurnLimits;
pub(crate) use watchdog::told_to_end;
