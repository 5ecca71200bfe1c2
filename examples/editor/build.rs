//! Generates `editor_capnp` from the schema, and makes the page's files.

#[path = "page/files.rs"]
mod files;

fn main() {
    capstead_build::compile(&["schema/editor.capnp"]);
    files::write("page");
}
