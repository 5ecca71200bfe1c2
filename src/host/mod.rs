//! A host: one vat with its objects, on one thread, over one environment.
//!
//! A call comes in through a facet, waits in arrival order until its object is awake, runs in turns,
//! and its reply leaves through the object's gate. `vat` keeps the objects and the order, `slot` one
//! object's sleeping and waking, `instance` the object awake, `run` the life of a call, `facet` what
//! others hold of an object and `gated` what it holds of others, `once` the calls that are applied once
//! only; `context`, `storage`,
//! `links`, `list`, `stored` and `namespace` are what a class sees; `agent` is what supervisor and listeners see, and `joined` how it got there.
//! `admin` is what the operator's tools see, with `export` and `import`; `evict` ends an object for them.
//!
//! It never talks to a gateway or supervisor other than through `cluster.capnp`.

mod admin;
mod agent;
mod awake;
mod behind;
mod class;
mod context;
mod cut;
mod durable;
mod ending;
mod evict;
mod exclusive;
mod export;
mod facet;
mod far;
mod fault;
mod gated;
mod granting;
mod grants;
mod header;
mod import;
mod instance;
mod joined;
mod links;
mod list;
mod mirror;
mod nameable;
mod namespace;
mod once;
mod pulse;
mod quota;
mod rest;
mod restoring;
mod right;
mod run;
mod served;
mod shares;
mod slot;
mod storage;
mod stored;
#[cfg(test)]
mod tests;
mod vat;
mod waking;

pub(crate) use admin::{Custodian, describe};
pub(crate) use agent::{Agent, pass_on_replies};
pub(crate) use awake::AwakeLimits;
pub use class::Object;
pub(crate) use class::{Binding, Class};
pub use context::Context;
pub use granting::Granted;
pub use grants::Terms;
pub(crate) use joined::Hint;
pub use list::{Entries, List};
pub use namespace::Namespace;
pub(crate) use pulse::{Pulse, Seen, present_turn};
pub use storage::Storage;
pub use stored::{Storable, Stored, Struct};
pub(crate) use vat::{Vat, VatOptions};

/// Looks at bytes as at each record that a host keeps of an object.
#[cfg(fuzzing)]
pub(crate) fn decode_records(bytes: &[u8]) {
    drop(header::Header::decode(bytes));
    once::decode_records(bytes);
}

/// One of each of these records.
#[cfg(fuzzing)]
pub(crate) fn sample_records() -> Vec<Vec<u8>> {
    let header = header::Header { class: "Counter", key: Some("name") };
    let mut samples = once::sample_records();
    samples.push(header.encode());
    samples
}
