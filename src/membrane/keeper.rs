//! The keeper of awake objects: the caller who made the first of the calls that led to one.
//!
//! A server has room for so many awake objects, and each that runs a call, or whose capabilities
//! are held, has to stay. So the host counts them for each keeper, and a call carries its keeper
//! from object to object.

use std::cell::Cell;

/// The objects that one keeper needs awake, and the bytes that they take.
#[derive(Default)]
pub(crate) struct Keeper {
    objects: Cell<usize>,
    bytes: Cell<usize>,
}

impl Keeper {
    /// It needs one more object, which takes so many bytes.
    pub(crate) fn add(&self, bytes: usize) {
        self.objects.set(self.objects.get() + 1);
        self.bytes.set(self.bytes.get() + bytes);
    }

    /// It needs this one no more.
    pub(crate) fn remove(&self, bytes: usize) {
        self.objects.set(self.objects.get() - 1);
        self.bytes.set(self.bytes.get() - bytes);
    }

    /// One of them has another size.
    pub(crate) fn resize(&self, before: usize, now: usize) {
        self.bytes.set(self.bytes.get() - before + now);
    }

    pub(crate) fn objects(&self) -> usize {
        self.objects.get()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.get()
    }
}
