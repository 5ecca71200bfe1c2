//! The frames that an object sent on one WebSocket and its client hasn't read yet.
//!
//! Invariants:
//! - Frames leave in the order in which they came, and none after a close.
//! - No more waits here than the limits allow: a client that doesn't read is cut, and nobody waits
//!   for it but those who want to.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Bytes, Message, Utf8Bytes};

use crate::error::{Result, disconnected, failed, overloaded};
use crate::gateway::limits::Taken;
use crate::http::Room;
use crate::limits::SOCKET_REASON_BYTES_MAX;
use crate::schema::http_capnp::web_socket;

/// A sender that awaits their sending waits while more than this lies here.
const LOW_WATER_BYTES: usize = 64 << 10;

/// Counted for each frame beside its payload.
const FRAME_BYTES: usize = 64;

/// The state of what the object sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// A close frame is the last one.
    Closing,
    /// The object let go of its end without a close.
    ObjectEnded,
    /// The client didn't read, or is gone.
    Gone,
}

pub(in crate::gateway) struct Outbox {
    frames: RefCell<VecDeque<Message>>,
    /// Of the frames that wait or are being written.
    bytes: Cell<usize>,
    most: usize,
    away: Duration,
    room: Arc<Room>,
    state: Cell<State>,
    /// There is something to write, or the end.
    filled: Notify,
    /// There is less, or nothing will ever be taken again.
    drained: Notify,
}

/// The next thing for the writer.
pub(super) enum Next {
    /// Frames of so many bytes. If the last of them is a close, there is nothing after it.
    Frames(Vec<Message>, usize),
    /// The object is gone.
    ObjectEnded,
    /// The client doesn't read, or is gone.
    Gone,
}

impl Outbox {
    pub(in crate::gateway) fn new(taken: &Taken) -> Rc<Self> {
        Rc::new(Self {
            frames: RefCell::default(),
            bytes: Cell::default(),
            most: taken.limits.socket_unsent_bytes,
            away: taken.limits.socket_away,
            room: taken.room().clone(),
            state: Cell::new(State::Open),
            filled: Notify::new(),
            drained: Notify::new(),
        })
    }

    /// Frames to write, as soon as there are any.
    pub(super) async fn next(&self) -> Next {
        loop {
            let frames: Vec<_> = self.frames.take().into();
            if !frames.is_empty() {
                let bytes = frames.iter().map(size).sum();
                return Next::Frames(frames, bytes);
            }
            match self.state.get() {
                State::ObjectEnded => return Next::ObjectEnded,
                State::Gone => return Next::Gone,
                State::Open | State::Closing => self.filled.notified().await,
            }
        }
    }

    /// The time for which an object may be out of reach.
    pub(super) fn away(&self) -> Duration {
        self.away
    }

    /// So much was written.
    pub(super) fn wrote(&self, bytes: usize) {
        self.release(bytes);
        if self.bytes.get() <= LOW_WATER_BYTES {
            self.drained.notify_waiters();
        }
    }

    /// Resolves when nothing is taken any more.
    pub(super) async fn gone(&self) {
        while self.state.get() != State::Gone {
            self.drained.notified().await;
        }
    }

    /// Closes the socket after what waits, unless the object did.
    pub(super) fn close(&self, code: u16, reason: &str) {
        if matches!(self.state.get(), State::Open | State::ObjectEnded) {
            let reason = &reason[..reason.floor_char_boundary(SOCKET_REASON_BYTES_MAX)];
            let frame = CloseFrame { code: code.into(), reason: Utf8Bytes::from(reason) };
            self.push_anyway(Message::Close(Some(frame)));
            self.state.set(State::Closing);
        }
    }

    /// The object closes the socket. A second close, or one after the client's, changes nothing.
    pub(super) fn close_by_object(&self, frame: Option<CloseFrame>) {
        if self.state.get() == State::Open {
            self.push_anyway(Message::Close(frame));
            self.state.set(State::Closing);
        }
    }

    /// Control frames of the gateway itself.
    pub(super) fn control(&self, frame: Message) {
        if self.state.get() == State::Open {
            self.push_anyway(frame);
        }
    }

    /// Nothing is written any more.
    fn end(&self) {
        self.state.set(State::Gone);
        self.frames.take();
        self.release(self.bytes.get());
        self.filled.notify_one();
        self.drained.notify_waiters();
    }

    pub(super) fn push(&self, frame: Message) -> Result<()> {
        match self.state.get() {
            State::Open => {}
            State::Closing | State::ObjectEnded => return Err(failed("no frame follows a close")),
            State::Gone => return Err(disconnected("the socket is closed")),
        }
        let (waits, more) = (self.bytes.get(), size(&frame));
        // Slow readers that fill the room leave a reserve to clients that keep up.
        let keeps_up = waits <= LOW_WATER_BYTES;
        let has_room = self.room.has_room(more) || keeps_up && self.room.has_reserve(more);
        if !has_room || waits > 0 && waits + more > self.most {
            self.end();
            return Err(overloaded("the socket's client doesn't read what it is sent: it was cut"));
        }
        self.push_anyway(frame);
        Ok(())
    }

