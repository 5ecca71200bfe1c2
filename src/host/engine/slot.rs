//! One object's place in its vat, awake or not.
//!
//! Invariants:
//! - At most one instance of an object is awake, and `wake` ends before its first call starts.
//! - Calls that arrive while the object wakes start in arrival order once it is awake.
//! - A facet of an instance that ended never reaches the next one: their generations differ. Rest is no
//!   end: what held the object that fell asleep wakes it again.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use capstead_client::Outlet;

use super::class::Class;
use super::exclusive::Entry;
use super::facet::Facet;
use super::instance::Instance;
use super::run::{UnderWay, contain};
use crate::error::disconnected;
use crate::id::ObjectId;
use crate::membrane::{Call, Dispatch};

/// Which object is meant, and what to write down when it comes into existence.
#[derive(Clone)]
pub(in crate::host) struct Birth {
    pub(in crate::host) id: ObjectId,
    pub(in crate::host) class: Rc<Class>,
    /// The object's name in its namespace; none for an anonymous object.
    pub(in crate::host) key: Option<Rc<str>>,
}

/// A call that a facet accepted and that waits for its first poll.
pub(in crate::host) struct Start {
    pub(in crate::host) facet: Rc<Facet>,
    pub(in crate::host) call: Call,
    pub(in crate::host) under_way: UnderWay,
    /// An exclusive object runs no other call until this is dropped; none before its turn.
    pub(in crate::host) entry: Option<Entry>,
    pub(in crate::host) passage: Passage,
}

impl Start {
    /// The outlet for which it has waited, if it comes back from there.
    pub(in crate::host) fn returned(&self) -> Option<Rc<Outlet>> {
        if self.passage != Passage::Returned {
            return None;
        }
        self.call.reply.outlet().cloned()
    }
}

/// The stage of a call that waits for its caller to read; see [`behind`](super::behind).
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::host) enum Passage {
    #[default]
    None,
    /// Of those that wait for the same caller it is the first.
    Next,
    Passed,
    /// It then waited until its object was awake.
    Waited,
    /// It then waited for its caller once more, and is the first of those; see [`parked`](super::parked).
    Returned,
}

pub(in crate::host) enum State {
    Asleep,
    Waking(VecDeque<Start>),
    Awake(Rc<Instance>, Rc<dyn Dispatch>),
}

/// Held by the vat while the object is awake or anybody holds a facet of it.
pub(in crate::host) struct Slot {
    pub(in crate::host) birth: Birth,
    pub(in crate::host) state: RefCell<State>,
    /// The instance that wakes, whose calls wait in `state`.
    pub(in crate::host) waking: RefCell<Option<Rc<Instance>>>,
    /// Counts the instances that ended.
    pub(in crate::host) generation: Cell<u32>,
    /// The ends of the last of them, for those who hold facets of theirs.
    ends: RefCell<VecDeque<capnp::Error>>,
}

/// Ends that are remembered of an object while it is held.
const ENDS_KEPT: usize = 4;

impl Slot {
    pub(in crate::host) fn new(birth: Birth) -> Rc<Self> {
        let state = RefCell::new(State::Asleep);
        let (waking, generation, ends) = (RefCell::default(), Cell::default(), RefCell::default());
        Rc::new(Self { birth, state, waking, generation, ends })
    }

    pub(in crate::host) fn is_asleep(&self) -> bool {
        matches!(*self.state.borrow(), State::Asleep)
    }

    pub(in crate::host) fn is_waking(&self) -> bool {
        matches!(*self.state.borrow(), State::Waking(_))
    }

    /// The instance and what answers its calls, if the object is awake.
    pub(in crate::host) fn awake(&self) -> Option<(Rc<Instance>, Rc<dyn Dispatch>)> {
        match &*self.state.borrow() {
            State::Awake(instance, server) => Some((instance.clone(), server.clone())),
            _ => None,
        }
    }

    /// The instance is about to be awake, or could not wake: whether the object still waits for it.
    pub(in crate::host) fn ends_waking(&self, instance: &Rc<Instance>) -> bool {
        let mut waking = self.waking.borrow_mut();
        waking.take_if(|waking| Rc::ptr_eq(waking, instance)).is_some()
    }

    /// No facet that exists now reaches the object any more; those who try are told why.
    pub(in crate::host) fn break_facets(&self, why: capnp::Error) {
        self.generation.set(self.generation.get() + 1);
        let mut ends = self.ends.borrow_mut();
        ends.truncate(ENDS_KEPT - 1);
        ends.push_front(why);
    }

    /// The end of an earlier generation of instances.
    pub(in crate::host) fn end_of(&self, generation: u32) -> capnp::Error {
        let behind = self.generation.get().wrapping_sub(generation) as usize;
        let why = self.ends.borrow().get(behind.wrapping_sub(1)).cloned();
        why.unwrap_or_else(|| disconnected("the object ended: restore its reference"))
    }

    /// The object is at rest: its facets stay good.
    pub(in crate::host) fn sleep(&self) {
        if let State::Awake(_, server) = self.state.replace(State::Asleep) {
            contain("dropping an object", || drop(server));
        }
    }

    /// The instance ended, or could not wake: gives back the calls that were waiting for it.
    pub(in crate::host) fn end(&self) -> VecDeque<Start> {
        match self.state.replace(State::Asleep) {
            State::Waking(waiting) => return waiting,
            State::Awake(_, server) => contain("dropping an object", || drop(server)),
            State::Asleep => {}
        }
        VecDeque::new()
    }
}
