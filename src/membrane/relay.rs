//! The capabilities that ours become when they are given to the RPC system.
//!
//! A peer decides to what its promises are resolved, and what the results of our calls hold. It may
//! choose the answer to the very call in which it gave them away, or a capability of ours that
//! stands for them. The RPC system would follow such a loop without an end, so it never gets a part
//! of one:
//! - A promise goes as a [`Relay`], which passes every call on at once, for as long as anybody
//!   holds it: the RPC system never learns where it leads.
//! - A capability of a connection goes as a [`PeerCap`], and its owner gets it back as its own. A
//!   call that comes on it by way of us has results that are made anew; the RPC system would hand
//!   on those of the peer, with all that it claims is in them.
//!
//! A capability that is settled by then goes as what it is: that way it comes home as what it was.
//!
//! **Invariant:** every walk along the promises that the RPC system has of ours comes to an end.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::{Rc, Weak};

use capnp::capability::{Promise, Request};
use capnp::private::capability::{ClientHook, ParamsHook, ResultsHook};
use capnp::{Error, MessageSize, any_pointer};
use capstead_client::sturdyref::Method;
use futures::channel::oneshot;
use tokio::task::AbortHandle;

use super::call::{Call, deliver, deliver_now};
use super::hook::{self, Addresses, CallTarget, CapEnd};
use super::pipeline::push_live;
use crate::error::disconnected;

/// `cap` as the RPC system may have it.
pub(super) fn relay(cap: Box<dyn ClientHook>) -> Box<dyn ClientHook> {
    // A queued client panics while it hands its calls on: a promise that leads to it then leads to
    // itself.
    let relayed = catch_unwind(AssertUnwindSafe(|| {
        Ok(match follow(cap)? {
            Destination::Ours(end) => end,
            Destination::Foreign(end) => Box::new(PeerCap(end)),
            Destination::Promise(end) => Relay::of(end),
            Destination::Unknown(end) => hook::wrap(Relay::begin(end, None)),
        })
    }));
    relayed.unwrap_or_else(|_| Err(hook::endless())).unwrap_or_else(hook::broken)
}

type Next = Option<Promise<Box<dyn ClientHook>, Error>>;

/// The end to which a capability leads, as far as that is known.
enum Destination {
    /// A target of ours that is no promise.
    Ours(Box<dyn ClientHook>),
    /// A capability of a connection that is no promise.
    Foreign(Box<dyn ClientHook>),
    /// A promise.
    Promise(Box<dyn ClientHook>),
    /// A queued client that can't be asked now.
    Unknown(Box<dyn ClientHook>),
}

fn follow(cap: Box<dyn ClientHook>) -> Result<Destination, Error> {
    let CapEnd { hook, target, is_busy } = hook::follow(&*cap)?;
    let end = hook.unwrap_or(cap);
    if is_busy {
        return Ok(Destination::Unknown(end));
    }
    // Asking leaves nothing behind: the answer is dropped at once.
    let is_promise = hook::when_resolved(&*end).is_some();
    Ok(match (is_promise, target) {
        (true, _) => Destination::Promise(end),
        (false, Some(_)) => Destination::Ours(end),
        (false, None) => Destination::Foreign(end),
    })
}

/// The same capability, after the code that runs now has let go of it.
fn soon(cap: Box<dyn ClientHook>) -> Promise<Box<dyn ClientHook>, Error> {
    Promise::from_future(async move {
        tokio::task::yield_now().await;
        Ok(cap)
    })
}

thread_local! {
    /// The relay of each promise, by the promise's address: it has one export for each connection.
    static RELAYS: RefCell<HashMap<usize, Weak<Relay>, Addresses>> = RefCell::default();
}

/// A promise as the RPC system has it: it passes calls on, and is never resolved.
struct Relay {
    /// The address of the promise that it stands for.
    address: Cell<usize>,
    to: RefCell<Box<dyn ClientHook>>,
    is_settled: Cell<bool>,
    waiting: RefCell<Vec<oneshot::Sender<Box<dyn ClientHook>>>>,
    /// The task that waits until it is settled.
    task: OnceCell<AbortHandle>,
}

impl Relay {
    fn of(promise: Box<dyn ClientHook>) -> Box<dyn ClientHook> {
        let address = promise.get_ptr();
        let known = RELAYS.with_borrow(|relays| relays.get(&address)?.upgrade());
        hook::wrap(known.unwrap_or_else(|| Self::begin(promise, Some(address))))
    }

    /// `address` is that of the promise, if that can be asked for now.
    fn begin(promise: Box<dyn ClientHook>, address: Option<usize>) -> Rc<Self> {
        let next = match address {
            // At once, because a promise of the RPC system that is known already says nothing more.
            Some(_) => hook::when_resolved(&*promise),
            None => Some(soon(promise.clone())),
        };
        let relay = Rc::new(Self {
            address: Cell::new(address.unwrap_or_default()),
            to: RefCell::new(promise),
            is_settled: Cell::default(),
            waiting: RefCell::default(),
            task: OnceCell::new(),
        });
        if address.is_some() {
            relay.register();
        }
        let task = tokio::task::spawn_local(Self::settle(Rc::downgrade(&relay), next));
        relay.task.get_or_init(|| task.abort_handle());
        relay
    }

