//! The task of one WebSocket: it moves what the client sends to the object, and what the object
//! sends to the client, each way in order, and brings the socket to its end.
//!
//! Invariants:
//! - The object is told of the end once: by a close, or by losing its client where there was none.
//! - A client that says nothing, doesn't read, or doesn't answer a close frame is cut; one whose
//!   message doesn't come to its end is told so.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use capnp::any_pointer;
use capnp::capability::{Promise, Request};
use capnp::traits::{HasTypeId, Owned};
use futures::StreamExt;
use futures::future::{FutureExt, TryFutureExt, pending};
use futures::stream::FuturesUnordered;
use hyper::upgrade::OnUpgrade;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_tungstenite::tungstenite::error::CapacityError;
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};
use tokio_util::sync::CancellationToken;

use super::outbox::{Line, Next, Outbox};
use super::surviving::{End, Surviving};
use super::under_way::UnderWay;
use super::wire::Wire;
use crate::error::{is_of_ended_right, said};
use crate::gateway::limits::Taken;
use crate::gateway::paced::Presence;
use crate::http::keep;
use crate::limits::{SOCKET_CLOSE_SECS, SOCKET_UNHANDLED_BYTES_MAX, SOCKET_UNHANDLED_MAX};
use crate::schema::http_capnp::web_socket;

/// Codes of close frames (RFC 6455, section 7.4.1).
const GOING_AWAY: u16 = 1001;
const WRONG: u16 = 1002;
const NONE: u16 = 1005;
const NOT_UTF8: u16 = 1007;
const POLICY: u16 = 1008;
const TOO_LARGE: u16 = 1009;
const FAILED: u16 = 1011;
const RESTART: u16 = 1012;
const TRY_LATER: u16 = 1013;

/// The methods of the interface `WebSocket` that send.
const SEND_TEXT: u16 = 0;
/// See [`SEND_TEXT`].
const SEND_DATA: u16 = 1;

/// The time in which the other side does its part of an end.
const CLOSE_TIME: Duration = Duration::from_secs(SOCKET_CLOSE_SECS);

/// The time between two looks at a client that isn't read.
const LOOK: Duration = Duration::from_millis(300);

/// A socket that an object accepted.
pub(in crate::gateway) struct Pump {
    pub(in crate::gateway) up: Up,
    pub(in crate::gateway) outbox: Line,
    /// The request that made it; others than our own objects may end the socket with it.
    pub(in crate::gateway) call: Promise<(), capnp::Error>,
    pub(in crate::gateway) taken: Rc<Taken>,
    /// Resolves when the server ends.
    pub(in crate::gateway) stop: CancellationToken,
}

/// The way to the object.
pub(in crate::gateway) enum Up {
    /// It lasts as long as its path.
    Plain(web_socket::Client),
    Surviving(Rc<Surviving>),
}

/// Why reading came to an end.
enum Read {
    /// The client's close frame, with the code and the reason.
    Close(u16, String),
    /// The client broke a rule, and is told so.
    Wrong(u16, &'static str),
    /// The object takes no more.
    Failed(capnp::Error),
    /// The object's host isn't back in time.
    Late,
    Lost,
}

/// Why writing came to an end.
enum Written {
    /// A close frame went out.
    Close,
    /// The client didn't read, or isn't there.
    Lost,
}

impl Pump {
    /// Moves frames until the socket has ended, and keeps `held` until then. Most sockets are idle
    /// for most of their time: what only the beginning and the end need has its own memory then.
    pub(in crate::gateway) fn run(
        self,
        upgrade: OnUpgrade,
        held: impl Sized + 'static,
    ) -> impl Future<Output = ()> + 'static {
        let beginning = Box::pin(self.begin(upgrade));
        async move {
            let _held = held;
            let Some((mut moving, call, stop)) = beginning.await else { return };
            let taken = moving.heard.under_way.taken().clone();
            let close = moving.run(call, stop).await;
            if let Up::Surviving(surviving) = &moving.up {
                surviving.lose();
            }
            if close.is_some() {
                Box::pin(moving.finish()).await;
            } else {
                drop(moving);
                taken.metrics.http_sockets_lost_total.add(1);
            }
            taken.metrics.http_sockets.subtract(1);
        }
    }

