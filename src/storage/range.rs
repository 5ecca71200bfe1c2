//! Ranges of keys, for lists and scans.

use std::ops::{Bound, ControlFlow};

/// The order in which a list or a scan goes through keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the least to the greatest.
    #[default]
    Up,
    /// From the greatest to the least.
    Down,
}

/// A range of keys in a space, with a direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// The lower bound.
    pub(crate) start: Bound<Vec<u8>>,
    /// The upper bound.
    pub(crate) end: Bound<Vec<u8>>,
    /// Set to go from the greatest key to the least.
    pub(crate) direction: Direction,
}

impl Range {
    /// All keys, from the least one on.
    pub(crate) fn all() -> Self {
        Self { start: Bound::Unbounded, end: Bound::Unbounded, direction: Direction::Up }
    }

    /// The same range, limited to keys that begin with `prefix`.
    pub(crate) fn within(mut self, prefix: &[u8]) -> Self {
        if prefix.is_empty() {
            return self;
        }
        let starts_later = match &self.start {
            Bound::Included(key) | Bound::Excluded(key) => key.as_slice() >= prefix,
            Bound::Unbounded => false,
        };
        if !starts_later {
            self.start = Bound::Included(prefix.to_vec());
        }
        let Some(after) = after_prefix(prefix) else { return self };
        let ends_earlier = match &self.end {
            Bound::Included(key) | Bound::Excluded(key) => *key < after,
            Bound::Unbounded => false,
        };
        if !ends_earlier {
            self.end = Bound::Excluded(after);
        }
        self
    }

    /// Tells whether the range can't contain any key.
    pub(crate) fn is_empty(&self) -> bool {
        match (&self.start, &self.end) {
            (Bound::Included(start), Bound::Included(end)) => start > end,
            (Bound::Included(start) | Bound::Excluded(start), Bound::Excluded(end))
            | (Bound::Excluded(start), Bound::Included(end)) => start >= end,
            (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        }
    }
}

/// Takes one key and its value; returns whether it wants more.
pub(crate) type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// The first key after all that begin with `prefix`; `None` if there can't be one.
pub(crate) fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut after = prefix[..=last].to_vec();
    after[last] += 1;
    Some(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_after_a_prefix() {
        assert_eq!(after_prefix(b"a"), Some(b"b".to_vec()));
        assert_eq!(after_prefix(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(after_prefix(b"\xff"), None);
        assert_eq!(after_prefix(b""), None);
    }
}
