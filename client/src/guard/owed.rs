//! Answers that the peer owes: who made a call may want to know when it was answered, even after nobody
//! takes the answer any more.
//!
//! The RPC system tells nobody of an answer whose caller has left. Whoever passes calls on has to know it
//! all the same: as long as the call runs, it counts for the peer from which it came.

use super::callers::Receipt;
use std::cell::Cell;
use std::rc::Rc;

/// Waits for an answer, whatever it is.
pub trait Owed {
    /// The answer is there, or the connection is over. Told in the midst of the connection's work: it may
    /// wake somebody, and nothing else.
    fn answered(&self);

    /// The answer comes, and who sent it is to be told when it was passed on: when the receipt is dropped. Told
    /// before, in the same way.
    fn owes_receipt(&self, receipt: Receipt) {
        drop(receipt);
    }
}

thread_local! {
    /// The one who waits for the answer to the call that is being sent.
    static SENT: Cell<Option<Rc<dyn Owed>>> = const { Cell::new(None) };
}

/// Tells `owed` when the call is answered that `send` makes. The second value: whether it will be told, since
/// the call went out over a connection.
pub fn with_owed<T>(owed: Rc<dyn Owed>, send: impl FnOnce() -> T) -> (T, bool) {
    /// Leaves nothing behind, even if `send` panics.
    struct Reset;

    impl Drop for Reset {
        fn drop(&mut self) {
            SENT.take();
        }
    }

    SENT.set(Some(owed));
    let _reset = Reset;
    let sent = send();
    let is_left = SENT.take().is_some();
    (sent, !is_left)
}

/// Tells whoever waits when it is dropped, as it is with the call that it belongs to.
#[derive(Default)]
pub(super) struct Debt(Option<Rc<dyn Owed>>);

impl Debt {
    /// That of the call which is being sent.
    pub(super) fn of_sent() -> Self {
        Self(SENT.take())
    }

    pub(super) fn owes_receipt(&self, receipt: Receipt) {
        if let Some(owed) = &self.0 {
            owed.owes_receipt(receipt);
        }
    }
}

impl Drop for Debt {
    fn drop(&mut self) {
        if let Some(owed) = self.0.take() {
            owed.answered();
        }
    }
}