    /// None if the connection doesn't become a socket in time.
    async fn begin(
        self,
        upgrade: OnUpgrade,
    ) -> Option<(Moving, Promise<(), capnp::Error>, CancellationToken)> {
        let Self { up, outbox, call, taken, stop } = self;
        let upgraded = timeout(taken.limits.head, upgrade).await.ok()?.ok()?;
        let under_way = UnderWay::new(&taken);
        let wire = Wire::new(upgraded, &under_way).await?;
        taken.metrics.http_sockets.add(1);
        let heard = Heard { waits: Cell::default(), began_to_wait: Notify::new(), under_way };
        Some((Moving { up, outbox, heard, wire }, call, stop))
    }
}

/// The client, as far as it is heard.
struct Heard {
    /// Nothing is read now: the object is slow, and not the client.
    waits: Cell<bool>,
    began_to_wait: Notify,
    under_way: Rc<UnderWay>,
}

/// A socket whose frames move.
struct Moving {
    up: Up,
    outbox: Line,
    heard: Heard,
    wire: Wire,
}

impl Moving {
    /// None if the client is lost; else close frames went both ways, as far as the client had time
    /// to.
    async fn run(
        &mut self,
        call: Promise<(), capnp::Error>,
        stop: CancellationToken,
    ) -> Option<()> {
        let Self { up, outbox, heard, wire } = self;
        let (outbox, idle) = (&*outbox.0, heard.under_way.taken().limits.socket_idle);
        let mut writing = std::pin::pin!(write(outbox, wire));
        let read = {
            let mut reading = std::pin::pin!(read(up, heard, wire));
            let mut silence = std::pin::pin!(heard.silence(outbox, wire, idle));
            let mut late = std::pin::pin!(heard.under_way.late(&heard.waits));
            let mut call = std::pin::pin!(failure(call, up));
            let mut stop = std::pin::pin!(stop.cancelled().fuse());
            loop {
                tokio::select! {
                    written = &mut writing => match written {
                        Written::Close => break None,
                        Written::Lost => return None,
                    },
                    read = &mut reading => break Some(read),
                    end = &mut call => break Some(end),
                    () = &mut silence => return None,
                    () = &mut late => break Some(Read::Wrong(POLICY, "the message comes too slowly")),
                    () = &mut stop => outbox.close(GOING_AWAY, "the server is going away"),
                }
            }
        };
        let due = Instant::now() + CLOSE_TIME;
        let written = match read {
            None => Written::Close,
            Some(Read::Lost) => return None,
            Some(Read::Close(code, reason)) => {
                tell(up, code, &reason);
                // The answer to it goes out as the last frame.
                return Some(());
            }
            Some(Read::Wrong(code, reason)) => {
                outbox.close(code, reason);
                tell(up, code, reason);
                // All else that comes can't be understood.
                return timeout_at(due, writing).await.ok().map(drop);
            }
            Some(Read::Failed(error)) => {
                outbox.close(code_of(&error), said(&error));
                timeout_at(due, writing).await.ok()?
            }
            Some(Read::Late) => {
                outbox.close(RESTART, "the object's server went, and is not back");
                timeout_at(due, writing).await.ok()?
            }
        };
        match written {
            Written::Lost => None,
            Written::Close => Box::pin(timeout_at(due, answer(up, wire))).await.ok()?,
        }
    }

    /// A client that isn't done in time is cut.
    async fn finish(self) {
        let Self { wire, outbox, .. } = self;
        drop(outbox);
        let _ = timeout(CLOSE_TIME, wire.end()).await;
    }
}

/// The code that says why the object takes no more.
fn code_of(error: &capnp::Error) -> u16 {
    match error.kind {
        capnp::ErrorKind::Overloaded => TRY_LATER,
        _ if is_of_ended_right(error) => POLICY,
        _ => FAILED,
    }
}

