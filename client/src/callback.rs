//! A client's own callbacks: capabilities on which calls start in the order in which they are made.
//!
//! capnp-rpc's own local capability starts a call when its promise is first polled, or never if
//! nobody polls it. That goes unnoticed while a peer makes the calls, since the connection polls
//! them at once. A callback that comes home from the peer is called by the client's own code, and
//! then its calls would start in the order of polls.
//!
//! Here a call is in the [queue](queue) of its capability as soon as it is made. No method ever runs
//! within the code that makes the call, which may hold borrows that the method needs.

mod answer;
mod body;
mod queue;

use std::rc::Rc;

use capnp::capability::{FromClientHook, FromServer, Promise, RemotePromise, Request};
use capnp::private::capability::{ClientHook, ParamsHook, PipelineHook, RequestHook, ResultsHook};
use capnp::{Error, MessageSize, any_pointer};

use answer::{Answer, Call, Reply};
use body::Body;
use queue::Queue;

/// A capability to `server` on which calls start in the order in which they are made.
pub fn capability<C: FromServer<S>, S: 'static>(server: Rc<S>) -> C {
    FromClientHook::new(Hook::wrap(Queue::of_server(C::from_server(server))))
}

/// Its address is the brand of these hooks. It is never that of a connection, so capnp-rpc never
/// takes one of them for its own.
static BRAND: u8 = 0;

fn brand() -> usize {
    &raw const BRAND as usize
}

/// A holder of a queue.
struct Hook(Rc<Queue>);

impl Hook {
    fn wrap(queue: Rc<Queue>) -> Box<dyn ClientHook> {
        Box::new(Self(queue))
    }
}

impl ClientHook for Hook {
    fn add_ref(&self) -> Box<dyn ClientHook> {
        Self::wrap(self.0.clone())
    }

    fn new_call(
        &self,
        interface: u64,
        method: u16,
        _: Option<MessageSize>,
    ) -> Request<any_pointer::Owned, any_pointer::Owned> {
        let (queue, body) = (self.0.clone(), Body::new());
        Request::new(Box::new(Outgoing { queue, interface, method, body }))
    }

    fn call(
        &self,
        interface: u64,
        method: u16,
        params: Box<dyn ParamsHook>,
        results: Box<dyn ResultsHook>,
    ) -> Promise<(), Error> {
        let (reply, ended) = Reply::to_results(results);
        self.0.enqueue(Call { interface, method, params, reply });
        ended
    }

    fn get_brand(&self) -> usize {
        brand()
    }

    fn get_ptr(&self) -> usize {
        self.0.address()
    }

    /// Always none, for promises too: the path of a capability never changes, so its calls can't
    /// overtake each other.
    fn get_resolved(&self) -> Option<Box<dyn ClientHook>> {
        None
    }

    fn when_more_resolved(&self) -> Option<Promise<Box<dyn ClientHook>, Error>> {
        None
    }

    fn when_resolved(&self) -> Promise<(), Error> {
        Promise::ok(())
    }
}

/// A call that the client's own code prepares.
struct Outgoing {
    queue: Rc<Queue>,
    interface: u64,
    method: u16,
    body: Body,
}

impl RequestHook for Outgoing {
    fn get(&mut self) -> any_pointer::Builder<'_> {
        self.body.builder().expect("the root of a new message can be had")
    }

    fn get_brand(&self) -> usize {
        brand()
    }

    fn send(self: Box<Self>) -> RemotePromise<any_pointer::Owned> {
        let Self { queue, interface, method, body } = *self;
        let answer = Answer::default();
        let reply = Reply::to_answer(answer.clone());
        queue.enqueue(Call { interface, method, params: Box::new(body), reply });
        let pipeline = any_pointer::Pipeline::new(Box::new(answer.clone()));
        RemotePromise { promise: answer.response(), pipeline }
    }

    fn send_streaming(self: Box<Self>) -> Promise<(), Error> {
        let sent = self.send().promise;
        Promise::from_future(async move { sent.await.map(drop) })
    }

    /// None: this isn't a call of a connection, so it is sent in the ordinary way.
    fn tail_send(self: Box<Self>) -> Option<(u32, Promise<(), Error>, Box<dyn PipelineHook>)> {
        None
    }
}

#[cfg(test)]
mod home_tests;
#[cfg(test)]
mod tests;
