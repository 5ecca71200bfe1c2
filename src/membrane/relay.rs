//! What capabilities become when they are given to the RPC system.
//!
//! A peer decides what its promises are resolved to, and what the results of our calls hold: also the
//! answer to the call in which it gave them away, or a capability of ours that stands for them. The RPC
//! system follows such a loop without an end, so it never gets a link of one:
//! - a promise goes as a [`Relay`], which passes every call on at once, and says where it leads only when
//!   that is an end and no promise;
//! - a capability of a connection, which goes back as what it is, as a [`Known`], or is what a promise
//!   turns out to be, as a [`Late`]: a call on it that comes by way of us makes its results anew. The RPC
//!   system would hand the peer's own results back to it.
//!
//! **Invariant:** whoever follows what the RPC system has of ours comes to an end.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::{Rc, Weak};

use capnp::capability::{Promise, Request};
use capnp::private::capability::{ClientHook, ParamsHook, ResultsHook};
use capnp::{Error, MessageSize, any_pointer};
use futures::channel::oneshot;
use tokio::task::AbortHandle;

use super::call::{Call, deliver};
use super::hook::{self, End, Target};
use crate::error::disconnected;

/// `cap` as the RPC system may have it.
pub(super) fn relay(cap: Box<dyn ClientHook>) -> Box<dyn ClientHook> {
    if hook::itself::<Relay>(&*cap).is_some_and(|relay| relay.settled.get() == Settled::No) {
        return cap;
    }
    match follow(cap) {
        Ok(Way::Ours(end)) => end,
        Ok(Way::Foreign(end)) => Box::new(Known(end)),
        Ok(Way::Promise(cap, next)) => Relay::begin(cap, next),
        Err(error) => hook::broken(error),
    }
}

/// Where a capability leads.
enum Way {
    /// To something of ours that is no promise.
    Ours(Box<dyn ClientHook>),
    /// To something of a connection that is no promise.
    Foreign(Box<dyn ClientHook>),
    /// Nobody knows yet: the capability itself, and what will be known next.
    Promise(Box<dyn ClientHook>, Next),
}

type Next = Promise<Box<dyn ClientHook>, Error>;

fn follow(cap: Box<dyn ClientHook>) -> Result<Way, Error> {
    let End { hook, target } = hook::follow(&*cap)?;
    let next = match &target {
        Some(target) => target.when_resolved(),
        None => hook.as_deref().unwrap_or(&*cap).when_more_resolved(),
    };
    Ok(match (next, target) {
        (Some(next), _) => Way::Promise(cap, next),
        (None, Some(_)) => Way::Ours(hook.unwrap_or(cap)),
        (None, None) => Way::Foreign(hook.unwrap_or(cap)),
    })
}

/// A promise.
struct Relay {
    to: RefCell<Box<dyn ClientHook>>,
    settled: Cell<Settled>,
    waiting: RefCell<Vec<oneshot::Sender<Box<dyn ClientHook>>>>,
    /// Waits until it is settled.
    task: OnceCell<AbortHandle>,
}

/// Whether it is known where a promise leads.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Settled {
    #[default]
    No,
    Ours,
    Foreign,
}

impl Relay {
    fn begin(to: Box<dyn ClientHook>, next: Next) -> Box<dyn ClientHook> {
        let relay = Rc::new(Self {
            to: RefCell::new(to),
            settled: Cell::default(),
            waiting: RefCell::default(),
            task: OnceCell::new(),
        });
        let task = tokio::task::spawn_local(Self::settle(Rc::downgrade(&relay), next));
        relay.task.get_or_init(|| task.abort_handle());
        hook::wrap(relay)
    }

    /// It doesn't keep the relay: its end is that of the task.
    async fn settle(relay: Weak<Self>, mut next: Next) {
        loop {
            let resolved = next.await;
            let Some(relay) = relay.upgrade() else { return };
            let to = relay.to.borrow().clone();
            match resolved.and_then(|_| follow(to)) {
                Ok(Way::Promise(_, later)) => next = later,
                Ok(Way::Ours(end)) => return relay.end(end, Settled::Ours),
                Ok(Way::Foreign(end)) => return relay.end(end, Settled::Foreign),
                // Lets go of a promise that leads back here: they would keep each other for ever.
                Err(error) => return relay.end(hook::broken(error), Settled::Ours),
            }
        }
    }

