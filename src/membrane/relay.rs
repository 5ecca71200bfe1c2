//! What a capability becomes when it is given to the RPC system and it isn't known yet where it leads.
//!
//! The RPC system follows resolved promises without a limit, and a peer decides what its promises are
//! resolved to: to the answer that holds them, for instance, or to a capability that stands for them.
//! So no promise of a peer is handed back as it is. A relay takes its place: it passes every call on
//! at once, and says where it leads only when that is an end and no promise.
//!
//! **Invariant:** whoever follows what the RPC system has of ours comes to an end: it is a settled
//! capability, behind promises that never change any more, or a relay.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use capnp::Error;
use capnp::capability::Promise;
use capnp::private::capability::ClientHook;
use futures::channel::oneshot;

use super::call::{Call, deliver};
use super::hook::{self, End, Target};
use crate::error::disconnected;

/// `cap` as the RPC system may have it.
pub(super) fn relay(cap: Box<dyn ClientHook>) -> Box<dyn ClientHook> {
    if hook::is_a::<Relay>(&*cap) {
        return cap;
    }
    let next = match follow(&*cap) {
        Ok((end, None)) => return end.unwrap_or(cap),
        Ok((_, Some(next))) => next,
        Err(error) => return hook::broken(error),
    };
    let relay = Rc::new(Relay {
        to: RefCell::new(cap),
        is_settled: Cell::default(),
        waiting: RefCell::default(),
    });
    // Ends with the promise, or soon after the relay.
    tokio::task::spawn_local(settle(Rc::downgrade(&relay), next));
    hook::wrap(relay)
}

type Next = Promise<Box<dyn ClientHook>, Error>;

/// Where `cap` leads, none if that is itself; and what becomes of it if it is a promise.
fn follow(cap: &dyn ClientHook) -> Result<(Option<Box<dyn ClientHook>>, Option<Next>), Error> {
    let End { hook, target } = hook::follow(cap)?;
    let next = match target {
        Some(target) => target.when_resolved(),
        None => hook.as_deref().unwrap_or(cap).when_more_resolved(),
    };
    Ok((hook, next))
}

struct Relay {
    to: RefCell<Box<dyn ClientHook>>,
    is_settled: Cell<bool>,
    waiting: RefCell<Vec<oneshot::Sender<Box<dyn ClientHook>>>>,
}

/// Waits until it is known where the relay leads. It doesn't keep the relay.
async fn settle(relay: Weak<Relay>, mut promise: Next) {
    loop {
        let resolved = promise.await;
        let Some(relay) = relay.upgrade() else { return };
        let to = relay.to.borrow().clone();
        match resolved.and_then(|_| follow(&*to)) {
            Ok((_, Some(next))) => promise = next,
            Ok((end, None)) => return relay.end(end.unwrap_or(to)),
            // Lets go of a promise that leads back here: they would keep each other for ever.
            Err(error) => return relay.end(hook::broken(error)),
        }
    }
}

impl Relay {
    fn end(&self, to: Box<dyn ClientHook>) {
        *self.to.borrow_mut() = to.clone();
        self.is_settled.set(true);
        for waiting in self.waiting.take() {
            // The one who waited may have left.
            let _ = waiting.send(to.clone());
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
        self.is_settled.get().then(|| self.to.borrow().clone())
    }

    fn when_resolved(&self) -> Option<Promise<Box<dyn ClientHook>, Error>> {
        if let Some(end) = self.resolved() {
            return Some(Promise::ok(end));
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
    }
}
