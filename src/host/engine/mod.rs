//! The life of objects and calls: what runs in the vat.
//!
//! It knows nothing of what a class sees, of how grants are made, or of other hosts: the floors
//! above give it that.

mod accept;
pub(in crate::host) mod alarms;
mod answer;
mod begin;
pub(in crate::host) mod citing;
pub(in crate::host) mod cut;
pub(in crate::host) mod ending;
mod expiry;
pub(in crate::host) mod firing;
pub(in crate::host) mod gated;
pub(in crate::host) mod once;
pub(in crate::host) mod opening;
pub(in crate::host) mod operator_writes;
pub(in crate::host) mod rest;
pub(in crate::host) mod run;
pub(in crate::host) mod shares;
pub(in crate::host) mod sockets;
pub(in crate::host) mod waking;
