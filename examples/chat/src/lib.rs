//! The chat: its schema and its classes.

capnp::generated_code!(pub mod chat_capnp);
pub mod chat;
