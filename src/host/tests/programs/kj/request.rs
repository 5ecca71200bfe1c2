//! Calls that a peer's side makes, and what they promise while it is unknown where they go.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use capnp::capability::{Promise, RemotePromise, Response};
use capnp::message::{Builder, HeapAllocator};
use capnp::private::capability::{PipelineHook, PipelineOp, RequestHook};
use capnp::traits::ImbueMut;
use capnp::{Error, any_pointer};
use capnp_rpc::rpc_capnp::message;
use futures::channel::oneshot;

use super::hook::{Asked, BRAND, End, Later, Next, Path, end, used};
use super::{Caps, Peer};

/// A call of this side before it is sent.
pub(in super::super) struct Call {
    to: Next,
    interface: u64,
    method: u16,
    message: Builder<HeapAllocator>,
    caps: Caps,
}

impl Call {
    pub(in super::super) fn new(to: Next, interface: u64, method: u16) -> Self {
        let mut message = Builder::new_default();
        let mut call = message.init_root::<message::Builder>().init_call();
        call.set_interface_id(interface);
        call.set_method_id(method);
        call.init_params();
        Self { to, interface, method, message, caps: Vec::new() }
    }

    /// Sends the call to a capability, which may have been unknown when it was made.
    fn send_to(mut self, to: &Next) -> RemotePromise<any_pointer::Owned> {
        match end(to) {
            End::Remote(peer, target) => {
                match peer.ask(&target, &mut self.message, &self.caps, None) {
                    Ok(asked) => asked.remote(),
                    Err(error) => failed(&error),
                }
            }
            End::Unknown(later, _) => {
                let postponed = Rc::new(Postponed::default());
                let pipeline = any_pointer::Pipeline::new(Box::new(Waits(postponed.clone())));
                let (sender, receiver) = oneshot::channel();
                later.push(Box::new(move |known| {
                    let sent = self.send_to(&known);
                    postponed.know(sent.pipeline.hook);
                    let _ = sender.send(sent.promise);
                }));
                let promise = Promise::from_future(async move {
                    let gone = |_| Error::disconnected("nobody resolved it".into());
                    receiver.await.map_err(gone)?.await
                });
                RemotePromise { promise, pipeline }
            }
            End::Here(hook) => {
                let mut request = hook.new_call(self.interface, self.method, None);
                match request.get().set_as(RequestHook::get(&mut self).into_reader()) {
                    Ok(()) => request.send(),
                    Err(error) => failed(&error),
                }
            }
        }
    }

    /// Sends it as the answer to a call of the other side. None: it leads elsewhere.
    pub(super) fn send_tail(mut self, of: &Rc<Peer>, answer: u32) -> Result<(), Self> {
        match end(&self.to) {
            End::Remote(peer, target) if Rc::ptr_eq(&peer, of) => {
                of.reflect(answer, &target, &mut self.message, &self.caps);
                Ok(())
            }
            _ => Err(self),
        }
    }
}

fn failed(error: &Error) -> RemotePromise<any_pointer::Owned> {
    let asked = Rc::new(Asked::default());
    asked.settle(Err(error.clone()));
    asked.remote()
}

impl RequestHook for Call {
    fn get(&mut self) -> any_pointer::Builder<'_> {
        let mut content = super::params(&mut self.message).get_content();
        content.imbue_mut(&mut self.caps);
        content
    }

    fn get_brand(&self) -> usize {
        &raw const BRAND as usize
    }

    fn send(self: Box<Self>) -> RemotePromise<any_pointer::Owned> {
        let to = self.to.clone();
        self.send_to(&to)
    }

    fn send_streaming(self: Box<Self>) -> Promise<(), Error> {
        let sent = self.send().promise;
        Promise::from_future(async move { sent.await.map(drop) })
    }

    fn tail_send(self: Box<Self>) -> Option<(u32, Promise<(), Error>, Box<dyn PipelineHook>)> {
        None
    }
}

/// The results of a call that waits for a promise of this side.
#[derive(Default)]
pub(super) struct Postponed {
    known: RefCell<Option<Box<dyn PipelineHook>>>,
    /// Each path is one capability, from its first use on.
    used: RefCell<Vec<(Path, Rc<Later>)>>,
}

impl Postponed {
    pub(super) fn know(&self, pipeline: Box<dyn PipelineHook>) {
        // Paths used for the first time from now on lead there at once.
        self.known.replace(Some(pipeline.add_ref()));
        let used = self.used.borrow().clone();
        for (path, later) in used {
            later.resolve(Ok(pipeline.get_pipelined_cap(&path)));
        }
    }
}

pub(super) struct Waits(pub(super) Rc<Postponed>);

impl PipelineHook for Waits {
    fn add_ref(&self) -> Box<dyn PipelineHook> {
        Box::new(Self(self.0.clone()))
    }

    fn get_pipelined_cap(&self, path: &[PipelineOp]) -> Next {
        if let Some(used) = used(&self.0.used.borrow(), path) {
            return used;
        }
        if let Some(known) = &*self.0.known.borrow() {
            return known.get_pipelined_cap(path);
        }
        let later = Later::unknown();
        self.0.used.borrow_mut().push((path.into(), later.clone()));
        later.hook()
    }
}

/// The results that a method of this side returned.
pub(super) struct Returned(pub(super) Result<Rc<Response<any_pointer::Owned>>, Error>);

impl PipelineHook for Returned {
    fn add_ref(&self) -> Box<dyn PipelineHook> {
        Box::new(Self(self.0.clone()))
    }

    fn get_pipelined_cap(&self, path: &[PipelineOp]) -> Next {
        let found = self.0.clone().and_then(|response| response.get()?.get_pipelined_cap(path));
        found.unwrap_or_else(|error| capnp_rpc::new_broken_cap(error).hook)
    }
}

thread_local! {
    /// A method is called whose caller takes a tail call as its answer.
    static POSSIBLE: Cell<bool> = const { Cell::new(false) };
    static TAIL: Cell<Option<Call>> = const { Cell::new(None) };
}

/// Tells whether a method that was just called may end by a tail call. It is asked once: what the
/// method calls on its own side is none of the other side's calls.
pub(in super::super) fn tail_is_possible() -> bool {
    POSSIBLE.take()
}

/// Ends the method that runs by a call.
pub(in super::super) fn tail(call: Call) {
    TAIL.set(Some(call));
}

/// Begins a method, and says whether it ended by a tail call.
pub(super) fn tails<T>(begin: impl FnOnce() -> T) -> (T, Option<Call>) {
    POSSIBLE.set(true);
    let begun = begin();
    POSSIBLE.set(false);
    (begun, TAIL.take())
}
