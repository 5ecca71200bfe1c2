//! The engine of the storage, LMDB, and the bytes that it stores.

pub(crate) mod check;
pub(crate) mod compact;
pub(crate) mod dir;
pub(crate) mod disk;
pub(crate) mod engine;
pub(crate) mod held;
pub(crate) mod layout;
pub(crate) mod owned;
pub(crate) mod pairs;
pub(crate) mod room;
pub(crate) mod scan;
pub(crate) mod watched;
