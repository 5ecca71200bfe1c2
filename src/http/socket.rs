//! WebSockets as a class holds them: it accepts one in the answer to a request, or opens one
//! itself, sends on it, and its [`SocketHandler`] gets its messages.
//!
//! Invariants:
//! - All that comes on a socket is a call of the object, so it is a turn, and in order. It wakes
//!   the object if that sleeps.
//! - `closed` is called once for each socket that was accepted, unless the object was replaced or
//!   its host ended before; after it nothing of that socket.
//! - A socket is the object's and no instance's: it survives sleep, `abort` and panics.

mod connect;
mod dispatch;
mod open;
mod resuming;
mod surviving;
mod table;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::pin::Pin;
use std::rc::Rc;

use capnp::capability::{Promise, StreamingRequest};

use super::stream::keep;
use crate::error::{Result, disconnected, failed, said};
use crate::limits::{
    SOCKET_ATTACHMENT_BYTES_MAX, SOCKET_REASON_BYTES_MAX, SOCKET_TAG_BYTES_MAX, SOCKET_TAGS_MAX,
};
pub use connect::Connect;
pub(crate) use dispatch::{dispatch, is_close, is_text};
pub use open::{Accept, Sockets, is_upgrade};
pub(crate) use resuming::resume;
use surviving::Frame;
pub(crate) use surviving::{Lease, Records};
pub(crate) use table::{Entry, HasSockets, Holder, SocketTable, View};

/// The code of a connection that was lost.
pub(crate) const LOST: u16 = 1006;
/// Of a handler that failed.
const FAILED: u16 = 1011;

/// One message of a WebSocket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// UTF-8.
    Text(String),
    /// Any bytes.
    Data(Vec<u8>),
}

impl From<&str> for Message {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// The end of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Closed {
    /// That of the client's close frame; 1005 if it had none, and 1006 if the connection was lost.
    pub code: u16,
    /// That of the close frame; empty if there was none.
    pub reason: String,
}

impl Closed {
    /// Tells whether it was closed by frames, and not lost.
    pub fn is_clean(&self) -> bool {
        self.code != LOST
    }
}

/// The handler of the messages of a class's WebSockets.
///
/// Each of these is run as a method is: its polls are turns, and what it sends leaves when what it
/// wrote before is durable. Messages of a socket start in order. One that awaits lets the next
/// begin, unless the class is exclusive, and a client whose messages have much to wait for is read
/// more slowly.
///
/// An error closes the socket with the code 1011 and its sentence. So does the end of the instance,
/// by a panic or [`Context::abort`](crate::Context::abort), while it works on a message of the
/// socket: nobody can say what became of that. All other sockets stay, and what comes on them
/// wakes a fresh instance.
///
/// An object whose sockets say nothing sleeps after its warm time, and its fields are lost: what
/// it has to know of a socket is in its tags, its [attachment](Socket::attach) and the storage.
pub trait SocketHandler: Sized + 'static {
    /// A socket was accepted: what is sent on it now comes first. It runs in the turn of the
    /// request.
    fn opened(self: Rc<Self>, socket: Socket) -> impl Future<Output = Result<()>> {
        drop(socket);
        async { Ok(()) }
    }

    /// A message came.
    fn message(
        self: Rc<Self>,
        socket: Socket,
        message: Message,
    ) -> impl Future<Output = Result<()>>;

    /// The socket is closed, by either side, and no longer among the object's [`Sockets`].
    fn closed(self: Rc<Self>, socket: Socket, closed: Closed) -> impl Future<Output = Result<()>> {
        drop((socket, closed));
        async { Ok(()) }
    }
}

/// One WebSocket. Cheap to clone; two are equal if they are the same socket, also across sleep.
#[derive(Clone)]
pub struct Socket {
    entry: Rc<Entry>,
    view: Rc<View>,
}

/// A message on its way. It leaves whether or not this is awaited; an object that awaits it sends
/// no faster than the client reads. The error says that the socket has ended, or that its client
/// didn't read for too long.
#[must_use = "drop it to send without waiting for the client"]
pub struct Sending(Promise<(), capnp::Error>);

impl fmt::Debug for Sending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sending").finish_non_exhaustive()
    }
}

