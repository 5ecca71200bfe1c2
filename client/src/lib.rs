//! Client.

mod schema;
pub mod sturdyref;
pub use schema::{http_capnp, restorer_capnp, sturdyref_capnp};
