//! Generates `chat_capnp` from the schema.

fn main() {
    capstead_build::compile(&["schema/chat.capnp"]);
}
