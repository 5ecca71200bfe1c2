//! The guard between the wire and the RPC system, and the only `VatNetwork`.
//!
//! The RPC system trusts its peer too far. It has no limits, and a `Finish` before the `Return`
//! makes it forget the call unanswered, so that the call's number stays in use at both ends. So the
//! guard looks at each message once, in passing, and holds such a `Finish` back until the `Return`
//! is out. Over a soft limit, calls wait and the messages after them; when enough waits it stops
//! reading, so that the peer can't send. Messages that no honest peer sends, or over a hard limit,
//! end the connection.
//!
//! It also speaks those parts of the protocol that the RPC system doesn't: promises
//! ([`receiving`]), [reflected calls](reflections), [pipelined calls](pipelines), [results that
//! come home](kept), and [too large messages](outgoing).
//!
//! **Invariant:** a held `Finish` is delivered before any later message.
//! **Invariant:** messages are delivered in the order in which they came, except that a `Return`
//! may overtake waiting messages that don't concern it.
//! **Invariant:** a capability's path never changes: no `Resolve` is sent, and a received one has
//! no effect. So each way from vat to vat is first in, first out, and calls keep their order.

pub(crate) mod budget;
pub(crate) mod callers;
mod ending;
mod exports;
pub(crate) mod hops;
mod kept;
mod made;
mod network;
pub(crate) mod outgoing;
pub(crate) mod outlet;
pub(crate) mod owed;
mod patch;
pub(crate) mod pipelines;
mod queue;
mod receiving;
mod reflections;
pub(crate) mod relayed;
mod scatter;
mod sending;
mod tables;
mod watch;

use crate::limits::{BURST, Bites, Limit, Limits, Rejection};
use crate::wire::{ReceivedMessage, Wire, lost};
use budget::{Budget, BudgetPart};
use callers::Callers;
use capnp::Error;
use capnp::capability::Client;
use capnp::private::capability::ClientHook;
use capnp_rpc::IncomingMessage;
use capnp_rpc::rpc_capnp::message;
use kept::KeptPaths;
pub(crate) use made::abort;
pub(crate) use network::Guard;
use outgoing::Replaced;
use outlet::Outlet;
use pipelines::{HeldCaps, Pipelines};
use queue::{Calls, MessageQueue};
use receiving::Changed;
use reflections::{Answered, Reflections};
use relayed::{Part, Relayed};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tables::Tables;
use tokio::io::{AsyncRead, AsyncWrite};
pub(crate) use watch::Watched;

type Message = Box<dyn IncomingMessage>;

/// The inputs that the RPC system gets before any other.
enum Ready {
    Message(Message),
    /// A message that was changed, and is checked when its turn comes.
    Changed(Changed),
    /// The `Finish` of a call that is answered by now.
    Finish(ReceivedMessage),
    /// The answer to a call of ours that was reflected.
    Reflected(Answered),
}

