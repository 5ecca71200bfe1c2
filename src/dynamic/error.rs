//! The reason why JSON and a message don't fit each other, with the place.

use std::fmt;

use super::DEPTH_MAX;

/// A place in a message or in JSON, and a sentence about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unfit {
    /// Such as `items[3].name`; empty for the whole.
    path: String,
    why: String,
}

impl Unfit {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self { path: String::new(), why: why.into() }
    }

    pub(super) fn too_deep() -> Self {
        Self::new(format!("there are more than {DEPTH_MAX} values in each other"))
    }

    pub(super) fn too_large() -> Self {
        Self::new("it is larger than a message may be: divide it")
    }

    /// The same, seen from the struct with that field.
    pub(super) fn in_field(mut self, name: &str) -> Self {
        let dot = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        self.path = format!("{name}{dot}{}", self.path);
        self
    }

    /// The same, seen from the list with that element.
    pub(super) fn in_element(mut self, index: usize) -> Self {
        let dot = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        self.path = format!("[{index}]{dot}{}", self.path);
        self
    }
}

impl From<capnp::Error> for Unfit {
    fn from(error: capnp::Error) -> Self {
        Self::new(format!("the message is malformed: {error}"))
    }
}

impl From<capnp::NotInSchema> for Unfit {
    fn from(error: capnp::NotInSchema) -> Self {
        capnp::Error::from(error).into()
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => f.write_str(&self.why),
            path => write!(f, "{path}: {}", self.why),
        }
    }
}

impl std::error::Error for Unfit {}