/// Resolves only if the request failed, or the object of a socket that survives isn't back.
async fn failure(call: Promise<(), capnp::Error>, up: &Up) -> Read {
    match up {
        Up::Plain(_) => match call.await {
            Ok(()) => pending().await,
            Err(error) => Read::Failed(error),
        },
        Up::Surviving(surviving) => {
            drop(call);
            // A future that few sockets have.
            match Box::pin(surviving.keep_up()).await {
                End::Late => Read::Late,
                End::Refused(error) => Read::Failed(error),
            }
        }
    }
}

/// Waits for the answer to a close frame. Nobody takes messages any more.
async fn answer(up: &Up, wire: &Wire) -> Option<()> {
    while let Some(Ok(message)) = wire.next().await {
        if let Message::Close(frame) = message {
            let (code, reason) = said_in(frame);
            tell(up, code, &reason);
            return Some(());
        }
    }
    None
}

/// Tells the object of the end. It has the call when this returns.
fn tell(up: &Up, code: u16, reason: &str) {
    let up = match up {
        Up::Plain(up) => up,
        Up::Surviving(surviving) => return surviving.end(code, reason),
    };
    let mut close = up.close_request();
    close.get().set_code(code);
    close.get().set_reason(reason);
    keep(close.send().promise);
}

fn said_in(frame: Option<tokio_tungstenite::tungstenite::protocol::CloseFrame>) -> (u16, String) {
    frame.map_or((NONE, String::new()), |frame| (frame.code.into(), frame.reason.to_string()))
}

/// Writes what the object sends, to the close frame.
async fn write(outbox: &Outbox, wire: &Wire) -> Written {
    loop {
        let (frames, bytes) = match outbox.next().await {
            Next::Frames(frames, bytes) => (frames, bytes),
            Next::Gone => return Written::Lost,
            Next::ObjectEnded => {
                outbox.close(FAILED, "the object ended");
                continue;
            }
        };
        let is_last = matches!(frames.last(), Some(Message::Close(_)));
        let written = tokio::select! {
            biased;
            () = outbox.gone() => return Written::Lost,
            written = wire.write(frames) => written,
        };
        outbox.wrote(bytes);
        match written {
            Ok(()) if is_last => return Written::Close,
            Ok(()) => {}
            // After the client's close frame nothing may be written, and reading says so.
            Err(Error::Protocol(_) | Error::ConnectionClosed) => pending().await,
            Err(_) => return Written::Lost,
        }
    }
}

/// Hands what comes to the object, in order, and no more than that has time for.
async fn read(up: &Up, heard: &Heard, wire: &Wire) -> Read {
    // Nothing is held for them while there are none.
    let (mut handled, mut count, mut bytes) = (None::<FuturesUnordered<_>>, 0, 0);
    loop {
        if count == 0 {
            handled = None;
        }
        let is_full = count >= SOCKET_UNHANDLED_MAX || bytes > SOCKET_UNHANDLED_BYTES_MAX;
        match (heard.waits.replace(is_full), is_full) {
            (true, false) => heard.under_way.restart(),
            (false, true) => heard.began_to_wait.notify_one(),
            _ => {}
        }
        let message = tokio::select! {
            Some((length, outcome)) = next_of(&mut handled) => {
                if let Err(error) = outcome {
                    return Read::Failed(error);
                }
                (count, bytes) = (count - 1, bytes - length);
                continue;
            }
            message = wire.next(), if !is_full => message,
        };
        let (length, sent) = match message {
            Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => {
                (message.len(), send(up, message))
            }
            // The library answers pings, also those of a client that reads no answers.
            Some(Ok(Message::Ping(payload))) => {
                if heard.under_way.owes_pong(payload.len()) {
                    continue;
                }
                return Read::Wrong(POLICY, "too many pings came whose answers were not read");
            }
            // Nobody asks for single frames.
            Some(Ok(Message::Pong(_) | Message::Frame(_))) => continue,
            Some(Ok(Message::Close(frame))) => {
                let (code, reason) = said_in(frame);
                return Read::Close(code, reason);
            }
            Some(Err(_)) if heard.under_way.is_refused() => {
                let reason = "there is no room for the message: try again later";
                return Read::Wrong(TRY_LATER, reason);
            }
            Some(Err(error)) => return wrong(&error),
            None => return Read::Lost,
        };
        (count, bytes) = (count + 1, bytes + length);
        let counted = Counted::new(heard.under_way.taken(), length);
        handled.get_or_insert_default().push(sent.map(move |outcome| {
            drop(counted);
            (length, outcome)
        }));
    }
}

