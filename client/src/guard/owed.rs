//! Answers that the peer owes. Code that made a call may want to know when it was answered, even
//! after the caller no longer takes the answer.
//!
//! The RPC system doesn't report an answer whose caller is gone. Code that passes calls on has to
//! know about it all the same: as long as a call runs, it counts for the peer from which it came.

use super::callers::Receipt;
use std::cell::Cell;
use std::rc::Rc;

/// Waits for an answer, no matter which.
pub trait Owed {
    /// The answer has come, or the connection has ended. This is called in the middle of the
    /// connection's work: it may wake a task, and do nothing else.
    fn answered(&self);

    /// The answer that comes has a receipt, which must be dropped when the answer was passed on.
    /// This is called before [`answered`](Self::answered), under the same rule.
    fn owes_receipt(&self, receipt: Receipt) {
        drop(receipt);
    }
}

thread_local! {
    /// The receiver of the news about the call that is being sent.
    static SENT: Cell<Option<Rc<dyn Owed>>> = const { Cell::new(None) };
}

/// Tells `owed` when the call that `send` makes is answered. The second value says whether `owed`
/// will be told, which is so if the call went out over a connection.
pub fn with_owed<T>(owed: Rc<dyn Owed>, send: impl FnOnce() -> T) -> (T, bool) {
    /// Clears `SENT`, even if `send` panics.
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

/// Tells its `Owed` when dropped, which happens together with the call that it belongs to.
#[derive(Default)]
pub(super) struct Debt(Option<Rc<dyn Owed>>);

impl Debt {
    /// The debt of the call that is being sent.
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
