//! The guard between the wire and the RPC system, and the only `VatNetwork`.
//!
//! The RPC system trusts its peer too far: it has no limits, and a `Finish` that comes before the
//! `Return` makes it forget the call without answering, so that both ends keep its number for ever.
//! The guard looks at each message once, in passing, and never changes or repeats one. It holds such
//! a `Finish` back until the `Return` is out. Over a soft limit it lets calls wait, and what comes
//! behind them; when enough waits it reads no more, so that the peer can't send. What no honest peer
//! sends, and what goes over a hard limit, ends the connection here.
//!
//! **Invariant:** a held `Finish` is delivered before any later message.
//! **Invariant:** messages are delivered in the order in which they came, except that a `Return` may
//! overtake what waits and doesn't concern it.

mod chains;
mod exports;
pub(crate) mod limits;
mod network;
mod queue;
mod scatter;
mod tables;

use crate::wire::{Incoming, Wire, cost, lost};
use capnp::Error;
use capnp::capability::Promise;
use capnp::message::{Builder, HeapAllocator};
use capnp_rpc::rpc_capnp::{exception, message};
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{Connection, IncomingMessage, VatNetwork};
use limits::{BURST, Bites, Limit, Limits, Refusal};
use network::{Guarded, Received, Shared};
use queue::{Calls, Queue};
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tables::{Fate, Sent, Tables};
use tokio::io::{AsyncRead, AsyncWrite};

type Message = Box<dyn IncomingMessage>;

/// The state of one connection, shared by the RPC system's side and the task that drives it.
pub(crate) struct State<S> {
    wire: Wire<S>,
    limits: Limits,
    bites: Arc<Bites>,
    tables: Tables,
    /// What came and waits for a soft limit.
    queue: Queue,
    /// So much waits that nothing more is read, for now.
    pauses: bool,
    /// Finishes whose turn has come.
    ready: VecDeque<Message>,
    /// Messages both ways, and answers that went out, since the beginning.
    messages: u64,
    answered: u64,
    /// Whoever waits for a message.
    reader: Option<Waker>,
    /// The task that drives the connection, unless it is running: it writes after each poll.
    driver: Option<Waker>,
    /// Why reading fails from now on.
    broken: Option<Error>,
    /// Why the RPC system gave the connection up.
    closing: Option<Error>,
}

/// What may not stay as it is for long: it bites when nothing changes in this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Watched {
    pub(crate) limit: Limit,
    pub(crate) time: Duration,
    /// Another one means that something changed.
    pub(crate) progress: u64,
    /// What didn't happen, with the time behind it.
    what: &'static str,
}

impl<S: AsyncRead + AsyncWrite + Unpin> State<S> {
    pub(crate) fn new(stream: S, limits: Limits, bites: Arc<Bites>) -> Self {
        Self {
            wire: Wire::new(stream, limits.message_bytes, limits.reader_options()),
            limits,
            bites,
            tables: Tables::default(),
            queue: Queue::default(),
            pauses: false,
            ready: VecDeque::new(),
            messages: 0,
            answered: 0,
            reader: None,
            driver: None,
            broken: None,
            closing: None,
        }
    }

    /// The driver runs: nothing that is sent need wake it.
    pub(crate) fn driver_runs(&mut self) {
        self.driver = None;
    }

    /// Writes what was sent. Ready with the reason when the connection is over and all is written.
    pub(crate) fn poll_write(&mut self, cx: &mut Context) -> Poll<Error> {
        self.wire.rest();
        let flushed = self.wire.poll_flush(cx);
        self.driver = Some(cx.waker().clone());
        if let Poll::Ready(Err(error)) = &flushed {
            self.break_with(lost(error));
            return self.closing.take().map_or(Poll::Pending, Poll::Ready);
        }
        if flushed.is_ready() && self.closing.is_some() {
            // What the peer makes of it changes nothing here.
            let _ = ready!(self.wire.poll_shutdown(cx));
            return self.closing.take().map_or(Poll::Pending, Poll::Ready);
        }
        self.check_unsent(self.limits.unsent_bytes);
        self.go_on();
        Poll::Pending
    }

    /// The RPC system failed: the peer is told why, and what is written goes out, nothing else.
    pub(crate) fn give_up(&mut self, reason: Error) {
        if self.closing.is_none() {
            self.wire.push(&abort(&reason.extra));
            self.closing = Some(reason);
        }
    }

    /// Closes the stream, and forgets what waits.
    pub(crate) fn close(&mut self) {
        self.wire.close();
        self.tables = Tables::default();
        self.queue = Queue::default();
        self.ready.clear();
    }

    /// Why the RPC system gave the connection up, if it did.
    pub(crate) fn closing(&self) -> Option<&Error> {
        self.closing.as_ref()
    }

