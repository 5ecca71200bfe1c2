//! The host among hosts: how it joins them, and how references lead to it.

pub(in crate::host) mod agent;
mod check_queue;
mod joining;
pub(in crate::host) mod membership;
pub(in crate::host) mod namespace_facet;
pub(in crate::host) mod restore;
pub(in crate::host) mod services;
mod verified_cache;
