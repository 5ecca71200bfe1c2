//! The one `ClientHook` and the one `RequestHook` for everything of ours that can be called.
//!
//! capnp-rpc asks a hook for its brand and address, and follows it to what it was resolved to. With
//! hooks of our own we decide what it learns: that they are none of its connections', one address
//! for each target, and no resolution.
//!
//! Invariants:
//! - A hook is ours exactly if it has our brand, and then its target is found by its address.
//! - Promises are followed for a bounded number of steps, so that a loop of them is an error.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::{Rc, Weak};

use capnp::capability::{Promise, RemotePromise, Request};
use capnp::private::capability::{
    ClientHook, ParamsHook, PipelineHook, PipelineOp, RequestHook, ResultsHook,
};
use capnp::{Error, MessageSize, any_pointer};
use capstead_client::sturdyref::Method;
use rustc_hash::FxBuildHasher;

use super::answer::{Answer, AnswerHandle};
use super::body::Body;
use super::call::{Call, Params, Reply};
use super::call_end::CallOrigin;

/// Its address is the brand of all our hooks. It is never that of a connection, so capnp-rpc never
/// takes one of our hooks for its own, and we know ours by it.
static BRAND: u8 = 0;

pub(crate) fn is_ours(hook: &dyn ClientHook) -> bool {
    hook.get_brand() == &raw const BRAND as usize
}

/// Something of ours that can be called. An implementation's `Drop` calls [`forget`].
pub(crate) trait CallTarget: Any {
    /// Takes the call, at once and in the order in which this is called. It must not block.
    fn enqueue(self: Rc<Self>, call: Call);

    /// The capability to which its calls go, if it hands them on. It stays the same, or is better
    /// known later.
    fn leads(&self) -> Option<Box<dyn ClientHook>> {
        None
    }

    /// Resolves, for code of this vat, when it is known. `None`: not a promise.
    fn when_resolved(&self) -> Option<Promise<Box<dyn ClientHook>, Error>> {
        None
    }

    /// A capability that our own side puts into a call, as it looks outside.
    fn leaving(&self, cap: Box<dyn ClientHook>) -> Box<dyn ClientHook> {
        cap
    }

    /// A capability that comes back to our own side, as it looks there.
    fn entering(&self, cap: Box<dyn ClientHook>) -> Box<dyn ClientHook> {
        cap
    }
}

thread_local! {
    /// Our targets by address, which is what `get_ptr` says of a hook. The owner's drop removes it.
    static TARGETS: RefCell<HashMap<usize, Weak<dyn CallTarget>, Addresses>> = RefCell::default();
}

thread_local! {
    /// Set while we ask a foreign hook for its resolution. A `PeerCap` answers only then.
    static FOLLOWS: Cell<bool> = const { Cell::new(false) };
}

/// Nobody outside can choose addresses, so a hash without a secret is enough.
pub(super) type Addresses = FxBuildHasher;

/// The capability to `target`.
pub(crate) fn wrap<T: CallTarget>(target: Rc<T>) -> Box<dyn ClientHook> {
    let address = Rc::as_ptr(&target).addr();
    let weak: Weak<dyn CallTarget> = Rc::downgrade(&target) as Weak<dyn CallTarget>;
    TARGETS.with_borrow_mut(|targets| targets.insert(address, weak));
    Box::new(Hook(target))
}

/// Ends what [`wrap`] began; for the target's `Drop`.
pub(crate) fn forget<T: CallTarget>(target: &T) {
    let address = std::ptr::from_ref(target).addr();
    // While the thread ends the table may be gone already.
    let _ = TARGETS.try_with(|targets| targets.borrow_mut().remove(&address));
}

/// Most promises in a row that are followed. Objects that hand each other's promises on make rows
/// of honest ones; a row without an end comes from a promise that a caller had resolved to itself.
const STEPS_MAX: usize = 1024;

/// The end of a capability behind all promises that are known by now.
pub(super) struct CapEnd {
    /// The end; none if it is the capability itself.
    pub(super) hook: Option<Box<dyn ClientHook>>,
    /// The target behind the hook; none if it is of a connection, or another that isn't ours.
    pub(super) target: Option<Rc<dyn CallTarget>>,
    /// It can neither be called now nor be followed.
    pub(super) is_busy: bool,
}

