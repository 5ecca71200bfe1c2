//! Writes that reads must see before they are on disk.
//!
//! A [`Layer`] holds one object's writes of one turn, or of all its turns that are not durable yet.
//! A key's entry in it hides the layers below; a cleared layer hides everything that the class
//! wrote below. It never reads the disk.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::rc::Rc;

use smallvec::SmallVec;

use crate::storage::log::committer::Ticket;
use crate::storage::range::{Direction, Range};
use crate::storage::space::Space;

/// The value that was set for a key; `None` if it was deleted.
pub(super) type Value = Option<Rc<[u8]>>;

/// A key with its value in a list; `None` if it was deleted.
pub(super) type LayerEntry<'a> = (&'a [u8], Option<&'a [u8]>);

/// The entries by space (1) ‖ key, each with the last turn that wrote it.
type Entries = BTreeMap<Box<[u8]>, (Ticket, Value)>;

/// Writes of one object.
#[derive(Default)]
pub(super) struct Layer {
    entries: Entries,
    /// Set if the class's writes in the layers below are hidden, with all that follows from them.
    cleared: bool,
}

/// The state of a key in a layer.
pub(super) enum Seen<'a> {
    Value(&'a Value),
    /// The layer doesn't have it: look below.
    Below,
}

/// The step that undoes one write.
pub(super) enum Undo {
    Entry(Box<[u8]>, Option<(Ticket, Value)>),
    Clear { entries: Entries, cleared: bool },
}

impl Layer {
    pub(super) fn get(&self, space: Space, key: &[u8]) -> Seen<'_> {
        match self.entries.get(full_key(space, key).as_slice()) {
            Some((_, value)) => Seen::Value(value),
            None if self.cleared && space.is_of_class() => Seen::Value(&None),
            None => Seen::Below,
        }
    }

    /// Remembers a write; notes in `undo` how to undo it.
    pub(super) fn set(
        &mut self,
        space: Space,
        key: &[u8],
        write: (Ticket, Value),
        undo: Option<&mut Vec<Undo>>,
    ) {
        let key: Box<[u8]> = full_key(space, key).as_slice().into();
        match undo {
            None => drop(self.entries.insert(key, write)),
            Some(undo) => {
                let before = self.entries.insert(key.clone(), write);
                undo.push(Undo::Entry(key, before));
            }
        }
    }

    /// Forgets and hides all that the class wrote; notes in `undo` how to undo that.
    pub(super) fn clear(&mut self, undo: Option<&mut Vec<Undo>>) {
        let mut gone = self.take_space(Space::Data);
        gone.append(&mut self.take_space(Space::Edges));
        let cleared = std::mem::replace(&mut self.cleared, true);
        if let Some(undo) = undo {
            undo.push(Undo::Clear { entries: gone, cleared });
        }
    }

    fn take_space(&mut self, space: Space) -> Entries {
        let mut taken = self.entries.split_off([space as u8].as_slice());
        self.entries.append(&mut taken.split_off([space as u8 + 1].as_slice()));
        taken
    }

    /// Undoes a write. Writes must be undone in reverse order.
    pub(super) fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Entry(key, Some(before)) => drop(self.entries.insert(key, before)),
            Undo::Entry(key, None) => drop(self.entries.remove(&key)),
            Undo::Clear { mut entries, cleared } => {
                self.entries.append(&mut entries);
                self.cleared = cleared;
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && !self.cleared
    }

    pub(super) fn is_cleared(&self) -> bool {
        self.cleared
    }

    /// The entries of a space, in the order of the range, including deleted ones.
    pub(super) fn list<'a>(
        &'a self,
        space: Space,
        range: &Range,
    ) -> Box<dyn Iterator<Item = LayerEntry<'a>> + 'a> {
        let bounds = (
            match &range.start {
                Bound::Included(key) => Bound::Included(full_key(space, key)),
                Bound::Excluded(key) => Bound::Excluded(full_key(space, key)),
                Bound::Unbounded => Bound::Included(full_key(space, b"")),
            },
            match &range.end {
                Bound::Included(key) => Bound::Included(full_key(space, key)),
                Bound::Excluded(key) => Bound::Excluded(full_key(space, key)),
                Bound::Unbounded => Bound::Excluded(SmallVec::from_slice(&[space as u8 + 1])),
            },
        );
        let bounds =
            (bounds.0.as_ref().map(SmallVec::as_slice), bounds.1.as_ref().map(SmallVec::as_slice));
        let entries = self.entries.range::<[u8], _>(bounds);
        let entries = entries.map(|(key, (_, value))| (&key[1..], value.as_deref()));
        match range.direction {
            Direction::Up => Box::new(entries),
            Direction::Down => Box::new(entries.rev()),
        }
    }
}

/// One object's writes that were submitted and may not be durable yet.
#[derive(Default)]
pub(super) struct Pending {
    layer: Layer,
    last: Ticket,
    cleared: Ticket,
    settled: Ticket,
}

impl Pending {
    pub(super) fn layer(&self) -> &Layer {
        &self.layer
    }

    /// The newest turn.
    pub(super) fn last(&self) -> Ticket {
        self.last
    }

    /// Puts the writes of a later turn over the present ones.
    pub(super) fn add(&mut self, turn: Layer, ticket: Ticket) {
        self.last = ticket;
        if turn.cleared {
            self.cleared = ticket;
            self.layer.clear(None);
        }
        if self.layer.entries.is_empty() {
            self.layer.entries = turn.entries;
        } else {
            self.layer.entries.extend(turn.entries);
        }
    }

    /// Forgets durable writes; returns whether that was all of them.
    pub(super) fn settle(&mut self, durable: Ticket) -> bool {
        if self.last <= durable {
            return true;
        }
        if self.settled < durable {
            self.settled = durable;
            self.layer.entries.retain(|_, (ticket, _)| *ticket > durable);
            self.layer.cleared &= self.cleared > durable;
        }
        false
    }
}

fn full_key(space: Space, key: &[u8]) -> SmallVec<[u8; 64]> {
    let mut full = SmallVec::new();
    full.push(space as u8);
    full.extend_from_slice(key);
    full
}
