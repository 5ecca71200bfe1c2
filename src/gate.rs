//! The output gate: nothing leaves an object before every write that it made before is durable.
//!
//! Invariants:
//! - Messages leave in the order in which they were given to the gate.
//! - The tickets of waiting messages never decrease from one to the next.
//! - When nothing is pending, a message leaves before the method that takes it returns.
//! - A call is never written before an earlier reply. capnp-rpc writes a call at once, but a reply
//!   only when its connection's task polls it, and so takes it: a call waits until all earlier
//!   replies were taken.
//! - No call waits without end: a reply to a connection that ended may never be taken, so a call
//!   waits for [`ROUNDS`] at most.
//! - After a failed commit it never opens again: waiting messages are dropped with the instance.
//!
//! It never looks into a message, and never waits for writes made after the message.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::task::Poll;

use crate::storage::Ticket;

/// The rounds in which other tasks run before a held call gives up on replies. Two are enough for a
/// live connection, whose task was woken already; others may keep the promise of a reply whose
/// connection ended, and never poll it.
const ROUNDS: usize = 8;

/// The gate of one instance.
pub(crate) struct Gate {
    /// The last write of the instance, submitted or not.
    written: Cell<Ticket>,
    /// The last write of the instance whose turn has ended.
    submitted: Cell<Ticket>,
    /// All writes up to this one are durable.
    durable: Cell<Ticket>,
    queue: RefCell<VecDeque<(Ticket, Message)>>,
    replies: RefCell<Rc<Replies>>,
    /// Set while a task holds a call until all replies before it were taken.
    held: Cell<bool>,
}

enum Message {
    Reply(Box<dyn FnOnce(OnItsWay)>),
    Call(Box<dyn FnOnce()>),
}

/// The number of replies that have left the gate and were not taken by their connections.
type Replies = Cell<usize>;

/// A reply keeps this until it is taken; the gate's next call waits for that.
pub(crate) struct OnItsWay(Rc<Replies>);

impl Drop for OnItsWay {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Gate {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            written: Cell::default(),
            submitted: Cell::default(),
            durable: Cell::default(),
            queue: RefCell::default(),
            replies: RefCell::default(),
            held: Cell::default(),
        })
    }

    /// The instance made a write: messages from now on wait for `ticket`.
    pub(crate) fn wrote(&self, ticket: Ticket) {
        self.written.set(ticket);
    }

    /// The ticket for which the instance's messages wait now.
    pub(crate) fn written(&self) -> Ticket {
        self.written.get()
    }

    /// The writes after `ticket` were undone: messages sent since wait for `ticket` at most.
    pub(crate) fn back_to(self: &Rc<Self>, ticket: Ticket) {
        self.written.set(ticket);
        let mut queue = self.queue.borrow_mut();
        let waiting = queue.iter_mut().rev().take_while(|(later, _)| *later > ticket);
        waiting.for_each(|(later, _)| *later = ticket);
        drop(queue);
        self.pump();
    }

    /// The turn that wrote `ticket` has ended: its writes are on their way to the disk.
    pub(crate) fn turn_submitted(&self, ticket: Ticket) {
        self.submitted.set(ticket);
    }

    /// Everything up to `ticket` is durable: messages that wait for it, or for an earlier one,
    /// leave.
    pub(crate) fn open(self: &Rc<Self>, ticket: Ticket) {
        self.durable.set(self.durable.get().max(ticket));
        self.pump();
    }

    /// Sends a reply; `send` drops the token that it gets once the reply's connection has taken it.
    pub(crate) fn reply(self: &Rc<Self>, send: impl FnOnce(OnItsWay) + 'static) {
        if self.is_open() {
            let on_its_way = self.on_its_way();
            contain(|| send(on_its_way));
        } else {
            self.push(Message::Reply(Box::new(send)));
        }
    }

    /// Sends a call, or any other message that is written at once.
    pub(crate) fn call(self: &Rc<Self>, send: impl FnOnce() + 'static) {
        if self.is_idle() {
            contain(send);
        } else {
            self.push(Message::Call(Box::new(send)));
            self.pump();
        }
    }

    /// The writes that aren't submitted will not be made: drops the messages that wait for them.
    pub(crate) fn discard_unsubmitted(&self) {
        self.written.set(self.written.get().min(self.submitted.get()));
        let kept =
            self.queue.borrow().partition_point(|(ticket, _)| *ticket <= self.submitted.get());
        let discarded = self.queue.borrow_mut().split_off(kept);
        // Dropping a message tells its caller, which may call back into the gate.
        drop(discarded);
    }

    /// Tells whether nothing waits here or for a write.
    pub(crate) fn is_open(&self) -> bool {
        self.written.get() <= self.durable.get()
            && !self.held.get()
            && self.queue.borrow().is_empty()
    }

    /// Tells whether not even a call has to wait.
    fn is_idle(&self) -> bool {
        self.is_open() && self.were_taken()
    }

    fn were_taken(&self) -> bool {
        self.replies.borrow().get() == 0
    }

    fn on_its_way(&self) -> OnItsWay {
        let replies = self.replies.borrow();
        replies.set(replies.get() + 1);
        OnItsWay(replies.clone())
    }

    fn push(&self, message: Message) {
        self.queue.borrow_mut().push_back((self.written.get(), message));
    }

    fn next(&self) -> Option<Message> {
        let mut queue = self.queue.borrow_mut();
        let ready = queue.front().is_some_and(|(ticket, _)| *ticket <= self.durable.get());
        if ready { queue.pop_front().map(|(_, message)| message) } else { None }
    }

    fn pump(self: &Rc<Self>) {
        while !self.held.get() {
            match self.next() {
                None => return,
                Some(Message::Reply(send)) => {
                    let on_its_way = self.on_its_way();
                    contain(|| send(on_its_way));
                }
                Some(Message::Call(send)) if self.were_taken() => contain(send),
                Some(Message::Call(send)) => self.hold(send),
            }
        }
    }

    /// Holds a call until the replies before it are out. The task ends when they were taken, or
    /// their connections have ended.
    fn hold(self: &Rc<Self>, send: Box<dyn FnOnce()>) {
        self.held.set(true);
        let gate = self.clone();
        tokio::task::spawn_local(async move {
            for round in 0..ROUNDS {
                if round % 2 == 0 {
                    others_run().await;
                } else {
                    // This also lets the future under `block_on` run, but not all tasks if there
                    // are many.
                    tokio::task::yield_now().await;
                }
                if gate.were_taken() {
                    break;
                }
            }
            gate.replies.take(); // those that are left count no more
            contain(send);
            gate.held.set(false);
            gate.pump();
        });
    }
}

