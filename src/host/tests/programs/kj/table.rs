//! A peer's tables: numbers for what is under way, the lowest free one first, as KJ gives them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

pub(super) struct Table<T> {
    slots: Vec<Option<T>>,
    free: BinaryHeap<Reverse<u32>>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: BinaryHeap::new() }
    }
}

impl<T> Table<T> {
    pub(super) fn insert(&mut self, value: T) -> u32 {
        if let Some(Reverse(number)) = self.free.pop() {
            self.slots[number as usize] = Some(value);
            return number;
        }
        self.slots.push(Some(value));
        self.slots.len() as u32 - 1
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.slots.get_mut(number as usize)?.as_mut()
    }

    pub(super) fn remove(&mut self, number: u32) -> Option<T> {
        let removed = self.slots.get_mut(number as usize)?.take();
        if removed.is_some() {
            self.free.push(Reverse(number));
        }
        removed
    }

    /// All that is left; nothing remains.
    pub(super) fn take(&mut self) -> impl Iterator<Item = T> + use<T> {
        std::mem::take(self).slots.into_iter().flatten()
    }
}

/// References that the other side holds to one thing.
pub(super) struct Counted<T> {
    pub(super) thing: T,
    pub(super) references: u32,
}

impl<T> Counted<T> {
    /// Lets go of so many references. None: there are not so many.
    pub(super) fn release(&mut self, count: u32) -> Option<u32> {
        self.references = self.references.checked_sub(count)?;
        Some(self.references)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_number_is_given_again() {
        let mut table = Table::default();
        assert_eq!(['a', 'b', 'c'].map(|value| table.insert(value)), [0, 1, 2]);
        assert_eq!((table.remove(2), table.remove(0)), (Some('c'), Some('a')));
        assert_eq!((table.insert('d'), table.insert('e'), table.insert('f')), (0, 2, 3));
        assert_eq!(table.get_mut(2), Some(&mut 'e'));
    }

    #[test]
    fn what_was_removed_is_unknown() {
        let mut table = Table::default();
        table.insert('a');
        assert_eq!(table.remove(0), Some('a'));
        assert_eq!((table.remove(0), table.remove(7)), (None, None));
        assert_eq!(table.get_mut(0), None);
        assert_eq!(table.insert('b'), 0, "a number is free once");
        assert_eq!(table.insert('c'), 1);
        assert_eq!(table.take().collect::<Vec<_>>(), ['b', 'c']);
        assert_eq!(table.insert('d'), 0);
    }

    #[test]
    fn no_more_is_released_than_was_given() {
        let mut counted = Counted { thing: (), references: 3 };
        assert_eq!(counted.release(2), Some(1));
        assert_eq!(counted.release(2), None);
        assert_eq!(counted.release(1), Some(0));
        let Counted { thing: (), .. } = counted;
    }
}
