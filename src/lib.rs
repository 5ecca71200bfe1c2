//! Durable objects as object capabilities.

pub(crate) mod clock;
pub mod error;
pub(crate) mod id;
pub(crate) mod limits;
pub(crate) mod metrics;
pub(crate) mod storage;
