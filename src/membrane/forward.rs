//! Calls that go on to another vat, and their answers.
//!
//! Invariants:
//! - The calls of one client go on in the order in which they came.
//! - A large call waits while a connection to another vat of this system has much to send, and
//!   behind it all later ones of its client; those of others don't. So no client's calls wait
//!   behind all that others send.
//! - A large answer from another vat waits until its client has room for it, and the other vat is
//!   told when it was passed on.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use capnp::any_pointer;
use capnp::capability::Response;
use capnp::private::capability::{ClientHook, ParamsHook};
use capnp::traits::HasTypeId;
use capstead_client::{Outlet, crowded, room_for_calls, with_origin, with_owed};
use tokio::sync::{Notify, Semaphore};

use super::body::Body;
use super::call::{Call, Params, Reply, bytes_of};
use super::hops::Passing;
use super::pipeline::Event;
use super::relay::relay;
use crate::error::{Result, disconnected};
use crate::schema::http_capnp::web_socket;

/// Smaller calls don't wait for the large ones of others.
const LARGE_BYTES: usize = 64 << 10;

/// The calls of a client that wait, each with its target.
type WaitingCalls = VecDeque<(Box<dyn ClientHook>, Call)>;

thread_local! {
    /// The calls of each client, by the number of its outlet, for as long as a task goes on with
    /// them.
    static ROWS: RefCell<HashMap<u32, WaitingCalls>> = RefCell::default();
    /// Answers that wait for room.
    static WAITING: Cell<usize> = const { Cell::new(0) };
    static NONE_WAITS: Rc<Notify> = Rc::default();
    /// Held while a large answer is copied, until every other task has had a turn.
    static COPIES: Rc<Semaphore> = Rc::new(Semaphore::new(1));
}

/// Makes the call anew on a foreign hook, for instance that of a connection, at once or after those
/// of the same client that wait. `to` must be the end of its promises, because capnp-rpc can't put
/// capabilities into a call on a promise that became something of this vat.
pub(super) fn forward(to: &dyn ClientHook, call: Call) {
    // Calls from another vat were held back there.
    let Some(outlet) = call.reply.outlet().filter(|outlet| !outlet.is_shared()).cloned() else {
        return forward_now(to, call);
    };
    let is_large = matches!(call.params, Params::Theirs(_, Some(bytes)) if bytes > LARGE_BYTES);
    let number = outlet.number();
    let is_first = ROWS.with_borrow(|rows| rows.is_empty() || !rows.contains_key(&number));
    if is_first && !(is_large && crowded()) {
        return forward_now(to, call);
    }
    let waits = (to.add_ref(), call);
    ROWS.with_borrow_mut(|rows| rows.entry(number).or_default().push_back(waits));
    if is_first {
        tokio::task::spawn_local(go_on(outlet));
    }
}

/// Ends with the last call of the client that waits.
async fn go_on(outlet: Rc<Outlet>) {
    let number = outlet.number();
    loop {
        if !outlet.is_closed() {
            room_for_calls().await;
        }
        let next = ROWS.with_borrow_mut(|rows| {
            let next = rows.get_mut(&number).and_then(VecDeque::pop_front);
            if next.is_none() {
                rows.remove(&number);
            }
            next
        });
        let Some((to, call)) = next else { return };
        if outlet.is_closed() {
            call.reply.send(Err(disconnected("the caller's connection is over")));
        } else {
            forward_now(&*to, call);
        }
        // Calls of other clients that have waited as long come first.
        tokio::task::yield_now().await;
    }
}

/// Calls that are pipelined on the answer go on at once too, in the same order, because the answer
/// may itself wait for them.
fn forward_now(to: &dyn ClientHook, call: Call) {
    // A class needn't wait when it sends on a WebSocket, and a vat may drop calls for which nobody
    // waits.
    let is_kept = call.from_object && call.method.interface == web_socket::Client::TYPE_ID;
    let Call { method, params, reply, hops, .. } = call;
    let begun = Passing::begin(hops).and_then(|passing| Ok((passing, params.sendable()?)));
    let (passing, size) = match begun {
        Ok(begun) => begun,
        Err(error) => return reply.send(Err(error)),
    };
    let mut request = to.new_call(method.interface, method.ordinal, Some(size));
    let mut write = |params: Params| {
        if size.cap_count == 0 {
            return request.get().set_as(params.get()?);
        }
        let mut body = params.into_body()?;
        body.replace_caps(relay);
        request.get().set_as(body.get()?)
    };
    if let Err(error) = write(params) {
        return reply.send(Err(error));
    }
    let caller = reply.outlet().map_or(0, |outlet| outlet.number());
    let send = || with_origin(passing.hops(), caller, || request.send());
    let (sent, is_owed) = match reply.owed() {
        Some(owed) => with_owed(owed, send),
        None => (send(), false),
    };
    reply.redirect(sent.pipeline);
    let mut promise = sent.promise;
    // Ends with the call; a connection that goes away fails its calls.
    tokio::task::spawn_local(async move {
        let answered = poll_fn(|cx| match Pin::new(&mut promise).poll(cx) {
            Poll::Pending if is_kept => Poll::Pending,
            Poll::Pending => reply.poll(Event::Abandoned, cx).map(|()| None),
            Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
        });
        if let Some(outcome) = answered.await {
            return pass_on(outcome, passing, reply).await;
        }
        // The other vat is told as well. The call counts here for as long as it runs there.
        drop(promise);
        if is_owed {
            poll_fn(|cx| reply.poll(Event::Answered, cx)).await;
        }
        drop(passing);
        reply.send(Err(disconnected("nobody waits for the answer")));
    });
}

/// Tells the caller what another vat answered, and that vat when its next answers may come.
async fn pass_on(outcome: Result<Response<any_pointer::Owned>>, passing: Passing, reply: Reply) {
    let outlet = reply.outlet().cloned();
    let receipt = reply.take_receipt();
    drop(passing);
    let (Some(outlet), Some(receipt)) = (outlet, receipt) else {
        return reply.send(outcome.and_then(|response| Body::copy(response.get()?)));
    };
    if !outlet.is_shared()
        && let Ok(response) = &outcome
    {
        // Otherwise a client that reads more slowly than another vat answers would lose its
        // connection.
        let bytes = response.get().and_then(|results| results.target_size());
        let _waits = Waits::begin();
        outlet.room_for(bytes.map_or(0, bytes_of)).await;
    }
    // Each takes milliseconds, and many may have come at once.
    let copies = COPIES.with(Rc::clone);
    let copying = copies.acquire().await;
    reply.send(outcome.and_then(|response| Body::copy(response.get()?)));
    tokio::task::yield_now().await;
    drop(copying);
    if outlet.is_shared() {
        // It waits at the host of the caller's connection, where it is counted.
        outlet.room().await;
    }
    drop(receipt);
}

/// Counts an answer that waits.
struct Waits;

impl Waits {
    fn begin() -> Self {
        WAITING.set(WAITING.get() + 1);
        Self
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        WAITING.set(WAITING.get() - 1);
        if WAITING.get() == 0 {
            // Only the end of the host waits for this.
            NONE_WAITS.with(|ends| ends.notify_one());
        }
    }
}

/// Resolves when no answer that has come from another vat waits here until its client reads.
pub(crate) async fn all_passed_on() {
    while WAITING.get() > 0 {
        NONE_WAITS.with(Rc::clone).notified().await;
    }
}
