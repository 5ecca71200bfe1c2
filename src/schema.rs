//! The generated code of all schemas: the public ones from the client crate, all others from here.

use capstead_client::generated;

generated! {
    admin_capnp chat_capnp cluster_capnp counter_capnp editor_capnp index_capnp poll_capnp surviving_capnp
}
#[cfg(test)]
generated! { actor_capnp every_capnp trial_capnp }

pub(crate) use capstead_client::{facet_capnp, http_capnp, restorer_capnp, sturdyref_capnp};
