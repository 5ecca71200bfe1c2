//! The interface that a class sees.

pub(in crate::host) mod alarms;
pub(in crate::host) mod context;
pub(in crate::host) mod links;
pub(in crate::host) mod list;
pub(in crate::host) mod namespace;
pub(in crate::host) mod object;
pub(in crate::host) mod storage;
pub(in crate::host) mod stored;