/// Follows promises to their end, so far as they are known. The error says that they don't end, and
/// then nothing else may follow them either.
pub(super) fn follow(hook: &dyn ClientHook) -> Result<CapEnd, Error> {
    let mut end = CapEnd { hook: None, target: None, is_busy: false };
    for _ in 0..STEPS_MAX {
        let at = end.hook.as_deref().unwrap_or(hook);
        if is_busy(at) {
            return Ok(CapEnd { is_busy: true, target: None, ..end });
        }
        end.target = if is_ours(at) { behind(at) } else { None };
        let next = match &end.target {
            Some(target) => target.leads(),
            None => resolved(at)?,
        };
        let Some(next) = next else { return Ok(end) };
        end.hook = Some(next);
    }
    Err(endless())
}

/// The hook that one of the RPC system turned out to be, and the one in a [`PeerCap`](super::relay)
/// one.
fn resolved(hook: &dyn ClientHook) -> Result<Option<Box<dyn ClientHook>>, Error> {
    FOLLOWS.set(true);
    // See `relay`: a queued client that is asked while it hands its calls on leads to itself.
    let resolved = catch_unwind(AssertUnwindSafe(|| hook.get_resolved()));
    FOLLOWS.set(false);
    resolved.map_err(|_| endless())
}

thread_local! {
    /// A queued client of the RPC library hands its calls over, and has itself borrowed meanwhile.
    static HANDS_OVER: Cell<bool> = const { Cell::new(false) };
}

/// Takes a call that comes from foreign code: from the RPC system itself if it came over a
/// connection, and otherwise from a queued client.
pub(super) fn take(origin: CallOrigin, enqueue: impl FnOnce()) {
    let before = HANDS_OVER.replace(origin == CallOrigin::Local || HANDS_OVER.get());
    let taken = catch_unwind(AssertUnwindSafe(enqueue));
    HANDS_OVER.set(before);
    if let Err(panic) = taken {
        std::panic::resume_unwind(panic);
    }
}

/// Tells whether a hook may be the one that hands its calls over. It panics if it is asked
/// anything.
fn is_busy(hook: &dyn ClientHook) -> bool {
    /// The brand of hooks that belong to the RPC library and to no connection, such as its queued
    /// clients.
    const LOCAL: usize = 0;
    HANDS_OVER.get() && hook.get_brand() == LOCAL
}

/// Tells whether our own code asks what a hook turned out to be.
pub(super) fn follows() -> bool {
    FOLLOWS.get()
}

/// The capability that a promise turns out to be. `None`: it is no promise.
pub(super) fn when_resolved(hook: &dyn ClientHook) -> Option<Promise<Box<dyn ClientHook>, Error>> {
    if !is_ours(hook) {
        return hook.when_more_resolved();
    }
    behind(hook)?.when_resolved()
}

/// The target of one of our own hooks.
fn behind(hook: &dyn ClientHook) -> Option<Rc<dyn CallTarget>> {
    TARGETS.with_borrow(|targets| targets.get(&hook.get_ptr())?.upgrade())
}

/// The target behind a capability, if it is one of ours and can be reached.
fn target(hook: &dyn ClientHook) -> Option<Rc<dyn CallTarget>> {
    follow(hook).ok()?.target
}

pub(super) fn endless() -> Error {
    Error::failed("the capability is a promise of promises without an end".into())
}

/// The target behind a capability, if it is a `T`.
pub(crate) fn find<T: CallTarget>(hook: &dyn ClientHook) -> Option<Rc<T>> {
    let target: Rc<dyn Any> = target(hook)?;
    target.downcast().ok()
}

/// A capability on which every call fails with `error`.
pub(crate) fn broken(error: Error) -> Box<dyn ClientHook> {
    wrap(Rc::new(Broken(error)))
}

struct Broken(Error);

impl CallTarget for Broken {
    fn enqueue(self: Rc<Self>, call: Call) {
        call.reply.send(Err(self.0.clone()));
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        forget(self);
    }
}

struct Hook<T>(Rc<T>);

