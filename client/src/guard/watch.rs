//! States of a connection that must not last too long.

use super::GuardState;
use crate::limits::{Limit, Limits, Rejection};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// A limit that is hit when the progress doesn't change in this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Watched {
    pub(crate) limit: Limit,
    pub(crate) time: Duration,
    /// A different value means progress.
    pub(crate) progress: u64,
    /// A description of the missing event, to be followed by the time.
    what: &'static str,
}

impl<S: AsyncRead + AsyncWrite + Unpin> GuardState<S> {
    /// The state that must not last, if the connection is in one now.
    pub(crate) fn watched(&self) -> Option<Watched> {
        if !self.is_open() {
            return None;
        }
        let Limits { slow_reader, stall, idle, rate, silence, .. } = self.limits;
        // A byte now and then is no progress: each step takes this many.
        let step = slow_reader.as_secs().saturating_mul(rate as u64).max(1);
        let reads = (self.wire.pending_bytes() > 0).then(|| self.wire.progress() / step);
        let answers = (!self.queue.is_empty()).then_some(self.answered);
        // A message that isn't read here may well look unfinished.
        let sends = self.wire.unfinished(step).filter(|_| !self.pauses);
        let messages = self.tables.are_empty().then_some(self.messages);
        let owes = self.tables.waits_for_peer().then_some(self.messages);
        let waits = "calls wait, and none of those before was answered in";
        let all = [
            (Limit::SlowReader, slow_reader, "the peer read too little for", reads),
            (Limit::Stall, stall, waits, answers),
            (Limit::SlowReader, slow_reader, "the peer sent too little of a message for", sends),
            (Limit::Silence, silence, "the peer has calls to answer, and sent nothing for", owes),
            (Limit::Idle, idle, "the connection was idle for", messages),
        ];
        all.into_iter().find_map(|(limit, time, what, progress)| {
            let progress = progress.filter(|_| time < Duration::MAX)?;
            Some(Watched { limit, time, progress, what })
        })
    }

    /// Ends the connection, because the watched state lasted too long.
    pub(crate) fn lasted(&mut self, watched: Watched) {
        let Watched { limit, time, what, .. } = watched;
        let reason = format!("{what} {time:?}");
        let error = self.refuse(Rejection::Over(limit, reason));
        self.break_with(error);
    }
}
