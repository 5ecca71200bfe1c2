//! Client.

mod connection;
mod guard;
mod schema;
pub mod sturdyref;
mod wire;
pub use connection::Connection;
pub use guard::Limits;
pub use schema::{http_capnp, restorer_capnp, sturdyref_capnp};