    /// The task doesn't keep the relay alive, and ends with it.
    async fn settle(relay: Weak<Self>, mut next: Next) {
        while let Some(promise) = next {
            let resolved = promise.await;
            let Some(relay) = relay.upgrade() else { return };
            let to = relay.to.borrow().clone();
            next = None;
            match resolved.and_then(|_| follow(to)) {
                Ok(Destination::Unknown(end)) => next = Some(soon(end)),
                Ok(Destination::Promise(end)) => {
                    next = hook::when_resolved(&*end);
                    relay.go_on(end);
                    relay.register();
                }
                Ok(Destination::Ours(end) | Destination::Foreign(end)) => relay.end(&*end),
                // Lets go of a promise that leads back here, since the two would keep each other
                // alive.
                Err(error) => relay.end(&*hook::broken(error)),
            }
        }
    }

    fn go_on(&self, to: Box<dyn ClientHook>) {
        self.forget();
        self.address.set(to.get_ptr());
        // Dropping the old one may drop much more: nothing here may be borrowed then.
        drop(self.to.replace(to));
    }

    fn end(&self, to: &dyn ClientHook) {
        self.go_on(to.add_ref());
        self.is_settled.set(true);
        for waiting in self.waiting.take() {
            // The receiver may be gone.
            let _ = waiting.send(to.add_ref());
        }
    }

    /// It stands for the promise that it leads to, if no other one does.
    fn register(self: &Rc<Self>) {
        RELAYS.with_borrow_mut(|relays| {
            let relay = relays.entry(self.address.get()).or_default();
            if relay.strong_count() == 0 {
                *relay = Rc::downgrade(self);
            }
        });
    }

    /// It no longer stands for the promise.
    fn forget(&self) {
        // While the thread ends the table may be gone already.
        let _ = RELAYS.try_with(|relays| {
            let mut relays = relays.borrow_mut();
            let address = self.address.get();
            if relays.get(&address).is_some_and(|relay| std::ptr::eq(relay.as_ptr(), self)) {
                relays.remove(&address);
            }
        });
    }
}

impl CallTarget for Relay {
    fn enqueue(self: Rc<Self>, call: Call) {
        let to = self.to.borrow().clone();
        deliver(&*to, call);
    }

    fn leads(&self) -> Option<Box<dyn ClientHook>> {
        Some(self.to.borrow().clone())
    }

    fn when_resolved(&self) -> Option<Promise<Box<dyn ClientHook>, Error>> {
        if self.is_settled.get() {
            return Some(Promise::ok(self.to.borrow().clone()));
        }
        let (sender, receiver) = oneshot::channel();
        push_live(&mut self.waiting.borrow_mut(), sender);
        Some(Promise::from_future(async move {
            receiver.await.map_err(|_| disconnected("the promise was lost"))
        }))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        hook::forget(self);
        self.forget();
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

/// A capability of a connection, which knows it as its own. It is no promise.
struct PeerCap(Box<dyn ClientHook>);

impl ClientHook for PeerCap {
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
        let (call, origin, ended) =
            Call::of_foreign_code(Method::new(interface, method), params, results);
        // Never deferred: what the RPC system sends on this connection next comes behind it. It is
        // a connection's own, which is never busy.
        hook::take(origin, || drop(deliver_now(&*self.0, call)));
        ended
    }

    fn get_brand(&self) -> usize {
        self.0.get_brand()
    }

    fn get_ptr(&self) -> usize {
        self.0.get_ptr()
    }

    /// Only we look into it: so there is never one in another.
    fn get_resolved(&self) -> Option<Box<dyn ClientHook>> {
        hook::follows().then(|| self.0.clone())
    }

    fn when_more_resolved(&self) -> Option<Promise<Box<dyn ClientHook>, Error>> {
        None
    }

    fn when_resolved(&self) -> Promise<(), Error> {
        Promise::ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two peers may pass it to and fro without an end.
    #[test]
    fn what_was_given_away_before_is_not_wrapped_again() {
        let own = capnp_rpc::new_broken_cap(disconnected("it is a peer's")).hook;
        let once = relay(own.clone());
        let twice = relay(once.clone());
        for known in [&once, &twice] {
            assert!(known.get_resolved().is_none(), "the RPC system doesn't look into it");
            assert_eq!((known.get_ptr(), known.get_brand()), (own.get_ptr(), own.get_brand()));
            let within = hook::follow(&**known).unwrap().hook.unwrap();
            assert!(hook::follow(&*within).unwrap().hook.is_none(), "nothing else is in it");
        }
    }

    /// An object may return the same promise many times: its owner has it once.
    #[test]
    fn a_promise_has_one_relay_until_it_is_known() {
        let runtime = tokio::runtime::LocalRuntime::new().unwrap();
        runtime.block_on(async {
            let (sender, receiver) = oneshot::channel::<capnp::capability::Client>();
            let promise: capnp::capability::Client =
                capnp_rpc::new_future_client(async move { Ok(receiver.await.unwrap()) });
            let first = relay(promise.hook.clone());
            let second = relay(first.clone());
            let third = relay(promise.hook.clone());
            assert_eq!(first.get_ptr(), second.get_ptr());
            assert_eq!(first.get_ptr(), third.get_ptr());
            assert!(first.get_resolved().is_none());
            let own = capnp_rpc::new_broken_cap(disconnected("it is a peer's")).hook;
            assert!(sender.send(capnp::capability::Client::new(own.clone())).is_ok());
            first.when_resolved().await.unwrap();
            assert!(first.get_resolved().is_none(), "the RPC system goes on by the same path");
            assert_eq!(relay(first).get_ptr(), own.get_ptr());
            drop((second, third));
            assert!(RELAYS.with_borrow(HashMap::is_empty), "nobody holds a relay any more");
        });
    }
}
