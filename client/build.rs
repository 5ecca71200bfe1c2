//! Generates the code of the public schemas.

fn main() {
    capstead_build::Schemas::new(&[
        "../schema/facet.capnp",
        "../schema/http.capnp",
        "../schema/restorer.capnp",
        "../schema/sturdyref.capnp",
    ])
    .request("../schema/public.request")
    .compile();
}
