//! Restores and calls Capstead's durable objects.
//!
//! A **reference** is a text, `capstead://host:port/#...`, that stands for an object. It is a
//! secret: anyone who has it can call the object. [`restore`] turns it into a live capability:
//!
//! ```no_run
//! use capstead_client::restorer_capnp::namespace;
//!
//! #[tokio::main(flavor = "local")]
//! async fn main() -> capnp::Result<()> {
//!     let text = std::env::var("ROOMS").expect("ROOMS holds a reference");
//!     let rooms: namespace::Client = capstead_client::restore(&text).await?;
//!
//!     let mut request = rooms.by_name_request();
//!     request.get().set_key("lobby");
//!     let lobby = request.send().pipeline.get_object().as_cap();
//!     // Make it a client of the interface that the objects have: `room::Client::new(lobby)`.
//!     # drop(lobby);
//!     Ok(())
//! }
//! ```
//!
//! A capability stays good until its connection breaks. From then on all calls on it fail with the
//! kind [`Disconnected`](capnp::ErrorKind::Disconnected): restore the reference to get a new one. A
//! call that failed so may or may not have happened.
//!
//! Capabilities belong to one thread: everything runs in `#[tokio::main(flavor = "local")]`, a
//! [`LocalRuntime`](tokio::runtime::LocalRuntime) or a [`LocalSet`](tokio::task::LocalSet), with
//! I/O and time enabled.
//!
//! To another machine everything goes over TLS, and the server first proves that it belongs to the
//! reference's cluster. The reference itself says which key the server must have, so there is
//! nothing to configure. [`Connection::dial`], [`Connection::dial_tls`] and [`Connection::restore`]
//! are for programs that manage connections themselves. With the feature `websocket` they also dial
//! `ws://host:port/capnp` and `wss://…`: the gateway of a server, or a proxy before it.
//!
//! A reference that is bound to a holder's key is restored with that key, by [`restore_with`].
//!
//! # Giving away less
//!
//! [`share`] makes a reference from a capability, with [`Terms`], and [`attenuate`] makes a weaker
//! capability. A reference can also be narrowed offline: to a time, to some
//! [methods](sturdyref::Caveats::with_methods_of) or to a
//! [holder](sturdyref::Caveats::with_holder):
//!
//! ```
//! use capstead_client::sturdyref::{Caveats, TextReference};
//!
//! /// The same reference, which can be restored for another hour and not be narrowed further.
//! fn for_an_hour(text: &str, now_ms: u64) -> capnp::Result<String> {
//!     let parsed = TextReference::parse(text)?;
//!     let an_hour = Caveats::not_after(now_ms + 3_600_000);
//!     let narrow = parsed.reference().narrow(&an_hour)?.seal();
//!     Ok(parsed.expose_text_of(&narrow)?)
//! }
//! # assert!(for_an_hour("no reference", 0).is_err());
//! ```
//!
//! # Callbacks
//!
//! A client can give objects capabilities of its own, for example a watcher that they tell about
//! events. [`capability`] makes one. Calls on it start in the order in which they are made, as they
//! do on objects:
//!
//! ```
//! use std::rc::Rc;
//!
//! use capstead_client::{Result, http_capnp::web_socket};
//!
//! /// Prints what it is told.
//! struct Printer;
//!
//! impl web_socket::Server for Printer {
//!     async fn send_text(self: Rc<Self>, params: web_socket::SendTextParams) -> Result<()> {
//!         println!("{}", params.get()?.get_text()?.to_str()?);
//!         Ok(())
//!     }
//! }
//!
//! # #[tokio::main(flavor = "local")]
//! # async fn main() -> Result<()> {
//! let printer: web_socket::Client = capstead_client::capability(Rc::new(Printer));
//! // Put it into a request: `request.get().set_watcher(printer)`. It can be called here, too:
//! let mut request = printer.send_text_request();
//! request.get().set_text("hello");
//! request.send().await
//! # }
//! ```
//!
//! The crate holds no server code and can't mint references.

// The generated code refers to this crate by its name.
extern crate self as capstead_client;

mod callback;
mod connection;
mod dial;
mod guard;
mod interface;
mod limits;
mod once;
mod reason;
mod restore;
mod schema;
mod share;
pub mod sturdyref;
mod tls;
#[cfg(feature = "websocket")]
mod websocket;
mod wire;

pub use callback::capability;
pub use connection::Connection;
pub use guard::budget::Budget;
#[doc(hidden)] // for the server
pub use guard::callers::Receipt;
#[doc(hidden)]
pub use guard::hops::with_origin;
#[doc(hidden)] // for the server, which holds to the same bounds within a vat
pub use guard::outgoing::{error_to_send, too_large, too_many_capabilities};
#[doc(hidden)] // for the server
pub use guard::outlet::{HeldAnswer, Outlet, crowded, room_for_calls};
pub use guard::owed::{Owed, with_owed};
#[doc(hidden)] // for the server
pub use guard::pipelines::{Arrival, Pipelined, take_over};
#[doc(hidden)] // for the server
pub use guard::relayed::Relayed;
pub use interface::Interface;
#[doc(hidden)] // for the server, which finds the methods that its operator names
pub use interface::{find, list, with_every_objects};
pub use limits::{
    Bites, CAPABILITIES_SENT_MAX, CONTENT_BYTES_SENT_MAX, ERROR_BYTES_MAX, Limit, Limits,
};
pub use once::{once, request_id};
pub use reason::Reason;
#[doc(hidden)] // for the server
pub use reason::said;
pub use restore::{restore, restore_with};
pub use schema::{facet_capnp, http_capnp, restorer_capnp, sturdyref_capnp};
#[doc(hidden)] // for the server
pub use share::write_caveats;
pub use share::{Terms, attenuate, share};
pub use tls::ALPN;
#[cfg(feature = "websocket")]
#[doc(hidden)] // for the server
pub use websocket::WebSocketBytes;

/// The result of every operation here.
pub type Result<T> = capnp::Result<T>;

pub use restorer_capnp::namespace;