    fn end(&self, to: Box<dyn ClientHook>, settled: Settled) {
        *self.to.borrow_mut() = to;
        self.settled.set(settled);
        for waiting in self.waiting.take() {
            // The one who waited may have left.
            let _ = self.outcome().is_some_and(|outcome| waiting.send(outcome).is_ok());
        }
    }

    /// What it turned out to be, for whoever exported it as a promise.
    fn outcome(&self) -> Option<Box<dyn ClientHook>> {
        let to = self.to.borrow().clone();
        match self.settled.get() {
            Settled::No => None,
            Settled::Ours => Some(to),
            Settled::Foreign => {
                let is_taken = Cell::default();
                Some(hook::wrap(Rc::new(Late { to, is_taken })))
            }
        }
    }
}

impl Target for Relay {
    fn enqueue(self: Rc<Self>, call: Call) {
        let to = self.to.borrow().clone();
        deliver(&*to, call);
    }

    fn leads(&self) -> Option<Box<dyn ClientHook>> {
        Some(self.to.borrow().clone())
    }

    fn resolved(&self) -> Option<Box<dyn ClientHook>> {
        let to = self.to.borrow().clone();
        match self.settled.get() {
            Settled::No => None,
            Settled::Ours => Some(to),
            Settled::Foreign => Some(Box::new(Known(to))),
        }
    }

    fn when_resolved(&self) -> Option<Promise<Box<dyn ClientHook>, Error>> {
        if let Some(outcome) = self.outcome() {
            return Some(Promise::ok(outcome));
        }
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().push(sender);
        Some(Promise::from_future(async move {
            receiver.await.map_err(|_| disconnected("the promise was lost"))
        }))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        hook::forget(self);
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

/// A capability of a connection that was exported as a promise.
///
/// When a promise is known, the RPC system first puts what it leads to in its place, for the calls that
/// still come on it, and then tells the peer what that is, and follows it both times. So this is the end
/// when it is followed first, by which calls go by way of us, and leads on afterwards, by which the
/// peer is told that it is its own.
struct Late {
    to: Box<dyn ClientHook>,
    is_taken: Cell<bool>,
}

impl Target for Late {
    fn enqueue(self: Rc<Self>, call: Call) {
        deliver(&*self.to, call);
    }

    fn leads(&self) -> Option<Box<dyn ClientHook>> {
        Some(self.to.clone())
    }

    fn resolved(&self) -> Option<Box<dyn ClientHook>> {
        self.is_taken.replace(true).then(|| Box::new(Known(self.to.clone())) as _)
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        hook::forget(self);
    }
}

/// A capability of a connection, which knows it as its own. It is no promise.
struct Known(Box<dyn ClientHook>);

impl ClientHook for Known {
    fn add_ref(&self) -> Box<dyn ClientHook> {
        Box::new(Self(self.0.clone()))
    }

    fn new_call(
        &self,
        interface: u64,
        method: u16,
        size: Option<MessageSize>,
    ) -> Request<any_pointer::Owned, any_pointer::Owned> {
        self.0.new_call(interface, method, size)
    }

    fn call(
        &self,
        interface: u64,
        method: u16,
        params: Box<dyn ParamsHook>,
        results: Box<dyn ResultsHook>,
    ) -> Promise<(), Error> {
        let (call, ended) = Call::of_foreign_code((interface, method), params, results);
        deliver(&*self.0, call);
        ended
    }

    fn get_brand(&self) -> usize {
        self.0.get_brand()
    }

    fn get_ptr(&self) -> usize {
        self.0.get_ptr()
    }

    fn get_resolved(&self) -> Option<Box<dyn ClientHook>> {
        None
    }

    fn when_more_resolved(&self) -> Option<Promise<Box<dyn ClientHook>, Error>> {
        None
    }

    fn when_resolved(&self) -> Promise<(), Error> {
        Promise::ok(())
    }
}
