//! Generates `counter_capnp` from the schema.

fn main() {
    capstead_build::compile(&["schema/counter.capnp"]);
}