async fn next_of<F: Future>(all: &mut Option<FuturesUnordered<F>>) -> Option<F::Output> {
    match all {
        Some(all) => all.next().await,
        None => pending().await,
    }
}

/// The memory of a message until it was handled: it counts as a request's body does.
struct Counted(Rc<Taken>, usize);

impl Counted {
    fn new(taken: &Rc<Taken>, bytes: usize) -> Self {
        taken.room().count(bytes);
        Self(taken.clone(), bytes)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.room().release(self.1);
    }
}

fn send(up: &Up, message: Message) -> Promise<(), capnp::Error> {
    match (up, message) {
        (Up::Surviving(surviving), message) => surviving.send(message),
        (Up::Plain(up), Message::Text(text)) => {
            let mut send = call::<web_socket::send_text_params::Owned>(up, SEND_TEXT);
            send.get().set_text(&*text);
            Promise::from_future(send.send().promise.map_ok(drop))
        }
        (Up::Plain(up), message) => {
            let mut send = call::<web_socket::send_data_params::Owned>(up, SEND_DATA);
            send.get().set_data(&message.into_data());
            Promise::from_future(send.send().promise.map_ok(drop))
        }
    }
}

/// A call whose outcome is its own. That of a streaming call is told with a later one, if the
/// object is on another host, and a client that says no more would never hear of it.
fn call<Params: Owned>(
    up: &web_socket::Client,
    method: u16,
) -> Request<Params, any_pointer::Owned> {
    up.client.new_call(web_socket::Client::TYPE_ID, method, None)
}

fn wrong(error: &Error) -> Read {
    use tokio_tungstenite::tungstenite::error::ProtocolError;
    match error {
        Error::Utf8(_) => Read::Wrong(NOT_UTF8, "the text is not UTF-8"),
        Error::Capacity(CapacityError::MessageTooLong { .. }) => {
            Read::Wrong(TOO_LARGE, "the message is too large")
        }
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Read::Lost,
        Error::Protocol(_) => Read::Wrong(WRONG, "the frame is malformed"),
        _ => Read::Lost,
    }
}

impl Heard {
    /// Resolves when the client is gone, or was silent for so long, though it was asked by then.
    ///
    /// While the object is behind, nothing is read and silence means nothing. The end of the
    /// connection lies then behind words that nobody reads, so it is looked for.
    async fn silence(&self, outbox: &Outbox, wire: &Wire, idle: Duration) {
        let (mut asked, mut is_doubted) = (self.under_way.heard(), false);
        loop {
            let (asks, until);
            if self.waits.get() {
                until = Instant::now() + LOOK;
                self.under_way.excuse();
                let presence = wire.presence();
                if presence == Presence::Gone {
                    return;
                }
                // If it isn't there any more, its system says so when something comes.
                let says_no_more = presence == Presence::SaysNoMore;
                asks = says_no_more && !is_doubted || asked.elapsed() >= idle / 2;
                is_doubted = says_no_more;
            } else {
                let last = self.under_way.heard();
                let quiet = last.elapsed();
                if quiet >= idle {
                    return;
                }
                asks = quiet >= idle / 2 && asked <= last;
                until = last + if quiet < idle / 2 { idle / 2 } else { idle };
            }
            if asks {
                asked = Instant::now();
                outbox.control(Message::Ping(Bytes::new()));
            }
            tokio::select! {
                () = sleep_until(until) => {}
                () = self.began_to_wait.notified() => {}
            }
        }
    }
}
