//! The output gate: nothing leaves an object before every write that it made before is durable.
//!
//! Invariants:
//! - Messages leave in the order in which they were given to the gate.
//! - The tickets of waiting messages never decrease from one to the next.
//! - A message leaves at once when nothing is pending, inside the call that gives it.
//! - A call that was made after a reply is never written before that reply: capnp-rpc writes calls
//!   at once and replies when it is polled, so the call waits for the reply's receipt.
//!
//! It never looks at what a message says, and never waits for writes made after the message.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;

use futures::FutureExt;

use crate::storage::Ticket;

/// The gate of one instance. `R` resolves when a reply was taken by whoever sends it on.
pub(crate) struct Gate<R> {
    /// The last write of the instance, sealed or not.
    written: Cell<Ticket>,
    /// The last write of the instance that will be made durable.
    sealed: Cell<Ticket>,
    /// All writes up to this one are durable.
    durable: Cell<Ticket>,
    queue: RefCell<VecDeque<(Ticket, Message<R>)>>,
    last_reply: RefCell<Option<R>>,
    /// A task holds the next message until `last_reply` was taken.
    held: Cell<bool>,
}

enum Message<R> {
    Reply(Box<dyn FnOnce() -> Option<R>>),
    Call(Box<dyn FnOnce()>),
}

impl<R: Future<Output = ()> + Unpin + 'static> Gate<R> {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            written: Cell::default(),
            sealed: Cell::default(),
            durable: Cell::default(),
            queue: RefCell::default(),
            last_reply: RefCell::default(),
            held: Cell::default(),
        })
    }

    /// The instance made a write: what it sends from now on waits for `ticket`.
    pub(crate) fn wrote(&self, ticket: Ticket) {
        self.written.set(ticket);
    }

    /// What the instance's messages wait for now.
    pub(crate) fn written(&self) -> Ticket {
        self.written.get()
    }

    /// The writes since `ticket` were taken back: nothing waits for them, of what was sent since either.
    pub(crate) fn back_to(self: &Rc<Self>, ticket: Ticket) {
        self.written.set(ticket);
        let mut queue = self.queue.borrow_mut();
        let waiting = queue.iter_mut().rev().take_while(|(later, _)| *later > ticket);
        waiting.for_each(|(later, _)| *later = ticket);
        drop(queue);
        self.pump();
    }

    /// The turn that wrote `ticket` has ended: its writes are on their way to the disk.
    pub(crate) fn sealed(&self, ticket: Ticket) {
        self.sealed.set(ticket);
    }

    /// Everything up to `ticket` is durable: what waited for no more than that leaves.
    pub(crate) fn open(self: &Rc<Self>, ticket: Ticket) {
        self.durable.set(self.durable.get().max(ticket));
        self.pump();
    }

    /// Sends a reply; `send` says how to know when it was taken.
    pub(crate) fn reply(self: &Rc<Self>, send: impl FnOnce() -> Option<R> + 'static) {
        if self.is_open() {
            self.replied(send());
        } else {
            self.push(Message::Reply(Box::new(send)));
        }
    }

    /// Sends a call, or whatever else is written at once.
    pub(crate) fn call(self: &Rc<Self>, send: impl FnOnce() + 'static) {
        if self.is_open() && self.reply_was_taken() {
            send();
        } else {
            self.push(Message::Call(Box::new(send)));
            self.pump();
        }
    }

    /// The writes that aren't sealed will not be made: takes back what waits for them.
    pub(crate) fn discard_unsealed(&self) {
        self.written.set(self.written.get().min(self.sealed.get()));
        let kept = self.queue.borrow().partition_point(|(ticket, _)| *ticket <= self.sealed.get());
        let discarded = self.queue.borrow_mut().split_off(kept);
        // Dropping a message tells its caller, who may well come back here.
        drop(discarded);
    }

    fn is_open(&self) -> bool {
        self.written.get() <= self.durable.get()
            && !self.held.get()
            && self.queue.borrow().is_empty()
    }

    fn push(&self, message: Message<R>) {
        self.queue.borrow_mut().push_back((self.written.get(), message));
    }

    fn replied(&self, receipt: Option<R>) {
        if let Some(receipt) = receipt {
            *self.last_reply.borrow_mut() = Some(receipt);
        }
    }

    fn reply_was_taken(&self) -> bool {
        let mut last = self.last_reply.borrow_mut();
        let taken = last.as_mut().is_none_or(|receipt| receipt.now_or_never().is_some());
        if taken {
            *last = None;
        }
        taken
    }

    fn next(&self) -> Option<Message<R>> {
        let mut queue = self.queue.borrow_mut();
        let ready = queue.front().is_some_and(|(ticket, _)| *ticket <= self.durable.get());
        if ready { queue.pop_front().map(|(_, message)| message) } else { None }
    }

    fn pump(self: &Rc<Self>) {
        while !self.held.get() {
            match self.next() {
                None => return,
                Some(Message::Reply(send)) => self.replied(contain(send).flatten()),
                Some(Message::Call(send)) if self.reply_was_taken() => drop(contain(send)),
                Some(Message::Call(send)) => self.hold(send),
            }
        }
    }

    /// Lets the last reply go first. The task ends when that was taken or its connection ended.
    fn hold(self: &Rc<Self>, send: Box<dyn FnOnce()>) {
        self.held.set(true);
        let gate = self.clone();
        tokio::task::spawn_local(async move {
            let receipt = gate.last_reply.borrow_mut().take();
            if let Some(receipt) = receipt {
                receipt.await;
            }
            contain(send);
            gate.held.set(false);
            gate.pump();
        });
    }
}

/// A panic in whatever a message leads to is the end of that message, and not of the gate.
fn contain<T>(send: impl FnOnce() -> T) -> Option<T> {
    let sent = std::panic::catch_unwind(AssertUnwindSafe(send));
    sent.inspect_err(|_| tracing::error!("sending a message panicked; it is lost")).ok()
}
