//! The guarded connection as the RPC system sees it.
//!
//! Nothing here looks into a message: everything is passed on to the [`GuardState`] and back.

use super::pipelines::Call;
use super::{GuardState, Message, wake};
use crate::wire::ReceivedMessage;
use capnp::capability::Promise;
use capnp::message::{Builder, HeapAllocator};
use capnp::{Error, any_pointer};
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{Connection, IncomingMessage, OutgoingMessage, VatNetwork};
use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use tokio::io::{AsyncRead, AsyncWrite};

type Shared<S> = Rc<RefCell<GuardState<S>>>;

/// A network of two vats: one connection, which is there from the start.
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

    /// The connection's task decides when it ends, not the RPC system.
    fn drive_until_shutdown(&mut self) -> Promise<(), Error> {
        Promise::from_future(std::future::pending())
    }
}

/// One end of the connection.
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
        state.closing.get_or_insert(result.err().unwrap_or_else(asked));
        wake(&mut state.driver);
        Promise::ok(())
    }
}

/// A message that came in.
pub(super) struct Received {
    pub(super) message: ReceivedMessage,
    /// The call, if the message is one.
    pub(super) call: Option<Call>,
}

impl IncomingMessage for Received {
    fn get_body(&self) -> capnp::Result<any_pointer::Reader<'_>> {
        if let Some(call) = &self.call {
            call.is_read();
        }
        self.message.get_root()
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

    /// The returned promise doesn't wait for the stream: the answers of streaming calls slow them
    /// down.
    fn send(mut self: Box<Self>) -> (Promise<(), Error>, Rc<Builder<HeapAllocator>>) {
        self.state.borrow_mut().send(&mut self.message);
        (Promise::ok(()), Rc::new(self.message))
    }

    fn take(self: Box<Self>) -> Builder<HeapAllocator> {
        self.message
    }

    fn size_in_words(&self) -> usize {
        self.message.size_in_words()
    }
}
