//! A call on its way: its message, its reply, and its delivery to a target.
//!
//! Calls of this vat and calls of peers take the same form here, so that their receivers know one
//! kind only.
//!
//! Invariants:
//! - A call is on its way when the code that made it goes on, whether its promise is polled or not.
//! - Every reply is sent once. A reply that is dropped tells its caller that the call was lost.
//! - Calls that are pipelined on an answer are delivered before its caller is told.

use std::any::Any;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};

use capnp::capability::{self, FromServer, Promise, Server};
use capnp::private::capability::{ClientHook, ParamsHook, ResultsHook};
use capnp::{MessageSize, any_pointer};
use capstead_client::sturdyref::Method;
use capstead_client::{HeldAnswer, Outlet, Owed, Receipt, error_to_send, take_over};

use super::answer::Answer;
use super::body::{Body, BodySlot, check_size};
use super::call_end::{CallEnd, CallOrigin, CallOutcome};
use super::chain::Chain;
use super::early;
use super::forward::forward;
use super::hook::{self, CapEnd};
use super::keeper::Keeper;
use super::pipeline::{Event, Pipeline};
use super::relay::relay;
use crate::error::{Reason, Result, disconnected};

type Untyped = any_pointer::Owned;

/// A server whose interfaces are told apart by their ids.
pub(crate) trait Dispatch {
    /// Begins a method. A failed `-> stream` method is an error of that call only: the stock client
    /// would then refuse every later call of every holder.
    fn dispatch(
        &self,
        method: Method,
        params: capability::Params<Untyped>,
        results: capability::Results<Untyped>,
    ) -> Promise<(), capnp::Error>;

    /// The number of other holders of the server.
    fn holders(&self) -> usize;

    /// The server itself.
    fn object(&self) -> Option<Rc<dyn Any>>;
}

/// The methods of `server`, for interface `C`.
pub(crate) fn dispatch<C: FromServer<S>, S: 'static>(server: Rc<S>) -> Rc<dyn Dispatch> {
    let held = Rc::downgrade(&server);
    Rc::new(Dispatched { server: C::from_server(server), held })
}

struct Dispatched<D, S> {
    server: D,
    held: Weak<S>,
}

impl<D: Server + Clone, S: 'static> Dispatch for Dispatched<D, S> {
    fn dispatch(
        &self,
        method: Method,
        params: capability::Params<Untyped>,
        results: capability::Results<Untyped>,
    ) -> Promise<(), capnp::Error> {
        let Method { interface, ordinal } = method;
        self.server.clone().dispatch_call(interface, ordinal, params, results).promise
    }

    fn holders(&self) -> usize {
        self.held.strong_count() - 1
    }

    fn object(&self) -> Option<Rc<dyn Any>> {
        self.held.upgrade().map(|server| server as Rc<dyn Any>)
    }
}

/// One call that was made and not yet answered.
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) params: Params,
    pub(crate) reply: Reply,
    /// The calls of exclusive objects that led to this one, if there are any.
    pub(crate) chain: Option<Chain>,
    /// The keeper of the turn that makes it, if an object of this vat does.
    pub(crate) keeper: Option<Rc<Keeper>>,
    /// An object of this vat makes it: it belongs to a call under way.
    pub(crate) from_object: bool,
    /// The number of hosts that it came through.
    pub(crate) hops: u8,
}

impl Call {
    /// The call that `ClientHook::call` begins, its origin, and what has to be returned.
    pub(super) fn of_foreign_code(
        method: Method,
        params: Box<dyn ParamsHook>,
        results: Box<dyn ResultsHook>,
    ) -> (Self, CallOrigin, Promise<(), capnp::Error>) {
        let end = Rc::new(CallEnd::default());
        // Calls that the peer pipelines on the answer come to our own pipeline.
        let arrival = take_over(&*params, end.clone());
        let origin = if arrival.is_some() { CallOrigin::Connection } else { CallOrigin::Local };
        end.origin.set(origin);
        let reply = Reply(Some(Asker::Results(results, end.clone())));
        let (chain, keeper, from_object) = (None, None, false);
        let params = Params::Theirs(params, arrival.as_ref().map(|arrival| arrival.bytes));
        let hops = arrival.as_ref().map_or(0, |arrival| arrival.hops);
        if let Some(arrival) = arrival {
            // Set once, here.
            let _ = end.outlet.set(arrival.outlet);
        }
        let call = Self { method, params, reply, chain, keeper, from_object, hops };
        (call, origin, Promise::from_future(CallOutcome(end)))
    }
}

