//! Objects and their turns: the vat, the instances awake in it, and the calls on them.
//!
//! It knows nothing of what a class sees, of how grants are made, or of other hosts: the floors
//! above give it that.

pub(in crate::host) mod activity;
pub(in crate::host) mod awake;
pub(in crate::host) mod caveats;
pub(in crate::host) mod chained_call;
pub(in crate::host) mod citing;
pub(in crate::host) mod class;
pub(in crate::host) mod cluster;
pub(in crate::host) mod cut;
pub(in crate::host) mod ending;
pub(in crate::host) mod exclusive;
mod expiry;
pub(in crate::host) mod facet;
pub(in crate::host) mod fault;
pub(in crate::host) mod gated;
pub(in crate::host) mod header;
pub(in crate::host) mod instance;
pub(in crate::host) mod keeping;
pub(in crate::host) mod mirror;
pub(in crate::host) mod objects;
pub(in crate::host) mod once;
pub(in crate::host) mod operator_writes;
pub(in crate::host) mod parked;
pub(in crate::host) mod quota;
pub(in crate::host) mod rest;
pub(in crate::host) mod right;
pub(in crate::host) mod run;
pub(in crate::host) mod scheduler;
pub(in crate::host) mod shares;
pub(in crate::host) mod slot;
pub(in crate::host) mod sockets;
pub(in crate::host) mod sweeps;
pub(in crate::host) mod turns;
pub(in crate::host) mod vat;
pub(in crate::host) mod waking;
pub(in crate::host) mod watched_clock;
