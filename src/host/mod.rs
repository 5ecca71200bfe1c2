//! A host: one vat with its objects, on one thread, over one environment.
//!
//! A call comes in through a facet, waits in arrival order until its object is awake, runs in
//! turns, and its reply leaves through the object's gate. The floor `state` has the objects and
//! calls, over the means in `base`, and `engine` runs them. Above these, `authority` has the
//! grants, `api` what a class sees, `operator` what the operator's tools do, and `cluster` the ways
//! to and from other hosts.
//!
//! It never talks to a gateway or supervisor other than through `cluster.capnp`.

mod api;
mod authority;
mod base;
mod cluster;
mod engine;
mod operator;
mod state;
#[cfg(test)]
mod tests;

pub use api::alarms::Alarms;
pub use api::context::Context;
pub use api::list::{Entries, List};
pub use api::namespace::Namespace;
pub use api::object::Object;
pub(crate) use api::object::class_of;
pub use api::storage::Storage;
pub use api::stored::{Storable, Stored, Struct};
pub use authority::calls::Granted;
pub(crate) use authority::nameable::parse_number;
pub(crate) use base::activity::{Activity, Turn, present_turn, rests};
pub use base::alarm::Alarm;
pub(crate) use cluster::agent::Agent;
pub(crate) use cluster::membership::ListenerHint;
pub(crate) use cluster::services::pass_on_replies;
pub(crate) use engine::opening::VatOptions;
pub(crate) use operator::admin::{HostAdmin, describe};
pub(crate) use state::awake::AwakeLimits;
pub(crate) use state::class::{Binding, Class};
pub(crate) use state::vat::Vat;

/// Looks at bytes as at each record that a host keeps of an object.
#[cfg(fuzzing)]
pub(crate) fn decode_records(bytes: &[u8]) {
    drop(base::header::Header::decode(bytes));
    engine::once::decode_records(bytes);
}

/// One of each of these records.
#[cfg(fuzzing)]
pub(crate) fn sample_records() -> Vec<Vec<u8>> {
    let header = base::header::Header { class: "Counter", name: Some("name") };
    let mut samples = engine::once::sample_records();
    samples.push(header.encode());
    samples
}
