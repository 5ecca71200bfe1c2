//! The end of a connection: each peer can read the reason, and learn which of its calls never
//! began.

use std::task::{Context, Poll, ready};
use std::time::Duration;

use capnp::Error;
use capnp_rpc::rpc_capnp::message;
use tokio::io::{AsyncRead, AsyncWrite};

use super::pipelines::Pipelines;
use super::{GuardState, abort, made, wake};
use crate::limits::Rejection;
use crate::reason::Reason;
use crate::wire::ReceivedMessage;

/// The messages that the peer should read before the stream is closed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Farewell {
    None,
    /// The last answers of a connection that ends in order.
    Answers,
    /// The reason: the rule or limit that the peer broke.
    Reason,
}

impl<S: AsyncRead + AsyncWrite + Unpin> GuardState<S> {
    /// The RPC system failed: tells the peer why, after what is already written, and sends nothing
    /// else.
    pub(crate) fn give_up(&mut self, reason: Error) {
        if self.closing.is_none() {
            self.wire.push(&abort(&reason.extra));
            self.closing = Some(reason);
        }
    }

    /// Ends the connection so that the peer can tell its calls apart: each call that was read here
    /// is answered with `reason`, and a call left without an answer was never read.
    pub(crate) fn end_in_order(&mut self, reason: Error) {
        if self.closing.is_some() {
            return;
        }
        let read = self.tables.waiting().filter(|call| !Pipelines::is_own(*call));
        for call in read.filter(|call| !self.reflections.has(*call)) {
            self.wire.push(&made::disconnected(call, &reason.extra));
        }
        self.wire.push(&abort(&Reason::NotBegun.error(&reason.extra).extra));
        self.closing = Some(reason);
        if self.farewell == Farewell::None {
            self.farewell = Farewell::Answers;
        }
    }

    /// Nothing more can be sent, usually because the peer has closed the connection. Messages that
    /// it sent before are here or on their way, and answers among them are read before the
    /// connection ends. The stream then ends by itself.
    pub(super) fn end_behind_answers(&mut self, error: Error) {
        if self.is_stranger || !self.tables.waits_for_peer() {
            return self.break_with(error);
        }
        self.wire.discard();
        self.unwritable.get_or_insert(error);
        wake(&mut self.reader);
    }

    /// The next answer from a peer to which nothing can be sent. Other messages would need a reply,
    /// and are skipped.
    pub(super) fn take_answer(
        &mut self,
        cx: &mut Context,
    ) -> Poll<Result<Option<ReceivedMessage>, Rejection>> {
        loop {
            let Some(error) = self.unwritable.clone() else { return Poll::Pending };
            match ready!(self.wire.poll_read(cx)) {
                Ok(Some(incoming)) if is_answer(&incoming) => {
                    return Poll::Ready(Ok(Some(incoming)));
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// From now on the peer has this much time to read some of the bytes that wait for it.
    pub(crate) fn hurry(&mut self, time: Duration) {
        self.limits.slow_reader = self.limits.slow_reader.min(time);
        self.hurry = Some(time);
    }

    pub(crate) fn is_hurried(&self) -> bool {
        self.hurry.is_some()
    }

    /// Bytes written since the connection began.
    pub(crate) fn written(&self) -> u64 {
        self.wire.progress()
    }

    /// Tells whether the peer broke a rule or limit, and has to read which.
    pub(crate) fn owes_reason(&self) -> bool {
        self.farewell == Farewell::Reason
    }

    /// Tells whether the stream must be drained before it is closed. Closing it while the peer
    /// still sends resets it, and then the peer loses the answers that it hasn't read.
    pub(crate) fn has_to_drain(&self) -> bool {
        self.farewell != Farewell::None
    }

    /// Ready when the peer has closed its side, or no more is to be read from it.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context) -> Poll<()> {
        let drained = self.wire.poll_drain(cx);
        self.hold_the_rest();
        drained
    }

    /// Counts only the bytes that are still to be sent, because the connection has ended.
    pub(super) fn hold_the_rest(&mut self) {
        // That is less than before, so it can't be refused.
        self.share.hold(self.wire.held(), usize::MAX);
    }
}

fn is_answer(message: &ReceivedMessage) -> bool {
    let root = message.get_root::<message::Reader>().and_then(|root| Ok(root.which()?));
    matches!(root, Ok(message::Return(_) | message::Abort(_)))
}