    /// What may not last, as things are.
    pub(crate) fn watched(&self) -> Option<Watched> {
        if self.broken.is_some() || self.closing.is_some() {
            return None;
        }
        let Limits { slow_reader, stall, idle, .. } = self.limits;
        let reads = (self.wire.pending_bytes() > 0).then(|| self.wire.progress());
        let answers = (!self.queue.is_empty()).then_some(self.answered);
        // What isn't read here may well be unfinished.
        let sends = self.wire.unfinished().filter(|_| !self.pauses);
        let messages = self.tables.are_empty().then_some(self.messages);
        let waits = "calls wait, and none of those before was answered in";
        let all = [
            (Limit::SlowReader, slow_reader, "the peer read nothing for", reads),
            (Limit::Stall, stall, waits, answers),
            (Limit::SlowReader, slow_reader, "the peer sent no more of a message for", sends),
            (Limit::Idle, idle, "the connection was idle for", messages),
        ];
        all.into_iter().find_map(|(limit, time, what, progress)| {
            let progress = progress.filter(|_| time < Duration::MAX)?;
            Some(Watched { limit, time, progress, what })
        })
    }

    /// What is watched lasted too long: ends the connection.
    pub(crate) fn lasted(&mut self, watched: Watched) {
        let Watched { limit, time, what, .. } = watched;
        let reason = format!("{what} {time:?}");
        let error = self.refuse(Refusal::Over(limit, reason));
        self.break_with(error);
    }

    fn poll_next(&mut self, cx: &mut Context) -> Poll<capnp::Result<Option<Message>>> {
        loop {
            // First of all: the peer may use the number again as soon as it has the `Return`.
            if let Some(finish) = self.ready.pop_front() {
                return Poll::Ready(Ok(Some(finish)));
            }
            if let Some(error) = &self.broken {
                return Poll::Ready(Err(error.clone()));
            }
            let next = match self.take_next(cx) {
                Poll::Ready(Ok(Some(incoming))) => self.deliver(incoming),
                Poll::Ready(Ok(None)) => return Poll::Ready(Ok(None)),
                Poll::Ready(Err(refusal)) => Err(refusal),
                Poll::Pending => {
                    self.reader = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            };
            match next {
                Ok(None) => {}
                Ok(message) => return Poll::Ready(Ok(message)),
                Err(refusal) => return Poll::Ready(Err(self.refuse(refusal))),
            }
        }
    }

    /// The next message whose turn it is: of those that wait, else from the wire.
    fn take_next(&mut self, cx: &mut Context) -> Poll<Result<Option<Incoming>, Refusal>> {
        loop {
            let calls = if self.soft_limit().is_some() { Calls::Wait } else { Calls::Begin };
            if let Some(waited) = self.queue.pop(calls) {
                self.pauses = false;
                return Poll::Ready(Ok(Some(waited)));
            }
            if self.is_full()? {
                return Poll::Pending;
            }
            let Some(incoming) = ready!(self.wire.poll_read(cx))? else {
                return Poll::Ready(Ok(None));
            };
            if !self.has_to_wait(&incoming)? {
                return Poll::Ready(Ok(Some(incoming)));
            }
            self.queue.push(incoming, self.limits.capabilities)?;
        }
    }

    /// Nothing more is read now. What somebody here waits for may be behind what is too much: that is
    /// read, but not for ever.
    fn is_full(&mut self) -> Result<bool, Refusal> {
        let (bytes, max) = (self.queue.bytes(), self.limits.queued_bytes);
        let pauses = bytes >= max && !self.tables.waits_for_peer();
        if pauses && !self.pauses {
            self.bites.count(Limit::QueuedBytes);
        }
        self.pauses = pauses;
        if !pauses && bytes >= max.saturating_mul(BURST) {
            let reason = "too much waits while the peer has calls to answer";
            return Refusal::over(Limit::QueuedBytes, reason);
        }
        Ok(pauses)
    }

    /// Which soft limit the connection is at: calls wait then.
    fn soft_limit(&self) -> Option<Limit> {
        let (open, bytes) = self.tables.open();
        if open >= self.limits.calls {
            Some(Limit::Calls)
        } else if bytes > self.limits.call_bytes {
            Some(Limit::CallBytes)
        } else if self.wire.pending_bytes() > self.limits.unread_bytes {
            Some(Limit::UnreadBytes)
        } else {
            None
        }
    }

    fn has_to_wait(&self, incoming: &Incoming) -> Result<bool, Refusal> {
        let limit = self.soft_limit();
        if limit.is_none() && self.queue.is_empty() {
            return Ok(false);
        }
        match incoming.get_root::<message::Reader>()?.which() {
            Ok(message::Call(_)) => {
                if let (Some(limit), true) = (limit, self.queue.is_empty()) {
                    self.bites.count(limit);
                }
                Ok(true)
            }
            Ok(message::Return(answer)) => {
                let is_known = |id| self.tables.has_import(id);
                self.queue.concerns(answer?, self.limits.capabilities, is_known)
            }
            _ => Ok(!self.queue.is_empty()),
        }
    }

    /// Lets a message pass, or keeps it.
    fn deliver(&mut self, incoming: Incoming) -> Result<Option<Message>, Refusal> {
        self.messages += 1;
        let fate = self.tables.receive(incoming.get_root()?, cost(&incoming), &self.limits)?;
        let message = Box::new(Received(incoming));
        match fate {
            Fate::Delivered => Ok(Some(message)),
            Fate::Held(held) => self.tables.hold(held, message).map(|()| None),
        }
    }

    fn send(&mut self, message: &Builder<HeapAllocator>) {
        let Ok(body) = message.get_root_as_reader::<message::Reader>() else { return };
        // Of what is broken the peer is told why, and nothing more.
        let is_last = matches!(body.which(), Ok(message::Abort(_)));
        if self.closing.is_some() || self.broken.is_some() && !is_last {
            return;
        }
        self.messages += 1;
        self.wire.push(message);
        match self.tables.send(body) {
            Ok(Sent::Return(finish)) => {
                self.answered += 1;
                if finish.is_some() {
                    self.ready.extend(finish);
                    wake(&mut self.reader);
                }
                self.go_on();
            }
            Ok(Sent::Other) => {}
            Err(error) => self.break_with(error),
        }
        if self.tables.exports() > self.limits.exports {
            self.bite(Limit::Exports, "the peer holds too many capabilities");
        }
        if self.tables.questions() > self.limits.questions {
            self.bite(Limit::Questions, "the peer leaves too many calls without an answer");
        }
        // What is made at once may be more than what may stay.
        self.check_unsent(self.limits.unsent_bytes.saturating_mul(BURST));
        if self.pauses && self.tables.waits_for_peer() {
            wake(&mut self.reader);
        }
        wake(&mut self.driver);
    }

    fn check_unsent(&mut self, max: usize) {
        if self.wire.pending_bytes() > max {
            self.bite(Limit::UnsentBytes, "the peer doesn't read what is sent");
        }
    }

    /// Ends the connection by what was sent on it.
    fn bite(&mut self, limit: Limit, reason: &str) {
        if self.broken.is_none() && self.closing.is_none() {
            let error = self.refuse(Refusal::Over(limit, reason.into()));
            self.break_with(error);
        }
    }

    /// What waits may have its turn now.
    fn go_on(&mut self) {
        if !self.queue.is_empty() && self.soft_limit().is_none() {
            wake(&mut self.reader);
        }
    }

    /// Counts why a message isn't let through, and says it as the peer will read it.
    fn refuse(&self, refusal: Refusal) -> Error {
        match refusal {
            Refusal::Over(limit, reason) => {
                self.bites.count(limit);
                Error::disconnected(reason)
            }
            Refusal::Malformed(error) if error.kind == capnp::ErrorKind::Disconnected => error,
            Refusal::Malformed(error) => {
                Error::disconnected(format!("a message can't be read: {error}"))
            }
        }
    }

    fn break_with(&mut self, error: Error) {
        self.broken.get_or_insert(error);
        wake(&mut self.reader);
    }

    #[cfg(test)]
    pub(crate) fn counts(&self) -> Counts {
        self.tables.counts()
    }
}

/// What is in the tables of a connection: for tests.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) answers: usize,
    pub(crate) held: usize,
    pub(crate) questions: usize,
    pub(crate) exports: usize,
    pub(crate) imports: usize,
    pub(crate) chained: usize,
}