/// The parameters of a call.
pub(crate) enum Params {
    /// A message of our own, whose capabilities can be replaced where they are.
    Ours(Box<Body>),
    /// A message of the RPC system or of another foreign hook, and its bytes in memory if it came
    /// over a connection.
    Theirs(Box<dyn ParamsHook>, Option<usize>),
}

impl Params {
    pub(crate) fn get(&self) -> Result<any_pointer::Reader<'_>> {
        match self {
            Self::Ours(body) => body.get(),
            Self::Theirs(params, _) => params.get(),
        }
    }

    /// Their size once copied.
    ///
    /// # Errors
    /// When they can't be read as a whole, or when the copy would be larger than the message:
    /// several pointers then lead to one part, which no honest peer writes.
    fn size(&self) -> Result<MessageSize> {
        let size = self.get()?.target_size()?;
        if let Self::Theirs(_, Some(bytes)) = self
            && bytes_of(size) > *bytes
        {
            return Err(Reason::Malformed.error("the parts of the parameters overlap"));
        }
        Ok(size)
    }

    /// As [`Params::size`], for a call that goes out over a connection.
    ///
    /// # Errors
    /// As for [`Params::size`], and when so much can't be sent.
    pub(super) fn sendable(&self) -> Result<MessageSize> {
        let size = self.size()?;
        check_size(bytes_of(size), size.cap_count as usize)?;
        Ok(size)
    }

    /// Replaces every capability. Foreign parameters are copied for it, if they have any.
    pub(crate) fn replace_caps(
        self,
        replace: impl Fn(Box<dyn ClientHook>) -> Box<dyn ClientHook>,
    ) -> Result<Self> {
        let mut body = match self {
            Self::Ours(body) => body,
            Self::Theirs(..) if self.size()?.cap_count == 0 => return Ok(self),
            Self::Theirs(..) => self.into_body()?,
        };
        body.replace_caps(replace);
        Ok(Self::Ours(body))
    }

    /// Foreign parameters are copied; [`Params::size`] was asked before.
    pub(super) fn into_body(self) -> Result<Box<Body>> {
        match self {
            Self::Ours(body) => Ok(body),
            Self::Theirs(params, _) => Body::copy(params.get()?).map(Box::new),
        }
    }

    pub(crate) fn into_hook(self) -> Box<dyn ParamsHook> {
        match self {
            Self::Ours(body) => body,
            Self::Theirs(params, _) => params,
        }
    }
}

pub(super) fn bytes_of(size: MessageSize) -> usize {
    usize::try_from(size.word_count.saturating_mul(8)).unwrap_or(usize::MAX)
}

/// The way back to the caller. Dropping it tells them that the call was lost.
pub(crate) struct Reply(Option<Asker>);

enum Asker {
    /// A caller in this vat, through our own request hook.
    Answer(Answer),
    /// `ClientHook::call`: capnp-rpc on behalf of a peer, or another foreign hook.
    Results(Box<dyn ResultsHook>, Rc<CallEnd>),
}

impl Reply {
    pub(super) fn to_answer(answer: Answer) -> Self {
        Self(Some(Asker::Answer(answer)))
    }

    /// Tells whether the call came by `ClientHook::call`, that is from foreign code in the middle
    /// of its work.
    pub(crate) fn is_foreign(&self) -> bool {
        matches!(self.0, Some(Asker::Results(..)))
    }

