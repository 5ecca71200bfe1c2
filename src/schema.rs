//! The generated code of all schemas: the public ones from the client crate, all others from here.

macro_rules! generated {
    ($($name:ident)+) => {$(
        #[allow(
            clippy::all,
            clippy::pedantic,
            clippy::unwrap_used,
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

generated! { admin_capnp chat_capnp cluster_capnp counter_capnp editor_capnp index_capnp poll_capnp }
#[cfg(test)]
generated! { actor_capnp every_capnp trial_capnp }

pub(crate) use capstead_client::{facet_capnp, http_capnp, restorer_capnp, sturdyref_capnp};
