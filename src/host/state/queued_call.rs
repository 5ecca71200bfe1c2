//! A call that a facet accepted: as it waits for its first poll, and its reply as it runs.

use std::collections::VecDeque;
use std::rc::Rc;

use capstead_client::Outlet;

use super::exclusive::Permit;
use super::facet::Facet;
use super::keeping::KeptAwake;
use super::scheduler::UnderWay;
use crate::error::not_begun;
use crate::membrane::{Call, Keeper, Reply};

/// A call that a facet accepted and that waits for its first poll.
pub(in crate::host) struct QueuedCall {
    pub(in crate::host) facet: Rc<Facet>,
    pub(in crate::host) call: Call,
    pub(in crate::host) under_way: UnderWay,
    /// An exclusive object runs no other call until this is dropped; none before its turn.
    pub(in crate::host) permit: Option<Permit>,
    pub(in crate::host) keeper: Rc<Keeper>,
    /// Keeps its object awake while it waits; none before it has to.
    pub(in crate::host) kept: Option<KeptAwake>,
    pub(in crate::host) passage: Passage,
}

impl QueuedCall {
    /// The outlet for which it has waited, if it comes back from there.
    pub(in crate::host) fn returned(&self) -> Option<Rc<Outlet>> {
        if self.passage != Passage::Returned {
            return None;
        }
        self.call.reply.outlet().cloned()
    }

    /// Answers a call that doesn't begin.
    pub(in crate::host) fn refuse(self, error: capnp::Error) {
        self.call.reply.keep(self.under_way);
        self.call.reply.send(Err(error));
    }
}

/// The stage of a call that waits for its caller to read; see
/// [`behind`](super::scheduler) and [`parked`](super::parked).
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::host) enum Passage {
    #[default]
    None,
    /// It is the first of those that wait for the same caller.
    Next,
    Passed,
    /// It then waited until its object was awake.
    Waited,
    /// It then waited for its caller once more, and is the first of those.
    Returned,
}

/// The reply owed to the caller of a call that is starting or runs.
pub(in crate::host) struct PendingReply {
    pub(in crate::host) reply: Reply,
    /// The facet on which the call was made.
    pub(in crate::host) facet: Rc<Facet>,
    pub(in crate::host) under_way: UnderWay,
    /// The next call of an exclusive object starts when this is dropped.
    pub(in crate::host) permit: Option<Permit>,
    /// Keeps the instance awake once the call has to wait.
    pub(in crate::host) kept: Option<KeptAwake>,
}

/// Takes the replies of calls that were cut; the calls stay where they are, and end without one.
pub(in crate::host) fn take_cut<'a>(
    waiting: impl IntoIterator<Item = &'a mut QueuedCall>,
    cut: &mut Vec<Reply>,
) {
    for queued in waiting {
        if queued.facet.right.is_cut() {
            cut.push(queued.call.reply.take());
        }
    }
}

/// The calls on sockets among those that had not begun when their instance ended: the next instance
/// may have them. The others are told why.
pub(in crate::host) fn split_off_sockets(
    calls: impl IntoIterator<Item = QueuedCall>,
    why: impl Fn() -> capnp::Error,
) -> VecDeque<QueuedCall> {
    let mut kept = VecDeque::new();
    for queued in calls {
        if queued.facet.is_of_socket() {
            kept.push_back(queued);
        } else {
            queued.refuse(not_begun(why()));
        }
    }
    kept
}
