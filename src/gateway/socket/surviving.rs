//! The gateway's side of a WebSocket that survives the end of its object's host: it keeps the
//! client and the messages that the object hasn't got, and takes the socket up again by a new path.
//!
//! Invariants:
//! - A message is kept until the object has taken it, and after a break it is sent again if the
//!   object hasn't: all of them in the order of their numbers.
//! - A frame goes to the client if its number is the next one. One that comes again is acknowledged
//!   and dropped; before one that is missing, the path counts as broken.
//! - One path is good, the latest: what comes by another is refused.
//! - A path that isn't there again in time ends the socket, on both sides.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::time::Duration;

use capnp::ErrorKind;
use capnp::capability::Promise;
use futures::future::{TryFutureExt, pending};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Bytes, Message, Utf8Bytes};

use super::outbox::{Outbox, close_frame};
use crate::error::{Result, disconnected, failed};
use crate::membrane;
use crate::schema::http_capnp::web_socket;
use crate::schema::surviving_capnp::{numbered_socket, socket_resumption};

/// The pauses between attempts to reach the object again.
const PAUSES: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];

/// The time for one of them: a host that was killed may leave a path on which nothing answers.
const ATTEMPT: Duration = Duration::from_secs(5);

/// The code of a connection that was lost.
const LOST: u16 = 1006;

/// Restores the object anew. The answer isn't waited for.
pub(in crate::gateway) type Again = Box<dyn Fn() -> Result<socket_resumption::Client>>;

/// See the head of the file.
pub(in crate::gateway) struct Surviving {
    id: Vec<u8>,
    outbox: Rc<Outbox>,
    again: OnceCell<Again>,
    /// Leads to the object; none while the path is broken.
    up: RefCell<Option<numbered_socket::Client>>,
    /// The number of the path that is good.
    path: Cell<u64>,
    /// The last path that broke while it was the good one.
    last_broken: Cell<Option<u64>>,
    broke: Notify,
    /// The number of the last message.
    sent: Cell<u64>,
    /// The messages that the object hasn't taken, each with the call that waits for that.
    waiting: RefCell<VecDeque<Waiting>>,
    /// The number of the last frame that came from the object.
    received: Cell<u64>,
    /// The object was told of the end, or can't be told.
    is_over: Cell<bool>,
}

struct Waiting {
    number: u64,
    message: Message,
    taken: oneshot::Sender<Result<()>>,
}

/// Why a socket can't be taken up again.
pub(super) enum End {
    /// Its object wasn't there in time.
    Late,
    /// Its object knows it no more.
    Refused(capnp::Error),
}

impl Surviving {
    /// A socket, and the object's way to it.
    pub(in crate::gateway) fn new(
        id: &[u8],
        up: numbered_socket::Client,
        outbox: Rc<Outbox>,
    ) -> (Rc<Self>, numbered_socket::Client) {
        let surviving = Rc::new(Self {
            id: id.to_owned(),
            outbox,
            again: OnceCell::new(),
            up: RefCell::new(Some(up)),
            path: Cell::default(),
            last_broken: Cell::default(),
            broke: Notify::new(),
            sent: Cell::default(),
            waiting: RefCell::default(),
            received: Cell::default(),
            is_over: Cell::default(),
        });
        let down = surviving.down();
        (surviving, down)
    }

    /// Says how its object is reached again.
    pub(in crate::gateway) fn set_again(&self, again: Again) {
        // A second time changes nothing.
        let _ = self.again.set(again);
    }

    fn down(self: &Rc<Self>) -> numbered_socket::Client {
        let (surviving, path) = (Rc::downgrade(self), self.path.get());
        membrane::serve(Rc::new(Down { surviving, path }))
    }

    /// Sends a message. Resolves when the object has taken it, however many paths that needs.
    pub(super) fn send(self: &Rc<Self>, message: Message) -> Promise<(), capnp::Error> {
        let number = self.sent.get() + 1;
        self.sent.set(number);
        self.call(number, &message);
        let (taken, is_taken) = oneshot::channel();
        self.waiting.borrow_mut().push_back(Waiting { number, message, taken });
        let ended = |_| disconnected("the socket is closed");
        Promise::from_future(async move { is_taken.await.map_err(ended)? })
    }

