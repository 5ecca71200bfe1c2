//! Durable objects as object capabilities, served over Cap'n Proto RPC.
//!
//! A **class** is a Rust type behind a Cap'n Proto interface. An **object** is an identity of that
//! class with durable storage of its own. Only holders of a capability to it can call it. An object
//! in use is awake: one value on one thread, so it needs no locks.
//!
//! # A class
//!
//! [`Object`] says how an object is called and how it wakes; its methods are those of the trait
//! that Cap'n Proto generates. [`Stored`] is a value that is kept both in memory and in storage.
//!
//! ```
//! use std::rc::Rc;
//!
//! use capstead::poll_capnp::poll; // in your own crate: generated from your own schema
//! use capstead::{Context, Object, Result, Stored, conflict};
//!
//! /// A poll that one voter closes.
//! struct Ballot {
//!     votes: Stored<i64>,
//!     option: Stored<String>,
//! }
//!
//! impl Object for Ballot {
//!     const CLASS: &'static str = "Ballot";
//!     type Client = poll::Client;
//!
//!     async fn wake(ctx: Context) -> Result<Self> {
//!         Ok(Ballot { votes: ctx.stored("votes")?, option: ctx.stored("option")? })
//!     }
//! }
//!
//! impl poll::Server for Ballot {
//!     async fn vote(
//!         self: Rc<Self>,
//!         params: poll::VoteParams,
//!         mut results: poll::VoteResults,
//!     ) -> Result<()> {
//!         if self.votes.get() > 0 {
//!             return Err(conflict("somebody has voted already"));
//!         }
//!         self.option.set(params.get()?.get_option()?.to_string()?)?;
//!         self.votes.set(1)?; // durable together with the option, before the reply leaves
//!         results.get().set_votes(1);
//!         Ok(())
//!     }
//! }
//! # let _ = capstead::Server::new("x").class::<Ballot>();
//! ```
//!
//! The writes of a method between two awaits are one **turn**: they become durable together or not
//! at all, and nothing else runs on the object meanwhile. Between turns, other calls of the same
//! object may run. No method waits for the disk. Instead, the messages that the object sends wait,
//! its replies as well as its calls to others. They leave in the order made, once everything that
//! it wrote before them is durable. Calls on one capability start in the order in which they were
//! made.
//!
//! A method that returns an error keeps its writes. A panic drops the writes of its turn and ends
//! the object in memory: all capabilities to it then fail as `disconnected`, and restoring their
//! reference gives the object as it is in storage. So a binary must not be built with
//! `panic = "abort"`.
//!
//! [`Context`] is everything that a class can reach: its own [`Storage`], and objects of the
//! classes bound to it, through a [`Namespace`]. The kind of an error says what the caller should
//! do: see [`failed`], [`overloaded`], [`disconnected`], [`unimplemented()`] and [`conflict`]. The
//! server's errors begin with a word, such as `over-quota:`, by which [`Reason::of`] tells them
//! apart; `docs/errors.md` says for each what is then true.
//!
//! An object can keep the capabilities that it has: [`Storage::put_ref`] stores a capability to
//! another object as a value, and [`Storage::get_ref`] makes a capability from that value, even
//! after restarts:
//!
//! ```
//! use capstead::counter_capnp::counter;
//! use capstead::{Context, Result};
//!
//! async fn count_for_ever(ctx: &Context, counter: counter::Client) -> Result<()> {
//!     ctx.storage().put_ref("counter", &counter).await
//! }
//!
//! async fn count(ctx: &Context) -> Result<()> {
//!     if let Some(counter) = ctx.storage().get_ref::<counter::Client>("counter")? {
//!         counter.increment_request().send().promise.await?;
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # A server
//!
//! [`Server`] puts classes, a data directory and addresses together. [`Server::run`] does so from
//! the flags of a command line, and is all that a `main` needs; [`Server::start`] is for programs
//! that decide themselves when to end, such as tests:
//!
//! ```no_run
//! use capstead::classes::{Counter, Poll};
//! use capstead::{Server, ServerError};
//!
//! #[tokio::main(flavor = "local")]
//! async fn main() -> Result<(), ServerError> {
//!     let any = "127.0.0.1:0".parse().expect("an address");
//!     let server = Server::new("polls.data")
//!         .class::<Counter>()
//!         .class::<Poll>()
//!         .bind::<Poll, Counter>("votes") // so that polls can reach counters
//!         .listen(any)
//!         .http(any);
//!     let running = server.start().await?;
//!     let polls = &running.namespaces()["Poll"]; // a secret: the right to use every poll
//!     assert!(polls.starts_with("capstead://"));
//!     running.until(async { /* the end has come */ }).await
//! }
//! ```
//!
//! Clients in Rust use the crate `capstead-client`; all others use Cap'n Proto's RPC and
//! `schema/restorer.capnp`. A class whose interface extends `HttpService` can also be reached over
//! HTTP, with the helpers in [`http`].
//!
//! `docs/classes.md` in the repository has more: methods that interleave, callbacks, bodies in
//! parts, WebSockets, tests of a class, and schemas that change. `docs/from-durable-objects.md` is
//! for readers who know Durable Objects.
//!
//! # Schemas
//!
//! The build script of a crate with schemas of its own calls `capstead_build::compile`, and the
//! crate includes the code with `capnp::generated_code!`; the package `examples/hello` does this.
//! The generated code refers to `capnp` and `capstead-client`, so the crate depends on both.
#![forbid(unsafe_code)]

/// The pages whose Rust code is compiled as doc tests, as the examples above are.
#[cfg(doctest)]
#[doc = include_str!("../docs/alarms.md")]
#[doc = include_str!("../docs/from-durable-objects.md")]
#[doc = include_str!("../docs/classes.md")]
#[doc = include_str!("../docs/clients.md")]
struct Pages;

// The bundled classes refer to this crate by its name, as all other classes do.
extern crate self as capstead;

pub mod classes;
pub(crate) mod cli;
pub(crate) mod clock;
pub(crate) mod cursor;
pub(crate) mod dynamic;
pub(crate) mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
pub(crate) mod gate;
pub(crate) mod gateway;
pub(crate) mod host;
pub mod http;
pub(crate) mod id;
#[doc(hidden)]
pub mod lab;
pub(crate) mod limits;
pub(crate) mod membrane;
pub(crate) mod metrics;
pub(crate) mod net;
pub(crate) mod outbound;
pub(crate) mod schema;
pub(crate) mod server;
pub(crate) mod storage;
pub(crate) mod sturdyref;
pub(crate) mod supervisor;

// Generated code refers to itself by these paths.
#[cfg(test)]
use schema::{actor_capnp, every_capnp, trial_capnp};
use schema::{admin_capnp, cluster_capnp, surviving_capnp};
pub use schema::{chat_capnp, counter_capnp, editor_capnp, index_capnp, poll_capnp};

pub use capstead_client::sturdyref::{Caveats, GrantId, Method};
pub use capstead_client::{Interface, Limits, Terms};
pub use cli::main;
pub use error::{Reason, Result, conflict, disconnected, failed, overloaded, unimplemented};
pub use gateway::HttpLimits;
pub use host::{
    Alarm, Alarms, Context, Entries, Granted, List, Namespace, Object, Storable, Storage, Stored,
    Struct,
};
pub use outbound::{Outbound, OutboundLimits};
pub use server::{Running, Server, ServerError, TurnLimits};