/// The state of one connection, shared by the RPC system's side and the task that drives it.
pub(crate) struct GuardState<S> {
    wire: Wire<S>,
    limits: Limits,
    bites: Arc<Bites>,
    /// This connection's share of the budget of all connections.
    share: BudgetPart,
    /// Set until one of the peer's calls succeeds that takes a reference.
    is_stranger: bool,
    tables: Tables,
    /// Received messages that wait for a soft limit.
    queue: MessageQueue,
    /// So much waits that reading has stopped for now.
    pauses: bool,
    ready: VecDeque<Ready>,
    pipelines: Pipelines,
    reflections: Reflections,
    replaced: Replaced,
    kept: KeptPaths,
    /// The bytes for the peer to read, for the code that starts its calls.
    outlet: Rc<Outlet>,
    /// The callers whose calls another part of this system passes on, each with an outlet of its
    /// own.
    callers: Callers,
    /// Its part of the unsent bytes of several connections that pass on to each other.
    relayed: Option<Part>,
    /// Messages both ways, and answers sent, since the connection began.
    messages: u64,
    answered: u64,
    /// The waker of the task that waits for a message.
    reader: Option<Waker>,
    /// The task that drives the connection, unless it is running: it writes after each poll.
    driver: Option<Waker>,
    /// The error with which reading fails from now on.
    broken: Option<Error>,
    /// The reason why nothing more can be sent, while answers still come.
    unwritable: Option<Error>,
    /// The reason why the RPC system gave the connection up.
    closing: Option<Error>,
    farewell: ending::Farewell,
    /// The time that the peer has to read something, if the end is near.
    hurry: Option<Duration>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> GuardState<S> {
    pub(crate) fn new(stream: S, limits: Limits, bites: Arc<Bites>) -> Self {
        Self {
            wire: Wire::new(stream, limits.message_bytes, limits.reader_options()),
            limits,
            bites,
            share: BudgetPart::default(),
            is_stranger: false,
            tables: Tables::default(),
            queue: MessageQueue::default(),
            pauses: false,
            ready: VecDeque::new(),
            pipelines: Pipelines::new(),
            reflections: Reflections::default(),
            replaced: Replaced::default(),
            kept: KeptPaths::default(),
            outlet: Outlet::new(limits.unread_bytes),
            callers: Callers::default(),
            relayed: None,
            messages: 0,
            answered: 0,
            reader: None,
            driver: None,
            broken: None,
            unwritable: None,
            closing: None,
            farewell: ending::Farewell::None,
            hurry: None,
        }
    }

    /// The state for a peer that is a stranger, on a connection that shares a budget.
    pub(crate) fn of_stranger(mut self, budget: Budget) -> Self {
        self.share = BudgetPart::of(budget);
        self.is_stranger = true;
        self.wire.leave_larger(self.limits.stranger_message_bytes);
        self
    }

    /// The state for one of several connections that pass on to each other the messages they read.
    pub(crate) fn one_of(mut self, all: Relayed) -> Self {
        self.relayed = Some(Part::of(all));
        self
    }

    /// The time that the peer has to show a reference, if it has not shown one yet.
    pub(crate) fn stranger_time(&self) -> Option<Duration> {
        let time = self.limits.stranger_time;
        (self.is_stranger && self.is_open() && time < Duration::MAX).then_some(time)
    }

    /// Ends the connection because that time has passed.
    pub(crate) fn remained_stranger(&mut self) {
        let reason = format!("no reference was shown in {:?}", self.limits.stranger_time);
        self.bite(Limit::StrangerTime, &reason);
    }

    fn is_open(&self) -> bool {
        self.broken.is_none() && self.closing.is_none()
    }

    /// A call of the peer succeeded that takes a reference.
    fn was_served(&mut self) {
        self.is_stranger = false;
        self.wire.leave_larger(usize::MAX);
    }

    /// The capability for the RPC system to offer, so that the peer gets `bootstrap`.
    pub(crate) fn offer(&self, bootstrap: Box<dyn ClientHook>) -> Client {
        self.pipelines.door(bootstrap)
    }

    /// The driver is running, so sending needn't wake it.
    pub(crate) fn driver_runs(&mut self) {
        self.driver = None;
    }

    /// Writes the sent messages. Ready with the reason when the end has come and all is written.
    pub(crate) fn poll_write(&mut self, cx: &mut Context) -> Poll<Error> {
        self.wire.rest();
        if self.limits.tells_hops {
            self.give_receipts(cx.waker());
        }
        if self.unwritable.is_some() {
            self.wire.discard();
        }
        let flushed = self.wire.poll_flush(cx);
        self.driver = Some(cx.waker().clone());
        if let Poll::Ready(Err(error)) = &flushed {
            self.end_behind_answers(lost(error));
            return self.closing.take().map_or(Poll::Pending, Poll::Ready);
        }
        if flushed.is_ready() && self.closing.is_some() {
            // A failure changes nothing here.
            let _ = ready!(self.wire.poll_shutdown(cx));
            return self.closing.take().map_or(Poll::Pending, Poll::Ready);
        }
        self.check_unsent(self.limits.unsent_bytes);
        self.check_held();
        self.count_pending();
        self.outlet.rest(self.wire.pending_bytes());
        self.go_on();
        Poll::Pending
    }

    /// Checks the memory held, after each poll: within a poll much is short-lived.
    fn check_held(&mut self) {
        let (_, calls) = self.tables.open();
        let bytes = self.wire.held()
            + self.queue.bytes()
            + calls
            + self.tables.held()
            + self.reflections.bytes()
            + self.outlet.kept();
        if !self.share.hold(bytes, self.limits.total_bytes) {
            let reason = "too much is held for all connections together: try again later, with less \
                          at once";
            self.bite(Limit::TotalBytes, reason);
        }
        if self.tables.export_bytes() > self.limits.export_bytes {
            let reason = "what the peer holds takes too much memory";
            self.bite(Limit::ExportBytes, reason);
        }
    }

    /// Closes the stream.
    pub(crate) fn close(&mut self) {
        self.share = BudgetPart::default();
        self.wire.close();
    }

    /// Forgets all that waits. Drop the returned value when nothing of the connection is borrowed.
    #[must_use]
    pub(crate) fn forget(&mut self) -> HeldCaps {
        self.tables = Tables::default();
        self.queue = MessageQueue::default();
        self.reflections = Reflections::default();
        self.replaced = Replaced::default();
        self.kept = KeptPaths::default();
        self.ready.clear();
        self.outlet.close();
        self.callers.close();
        self.relayed = None;
        self.hold_the_rest();
        self.pipelines.close()
    }

    /// The reason why the RPC system gave the connection up, if it did.
    pub(crate) fn closing(&self) -> Option<&Error> {
        self.closing.as_ref()
    }

    fn poll_next(&mut self, cx: &mut Context) -> Poll<capnp::Result<Option<Message>>> {
        loop {
            // First of all, since the peer may reuse a call's number once it has the `Return`.
            let next = match self.ready.pop_front() {
                Some(Ready::Message(message)) => return Poll::Ready(Ok(Some(message))),
                Some(Ready::Changed(changed)) => self.pass(changed),
                Some(Ready::Finish(finish)) => self.deliver(finish),
                Some(Ready::Reflected(answered)) => self.deliver_reflected(answered),
                None => {
                    if let Some(error) = &self.broken {
                        return Poll::Ready(Err(error.clone()));
                    }
                    let is_over = self.unwritable.is_some();
                    match if is_over { self.take_answer(cx) } else { self.take_next(cx) } {
                        Poll::Ready(Ok(Some(incoming))) => self.deliver(incoming),
                        Poll::Ready(Ok(None)) => return Poll::Ready(Ok(None)),
                        Poll::Ready(Err(refusal)) => Err(refusal),
                        Poll::Pending => {
                            self.reader = Some(cx.waker().clone());
                            return Poll::Pending;
                        }
                    }
                }
            };
            if let Err(refusal) = next {
                return Poll::Ready(Err(self.refuse(refusal)));
            }
        }
    }

    /// The next message whose turn it is: one of those that wait, or else one from the wire.
    fn take_next(&mut self, cx: &mut Context) -> Poll<Result<Option<ReceivedMessage>, Rejection>> {
        loop {
            let calls = if self.soft_limit().is_some() { Calls::Wait } else { Calls::Begin };
            if let Some(waited) = self.queue.pop(calls) {
                self.pauses = false;
                return Poll::Ready(Ok(Some(waited)));
            }
            if self.is_full()? {
                return Poll::Pending;
            }
            if self.relayed.as_ref().is_some_and(|part| part.of.is_full(cx.waker())) {
                return Poll::Pending;
            }
            let Poll::Ready(read) = self.wire.poll_read(cx) else {
                return self
                    .check_left()
                    .map_or_else(|refusal| Poll::Ready(Err(refusal)), |()| Poll::Pending);
            };
            let Some(incoming) = read? else { return Poll::Ready(Ok(None)) };
            if !self.has_to_wait(&incoming)? {
                return Poll::Ready(Ok(Some(incoming)));
            }
            self.queue.push(incoming)?;
        }
    }

    /// Tells whether reading has to stop. Answers that this side waits for may come after the
    /// excess, so reading continues for them, up to a bound.
    fn is_full(&mut self) -> Result<bool, Rejection> {
        let bytes = self.queue.bytes();
        let of_strangers =
            if self.is_stranger { self.limits.stranger_message_bytes } else { usize::MAX };
        let max = self.limits.queued_bytes.min(of_strangers);
        let pauses = bytes >= max && !self.tables.waits_for_peer();
        if pauses && !self.pauses {
            self.bites.count(Limit::QueuedBytes);
        }
        self.pauses = pauses;
        if !pauses && bytes >= max.saturating_mul(BURST) {
            let reason = "too much waits while the peer has calls to answer";
            return Rejection::over(Limit::QueuedBytes, reason);
        }
        Ok(pauses)
    }

    /// Refuses a stranger's large message, unless an open call may still show a reference.
    fn check_left(&self) -> Result<(), Rejection> {
        let Some(bytes) = self.wire.left().filter(|_| self.tables.open().0 == 0) else {
            return Ok(());
        };
        let max = self.limits.stranger_message_bytes;
        let reason = format!(
            "a message of {bytes} bytes is refused; the limit is {max} before a reference was shown"
        );
        Rejection::over(Limit::StrangerMessageBytes, reason)
    }

    /// The soft limit that the connection has reached, if any: calls wait then.
    fn soft_limit(&self) -> Option<Limit> {
        let (open, bytes) = self.tables.open();
        if self.is_stranger && open >= self.limits.stranger_calls {
            Some(Limit::StrangerCalls)
        } else if open >= self.limits.calls {
            Some(Limit::Calls)
        } else if bytes > self.limits.call_bytes {
            Some(Limit::CallBytes)
        } else if self.wire.pending_bytes() > self.limits.unread_bytes {
            Some(Limit::UnreadBytes)
        } else {
            None
        }
    }

    fn has_to_wait(&self, incoming: &ReceivedMessage) -> Result<bool, Rejection> {
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
            Ok(message::Return(answer)) => self.queue.concerns(answer?, self.limits.capabilities),
            // A receipt refers to no other message, and others wait for it.
            Ok(message::Accept(Ok(accept))) if self.limits.tells_hops => {
                Ok(accept.get_embargo() && !self.queue.is_empty())
            }
            _ => Ok(!self.queue.is_empty()),
        }
    }

