//! Grants: their records in the storage of their targets, and the calls that make, list and revoke
//! them.

pub(in crate::host) mod calls;
pub(in crate::host) mod giving;
pub(in crate::host) mod nameable;
pub(in crate::host) mod records;
pub(in crate::host) mod sweep;