    /// The outlet by which the answer leaves, if the call came over a connection.
    pub(crate) fn outlet(&self) -> Option<&Rc<Outlet>> {
        match &self.0 {
            Some(Asker::Results(_, end)) => end.outlet.get(),
            _ => None,
        }
    }

    /// The outcome is there and can't leave yet: it counts at the outlet until this is dropped.
    pub(crate) fn hold(&self, outcome: &Result<Body>) -> Option<HeldAnswer> {
        let body = outcome.as_ref().ok()?;
        self.outlet().map(|outlet| outlet.hold(body.size_bytes()))
    }

    /// Takes the caller out: nothing that is sent by this reply afterwards reaches them.
    pub(crate) fn take(&mut self) -> Self {
        Self(self.0.take())
    }

    /// Delivers the calls that were pipelined on the answer, and tells the caller.
    pub(crate) fn send(mut self, outcome: Result<Body>) {
        if let Some(asker) = self.0.take() {
            asker.tell(outcome);
        }
    }

    /// Lets pipelined calls go to what the results hold so far, ahead of the reply, whose results
    /// arrive in `whole`.
    pub(crate) fn open_pipeline(&mut self, mut early: Body, whole: BodySlot) -> Result<()> {
        match &mut self.0 {
            None => {}
            Some(Asker::Answer(answer)) => answer.pipeline().offer(early, whole),
            Some(Asker::Results(results, end)) => {
                early.replace_caps(relay);
                if end.origin.get() == CallOrigin::Local {
                    // The RPC library's own local client has a pipeline of its own.
                    let Some(size) = early.size() else { return Ok(()) };
                    end.offered.set(Some(size));
                    results.get()?.set_as(early.get()?)?;
                    return results.set_pipeline();
                }
                end.pipeline.offer(early, whole);
            }
        }
        Ok(())
    }

    /// Drops `kept` when capnp-rpc has polled the end of the call, or gave it up. The `Return` is
    /// written in the same poll, so that a task which this wakes runs after it.
    pub(crate) fn keep(&self, kept: impl Any) {
        match &self.0 {
            Some(Asker::Results(_, end)) if !end.taken.get() => {
                end.kept.set(Some(Box::new(kept)));
            }
            // The end is polled no more, or the caller is told at once.
            _ => drop(kept),
        }
    }

    /// The call went to another vat: pipelined calls may follow it at once.
    pub(super) fn redirect(&self, pipeline: any_pointer::Pipeline) {
        if let Some(to) = self.pipeline() {
            to.redirect(pipeline.hook);
        }
    }

    fn pipeline(&self) -> Option<&Pipeline> {
        match &self.0 {
            None => None,
            Some(Asker::Answer(answer)) => Some(answer.pipeline()),
            Some(Asker::Results(_, end)) => Some(&end.pipeline),
        }
    }

    /// The receipt of another vat's answer, if it asked for one and the caller is not in this vat.
    pub(super) fn take_receipt(&self) -> Option<Receipt> {
        match &self.0 {
            Some(Asker::Results(_, end)) => end.receipt.take(),
            _ => None,
        }
    }

    /// The place to be told when another vat has answered.
    pub(super) fn owed(&self) -> Option<Rc<dyn Owed>> {
        match &self.0 {
            None => None,
            Some(Asker::Answer(answer)) => Some(answer.owed()),
            Some(Asker::Results(_, end)) => Some(end.clone()),
        }
    }

    /// The caller needs no answer any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.pipeline().is_some_and(Pipeline::is_abandoned)
    }

    pub(super) fn poll(&self, event: Event, cx: &Context<'_>) -> Poll<()> {
        self.pipeline().map_or(Poll::Pending, |pipeline| pipeline.poll(event, cx.waker()))
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(asker) = self.0.take() {
            asker.tell(Err(disconnected("the call was lost: its object ended")));
        }
    }
}

