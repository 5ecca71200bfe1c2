//! Grants: their records in the storage of their targets, and the calls that make, list and revoke them.

pub(in crate::host) mod granting;
pub(in crate::host) mod grants;
pub(in crate::host) mod nameable;
pub(in crate::host) mod sweep;
