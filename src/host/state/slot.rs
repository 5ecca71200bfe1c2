//! One object's place in its vat, awake or not.
//!
//! Facets hold the slot and not the instance, so that an object may fall asleep and wake again
//! without their notice.
//!
//! Invariants:
//! - At most one instance of an object is awake, and `wake` ends before its first call starts.
//! - Calls that arrive while the object wakes start in arrival order once it is awake.
//! - A facet of an instance that ended never reaches the next one: their generations differ. Rest
//!   is no end: a holder of the object that fell asleep wakes it again.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use super::class::Class;
use super::instance::Instance;
use super::queued_call::{self, QueuedCall};
use crate::error::disconnected;
use crate::host::base::fault::catch_panic;
use crate::http::SocketTable;
use crate::id::ObjectId;
use crate::membrane::{Dispatch, Reply};

/// The identity of an object, with all that is written down when it comes into existence.
#[derive(Clone)]
pub(in crate::host) struct ObjectSpec {
    pub(in crate::host) id: ObjectId,
    pub(in crate::host) class: Rc<Class>,
    /// The object's name in its namespace; none for an anonymous object.
    pub(in crate::host) name: Option<Rc<str>>,
}

enum SlotState {
    Asleep,
    Waking(VecDeque<QueuedCall>),
    Awake(Rc<Instance>, Rc<dyn Dispatch>),
}

/// See the head of the file.
pub(in crate::host) struct Slot {
    pub(in crate::host) spec: ObjectSpec,
    state: RefCell<SlotState>,
    /// The instance that wakes, whose calls wait in `state`.
    waking: RefCell<Option<Rc<Instance>>>,
    /// Counts the instances that ended.
    generation: Cell<u32>,
    /// The ends of the last of them, for those who hold facets of theirs.
    ends: RefCell<Vec<capnp::Error>>,
    /// The open WebSockets, if the class has asked for them.
    sockets: OnceCell<Rc<SocketTable>>,
}

/// Ends that are remembered of an object while it is held.
const ENDS_KEPT: usize = 4;

impl Slot {
    pub(in crate::host) fn new(spec: ObjectSpec) -> Rc<Self> {
        let state = RefCell::new(SlotState::Asleep);
        let (waking, generation, ends) = (RefCell::default(), Cell::default(), RefCell::default());
        let sockets = OnceCell::new();
        Rc::new(Self { spec, state, waking, generation, ends, sockets })
    }

    pub(in crate::host) fn sockets(&self) -> Option<&Rc<SocketTable>> {
        self.sockets.get()
    }

    pub(in crate::host) fn sockets_or_new(
        &self,
        new: impl FnOnce() -> Rc<SocketTable>,
    ) -> &Rc<SocketTable> {
        self.sockets.get_or_init(new)
    }

    pub(in crate::host) fn is_asleep(&self) -> bool {
        matches!(*self.state.borrow(), SlotState::Asleep)
    }

    pub(in crate::host) fn is_waking(&self) -> bool {
        matches!(*self.state.borrow(), SlotState::Waking(_))
    }

    /// The instance and what answers its calls, if the object is awake.
    pub(in crate::host) fn awake(&self) -> Option<(Rc<Instance>, Rc<dyn Dispatch>)> {
        match &*self.state.borrow() {
            SlotState::Awake(instance, server) => Some((instance.clone(), server.clone())),
            _ => None,
        }
    }

    /// The instance that wakes.
    pub(in crate::host) fn waking(&self) -> Option<Rc<Instance>> {
        self.waking.borrow().clone()
    }

    /// The instance, awake or not yet. One that wakes is given up by that.
    pub(in crate::host) fn take_instance(&self) -> Option<Rc<Instance>> {
        let awake = self.awake().map(|(instance, _)| instance);
        awake.or_else(|| self.waking.take())
    }

    /// The object begins to wake, for this call.
    pub(in crate::host) fn begin_waking(&self, first: QueuedCall) {
        *self.state.borrow_mut() = SlotState::Waking(VecDeque::from([first]));
    }

    /// The instance to be awake, which the calls wait for.
    pub(in crate::host) fn set_waking(&self, instance: &Rc<Instance>) {
        self.waking.replace(Some(instance.clone()));
    }

    /// Another call waits until the object is awake.
    pub(in crate::host) fn wait(&self, queued: QueuedCall) {
        if let SlotState::Waking(waiting) = &mut *self.state.borrow_mut() {
            waiting.push_back(queued);
        }
    }

    /// Looks at the calls that wait until the object is awake.
    pub(in crate::host) fn with_waiting<T>(
        &self,
        look: impl FnOnce(&mut VecDeque<QueuedCall>) -> T,
    ) -> Option<T> {
        match &mut *self.state.borrow_mut() {
            SlotState::Waking(waiting) => Some(look(waiting)),
            _ => None,
        }
    }

    /// Takes the replies of waiting calls that were cut.
    pub(in crate::host) fn take_cut(&self, cut: &mut Vec<Reply>) {
        if let SlotState::Waking(waiting) = &mut *self.state.borrow_mut() {
            queued_call::take_cut(waiting, cut);
        }
    }

    /// The instance is about to be awake, or could not wake. False if it was given up before.
    pub(in crate::host) fn end_waking(&self, instance: &Rc<Instance>) -> bool {
        let mut waking = self.waking.borrow_mut();
        waking.take_if(|waking| Rc::ptr_eq(waking, instance)).is_some()
    }

    /// The object is awake. Gives back the calls that waited for it.
    pub(in crate::host) fn set_awake(
        &self,
        instance: Rc<Instance>,
        server: Rc<dyn Dispatch>,
    ) -> VecDeque<QueuedCall> {
        match self.state.replace(SlotState::Awake(instance, server)) {
            SlotState::Waking(waiting) => waiting,
            _ => unreachable!("only the end of waking ends waking"),
        }
    }

    /// No facet that exists now reaches the object any more; those who try are told why.
    pub(in crate::host) fn break_facets(&self, why: capnp::Error) {
        self.generation.set(self.generation.get() + 1);
        let mut ends = self.ends.borrow_mut();
        ends.truncate(ENDS_KEPT - 1);
        ends.insert(0, why);
    }

    /// The number of instances that ended. A facet with an older one is broken.
    pub(in crate::host) fn generation(&self) -> u32 {
        self.generation.get()
    }

    /// The reason why an earlier generation of instances ended.
    pub(in crate::host) fn why_ended(&self, generation: u32) -> capnp::Error {
        let behind = self.generation.get().wrapping_sub(generation) as usize;
        let why = self.ends.borrow().get(behind.wrapping_sub(1)).cloned();
        why.unwrap_or_else(|| disconnected("the object ended: restore its reference"))
    }

    /// The object is at rest: its facets stay good.
    pub(in crate::host) fn sleep(&self) {
        if let SlotState::Awake(_, server) = self.state.replace(SlotState::Asleep) {
            catch_panic("dropping an object", || drop(server));
        }
    }

    /// The instance ended, or could not wake: gives back the calls that were waiting for it.
    pub(in crate::host) fn vacate(&self) -> VecDeque<QueuedCall> {
        match self.state.replace(SlotState::Asleep) {
            SlotState::Waking(waiting) => return waiting,
            SlotState::Awake(_, server) => catch_panic("dropping an object", || drop(server)),
            SlotState::Asleep => {}
        }
        VecDeque::new()
    }
}

/// The error of an object of the class that ended so.
pub(in crate::host) fn end_error(class: &str, how: &str) -> capnp::Error {
    disconnected(format!("the {class} {how}: restore its reference"))
}