    fn push_anyway(&self, frame: Message) {
        let more = size(&frame);
        self.room.count(more);
        self.bytes.set(self.bytes.get() + more);
        self.frames.borrow_mut().push_back(frame);
        self.filled.notify_one();
    }

    fn release(&self, bytes: usize) {
        // After the end everything was released already.
        let bytes = bytes.min(self.bytes.get());
        self.bytes.set(self.bytes.get() - bytes);
        self.room.release(bytes);
    }

    /// Returns at once while the client keeps up.
    pub(super) async fn drained(&self) -> Result<()> {
        loop {
            let drained = self.drained.notified();
            if self.state.get() == State::Gone {
                return Err(disconnected("the socket is closed"));
            }
            if self.bytes.get() <= LOW_WATER_BYTES {
                return Ok(());
            }
            drained.await;
        }
    }

    #[cfg(test)]
    fn is_gone(&self) -> bool {
        self.state.get() == State::Gone
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.release(self.bytes.get());
    }
}

/// The client's end. Nothing is taken any more when it is dropped.
pub(in crate::gateway) struct Line(pub(in crate::gateway) Rc<Outbox>);

impl Drop for Line {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn size(frame: &Message) -> usize {
    frame.len() + FRAME_BYTES
}

/// The object's end: who holds it sends to the client.
pub(in crate::gateway) struct Down(pub(in crate::gateway) Rc<Outbox>);

impl web_socket::Server for Down {
    async fn send_text(self: Rc<Self>, params: web_socket::SendTextParams) -> Result<()> {
        let text = params.get()?.get_text()?.to_str()?;
        self.0.push(Message::Text(Utf8Bytes::from(text)))?;
        self.0.drained().await
    }

    async fn send_data(self: Rc<Self>, params: web_socket::SendDataParams) -> Result<()> {
        let data = Bytes::copy_from_slice(params.get()?.get_data()?);
        self.0.push(Message::Binary(data))?;
        self.0.drained().await
    }

    async fn close(
        self: Rc<Self>,
        params: web_socket::CloseParams,
        _: web_socket::CloseResults,
    ) -> Result<()> {
        let params = params.get()?;
        let frame = close_frame(params.get_code(), params.get_reason()?.to_str()?)?;
        self.0.close_by_object(frame);
        Ok(())
    }
}

impl Drop for Down {
    fn drop(&mut self) {
        if self.0.state.get() == State::Open {
            self.0.state.set(State::ObjectEnded);
            self.0.filled.notify_one();
        }
    }
}

/// # Errors
/// When no close frame may say this.
pub(super) fn close_frame(code: u16, reason: &str) -> Result<Option<CloseFrame>> {
    const NONE: u16 = 1005;
    if code == NONE {
        return Ok(None);
    }
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(failed(format!(
            "{code} is no code of a close frame: use 1000, or one of 3000 to 4999"
        )));
    }
    if reason.len() > SOCKET_REASON_BYTES_MAX {
        return Err(failed(format!(
            "the reason of a close frame has at most {SOCKET_REASON_BYTES_MAX} bytes"
        )));
    }
    Ok(Some(CloseFrame { code: code.into(), reason: Utf8Bytes::from(reason) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::HttpLimits;

    fn outbox(most: usize) -> Rc<Outbox> {
        let limits = HttpLimits { socket_unsent_bytes: most, ..HttpLimits::default() };
        Outbox::new(&Taken::new(limits, Arc::default()))
    }

    #[test]
    fn a_client_that_does_not_read_is_cut_at_the_limit_and_its_memory_goes() {
        let outbox = outbox(1000);
        let frame = || Message::Text("x".repeat(100).into());
        for _ in 0..6 {
            outbox.push(frame()).unwrap();
        }
        assert_eq!(outbox.bytes.get(), 6 * 164);
        assert!(outbox.push(frame()).is_err());
        assert!(outbox.is_gone() && outbox.bytes.get() == 0);
        assert!(outbox.push(frame()).is_err());
    }

    #[test]
    fn one_message_may_be_larger_than_what_may_wait() {
        let outbox = outbox(1000);
        outbox.push(Message::Binary(vec![0; 5000].into())).unwrap();
        assert!(outbox.push(Message::Text("x".into())).is_err());
    }

    #[test]
    fn codes_that_no_frame_may_have_are_refused() {
        for code in [1000, 1001, 1011, 3000, 4999] {
            assert!(close_frame(code, "why").unwrap().is_some(), "{code}");
        }
        assert!(close_frame(1005, "").unwrap().is_none());
        for code in [0, 999, 1004, 1006, 1015, 1016, 2999, 5000, 65535] {
            assert!(close_frame(code, "").is_err(), "{code}");
        }
        assert!(close_frame(1000, &"x".repeat(124)).is_err());
    }
}
