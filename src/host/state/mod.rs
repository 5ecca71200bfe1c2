//! The vat and all that is in it: objects asleep and awake, facets, and the calls that wait and
//! run.
//!
//! It keeps these and their order, and begins nothing: the floor `engine` runs the calls, wakes the
//! objects and ends them.

pub(in crate::host) mod alarms;
pub(in crate::host) mod awake;
pub(in crate::host) mod class;
pub(in crate::host) mod cluster;
pub(in crate::host) mod cut_walks;
pub(in crate::host) mod exclusive;
pub(in crate::host) mod facet;
pub(in crate::host) mod instance;
pub(in crate::host) mod keeping;
pub(in crate::host) mod objects;
pub(in crate::host) mod parked;
pub(in crate::host) mod queued_call;
pub(in crate::host) mod requests;
pub(in crate::host) mod scheduler;
pub(in crate::host) mod slot;
pub(in crate::host) mod socket_way;
pub(in crate::host) mod vat;
