//! Keys with their values in one block of memory, which is reused.

/// Pairs of byte strings, in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Pairs {
    bytes: Vec<u8>,
    /// The ends of each pair's key and value.
    ends: Vec<(usize, usize)>,
}

impl Pairs {
    pub(crate) fn push(&mut self, key: &[u8], value: &[u8]) {
        self.bytes.extend_from_slice(key);
        let end = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.ends.push((end, self.bytes.len()));
    }

    /// The pair with this index.
    pub(crate) fn get(&self, number: usize) -> Option<(&[u8], &[u8])> {
        let (key, value) = *self.ends.get(number)?;
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before].1);
        Some((&self.bytes[start..key], &self.bytes[key..value]))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        (0..self.len()).map_while(|number| self.get(number))
    }

    /// The number of pairs.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The sum of the lengths of all keys and values.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Removes all pairs, and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_come_back_in_their_order() {
        let mut pairs = Pairs::default();
        for _ in 0..2 {
            pairs.push(b"a", b"1");
            pairs.push(b"", b"");
            pairs.push(b"bc", b"");
            let all: [(&[u8], &[u8]); 3] = [(b"a", b"1"), (b"", b""), (b"bc", b"")];
            assert_eq!(pairs.iter().collect::<Vec<_>>(), all);
            assert_eq!((pairs.len(), pairs.bytes(), pairs.get(3)), (3, 4, None));
            pairs.clear();
        }
        assert_eq!(pairs.iter().count(), 0);
    }
}