impl Asker {
    fn tell(self, outcome: Result<Body>) {
        let fits = outcome.and_then(|body| body.check().map(|()| body)).map_err(error_to_send);
        match self {
            Self::Answer(answer) => answer.resolve(fits),
            Self::Results(mut results, end) => {
                let mut write = |mut body: Body| {
                    end.pipeline.keep_used(&mut body);
                    body.replace_caps(relay);
                    if let Some(outlet) = end.outlet.get() {
                        end.made.set(Some(outlet.hold(body.size_bytes())));
                    }
                    match end.offered.get() {
                        None => results.get()?.set_as(body.get()?)?,
                        Some(offered) => early::write_over(results.get()?, offered, &body)?,
                    }
                    Ok(Rc::new(body))
                };
                // The caller is told in any case, and the gate waits until it was.
                let written = catch_unwind(AssertUnwindSafe(|| fits.and_then(&mut write)));
                let lost = || disconnected("the call was lost: answering it failed");
                let outcome = written.unwrap_or_else(|_| Err(lost()));
                // First let go of the results, then end the call: one poll then sends the Return.
                drop(results);
                end.pipeline.end(outcome.clone());
                end.end(outcome.map(drop));
            }
        }
    }
}

type Deferred = (Box<dyn ClientHook>, Call);

thread_local! {
    /// Calls on queued clients that were just handing over their own, and all calls behind them.
    static DEFERRED: RefCell<VecDeque<Deferred>> = RefCell::default();
}

/// Hands a call to any capability. It is on its way when this returns, polled or not.
pub(crate) fn deliver(to: &dyn ClientHook, call: Call) {
    if DEFERRED.with_borrow(|deferred| !deferred.is_empty()) {
        defer((to.add_ref(), call));
    } else if let Some(call) = deliver_now(to, call) {
        defer((to.add_ref(), call));
        // It runs when the RPC library has let go, and ends with the last of them.
        tokio::task::spawn_local(async {
            while let Some((to, call)) = DEFERRED.with_borrow_mut(VecDeque::pop_front) {
                // No queued client hands calls over between two tasks.
                drop(deliver_now(&*to, call));
            }
        });
    }
}

fn defer(deferred: Deferred) {
    DEFERRED.with_borrow_mut(|others| others.push_back(deferred));
}

/// Hands a call over, also past those that are deferred. Gives it back if that is impossible now.
pub(super) fn deliver_now(to: &dyn ClientHook, call: Call) -> Option<Call> {
    match hook::follow(to) {
        Ok(CapEnd { is_busy: true, .. }) => return Some(call),
        Ok(CapEnd { target: Some(target), .. }) => target.enqueue(call),
        Ok(CapEnd { hook, .. }) => forward(hook.as_deref().unwrap_or(to), call),
        Err(error) => call.reply.send(Err(error)),
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pointers that all led to one list made gigabytes of a few hundred kilobytes.
    #[test]
    fn parameters_that_are_more_than_their_message_are_refused() {
        let params = |bytes| {
            let mut body = Body::new();
            let data = body.builder().unwrap().initn_as::<capnp::data::Builder>(1000);
            assert_eq!(data.len(), 1000);
            Params::Theirs(Box::new(body), bytes)
        };
        let own = 1000; // Without the pointer to it.
        for honest in [Some(own), Some(own + 1), None] {
            assert_eq!(bytes_of(params(honest).sendable().unwrap()), own);
        }
        let more = params(Some(own - 1));
        let error = more.sendable().err().unwrap();
        assert!(error.extra.starts_with("malformed: "), "{error}");
        assert!(more.replace_caps(|cap| cap).is_err(), "an object doesn't get it either");
    }

    /// A peer's result is copied before it goes on, and may be small with a large copy as well.
    #[test]
    fn no_copy_is_larger_than_what_can_be_sent() {
        let of = |bytes| {
            let mut body = Body::new();
            body.builder().unwrap().initn_as::<capnp::data::Builder>(bytes);
            Body::copy(body.get().unwrap()).map(drop)
        };
        let max = capstead_client::CONTENT_BYTES_SENT_MAX as u32 / 8 * 8;
        assert!(of(max).is_ok());
        let error = of(max + 8).unwrap_err();
        assert!(error.extra.starts_with("too-large: "), "{error}");
    }
}
