//! Generates the code of the internal schemas, and of those of the bundled classes, and makes their
//! pages.

#[path = "examples/editor/page/files.rs"]
mod files;

fn main() {
    capstead_build::compile(&["schema/cluster.capnp", "schema/admin.capnp"]);
    capstead_build::compile(&["examples/counter/schema/counter.capnp"]);
    capstead_build::compile(&["examples/chat/schema/chat.capnp"]);
    capstead_build::compile(&["examples/editor/schema/editor.capnp"]);
    files::write("examples/editor/page");
    capstead_build::compile(&["src/classes/index.capnp"]);
    capstead_build::compile(&["src/classes/poll.capnp"]);
    capstead_build::compile(&["src/dynamic/every.capnp"]);
    capstead_build::compile(&["src/host/tests/trial.capnp"]);
    capstead_build::compile(&["src/host/tests/programs/actor.capnp"]);
    capstead_build::compile(&["tests/passing/passing.capnp"]);
    capstead_build::compile(&["tests/passing/forwarder.capnp", "tests/passing/slot.capnp"]);
}
