//! The operator's view of a host: grants, request ids, exports and imports.

pub(in crate::host) mod admin;
pub(in crate::host) mod export;
pub(in crate::host) mod import;