impl<T: CallTarget> ClientHook for Hook<T> {
    fn add_ref(&self) -> Box<dyn ClientHook> {
        Box::new(Self(self.0.clone()))
    }

    fn new_call(
        &self,
        interface: u64,
        method: u16,
        _size: Option<MessageSize>,
    ) -> Request<any_pointer::Owned, any_pointer::Owned> {
        let target = self.0.clone();
        Request::new(Box::new(Outgoing {
            target,
            method: Method::new(interface, method),
            body: Body::new(),
        }))
    }

    fn call(
        &self,
        interface: u64,
        method: u16,
        params: Box<dyn ParamsHook>,
        results: Box<dyn ResultsHook>,
    ) -> Promise<(), Error> {
        let (call, origin, ended) =
            Call::of_foreign_code(Method::new(interface, method), params, results);
        take(origin, || self.0.clone().enqueue(call));
        ended
    }

    fn get_brand(&self) -> usize {
        &raw const BRAND as usize
    }

    /// One address for each target: the export table is keyed by it.
    fn get_ptr(&self) -> usize {
        Rc::as_ptr(&self.0).addr()
    }

    /// The RPC system learns neither that it is a promise nor what becomes of it, so that everybody
    /// who got it from us reaches it by the same path always.
    fn get_resolved(&self) -> Option<Box<dyn ClientHook>> {
        None
    }

    fn when_more_resolved(&self) -> Option<Promise<Box<dyn ClientHook>, Error>> {
        None
    }

    fn when_resolved(&self) -> Promise<(), Error> {
        let Some(mut next) = self.0.when_resolved() else { return Promise::ok(()) };
        Promise::from_future(async move {
            for _ in 0..STEPS_MAX {
                match when_resolved(&*next.await?) {
                    Some(more) => next = more,
                    None => return Ok(()),
                }
            }
            Err(endless())
        })
    }
}

struct Outgoing<T> {
    target: Rc<T>,
    method: Method,
    body: Body,
}

impl<T: CallTarget> RequestHook for Outgoing<T> {
    fn get(&mut self) -> any_pointer::Builder<'_> {
        self.body.builder().expect("the root of a message of our own can be had")
    }

    fn get_brand(&self) -> usize {
        &raw const BRAND as usize
    }

    fn send(self: Box<Self>) -> RemotePromise<any_pointer::Owned> {
        let Self { target, method, mut body } = *self;
        let answer = Answer::default();
        let asked = answer.asked();
        let reply = Reply::to_answer(answer);
        match body.check() {
            Ok(()) => {
                body.replace_caps(|cap| target.leaving(cap));
                let params = Params::Ours(Box::new(body));
                let (chain, keeper, from_object, hops) = (None, None, false, 0);
                let call = Call { method, params, reply, chain, keeper, from_object, hops };
                target.clone().enqueue(call);
            }
            Err(error) => reply.send(Err(error)),
        }
        let promise = {
            let target = target.clone();
            asked.clone().response(move |body| body.view(|cap| target.entering(cap)))
        };
        let pipeline = any_pointer::Pipeline::new(Box::new(Entering { target, asked }));
        RemotePromise { promise, pipeline }
    }

    fn send_streaming(self: Box<Self>) -> Promise<(), Error> {
        let sent = self.send().promise;
        Promise::from_future(async move { sent.await.map(drop) })
    }

    /// `None`: this isn't a call of an RPC connection; send it in the ordinary way.
    fn tail_send(self: Box<Self>) -> Option<(u32, Promise<(), Error>, Box<dyn PipelineHook>)> {
        None
    }
}

/// The pipeline of an answer, as our own side may see it.
struct Entering<T> {
    target: Rc<T>,
    asked: AnswerHandle,
}

impl<T: CallTarget> PipelineHook for Entering<T> {
    fn add_ref(&self) -> Box<dyn PipelineHook> {
        Box::new(Self { target: self.target.clone(), asked: self.asked.clone() })
    }

    fn get_pipelined_cap(&self, ops: &[PipelineOp]) -> Box<dyn ClientHook> {
        self.target.entering(self.asked.get_pipelined_cap(ops))
    }
}
