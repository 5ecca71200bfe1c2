//! Attacks on a server that has 1 GiB of memory, each for a few seconds. An honest client works
//! meanwhile: none of its durable calls fails or is slow, and the server ends in order.
//!
//! Each file in `attacks/` has the attacks on one way in; `fortress` has the server and the honest
//! client. A simple attack is one call of [`fortress::withstands`].
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "attacks/awake.rs"]
mod awake;
#[path = "attacks/between_hosts.rs"]
mod between_hosts;
#[path = "attacks/capnp_over_http.rs"]
mod capnp_over_http;
#[path = "attacks/challenges.rs"]
mod challenges;
#[path = "attacks/churn.rs"]
mod churn;
#[path = "passing/class.rs"]
mod class;
#[path = "attacks/fortress.rs"]
mod fortress;
#[path = "attacks/json.rs"]
mod json;
#[path = "attacks/over_http.rs"]
mod over_http;
#[path = "attacks/over_http2.rs"]
mod over_http2;
#[path = "attacks/references.rs"]
mod references;
#[path = "attacks/request_ids.rs"]
mod request_ids;
#[path = "attacks/smuggled.rs"]
mod smuggled;
#[path = "attacks/sockets.rs"]
mod sockets;
#[path = "attacks/strangers.rs"]
mod strangers;
mod support;

capstead_client::generated! { passing_capnp }