    /// Reports the unsent bytes to the code that makes more.
    fn count_pending(&mut self) {
        let bytes = self.wire.pending_bytes();
        self.outlet.pends(bytes);
        if let Some(part) = &mut self.relayed {
            part.pends(bytes);
        }
    }

    fn check_unsent(&mut self, max: usize) {
        if self.wire.pending_bytes() > max {
            self.bite(Limit::UnsentBytes, "the peer doesn't read what is sent");
        }
    }

    /// Ends the connection because of a limit on what is sent or held.
    fn bite(&mut self, limit: Limit, reason: &str) {
        if self.is_open() {
            let error = self.refuse(Rejection::Over(limit, reason.into()));
            self.break_with(error);
        }
    }

    /// Gives the waiting messages their turn, if they may go on.
    fn go_on(&mut self) {
        if !self.queue.is_empty() && self.soft_limit().is_none() {
            wake(&mut self.reader);
        }
    }

    /// Counts the reason for which a message is refused, and words it for the peer.
    fn refuse(&mut self, refusal: Rejection) -> Error {
        if !matches!(&refusal, Rejection::Malformed(error) if error.kind == capnp::ErrorKind::Disconnected)
        {
            self.farewell = ending::Farewell::Reason;
        }
        match refusal {
            Rejection::Over(limit, reason) => {
                self.bites.count(limit);
                Error::disconnected(reason)
            }
            Rejection::Malformed(error) if error.kind == capnp::ErrorKind::Disconnected => error,
            Rejection::Malformed(error) => {
                Error::disconnected(format!("a message can't be read: {error}"))
            }
        }
    }

    fn break_with(&mut self, error: Error) {
        self.broken.get_or_insert(error);
        wake(&mut self.reader);
    }

    #[cfg(test)]
    pub(crate) fn counts(&self) -> TableCounts {
        self.tables.counts()
    }
}

/// The number of entries in a connection's tables, for tests.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TableCounts {
    pub(crate) answers: usize,
    pub(crate) held: usize,
    pub(crate) questions: usize,
    pub(crate) exports: usize,
    pub(crate) imports: usize,
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

#[cfg(test)]
mod callback_tests;
#[cfg(test)]
mod ending_tests;
#[cfg(test)]
mod hops_tests;
#[cfg(test)]
mod kept_tests;
#[cfg(test)]
mod path_tests;
#[cfg(test)]
mod raw;
#[cfg(test)]
mod stranger_tests;
#[cfg(test)]
mod tests;
