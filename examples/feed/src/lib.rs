//! Feeds and the users who follow them: their schema, their classes, and the ways to hand feeds on.

capnp::generated_code!(pub mod feed_capnp);
pub mod feed;
pub mod sharing;
pub mod user;
