//! The end of a call that came from foreign code. capnp-rpc waits for it here, and here the
//! connection tells what becomes of the caller.

use std::any::Any;
use std::cell::{Cell, OnceCell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use capnp::private::capability::{ClientHook, PipelineOp};
use capnp::private::layout::StructSize;
use capstead_client::{HeldAnswer, Outlet, Owed, Pipelined, Receipt};

use super::pipeline::Pipeline;
use crate::error::Result;

/// The origin of a call that comes from foreign code.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum CallOrigin {
    /// A queued client of the RPC library, or another hook of this vat.
    #[default]
    Local,
    /// The RPC system, on behalf of a peer.
    Connection,
}

/// The end of a call that capnp-rpc waits for.
#[derive(Default)]
pub(super) struct CallEnd {
    outcome: Cell<Option<Result<()>>>,
    /// capnp-rpc, which polls for the outcome.
    asker: RefCell<Option<Waker>>,
    pub(super) taken: Cell<bool>,
    pub(super) kept: Cell<Option<Box<dyn Any>>>,
    /// The capabilities in the answer, until capnp-rpc has written the Return and knows them by
    /// itself. Used by calls that came over a connection only.
    pub(super) pipeline: Pipeline,
    pub(super) origin: Cell<CallOrigin>,
    /// The outlet by which the answer leaves, if the call came over a connection.
    pub(super) outlet: OnceCell<Rc<Outlet>>,
    /// The answer as it counts there, from when it is made until it is written.
    pub(super) made: Cell<Option<HeldAnswer>>,
    /// Tells another vat that its answer was passed on.
    pub(super) receipt: Cell<Option<Receipt>>,
    /// The size of the results that were offered early to the RPC library's own pipeline.
    pub(super) offered: Cell<Option<StructSize>>,
}

impl Pipelined for CallEnd {
    fn pipelined(&self, path: &[PipelineOp]) -> Box<dyn ClientHook> {
        self.pipeline.get(path)
    }

    fn abandoned(self: Rc<Self>) {
        // Ends at once; what goes with it may come back to the connection.
        tokio::task::spawn_local(async move { self.pipeline.abandon() });
    }
}

impl Owed for CallEnd {
    fn answered(&self) {
        self.pipeline.answered();
    }

    fn owes_receipt(&self, receipt: Receipt) {
        self.receipt.set(Some(receipt));
    }
}

impl CallEnd {
    pub(super) fn end(&self, outcome: Result<()>) {
        self.outcome.set(Some(outcome));
        if let Some(waker) = self.asker.take() {
            waker.wake();
        }
    }

    fn take(&self) {
        self.taken.set(true);
        self.made.take();
        self.kept.take();
    }
}

/// Resolves with the outcome of the call.
pub(super) struct CallOutcome(pub(super) Rc<CallEnd>);

impl Future for CallOutcome {
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

impl Drop for CallOutcome {
    fn drop(&mut self) {
        let is_early = !self.0.taken.get();
        self.0.take();
        // For a peer's call it means that the connection is over; other calls have a pipeline of
        // their own.
        if is_early && self.0.origin.get() == CallOrigin::Connection {
            self.0.pipeline.abandon();
        }
    }
}
