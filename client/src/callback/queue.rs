//! The calls of one capability, in the order in which they were made, and the task that starts
//! them.
//!
//! The task exists while there are calls to start. It polls each method once, in order, and leaves
//! the rest of it to a task of its own, so that methods interleave where they await. The limits of
//! its connection bound the number of a peer's calls; nothing bounds the calls of the client's own
//! code.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::rc::{Rc, Weak};
use std::task::{Context, Waker};

use capnp::any_pointer;
use capnp::capability::{self, Params, Promise, Server};
use capnp::private::capability::ClientHook;
use capnp::{Error, Result};
use futures::FutureExt;

use super::answer::{Call, Waiting};
use super::body::Body;
use super::brand;
use super::results::Results;
use crate::connection::spawn;

type Untyped = any_pointer::Owned;

/// A server that picks the interface of a call by its id.
trait Dispatch {
    fn dispatch(
        &self,
        interface: u64,
        method: u16,
        params: Params<Untyped>,
        results: capability::Results<Untyped>,
    ) -> Promise<(), Error>;
}

impl<D: Server + Clone> Dispatch for D {
    /// A failed `-> stream` method fails that call only.
    fn dispatch(
        &self,
        interface: u64,
        method: u16,
        params: Params<Untyped>,
        results: capability::Results<Untyped>,
    ) -> Promise<(), Error> {
        self.clone().dispatch_call(interface, method, params, results).promise
    }
}

pub(super) struct Queue {
    calls: RefCell<VecDeque<Call>>,
    to: RefCell<To>,
    /// A task is starting the calls.
    runs: Cell<bool>,
}

/// The destination of a queue's calls.
enum To {
    /// Not known yet: the calls wait.
    Promised,
    /// Another queue, which gets the calls at once.
    Queue(Rc<Queue>),
    Server(Rc<dyn Dispatch>),
    /// A capability of a connection, or any other that isn't ours.
    Foreign(Box<dyn ClientHook>),
    Broken(Error),
}

thread_local! {
    /// The queues by address, which their hooks return from `get_ptr`.
    static QUEUES: RefCell<HashMap<usize, Weak<Queue>>> = RefCell::default();
}

impl Queue {
    fn new(to: To) -> Rc<Self> {
        let (calls, runs) = (RefCell::default(), Cell::new(false));
        let queue = Rc::new(Self { calls, to: RefCell::new(to), runs });
        QUEUES.with_borrow_mut(|queues| queues.insert(queue.address(), Rc::downgrade(&queue)));
        queue
    }

    pub(super) fn of_server(server: impl Server + Clone + 'static) -> Rc<Self> {
        Self::new(To::Server(Rc::new(server)))
    }

    pub(super) fn promised() -> Rc<Self> {
        Self::new(To::Promised)
    }

    /// An address that is unique while the queue lives.
    pub(super) fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Adds a call, without running any code of the server.
    pub(super) fn enqueue(self: &Rc<Self>, call: Call) {
        self.end().push(call);
    }

    fn push(self: Rc<Self>, call: Call) {
        let broken = match &*self.to.borrow() {
            To::Broken(error) => Some(error.clone()),
            _ => None,
        };
        if let Some(error) = broken {
            return call.reply.send(Err(error));
        }
        self.calls.borrow_mut().push_back(call);
        self.run();
    }

    /// The queue at the end of the chain, in which the calls of this one wait.
    fn end(self: &Rc<Self>) -> Rc<Self> {
        let mut end = self.clone();
        while let Some(next) = end.next() {
            end = next;
        }
        end
    }

    fn next(&self) -> Option<Rc<Self>> {
        match &*self.to.borrow() {
            To::Queue(next) => Some(next.clone()),
            _ => None,
        }
    }

    fn behind(hook: &dyn ClientHook) -> Option<Rc<Self>> {
        let find = || QUEUES.with_borrow(|queues| queues.get(&hook.get_ptr())?.upgrade());
        (hook.get_brand() == brand()).then(find)?
    }

    /// Makes a task start the calls, if their destination is known.
    fn run(self: &Rc<Self>) {
        let is_known = matches!(&*self.to.borrow(), To::Server(_) | To::Foreign(_));
        if !is_known || self.calls.borrow().is_empty() || self.runs.replace(true) {
            return;
        }
        let running = QueueTask(self.clone());
        // If there is no runtime for it, dropping the task tells the callers.
        let _ = spawn(running.start_all());
    }

