//! Client.

mod schema;
pub use schema::{http_capnp, restorer_capnp, sturdyref_capnp};
