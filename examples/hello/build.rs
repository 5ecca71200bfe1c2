//! Generates `hello_capnp` from the schema.

fn main() {
    capstead_build::compile(&["schema/hello.capnp"]);
}
