//! A call on its way: its message, who wants the reply, and how it is handed to a target.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use capnp::any_pointer;
use capnp::capability::{self, FromServer, Promise, Server};
use capnp::private::capability::{ClientHook, ParamsHook, ResultsHook};
use capnp::private::layout::StructSize;

use super::answer::Answer;
use super::body::{self, Body, Opened};
use super::chain::Chain;
use super::early;
use super::hook::{self, End};
use super::relay::relay;
use crate::error::{Result, disconnected};

type Untyped = any_pointer::Owned;

/// A server whose interfaces are told apart by their ids.
pub(crate) trait Dispatch {
    /// Begins a method. A failed `-> stream` method is an error of that call only: the stock client
    /// would then refuse every later call of every holder.
    fn dispatch(
        &self,
        interface: u64,
        method: u16,
        params: capability::Params<Untyped>,
        results: capability::Results<Untyped>,
    ) -> Promise<(), capnp::Error>;

    /// How many hold the server beside this.
    fn holders(&self) -> usize;
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

impl<D: Server + Clone, S> Dispatch for Dispatched<D, S> {
    fn dispatch(
        &self,
        interface: u64,
        method: u16,
        params: capability::Params<Untyped>,
        results: capability::Results<Untyped>,
    ) -> Promise<(), capnp::Error> {
        self.server.clone().dispatch_call(interface, method, params, results).promise
    }

    fn holders(&self) -> usize {
        self.held.strong_count() - 1
    }
}

/// One call that was made and not yet answered.
pub(crate) struct Call {
    pub(crate) interface: u64,
    pub(crate) method: u16,
    pub(crate) params: Params,
    pub(crate) reply: Reply,
    /// The calls of exclusive objects that led to this one, if there are any.
    pub(crate) chain: Option<Chain>,
    /// An object of this vat makes it: it belongs to a call under way.
    pub(crate) is_an_objects: bool,
}

impl Call {
    /// What `ClientHook::call` begins, and what it has to return.
    pub(super) fn of_foreign_code(
        (interface, method): (u64, u16),
        params: Box<dyn ParamsHook>,
        results: Box<dyn ResultsHook>,
    ) -> (Self, Promise<(), capnp::Error>) {
        let (reply, ended) = Reply::to_results(results);
        let (chain, is_an_objects) = (None, false);
        let params = Params::Theirs(params);
        let call = Self { interface, method, params, reply, chain, is_an_objects };
        (call, Promise::from_future(ended))
    }
}

/// The parameters of a call.
pub(crate) enum Params {
    /// A message of our own, whose capabilities can be replaced where they are.
    Ours(Box<Body>),
    /// A message of the RPC system's, or another foreign hook's.
    Theirs(Box<dyn ParamsHook>),
}

impl Params {
    pub(crate) fn get(&self) -> Result<any_pointer::Reader<'_>> {
        match self {
            Self::Ours(body) => body.get(),
            Self::Theirs(params) => params.get(),
        }
    }

    /// Replaces every capability. Foreign parameters are copied for it, if they have any.
    pub(crate) fn replace_caps(
        self,
        replace: impl Fn(Box<dyn ClientHook>) -> Box<dyn ClientHook>,
    ) -> Result<Self> {
        let mut body = match self {
            Self::Ours(body) => body,
            Self::Theirs(params) => {
                let message = params.get()?;
                if message.target_size()?.cap_count == 0 {
                    return Ok(Self::Theirs(params));
                }
                Box::new(Body::copy(message)?)
            }
        };
        body.replace_caps(replace);
        Ok(Self::Ours(body))
    }

    pub(crate) fn into_hook(self) -> Box<dyn ParamsHook> {
        match self {
            Self::Ours(body) => body,
            Self::Theirs(params) => params,
        }
    }
}

/// Who wants to know how a call ended. Dropping it tells them that the call was lost.
pub(crate) struct Reply(Option<Asker>);

enum Asker {
    /// A caller in this vat, through our own request hook.
    Answer(Answer),
    /// `ClientHook::call`: capnp-rpc on behalf of a peer, or another foreign hook.
    Results(Box<dyn ResultsHook>, Rc<Ending>),
}

impl Reply {
    pub(super) fn to_answer(answer: Answer) -> Self {
        Self(Some(Asker::Answer(answer)))
    }

    /// The reply, and the promise that `ClientHook::call` has to return.
    fn to_results(
        results: Box<dyn ResultsHook>,
    ) -> (Self, impl Future<Output = Result<()>> + 'static) {
        let ending = Rc::new(Ending::default());
        (Self(Some(Asker::Results(results, ending.clone()))), Ended(ending))
    }

    /// Whether the call came by `ClientHook::call`, that is from foreign code in the middle of its work.
    pub(crate) fn is_foreign(&self) -> bool {
        matches!(self.0, Some(Asker::Results(..)))
    }

    /// Takes the caller away: what is said to this reply afterwards, nobody hears.
    pub(crate) fn take(&mut self) -> Self {
        Self(self.0.take())
    }

    /// Tells the caller.
    pub(crate) fn send(mut self, outcome: Result<Body>) {
        if let Some(asker) = self.0.take() {
            asker.tell(outcome);
        }
    }

