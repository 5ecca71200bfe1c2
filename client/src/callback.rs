//! A client's own callbacks: capabilities on which calls start in the order in which they are made.
//!
//! capnp-rpc's own local capability starts a call when its promise is first polled, and never if
//! the promise isn't polled. That doesn't matter while a peer makes the calls, since the connection
//! polls them at once. But when a callback comes home from the peer, the client's own code calls
//! it, and then calls would start in the order of polls.
//!
//! Here a call enters the [queue](queue) of its capability as soon as it is made. No method ever
//! runs inside the code that makes the call, which may hold borrows that the method needs.

mod answer;
mod body;
mod queue;
mod results;

use std::rc::Rc;

use capnp::capability::{FromClientHook, FromServer, Promise, RemotePromise, Request};
use capnp::private::capability::{
    ClientHook, ParamsHook, PipelineHook, PipelineOp, RequestHook, ResultsHook,
};
use capnp::{Error, MessageSize, any_pointer};

use answer::{Answer, Call, Reply};
use body::Body;
use queue::Queue;

/// Creates a capability for `server`, the client's callback, which objects can call.
///
/// Calls on it and on all its clones start in the order in which they are made. That holds also
/// when the capability comes back to this client, which then calls it directly. A call starts even
/// if its promise is never polled or is dropped; it runs to its end even if its caller or the
/// connection is gone. Methods interleave where they await; none runs inside the code that makes
/// the call. A method that fails or panics ends only its own call, even a `-> stream` method, and
/// doesn't hold up later calls.
///
/// Calls that are pipelined on a call here start in order, once that call has answered or has
/// called `set_pipeline`.
///
/// A callback that comes home in a response is the callback itself. If calls were made on the
/// promised result before the response came, these go through the peer, and later calls on the same
/// stub do too, in order.
///
/// [`capnp_rpc::new_client`] makes a capability too, but its calls start when their promises are
/// polled, or never.
///
/// ```
/// use std::rc::Rc;
///
/// use capstead_client::Result;
/// use capstead_client::http_capnp::byte_stream::{self, substream_callback};
///
/// /// Says how long a stream was.
/// struct Told;
///
/// impl substream_callback::Server for Told {
///     async fn ended(
///         self: Rc<Self>,
///         params: substream_callback::EndedParams,
///         _: substream_callback::EndedResults,
///     ) -> Result<()> {
///         println!("{} bytes", params.get()?.get_byte_count());
///         Ok(())
///     }
/// }
///
/// async fn substream(stream: &byte_stream::Client) -> Result<byte_stream::Client> {
///     let mut request = stream.get_substream_request();
///     request.get().set_callback(capstead_client::capability(Rc::new(Told)));
///     request.send().promise.await?.get()?.get_substream()
/// }
/// ```
///
/// Calls need `#[tokio::main(flavor = "local")]`, a [`LocalRuntime`](tokio::runtime::LocalRuntime)
/// or a [`LocalSet`](tokio::task::LocalSet). Outside of these they fail with an error that says so,
/// and so do calls that had not started when the runtime ended.
pub fn capability<C: FromServer<S>, S: 'static>(server: Rc<S>) -> C {
    FromClientHook::new(Hook::wrap(Queue::of_server(C::from_server(server))))
}

/// The address of this is the brand of these hooks. It is never the brand of a connection, so
/// capnp-rpc never mistakes one of them for its own.
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

    /// Always `None`, for promises too: the path of a capability never changes, so its calls can't
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
        let pipeline = any_pointer::Pipeline::new(Box::new(Pipeline(answer.clone())));
        RemotePromise { promise: answer.response(), pipeline }
    }

    fn send_streaming(self: Box<Self>) -> Promise<(), Error> {
        let sent = self.send().promise;
        Promise::from_future(async move { sent.await.map(drop) })
    }

    /// Always `None`: this isn't a call of a connection, so it is sent in the ordinary way.
    fn tail_send(self: Box<Self>) -> Option<(u32, Promise<(), Error>, Box<dyn PipelineHook>)> {
        None
    }
}

/// Gives out capabilities of a call's results, before the results are there.
struct Pipeline(Answer);

impl PipelineHook for Pipeline {
    fn add_ref(&self) -> Box<dyn PipelineHook> {
        Box::new(Self(self.0.clone()))
    }

    fn get_pipelined_cap(&self, ops: &[PipelineOp]) -> Box<dyn ClientHook> {
        if let Some(known) = self.0.known(ops) {
            return known.unwrap_or_else(|error| capnp_rpc::new_broken_cap(error).hook);
        }
        let queue = Queue::promised();
        self.0.add_waiting(ops, queue.clone());
        Hook::wrap(queue)
    }
}

#[cfg(test)]
mod home_tests;
#[cfg(test)]
mod tests;
