//! The generated code of the public schemas, and the macro that includes all generated code.
//!
//! The schemas themselves, in the folder `schema`, say what everything means. This file adds
//! nothing.

/// Includes the code that `capstead_build` generated, `x_capnp.rs` as the module `x_capnp`, without
/// the lints of the including crate.
#[doc(hidden)]
#[macro_export]
macro_rules! generated {
    ($($(#[$attribute:meta])* $name:ident)+) => {$(
        $(#[$attribute])*
        #[allow(
            clippy::all,
            clippy::pedantic,
            clippy::unwrap_used,
            dead_code,
            missing_debug_implementations,
            missing_docs,
            unreachable_pub,
            reason = "generated code is not ours to change"
        )]
        pub mod $name {
            include!(concat!(env!("OUT_DIR"), "/", stringify!($name), ".rs"));
        }
    )+};
}

generated! {
    /// The calls that every object answers, generated from `schema/facet.capnp`.
    facet_capnp
    /// The HTTP of objects, generated from `schema/http.capnp`.
    http_capnp
    /// The calls that turn references into capabilities, generated from `schema/restorer.capnp`.
    restorer_capnp
    /// The numbers of the reference's layout, generated from `schema/sturdyref.capnp`.
    sturdyref_capnp
}
