//! The guard between the wire and the RPC system, and the only `VatNetwork`.
//!
//! The RPC system trusts its peer too far: it has no limits, and a `Finish` that comes before the
//! `Return` makes it forget the call without answering, so that both ends keep its number for ever.
//! The guard looks at each message once, in passing. It never changes, repeats or reorders one,
//! except that it holds such a `Finish` back until the `Return` is out. What no honest peer sends
//! ends the connection here.
//!
//! **Invariant:** a call's number is in `open` from the delivery of the `Call` until its `Return` is
//! pushed to the wire; a held `Finish` is delivered before any later message.

mod chains;

use crate::wire::{Incoming, Wire, lost};
use capnp::capability::Promise;
use capnp::message::{Builder, HeapAllocator, ReaderOptions};
use capnp::{Error, any_pointer};
use capnp_rpc::rpc_capnp::{call, cap_descriptor, message, resolve};
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{Connection, IncomingMessage, OutgoingMessage, VatNetwork};
use chains::Chains;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, AsyncWrite};

/// What one connection may ask of us. Going over a limit ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest message that is taken, in bytes.
    pub message_bytes: usize,
    /// How deep structures and lists may lie in each other in a message.
    pub nesting: u16,
    /// Calls of the peer that have no answer yet.
    pub open_calls: usize,
    /// Bytes that wait because the peer doesn't read.
    pub unsent_bytes: usize,
    /// Promises of the peer that were resolved to the next one each, in a row.
    pub promise_chain: usize,
    /// Promises of the peer that are part of such a row.
    pub chained_promises: usize,
}

impl Default for Limits {
    /// 8 MiB, the largest value of an object's storage twice; 32 deep; 65,536 calls; 64 MiB; 16
    /// promises in a row, one for each vat that a capability came through and more than any path has;
    /// 8,192 such promises, which are looked through when one is released.
    fn default() -> Self {
        Self {
            message_bytes: 8 << 20,
            nesting: 32,
            open_calls: 1 << 16,
            unsent_bytes: 64 << 20,
            promise_chain: 16,
            chained_promises: 8192,
        }
    }
}

impl Limits {
    fn reader_options(self) -> ReaderOptions {
        ReaderOptions {
            // Reading the same part again counts again: a handler may look at everything 8 times.
            traversal_limit_in_words: Some(self.message_bytes),
            nesting_limit: i32::from(self.nesting),
        }
    }
}

type Message = Box<dyn IncomingMessage>;

