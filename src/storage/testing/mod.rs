//! A log in memory that can be told to fail, and one suite of tests for this log and the real one.

mod conformance;
pub(crate) mod model;
