//! The means of the objects of a host: rights and their ends, turns and the storage under them,
//! the bytes of records, and what is judged by a clock. None of it knows a call, an instance or the
//! vat.

pub(in crate::host) mod activity;
pub(in crate::host) mod alarm;
pub(in crate::host) mod caveats;
pub(in crate::host) mod fault;
pub(in crate::host) mod header;
pub(in crate::host) mod mirror;
pub(in crate::host) mod quota;
pub(in crate::host) mod request_record;
pub(in crate::host) mod retention;
pub(in crate::host) mod right;
pub(in crate::host) mod sweeps;
pub(in crate::host) mod turns;
pub(in crate::host) mod watched_clock;