impl Future for Sending {
    type Output = Result<()>;

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl Socket {
    /// Tells whether it has this tag.
    pub fn has_tag(&self, tag: &str) -> bool {
        self.entry.tags.iter().any(|other| other == tag)
    }

    /// The tags with which it was accepted.
    pub fn tags(&self) -> &[String] {
        &self.entry.tags
    }

    /// The bytes that are kept with it for the object.
    pub fn attachment(&self) -> Vec<u8> {
        self.entry.attachment.borrow().clone()
    }

    /// Keeps other bytes with it, as long as it is open: the object finds them when it wakes. They
    /// are not part of the turn, and stay when that fails. Those of a socket that
    /// [survives](Sockets::surviving) are stored with the turn, or right behind one that fails.
    ///
    /// # Errors
    /// When they are more than 16 KiB, when the sockets of the host take too much together, or when
    /// the socket or the instance ended; of a socket that survives, also outside of turns and in a
    /// transaction. The others stay then.
    pub fn attach(&self, bytes: impl Into<Vec<u8>>) -> Result<()> {
        let bytes = bytes.into();
        check_attachment(&bytes)?;
        self.view.holder.check_alive()?;
        if !self.view.table.is_open(&self.entry) {
            return Err(over());
        }
        if bytes.len() > self.entry.attachment.borrow().len() {
            self.view.holder.check_room()?;
        }
        if let Some(surviving) = &self.entry.surviving {
            surviving.store_attachment(&*self.view.holder, &bytes)?;
        }
        self.view.table.attach(&self.entry, bytes);
        Ok(())
    }

    /// The time of the last [automatic reply](Sockets::auto_reply) on it, in milliseconds since
    /// 1970; none if there was none since the object's host started.
    pub fn auto_replied_ms(&self) -> Option<u64> {
        Some(self.entry.auto_replied_ms.get()).filter(|time| *time > 0)
    }

    /// Sends a message. Messages leave in the order in which they were sent.
    pub fn send(&self, message: &Message) -> Sending {
        match message {
            Message::Text(text) => self.send_text(text),
            Message::Data(bytes) => self.send_data(bytes),
        }
    }

    /// Sends a text.
    pub fn send_text(&self, text: &str) -> Sending {
        if let Some(surviving) = &self.entry.surviving {
            return self.send_surviving(surviving, &Frame::Text(text));
        }
        let request = self.view.with_down(&self.entry, |down| {
            let mut send = down.send_text_request();
            send.get().set_text(text);
            send
        });
        Sending(request.map_or_else(|| Promise::err(over()), StreamingRequest::send))
    }

    /// Sends bytes.
    pub fn send_data(&self, bytes: &[u8]) -> Sending {
        if let Some(surviving) = &self.entry.surviving {
            return self.send_surviving(surviving, &Frame::Data(bytes));
        }
        let request = self.view.with_down(&self.entry, |down| {
            let mut send = down.send_data_request();
            send.get().set_data(bytes);
            send
        });
        Sending(request.map_or_else(|| Promise::err(over()), StreamingRequest::send))
    }

    /// Sends a close frame, after all that was sent before. The socket ends when the client has
    /// answered it, or had time to: [`SocketHandler::closed`] says so. A reason has at most 123
    /// bytes; a longer one is cut.
    pub fn close(&self, code: u16, reason: &str) {
        if let Some(surviving) = &self.entry.surviving {
            return drop(self.send_surviving(surviving, &Frame::Close(code, cut(reason))));
        }
        let request = self.view.with_down(&self.entry, |down| {
            let mut close = down.close_request();
            close.get().set_code(code);
            close.get().set_reason(cut(reason));
            close
        });
        if let Some(close) = request {
            keep(close.send().promise);
        }
    }

    fn close_on_error(&self, outcome: Result<()>) {
        if let Err(error) = outcome {
            self.close(FAILED, said(&error));
        }
    }
}

fn check_attachment(bytes: &[u8]) -> Result<()> {
    if bytes.len() > SOCKET_ATTACHMENT_BYTES_MAX {
        let most = SOCKET_ATTACHMENT_BYTES_MAX;
        return Err(failed(format!(
            "a socket's attachment has at most {most} bytes: store the rest"
        )));
    }
    Ok(())
}

fn check_tags(tags: &[String]) -> Result<()> {
    let (most, bytes) = (SOCKET_TAGS_MAX, SOCKET_TAG_BYTES_MAX);
    if tags.len() > most || tags.iter().any(|tag| tag.len() > bytes) {
        return Err(failed(format!("a socket has at most {most} tags of {bytes} bytes each")));
    }
    Ok(())
}

/// The error of every use of a socket that has ended.
pub(crate) fn over() -> capnp::Error {
    disconnected("the socket is closed")
}

/// A reason as a close frame may have it.
pub(crate) fn cut(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(SOCKET_REASON_BYTES_MAX)]
}

impl PartialEq for Socket {
    fn eq(&self, other: &Self) -> bool {
        self.entry.number == other.entry.number && Rc::ptr_eq(&self.view.table, &other.view.table)
    }
}

impl Eq for Socket {}

impl Hash for Socket {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.entry.number.hash(state);
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Entry { number, tags, .. } = &*self.entry;
        f.debug_struct("Socket").field("number", number).field("tags", tags).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_cut_between_two_letters() {
        assert_eq!(cut("short"), "short");
        let long = format!("{}ü", "x".repeat(122));
        assert_eq!(cut(&long).len(), 122);
    }
}