    /// Tells the caller, and lets pipelined calls go to what `body` holds within this call: so they are
    /// in order with calls that are made later and elsewhere.
    pub(crate) fn send_opened(mut self, mut body: Body) {
        match self.0.take() {
            None => {}
            Some(Asker::Results(mut results, ending)) => {
                body.replace_caps(relay);
                let set = results.get().and_then(|mut root| root.set_as(body.get()?));
                let opened = set.and_then(|()| results.set_pipeline());
                drop(results);
                ending.end(opened);
            }
            Some(asker) => asker.tell(Ok(body)),
        }
    }

    /// Lets pipelined calls go to what the results hold so far, ahead of the reply.
    pub(crate) fn open_pipeline(&mut self, mut early: Body) -> Result<()> {
        match &mut self.0 {
            None => Ok(()),
            Some(Asker::Answer(answer)) => {
                answer.redirect(Box::new(Opened(Rc::new(early))));
                Ok(())
            }
            Some(Asker::Results(results, ending)) => {
                let Some(size) = early.size() else { return Ok(()) };
                ending.offered.set(Some(size));
                early.replace_caps(relay);
                results.get()?.set_as(early.get()?)?;
                results.set_pipeline()
            }
        }
    }

    /// Drops `kept` when capnp-rpc has polled the end of the call, or gave it up. The `Return` is
    /// written in the same poll, so that a task which this wakes runs after it.
    pub(crate) fn keep(&self, kept: impl Any) {
        match &self.0 {
            Some(Asker::Results(_, ending)) if !ending.taken.get() => {
                ending.kept.set(Some(Box::new(kept)));
            }
            // Nobody will take it any more, or it is taken at once.
            _ => drop(kept),
        }
    }

    /// The call went to another vat: pipelined calls may follow it at once.
    fn redirect(&self, pipeline: any_pointer::Pipeline) {
        if let Some(Asker::Answer(answer)) = &self.0 {
            answer.redirect(pipeline.hook);
        }
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
        match self {
            Self::Answer(answer) => answer.resolve(outcome),
            Self::Results(mut results, ending) => {
                let fits = outcome.and_then(|body| body.check_size().map(|()| body));
                let mut write = |mut body: Body| {
                    body.replace_caps(relay);
                    match ending.offered.get() {
                        None => results.get()?.set_as(body.get()?),
                        Some(offered) => early::write_over(results.get()?, offered, &body),
                    }
                };
                // The caller is told in any case, and the gate waits until he was.
                let written = catch_unwind(AssertUnwindSafe(|| fits.and_then(&mut write)));
                let lost = || disconnected("the call was lost: answering it failed");
                let outcome = written.unwrap_or_else(|_| Err(lost()));
                // First let go of the results, then end the call: one poll then sends the Return.
                drop(results);
                ending.end(outcome);
            }
        }
    }
}

/// The end of a call that capnp-rpc waits for.
#[derive(Default)]
struct Ending {
    outcome: Cell<Option<Result<()>>>,
    /// capnp-rpc, which polls for the outcome.
    asker: RefCell<Option<Waker>>,
    taken: Cell<bool>,
    kept: Cell<Option<Box<dyn Any>>>,
    /// The size of the results that were offered early, if they were.
    offered: Cell<Option<StructSize>>,
}

impl Ending {
    fn end(&self, outcome: Result<()>) {
        self.outcome.set(Some(outcome));
        if let Some(waker) = self.asker.take() {
            waker.wake();
        }
    }

    fn take(&self) {
        self.taken.set(true);
        self.kept.take();
    }
}

struct Ended(Rc<Ending>);

impl Future for Ended {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(outcome) = self.0.outcome.take() else {
            *self.0.asker.borrow_mut() = Some(cx.waker().clone());
            return Poll::Pending;
        };
        self.0.take();
        Poll::Ready(outcome)
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.take();
    }
}

/// Hands a call to any capability. It is on its way when this returns, polled or not.
pub(crate) fn deliver(to: &dyn ClientHook, call: Call) {
    match hook::follow(to) {
        Ok(End { target: Some(target), .. }) => target.enqueue(call),
        Ok(End { hook, .. }) => forward(hook.as_deref().unwrap_or(to), call),
        Err(error) => call.reply.send(Err(error)),
    }
}

/// Makes the call anew on a foreign hook, for instance that of a connection. It is the end of its
/// promises: capnp-rpc can't put capabilities into a call on one that became something of this vat.
fn forward(to: &dyn ClientHook, call: Call) {
    let Call { interface, method, params, reply, .. } = call;
    let size = params.get().and_then(|params| params.target_size()).ok();
    let bytes = size.map_or(0, |size| size.word_count.saturating_mul(8));
    if let Err(error) = body::check_size(usize::try_from(bytes).unwrap_or(usize::MAX)) {
        return reply.send(Err(error));
    }
    let mut request = to.new_call(interface, method, size);
    let has_caps = size.is_none_or(|size| size.cap_count > 0);
    let params = if has_caps { params.replace_caps(relay) } else { Ok(params) };
    if let Err(error) = params.and_then(|params| request.get().set_as(params.get()?)) {
        reply.send(Err(error));
        return;
    }
    let sent = request.send();
    reply.redirect(sent.pipeline);
    // Ends with the call; a connection that goes away fails its calls.
    tokio::task::spawn_local(async move {
        let outcome = sent.promise.await;
        reply.send(outcome.and_then(|response| Body::copy(response.get()?)));
    });
}
