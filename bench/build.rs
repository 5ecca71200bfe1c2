//! Generates the code of the probe's schema.

fn main() {
    capstead_build::compile(&["schema/probe.capnp"]);
}