    /// Makes a call, if there is a path.
    fn call(self: &Rc<Self>, number: u64, message: &Message) {
        let Some(up) = self.up.borrow().clone() else { return };
        let promise = call(&up, number, message);
        let (surviving, path) = (Rc::downgrade(self), self.path.get());
        // Ends with the call.
        tokio::task::spawn_local(async move {
            let outcome = promise.await;
            let Some(surviving) = surviving.upgrade() else { return };
            match outcome {
                Ok(()) => surviving.take(|waiting| waiting == number, &Ok(())),
                Err(_) if surviving.path.get() != path => {}
                Err(error) if error.kind == ErrorKind::Disconnected => surviving.breaks(path),
                Err(error) => surviving.take(|waiting| waiting == number, &Err(error)),
            }
        });
    }

    /// Tells those whose messages have these numbers what became of them.
    fn take(&self, is_taken: impl Fn(u64) -> bool, outcome: &Result<()>) {
        let mut kept = VecDeque::new();
        // Nobody is woken within the borrow.
        for waiting in self.waiting.take() {
            if is_taken(waiting.number) {
                // A call that was dropped needs no answer.
                let _ = waiting.taken.send(outcome.clone());
            } else {
                kept.push_back(waiting);
            }
        }
        self.waiting.replace(kept);
    }

    /// The path broke, unless there is another one already.
    fn breaks(&self, path: u64) {
        if self.path.get() == path {
            self.last_broken.set(Some(path));
            // The drop of a capability may call back.
            let up = self.up.take();
            drop(up);
            self.broke.notify_one();
        }
    }

    /// Makes a new path as often as the last one breaks. Resolves when there is none any more.
    pub(super) async fn keep_up(self: &Rc<Self>) -> End {
        loop {
            while self.up.borrow().is_some() {
                self.broke.notified().await;
            }
            if let Err(end) = self.resume().await {
                self.is_over.set(true);
                return end;
            }
        }
    }

    async fn resume(self: &Rc<Self>) -> std::result::Result<(), End> {
        let due = Instant::now() + self.outbox.away();
        let [mut pause, longest] = PAUSES;
        loop {
            let in_time = due.min(Instant::now() + ATTEMPT);
            match timeout_at(in_time, self.try_to_resume()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) if !may_pass(&error) => return Err(End::Refused(error)),
                // The next one may find another way.
                Ok(Err(_)) | Err(_) => {}
            }
            if Instant::now() + pause >= due {
                return Err(End::Late);
            }
            sleep_until(Instant::now() + pause).await;
            pause = longest.min(pause * 2);
        }
    }

    async fn try_to_resume(self: &Rc<Self>) -> Result<()> {
        let again = self.again.get().ok_or_else(|| failed("nobody knows its object"))?;
        let object = again()?;
        // From here on nothing comes by another path, so that the number is true.
        self.path.set(self.path.get() + 1);
        let mut resume = object.resume_request();
        resume.get().set_id(&self.id);
        resume.get().set_received(self.received.get());
        resume.get().set_down(self.down());
        let resumed = resume.send().promise.await?;
        let resumed = resumed.get()?;
        let taken = resumed.get_received();
        if self.last_broken.get() == Some(self.path.get()) {
            return Err(disconnected("the path broke while the socket was resumed"));
        }
        self.up.replace(Some(resumed.get_up()?));
        self.take(|number| number <= taken, &Ok(()));
        let rest: Vec<_> = self.waiting.borrow().iter().map(Waiting::message).collect();
        for (number, message) in rest {
            self.call(number, &message);
        }
        Ok(())
    }

    /// Tells the object of the end, after all that came before, if that wasn't done.
    pub(super) fn end(self: &Rc<Self>, code: u16, reason: &str) {
        if self.is_over.replace(true) {
            return;
        }
        let frame = CloseFrame { code: code.into(), reason: Utf8Bytes::from(reason) };
        let (surviving, told) = (self.clone(), self.send(Message::Close(Some(frame))));
        // Ends when the object was told, or can't be any more.
        tokio::task::spawn_local(async move {
            tokio::select! {
                _ = told => {}
                _ = surviving.keep_up() => {}
            }
        });
    }

    /// The client is lost, if nobody has told of another end.
    pub(super) fn lose(self: &Rc<Self>) {
        self.end(LOST, "");
    }

    /// A frame came by a path.
    async fn came(&self, path: u64, number: u64, frame: Result<Message>) -> Result<()> {
        if self.path.get() != path {
            return Err(disconnected("the socket has another path"));
        }
        let received = self.received.get();
        if number > received + 1 {
            self.breaks(path);
            return Err(disconnected("frames before this one are missing"));
        }
        if number == received + 1 {
            // Taken either way: one that the client can't get is never sent again.
            self.received.set(number);
            match frame? {
                Message::Close(frame) => self.outbox.close_by_object(frame),
                frame => self.outbox.push(frame)?,
            }
        }
        self.outbox.drained().await
    }
}

