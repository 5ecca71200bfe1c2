//! Calls of the peer on answers that it doesn't have yet, taken over from the RPC system.
//!
//! capnp-rpc lets such calls wait until the whole answer is there. That is too late for a server
//! that passes a call on to another vat, because nothing that the other vat offers early could be
//! reached. It also nests the stack by one level for each call on the result of a call. So a server
//! may take over the pipeline of a call's answer, and then says at once where each path into that
//! answer leads.
//!
//! The RPC system can find the target of a path only by the number of an answer. So for each path
//! that the peer uses while the answer is open, the guard makes a call of its own, whose whole
//! result is the capability at the end of the path, and changes the peer's message to refer to that
//! call. The peer never sees these calls, and may not use their numbers.
//!
//! **Invariant:** a path that was used leads to the same capability until the answer is out.
//! **Invariant:** the guard's calls for an answer are finished when that answer is out.

use super::made::{self, MadeMessage};
use super::outlet::Outlet;
use super::scatter::ByNumber;
use super::{Message, patch::Patches};
use crate::limits::{Limit, Rejection};
use capnp::any_pointer;
use capnp::capability::{Client, Promise, Request};
use capnp::private::capability::{ClientHook, ParamsHook, PipelineOp, ResultsHook};
use capnp::{Error, MessageSize};
use capnp_rpc::rpc_capnp::promised_answer;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

/// The numbers of the guard's own calls. Peers number their calls from 0 on; some in C++ number the
/// calls of which they need only the pipeline from 2^31 on.
const OWN_CALLS: Range<u32> = 1 << 30..1 << 31;

/// The call whose answer is the [`Door`].
const DOOR: u32 = OWN_CALLS.end - 1;

/// The most paths into one answer: far more than the fields of any result that are used.
const PATHS_MAX: usize = 1024;

/// The interface by which the guard asks the door. It is in no schema.
const DOOR_INTERFACE: u64 = 0x9d2c_8fd0_62d5_57a1;

/// Knows the targets of paths into an answer before the answer is there.
pub trait Pipelined {
    /// The capability at the end of this path. It may be another one on each call.
    fn pipelined(&self, path: &[PipelineOp]) -> Box<dyn ClientHook>;

    /// The peer has finished the call without waiting for the answer: no further path will be asked
    /// for, and the answer will not be read. This is called in the middle of the connection's work:
    /// it must not call or drop anything.
    fn abandoned(self: Rc<Self>);
}

thread_local! {
    /// The call whose parameters were read last, if they came over a guarded connection.
    static READ: Cell<Option<Call>> = const { Cell::new(None) };
}

/// The facts about a call that its connection knows.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// The number of hosts of this system that the call came through; 0 from any other peer.
    pub hops: u8,
    /// The memory that the call's message takes.
    pub bytes: usize,
    /// The outlet of its answer.
    pub outlet: Rc<Outlet>,
}

/// Takes over the pipeline of the answer to the call with these parameters. `None` means that the
/// call didn't come over a connection, and nothing was changed.
pub fn take_over(params: &dyn ParamsHook, pipeline: Rc<dyn Pipelined>) -> Option<Arrival> {
    READ.take();
    // The content doesn't matter: reading the parameters shows which call they belong to.
    let _ = params.get();
    let Call { taken_over, number, arrival } = READ.take()?;
    if let Some(pipelines) = &mut *taken_over.0.borrow_mut() {
        pipelines.insert(number, pipeline);
    }
    Some(arrival)
}

/// The pipelines that were taken over, by the peer's calls. `None` once the connection has ended.
pub(super) struct TakenOver(RefCell<Option<ByNumber<Rc<dyn Pipelined>>>>);

/// A call of the peer.
#[derive(Clone)]
pub(super) struct Call {
    taken_over: Rc<TakenOver>,
    number: u32,
    arrival: Arrival,
}

impl Call {
    /// Notes that this call's parameters are read.
    pub(super) fn is_read(&self) {
        READ.set(Some(self.clone()));
    }
}

/// The taken-over pipelines of a connection; the head of the file explains them.
pub(super) struct Pipelines {
    taken_over: Rc<TakenOver>,
    door: Door,
    door_is_open: bool,
    next: u32,
    /// The paths into open answers, each with the call that stands for it.
    paths: ByNumber<Vec<(Vec<u16>, u32)>>,
    /// The guard's own calls.
    own: ByNumber<Own>,
    /// The pipelines of calls that were answered, until it is safe to drop them.
    answered: Vec<Rc<dyn Pipelined>>,
}

