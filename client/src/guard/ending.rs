//! The end of a connection: each peer can read why, and which of its calls never began.

use std::task::{Context, Poll, ready};
use std::time::Duration;

use capnp::Error;
use capnp_rpc::rpc_capnp::message;
use tokio::io::{AsyncRead, AsyncWrite};

use super::limits::Refusal;
use super::pipelines::Pipelines;
use super::{State, abort, made, wake};
use crate::reason::Reason;
use crate::wire::Incoming;

/// The part of what was sent that the peer is to read before the stream is closed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Farewell {
    None,
    /// The last answers of a connection that ends in order.
    Answers,
    /// The rule or the limit that the peer broke.
    Reason,
}

impl<S: AsyncRead + AsyncWrite + Unpin> State<S> {
    /// The RPC system failed: the peer is told why, and what is written goes out, nothing else.
    pub(crate) fn give_up(&mut self, reason: Error) {
        if self.closing.is_none() {
            self.wire.push(&abort(&reason.extra));
            self.closing = Some(reason);
        }
    }

    /// Ends the connection so that the peer can tell its calls apart: those that were read here are told
    /// `reason` one by one, and what is left without an answer then was never read.
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

    /// Nothing more can be sent, mostly because the peer has closed the connection. What it sent before that
    /// is here or on its way, answers among it: these are read before the connection is over. The stream
    /// then ends by itself.
    pub(super) fn end_behind_answers(&mut self, error: Error) {
        if self.is_stranger || !self.tables.waits_for_peer() {
            return self.break_with(error);
        }
        self.wire.discard();
        self.unwritable.get_or_insert(error);
        wake(&mut self.reader);
    }

    /// The next answer of a peer to which nothing can be sent. All else would ask for something.
    pub(super) fn take_answer(
        &mut self,
        cx: &mut Context,
    ) -> Poll<Result<Option<Incoming>, Refusal>> {
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

    /// From now on the peer has so much time to read something of what waits for it.
    pub(crate) fn hurry(&mut self, time: Duration) {
        self.limits.slow_reader = self.limits.slow_reader.min(time);
        self.hurry = Some(time);
    }

    pub(crate) fn is_hurried(&self) -> bool {
        self.hurry.is_some()
    }

    /// The bytes that went out since the beginning.
    pub(crate) fn written(&self) -> u64 {
        self.wire.progress()
    }

    /// Tells whether the peer broke a rule or a limit, and is to read which.
    pub(crate) fn owes_reason(&self) -> bool {
        self.farewell == Farewell::Reason
    }

    /// Tells whether the stream has to be drained before it is closed. Closing it while the peer still sends
    /// resets it, and a peer whose connection was reset loses the answers that it hasn't read.
    pub(crate) fn has_to_drain(&self) -> bool {
        self.farewell != Farewell::None
    }

    /// Ready when the peer has closed its side, or can't be read any more.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context) -> Poll<()> {
        let drained = self.wire.poll_drain(cx);
        self.hold_the_rest();
        drained
    }

    /// Of a connection that is over, what it still has to send is all that counts.
    pub(super) fn hold_the_rest(&mut self) {
        // It is less than before.
        self.share.hold(self.wire.held(), usize::MAX);
    }
}

fn is_answer(message: &Incoming) -> bool {
    let root = message.get_root::<message::Reader>().and_then(|root| Ok(root.which()?));
    matches!(root, Ok(message::Return(_) | message::Abort(_)))
}
