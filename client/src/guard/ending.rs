//! The end of a connection: each peer can read why, and which of its calls never began.

use std::task::{Context, Poll};
use std::time::Duration;

use capnp::Error;
use tokio::io::{AsyncRead, AsyncWrite};

use super::pipelines::Pipelines;
use super::{State, abort, made};
use crate::reason::Reason;

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

    /// Tells whether the stream has to be drained before it is closed, so that the peer can read
    /// the reason.
    pub(crate) fn owes_reason(&self) -> bool {
        self.owes_reason
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
