//! Documents that several people write at once: their schema and their class.

capnp::generated_code!(pub mod editor_capnp);
pub mod editor;