impl Waiting {
    fn message(&self) -> (u64, Message) {
        (self.number, self.message.clone())
    }
}

/// Tells whether another attempt may succeed.
fn may_pass(error: &capnp::Error) -> bool {
    matches!(error.kind, ErrorKind::Disconnected | ErrorKind::Overloaded)
}

fn call(up: &numbered_socket::Client, number: u64, message: &Message) -> Promise<(), capnp::Error> {
    match message {
        Message::Text(text) => {
            let mut send = up.text_at_request();
            send.get().set_number(number);
            send.get().set_text(&**text);
            Promise::from_future(send.send().promise.map_ok(drop))
        }
        Message::Binary(data) => {
            let mut send = up.data_at_request();
            send.get().set_number(number);
            send.get().set_data(data);
            Promise::from_future(send.send().promise.map_ok(drop))
        }
        Message::Close(Some(frame)) => {
            let mut close = up.close_at_request();
            close.get().set_number(number);
            close.get().set_code(frame.code.into());
            close.get().set_reason(&*frame.reason);
            Promise::from_future(close.send().promise.map_ok(drop))
        }
        // Nothing else is kept.
        _ => Promise::from_future(pending()),
    }
}

/// The object's end of one path.
struct Down {
    surviving: Weak<Surviving>,
    path: u64,
}

impl Down {
    fn surviving(&self) -> Result<Rc<Surviving>> {
        self.surviving.upgrade().ok_or_else(|| disconnected("the socket is closed"))
    }
}

impl Drop for Down {
    fn drop(&mut self) {
        if let Some(surviving) = self.surviving.upgrade() {
            surviving.breaks(self.path);
        }
    }
}

impl numbered_socket::Server for Down {
    async fn text_at(
        self: Rc<Self>,
        params: numbered_socket::TextAtParams,
        _: numbered_socket::TextAtResults,
    ) -> Result<()> {
        let params = params.get()?;
        let frame = Message::Text(Utf8Bytes::from(params.get_text()?.to_str()?));
        self.surviving()?.came(self.path, params.get_number(), Ok(frame)).await
    }

    async fn data_at(
        self: Rc<Self>,
        params: numbered_socket::DataAtParams,
        _: numbered_socket::DataAtResults,
    ) -> Result<()> {
        let params = params.get()?;
        let frame = Message::Binary(Bytes::copy_from_slice(params.get_data()?));
        self.surviving()?.came(self.path, params.get_number(), Ok(frame)).await
    }

    async fn close_at(
        self: Rc<Self>,
        params: numbered_socket::CloseAtParams,
        _: numbered_socket::CloseAtResults,
    ) -> Result<()> {
        let params = params.get()?;
        let frame = close_frame(params.get_code(), params.get_reason()?.to_str()?);
        self.surviving()?.came(self.path, params.get_number(), frame.map(Message::Close)).await
    }
}

impl web_socket::Server for Down {
    async fn send_text(self: Rc<Self>, _: web_socket::SendTextParams) -> Result<()> {
        Err(unnumbered())
    }

    async fn send_data(self: Rc<Self>, _: web_socket::SendDataParams) -> Result<()> {
        Err(unnumbered())
    }

    async fn close(
        self: Rc<Self>,
        params: web_socket::CloseParams,
        _: web_socket::CloseResults,
    ) -> Result<()> {
        let (params, surviving) = (params.get()?, self.surviving()?);
        if surviving.path.get() == self.path {
            let frame = close_frame(params.get_code(), params.get_reason()?.to_str()?)?;
            surviving.outbox.close_by_object(frame);
        }
        Ok(())
    }
}

fn unnumbered() -> capnp::Error {
    failed("messages of a socket that survives have numbers")
}
