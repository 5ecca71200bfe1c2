//! The generated code of the public schemas.
//!
//! The schemas themselves, in the folder `schema`, say what everything means. This file adds
//! nothing.

macro_rules! generated {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[allow(
            missing_docs,
            missing_debug_implementations,
            unreachable_pub,
            clippy::all,
            clippy::pedantic,
            clippy::unwrap_used,
            reason = "generated code is not ours to change"
        )]
        pub mod $name {
            include!(concat!(env!("OUT_DIR"), "/", stringify!($name), ".rs"));
        }
    )*};
}

generated! {
    /// The calls that every object answers, generated from `schema/facet.capnp`.
    facet_capnp,
    /// The HTTP of objects, generated from `schema/http.capnp`.
    http_capnp,
    /// The calls that turn references into capabilities, generated from `schema/restorer.capnp`.
    restorer_capnp,
    /// The numbers of the reference's layout, generated from `schema/sturdyref.capnp`.
    sturdyref_capnp,
}