/// The state of one of the guard's own calls.
#[derive(Default)]
struct Own {
    /// The RPC system has answered it.
    is_answered: bool,
    /// No path refers to it any more.
    is_over: bool,
}

impl Pipelines {
    pub(super) fn new() -> Self {
        Self {
            taken_over: Rc::new(TakenOver(RefCell::new(Some(ByNumber::default())))),
            door: Door::new(),
            door_is_open: false,
            next: OWN_CALLS.start,
            paths: ByNumber::default(),
            own: ByNumber::default(),
            answered: Vec::new(),
        }
    }

    /// The capability that the RPC system must offer as its bootstrap capability.
    pub(super) fn door(&self, behind: Box<dyn ClientHook>) -> Client {
        Client::new(Box::new(Door { behind: Some(behind), given: self.door.given.clone() }))
    }

    /// The number of paths in use.
    pub(super) fn len(&self) -> usize {
        self.own.len()
    }

    pub(super) fn call(&self, number: u32, arrival: Arrival) -> Call {
        Call { taken_over: self.taken_over.clone(), number, arrival }
    }

    /// Notes the changes that a path into an answer needs, and the messages to deliver first.
    pub(super) fn route(
        &mut self,
        answer: promised_answer::Reader,
        patches: &mut Patches,
        before: &mut Vec<Message>,
    ) -> Result<(), Rejection> {
        let call = answer.get_question_id();
        check_number(call)?;
        let taken_over = self.taken_over.0.borrow();
        let Some(pipeline) = taken_over.as_ref().and_then(|open| open.get(&call)) else {
            return Ok(());
        };
        let mut path = Vec::new();
        for step in answer.get_transform()? {
            if let promised_answer::op::GetPointerField(field) = step.which()? {
                path.push(field);
            }
        }
        let used = self.paths.entry(call).or_default();
        if let Some((_, own)) = used.iter().find(|(used, _)| *used == path) {
            return patches.answer(answer, *own);
        }
        if used.len() >= PATHS_MAX {
            return Rejection::over(Limit::Exports, "too many paths into one answer");
        }
        while self.own.contains_key(&self.next) {
            self.next = following(self.next);
        }
        let own = self.next;
        self.next = following(own);
        if !std::mem::replace(&mut self.door_is_open, true) {
            before.push(Box::new(MadeMessage(made::bootstrap(DOOR))));
        }
        let steps: Vec<_> = path.iter().map(|field| PipelineOp::GetPointerField(*field)).collect();
        self.door.given.borrow_mut().push_back(pipeline.pipelined(&steps));
        before.push(Box::new(MadeMessage(made::call(own, DOOR, DOOR_INTERFACE))));
        self.own.insert(own, Own::default());
        used.push((path, own));
        patches.answer(answer, own)
    }

    /// Tells whether a call is one of the guard's own, so that its answer is not for the peer.
    pub(super) fn is_own(call: u32) -> bool {
        OWN_CALLS.contains(&call)
    }

    /// One of the guard's own calls is answered. Returns the message for the RPC system, if there
    /// is one.
    pub(super) fn own_answered(&mut self, call: u32) -> Option<Message> {
        self.own.get_mut(&call)?.is_answered = true;
        self.end_if_over(call)
    }

    /// The peer's call is answered. Passes the messages for the RPC system to `tell`.
    pub(super) fn answered(&mut self, call: u32, mut tell: impl FnMut(Message)) {
        let over = self.taken_over.0.borrow_mut().as_mut().and_then(|open| open.remove(&call));
        if let Some(over) = over {
            self.answered.push(over);
            self.end_paths(call, &mut tell);
        }
    }

    pub(super) fn take_answered(&mut self) -> Option<Rc<dyn Pipelined>> {
        self.answered.pop()
    }

    /// The peer finished a call that isn't answered, so it won't use paths into the answer any
    /// more.
    pub(super) fn finished(&mut self, call: u32, mut tell: impl FnMut(Message)) {
        let open = self.taken_over.0.borrow();
        let Some(pipeline) = open.as_ref().and_then(|open| open.get(&call).cloned()) else {
            return;
        };
        drop(open);
        self.end_paths(call, &mut tell);
        pipeline.abandoned();
    }