/// Lets every task run that is ready.
async fn others_run() {
    let mut was_last = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut was_last, true) {
            return Poll::Ready(());
        }
        // Woken now, this task is queued after all others that are ready.
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// A panic in the code that sends a message loses that message, and doesn't harm the gate.
fn contain(send: impl FnOnce()) {
    if std::panic::catch_unwind(AssertUnwindSafe(send)).is_err() {
        tracing::error!("sending a message panicked; it is lost");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Replies may be taken by different connections, in any order.
    #[test]
    fn a_call_leaves_after_all_replies_before_it_were_taken() {
        let runtime = tokio::runtime::LocalRuntime::new().unwrap();
        runtime.block_on(async {
            let (gate, taken) = (Gate::new(), Rc::new(RefCell::new(Vec::new())));
            for _ in 0..3 {
                let taken = taken.clone();
                gate.reply(move |on_its_way| taken.borrow_mut().push(on_its_way));
            }
            let has_left = Rc::new(Cell::new(false));
            let left = has_left.clone();
            gate.call(move || left.set(true));
            for at in [1, 0, 0] {
                tokio::task::yield_now().await;
                assert!(!has_left.get(), "{} replies are on their way", taken.borrow().len());
                drop(taken.borrow_mut().remove(at));
            }
            tokio::task::yield_now().await;
            assert!(has_left.get() && gate.is_idle());
        });
    }

    /// A promise of a connection that has ended may be kept and never polled. The object must soon
    /// be able to answer its other callers.
    #[test]
    fn a_reply_that_nobody_takes_holds_a_call_up_only_for_a_while() {
        let runtime = tokio::runtime::LocalRuntime::new().unwrap();
        runtime.block_on(async {
            let (gate, taken) = (Gate::new(), Rc::new(RefCell::new(Vec::new())));
            let kept = taken.clone();
            gate.reply(move |on_its_way| kept.borrow_mut().push(on_its_way));
            let left = Rc::new(Cell::new(0));
            let first = left.clone();
            gate.call(move || first.set(1));
            assert_eq!(left.get(), 0);
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
            assert_eq!(left.get(), 1);
            let second = left.clone();
            gate.call(move || second.set(2));
            assert_eq!(left.get(), 2, "it isn't waited for again");
            drop(taken);
            assert!(gate.is_idle());
        });
    }
}