    fn start(&self, call: Call) {
        let run = match &*self.to.borrow() {
            To::Server(server) => serve(server.clone(), call).boxed_local(),
            To::Foreign(cap) => forward(cap.clone(), call).boxed_local(),
            To::Promised | To::Queue(_) | To::Broken(_) => return,
        };
        poll_once(run);
    }
}

impl Waiting for Queue {
    fn lead_to(self: Rc<Self>, cap: Box<dyn ClientHook>) -> Result<()> {
        let Some(next) = Self::behind(&*cap) else {
            self.to.replace(To::Foreign(cap));
            self.run();
            return Ok(());
        };
        let end = next.end();
        if Rc::ptr_eq(&end, &self) {
            return Err(Error::failed("the capability is a promise of itself".into()));
        }
        self.to.replace(To::Queue(end.clone()));
        let calls = self.calls.take();
        for call in calls {
            end.clone().push(call);
        }
        Ok(())
    }

    fn break_off(&self, error: Error) -> VecDeque<Call> {
        self.to.replace(To::Broken(error));
        self.calls.take()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // The table may already be gone while the thread ends.
        let _ = QUEUES.try_with(|queues| queues.borrow_mut().remove(&self.address()));
        // Dropping a long chain of promises recursively would nest the stack.
        let mut to = self.to.replace(To::Promised);
        while let To::Queue(next) = to {
            if Rc::strong_count(&next) > 1 {
                break;
            }
            to = next.to.replace(To::Promised);
        }
    }
}

/// The task of a queue. If it ends early, because its runtime does, the waiting calls are lost.
struct QueueTask(Rc<Queue>);

impl QueueTask {
    async fn start_all(self) {
        loop {
            let calls = self.0.calls.take();
            if calls.is_empty() {
                return;
            }
            for call in calls {
                self.0.start(call);
            }
            // A method that keeps calling its own capability must leave room for other tasks.
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for QueueTask {
    fn drop(&mut self) {
        self.0.runs.set(false);
        let calls = self.0.calls.take();
        for call in calls {
            call.reply.send(Err(Error::failed(
                "the call was not started: callbacks need #[tokio::main(flavor = \"local\")], a \
                 LocalRuntime or a LocalSet, and there is none, or it has ended"
                    .into(),
            )));
        }
    }
}

/// Polls a call once, and leaves the rest of it to a task that ends with it.
fn poll_once(mut run: impl Future<Output = ()> + Unpin + 'static) {
    // The task polls it again at once, with a waker.
    if run.poll_unpin(&mut Context::from_waker(Waker::noop())).is_pending() {
        // If there is no runtime for it, dropping the call drops its reply, which tells the caller.
        let _ = spawn(run);
    }
}

/// Runs a method.
async fn serve(server: Rc<dyn Dispatch>, call: Call) {
    let Call { interface, method, params, reply } = call;
    let (results, open) = Results::new(reply);
    let method = async move {
        let results = capability::Results::new(Box::new(results));
        server.dispatch(interface, method, Params::new(params), results).await
    };
    let outcome = AssertUnwindSafe(method).catch_unwind().await;
    let panicked = |_| Err(Error::failed("the callback panicked; other calls go on".into()));
    open.finish(outcome.unwrap_or_else(panicked));
}

/// The capability that a promise became, as far as it is known. capnp-rpc panics on a call with
/// capabilities to a promise that became a capability of this vat.
fn follow(mut to: Box<dyn ClientHook>) -> Box<dyn ClientHook> {
    /// The most promises in a row; a longer row has no end.
    const STEPS_MAX: usize = 1024;
    for _ in 0..STEPS_MAX {
        match to.get_resolved() {
            Some(next) => to = next,
            None => return to,
        }
    }
    let reason = "the capability is a promise of promises without an end";
    capnp_rpc::new_broken_cap(Error::failed(reason.into())).hook
}

/// Makes the call again on a foreign capability.
async fn forward(to: Box<dyn ClientHook>, call: Call) {
    let Call { interface, method, params, reply } = call;
    let to = follow(to);
    let send = |params: any_pointer::Reader<'_>| {
        let mut request = to.new_call(interface, method, params.target_size().ok());
        request.get().set_as(params)?;
        Ok(request.send())
    };
    let sent = match params.get().and_then(send) {
        Ok(sent) => sent,
        Err(error) => return reply.send(Err(error)),
    };
    /// The brand of all local capabilities of capnp-rpc, which answer here without a round trip.
    const LOCAL: usize = 0;
    if to.get_brand() != LOCAL {
        reply.redirect(sent.pipeline.hook);
    }
    drop((params, to));
    reply.send(sent.promise.await.and_then(|response| Body::copy(response.get()?)));
}