    /// Ends the calls for the paths into this answer, which are no longer used.
    fn end_paths(&mut self, call: u32, mut tell: impl FnMut(Message)) {
        for (_, own) in self.paths.remove(&call).into_iter().flatten() {
            if let Some(state) = self.own.get_mut(&own) {
                state.is_over = true;
            }
            self.end_if_over(own).map(&mut tell);
        }
    }

    fn end_if_over(&mut self, call: u32) -> Option<Message> {
        let Own { is_answered: true, is_over: true } = self.own.get(&call)? else { return None };
        self.own.remove(&call);
        Some(Box::new(MadeMessage(made::finish(call))))
    }

    /// The connection has ended. Returns what it held, to be dropped when nothing here is borrowed.
    pub(super) fn close(&mut self) -> HeldCaps {
        HeldCaps {
            _taken_over: self.taken_over.0.take(),
            _answered: std::mem::take(&mut self.answered),
            _given: self.door.given.take(),
        }
    }
}

/// Capabilities and pipelines that a connection held for other code.
pub(crate) struct HeldCaps {
    _taken_over: Option<ByNumber<Rc<dyn Pipelined>>>,
    _answered: Vec<Rc<dyn Pipelined>>,
    _given: VecDeque<Box<dyn ClientHook>>,
}

fn following(number: u32) -> u32 {
    if number + 1 == DOOR { OWN_CALLS.start } else { number + 1 }
}

/// # Errors
/// When the number is none that a peer may use.
pub(super) fn check_number(call: u32) -> Result<(), Rejection> {
    if !Pipelines::is_own(call) {
        return Ok(());
    }
    let Range { start, end } = OWN_CALLS;
    let reason = format!("a call has the number {call}; those from {start} to {end} are taken");
    Rejection::over(Limit::UnknownCapability, reason)
}

/// The bootstrap capability. It also hands out the capabilities that the guard put there, in order.
#[derive(Clone)]
struct Door {
    behind: Option<Box<dyn ClientHook>>,
    given: Rc<RefCell<VecDeque<Box<dyn ClientHook>>>>,
}

impl Door {
    fn new() -> Self {
        Self { behind: None, given: Rc::default() }
    }

    fn behind(&self) -> Box<dyn ClientHook> {
        self.behind.clone().unwrap_or_else(|| capnp_rpc::new_broken_cap(closed()).hook)
    }

    fn give(&self, mut results: Box<dyn ResultsHook>) -> capnp::Result<()> {
        let given = self.given.borrow_mut().pop_front().ok_or_else(closed)?;
        results.get()?.set_as_capability(given);
        // Already within this call, because the next message may refer to the result.
        results.set_pipeline()
    }
}

fn closed() -> Error {
    Error::unimplemented("Method not implemented.".into())
}

/// The address of this is the brand of all doors.
static BRAND: u8 = 0;

impl ClientHook for Door {
    fn add_ref(&self) -> Box<dyn ClientHook> {
        Box::new(self.clone())
    }

    fn new_call(
        &self,
        interface: u64,
        method: u16,
        size: Option<MessageSize>,
    ) -> Request<any_pointer::Owned, any_pointer::Owned> {
        self.behind().new_call(interface, method, size)
    }

    fn call(
        &self,
        interface: u64,
        method: u16,
        params: Box<dyn ParamsHook>,
        results: Box<dyn ResultsHook>,
    ) -> Promise<(), Error> {
        if interface == DOOR_INTERFACE {
            return Promise::from_future(std::future::ready(self.give(results)));
        }
        self.behind().call(interface, method, params, results)
    }

    fn get_brand(&self) -> usize {
        &raw const BRAND as usize
    }

    fn get_ptr(&self) -> usize {
        Rc::as_ptr(&self.given).addr()
    }

    /// The peer gets the bootstrap capability itself.
    fn get_resolved(&self) -> Option<Box<dyn ClientHook>> {
        self.behind.clone()
    }

    fn when_more_resolved(&self) -> Option<Promise<Box<dyn ClientHook>, Error>> {
        None
    }

    fn when_resolved(&self) -> Promise<(), Error> {
        Promise::ok(())
    }
}