/// Tells the peer that the connection is over, and why.
pub(crate) fn abort(reason: &str) -> Builder<HeapAllocator> {
    let mut message = Builder::new_default();
    let mut abort = message.init_root::<message::Builder>().init_abort();
    abort.set_type(exception::Type::Disconnected);
    abort.set_reason(reason);
    message
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// A network of two: one connection that is there from the start.
pub(crate) struct Guard<S> {
    state: Shared<S>,
    side: Side,
    accepted: bool,
}

impl<S> Guard<S> {
    pub(crate) fn new(state: Shared<S>, side: Side) -> Self {
        Self { state, side, accepted: false }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + 'static> VatNetwork<Side> for Guard<S> {
    fn connect(&mut self, peer: Side) -> Option<Box<dyn Connection<Side>>> {
        let state = self.state.clone();
        (peer != self.side).then(|| Box::new(Guarded { state, side: self.side }) as _)
    }

    fn accept(&mut self) -> Promise<Box<dyn Connection<Side>>, Error> {
        if std::mem::replace(&mut self.accepted, true) {
            return Promise::from_future(std::future::pending());
        }
        Promise::ok(Box::new(Guarded { state: self.state.clone(), side: self.side }))
    }

    /// The task of the connection decides when it is over, not the RPC system.
    fn drive_until_shutdown(&mut self) -> Promise<(), Error> {
        Promise::from_future(std::future::pending())
    }
}

#[cfg(test)]
mod callback_tests;
#[cfg(test)]
mod tests;
