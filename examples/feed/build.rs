//! Generates `feed_capnp` from the schema.

fn main() {
    capstead_build::compile(&["schema/feed.capnp"]);
}
