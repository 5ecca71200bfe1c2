//! Generates `hello_capnp` from the server's schema.

fn main() {
    capstead_build::compile(&["../hello/schema/hello.capnp"]);
}
