//! Tests of whole servers, each a process of its own: one module for each promise or protocol.
//!
//! They are one program, because each further program would link the server again.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod alarms;
mod ambient;
mod archive;
mod bearer;
mod bench_verb;
mod build_offline;
mod bursts;
mod capnp_over_http;
#[path = "../passing/class.rs"]
mod class;
mod commands;
mod crash;
mod data_dir;
mod data_files;
mod descriptors;
mod early_drops;
mod example;
mod exclusive_streams;
mod full_disk;
mod gateway;
mod grants;
mod guard;
mod hints;
mod hostile;
mod http_abandoned;
mod http_answers;
mod http_body;
mod http_door;
mod http_hosts;
mod http_json;
mod http_limits;
mod http_once;
mod http_streams;
mod https;
mod import_grants;
mod json_calls;
mod keys;
mod linearizability;
mod links;
mod log;
mod misled;
mod once;
mod operators;
mod outbound;
mod pages;
mod passing;
mod paths;
mod poll;
mod protocols;
mod reasons;
mod references;
mod requests;
mod route_shares;
mod routes;
mod serve;
mod share;
mod shares;
mod shutdown;
mod silent_server;
mod sockets;
mod stderr;
#[path = "../support/mod.rs"]
mod support;
mod tls;
mod tools;
mod watchdog;
mod write_log;

capstead_client::generated! { forwarder_capnp passing_capnp slot_capnp }