/// The state of one connection, shared by the RPC system's side and the task that drives it.
pub(crate) struct State<S> {
    wire: Wire<S>,
    limits: Limits,
    /// Calls of the peer without a `Return` so far, each with its `Finish` if that came already.
    open: HashMap<u32, Option<Message>, Scatter>,
    /// What the peer's promises were resolved to.
    chains: Chains,
    /// Finishes whose turn has come.
    ready: VecDeque<Message>,
    /// Whoever waits for a message.
    reader: Option<Waker>,
    /// The task that drives the connection, unless it is running: it writes after each poll.
    driver: Option<Waker>,
    /// Why reading fails from now on.
    broken: Option<Error>,
    /// Why the RPC system gave the connection up.
    closing: Option<Error>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> State<S> {
    pub(crate) fn new(stream: S, limits: Limits) -> Self {
        Self {
            wire: Wire::new(stream, limits.message_bytes, limits.reader_options()),
            limits,
            open: HashMap::with_hasher(Scatter::new()),
            chains: Chains::new(),
            ready: VecDeque::new(),
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
        Poll::Pending
    }

    /// The RPC system failed: what is written goes out, nothing else.
    pub(crate) fn give_up(&mut self, reason: Error) {
        self.closing = Some(reason);
    }

    /// Closes the stream, and forgets what waits.
    pub(crate) fn close(&mut self) {
        self.wire.close();
        self.open.clear();
        self.chains.clear();
        self.ready.clear();
    }

    /// Why the RPC system gave the connection up, if it did.
    pub(crate) fn closing(&self) -> Option<&Error> {
        self.closing.as_ref()
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
            let Poll::Ready(read) = self.wire.poll_read(cx)? else {
                self.reader = Some(cx.waker().clone());
                return Poll::Pending;
            };
            let Some(incoming) = read else { return Poll::Ready(Ok(None)) };
            if let Some(message) = self.admit(incoming)? {
                return Poll::Ready(Ok(Some(message)));
            }
        }
    }

    /// Lets a message pass, or keeps it.
    fn admit(&mut self, incoming: Incoming) -> capnp::Result<Option<Message>> {
        let kind = incoming_kind(incoming.get_root()?)?;
        let message = Box::new(Received(incoming));
        match kind {
            Kind::Call(id) => {
                if self.open.len() >= self.limits.open_calls {
                    return Err(Error::disconnected("too many calls without an answer".into()));
                }
                if self.open.insert(id, None).is_some() {
                    return Err(Error::disconnected("a call has the number of an open one".into()));
                }
            }
            Kind::Finish(id) => {
                if let Some(held) = self.open.get_mut(&id) {
                    return match held.replace(message) {
                        None => Ok(None),
                        Some(_) => Err(Error::disconnected("a call was finished twice".into())),
                    };
                }
            }
            Kind::Resolve { from, to } => self.chains.resolve(from, to, self.limits)?,
            Kind::Other => {}
        }
        Ok(Some(message))
    }

    fn send(&mut self, message: &Builder<HeapAllocator>, freed: Freed) {
        if self.closing.is_some() || self.broken.is_some() {
            return;
        }
        self.wire.push(message);
        if self.wire.pending_bytes() > self.limits.unsent_bytes {
            self.break_with(Error::disconnected("the peer doesn't read what is sent".into()));
        }
        match freed {
            Freed::Call(id) => {
                if let Some(finish) = self.open.remove(&id).flatten() {
                    self.ready.push_back(finish);
                    wake(&mut self.reader);
                }
            }
            Freed::Import(id) => self.chains.release(id),
            Freed::Nothing => {}
        }
        wake(&mut self.driver);
    }

    fn break_with(&mut self, error: Error) {
        self.broken.get_or_insert(error);
        wake(&mut self.reader);
    }

    /// Calls of the peer without a `Return`, and how many of these are finished already.
    #[cfg(test)]
    pub(crate) fn open_and_held(&self) -> (usize, usize) {
        (self.open.len(), self.open.values().flatten().count())
    }

    /// Promises that are part of a chain.
    #[cfg(test)]
    pub(crate) fn chained(&self) -> usize {
        self.chains.len()
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

enum Kind {
    /// A call whose results go back to the caller.
    Call(u32),
    Finish(u32),
    /// A promise of the peer is resolved to another one.
    Resolve {
        from: u32,
        to: u32,
    },
    Other,
}

fn incoming_kind(body: message::Reader) -> capnp::Result<Kind> {
    Ok(match body.which() {
        Ok(message::Call(call)) => {
            let call = call?;
            let call::send_results_to::Caller(()) = call.get_send_results_to().which()? else {
                // The RPC system never answers such a call, so its number could not be given back.
                let reason = "results can be sent to the caller only";
                return Err(Error::disconnected(reason.into()));
            };
            Kind::Call(call.get_question_id())
        }
        Ok(message::Finish(finish)) => Kind::Finish(finish?.get_question_id()),
        Ok(message::Resolve(resolve)) => {
            let resolve = resolve?;
            let from = resolve.get_promise_id();
            match resolve.which()? {
                resolve::Cap(cap) => match cap?.which()? {
                    cap_descriptor::SenderPromise(to) => Kind::Resolve { from, to },
                    _ => Kind::Other,
                },
                resolve::Exception(_) => Kind::Other,
            }
        }
        _ => Kind::Other,
    })
}

/// The number of the peer's that an outgoing message gives back.
enum Freed {
    Call(u32),
    Import(u32),
    Nothing,
}

fn freed(body: message::Reader) -> Freed {
    match body.which() {
        Ok(message::Return(Ok(answer))) => Freed::Call(answer.get_answer_id()),
        // The RPC system lets go of all references to an import at once.
        Ok(message::Release(Ok(release))) => Freed::Import(release.get_id()),
        _ => Freed::Nothing,
    }
}

type Shared<S> = Rc<RefCell<State<S>>>;

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

struct Guarded<S> {
    state: Shared<S>,
    side: Side,
}

impl<S: AsyncRead + AsyncWrite + Unpin + 'static> Connection<Side> for Guarded<S> {
    fn get_peer_vat_id(&self) -> Side {
        match self.side {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }

    fn new_outgoing_message(&mut self, first_segment_words: u32) -> Box<dyn OutgoingMessage> {
        let allocator = HeapAllocator::new().first_segment_words(first_segment_words);
        Box::new(Outgoing { message: Builder::new(allocator), state: self.state.clone() })
    }

    fn receive_incoming_message(&mut self) -> Promise<Option<Message>, Error> {
        let state = self.state.clone();
        Promise::from_future(poll_fn(move |cx| state.borrow_mut().poll_next(cx)))
    }

    fn shutdown(&mut self, result: capnp::Result<()>) -> Promise<(), Error> {
        let mut state = self.state.borrow_mut();
        let asked = || Error::disconnected("the connection was closed".into());
        state.closing = Some(result.err().unwrap_or_else(asked));
        wake(&mut state.driver);
        Promise::ok(())
    }
}

struct Received(Incoming);

impl IncomingMessage for Received {
    fn get_body(&self) -> capnp::Result<any_pointer::Reader<'_>> {
        self.0.get_root()
    }
}

struct Outgoing<S> {
    message: Builder<HeapAllocator>,
    state: Shared<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> OutgoingMessage for Outgoing<S> {
    fn get_body(&mut self) -> capnp::Result<any_pointer::Builder<'_>> {
        self.message.get_root()
    }

    fn get_body_as_reader(&self) -> capnp::Result<any_pointer::Reader<'_>> {
        self.message.get_root_as_reader()
    }

    /// The promise doesn't wait for the stream: streaming calls are slowed by their answers.
    fn send(self: Box<Self>) -> (Promise<(), Error>, Rc<Builder<HeapAllocator>>) {
        let freed = self.message.get_root_as_reader().map_or(Freed::Nothing, freed);
        self.state.borrow_mut().send(&self.message, freed);
        (Promise::ok(()), Rc::new(self.message))
    }

    fn take(self: Box<Self>) -> Builder<HeapAllocator> {
        self.message
    }

    fn size_in_words(&self) -> usize {
        self.message.size_in_words()
    }
}

/// Scatters the numbers of calls, which a peer chooses: a secret odd factor, and the upper half of
/// the product. Cheaper than the standard hasher, which is paid for twice in each call.
#[derive(Clone)]
struct Scatter {
    factor: u64,
}

impl Scatter {
    fn new() -> Self {
        Self { factor: RandomState::new().hash_one(0_u8) | 1 }
    }
}

impl BuildHasher for Scatter {
    type Hasher = Scattered;

    fn build_hasher(&self) -> Scattered {
        Scattered { factor: self.factor, hash: 0 }
    }
}

struct Scattered {
    factor: u64,
    hash: u64,
}

impl Hasher for Scattered {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.hash = (self.hash ^ u64::from(number)).wrapping_mul(self.factor).rotate_left(32);
    }

    fn finish(&self) -> u64 {
        self.hash
    }
}
