//! The way by which messages of a WebSocket reach the class, and the end of each socket.

use std::pin::Pin;
use std::rc::{Rc, Weak};

use super::open::Set;
use super::{Closed, LOST, Message, Socket, SocketHandler};
use crate::error::{Result, failed};
use crate::schema::http_capnp::web_socket;

pub(super) type Handling = Pin<Box<dyn Future<Output = Result<()>>>>;

/// A [`SocketHandler`] of any class.
pub(super) trait Handles {
    fn opened(&self, socket: Socket) -> Option<Handling>;
    fn message(&self, socket: Socket, message: Message) -> Option<Handling>;
    fn closed(&self, socket: Socket, closed: Closed) -> Option<Handling>;
}

/// The object's value, which goes when its instance ends, whoever holds the client's side of its
/// sockets.
impl<C: SocketHandler> Handles for Weak<C> {
    fn opened(&self, socket: Socket) -> Option<Handling> {
        Some(Box::pin(self.upgrade()?.opened(socket)))
    }

    fn message(&self, socket: Socket, message: Message) -> Option<Handling> {
        Some(Box::pin(self.upgrade()?.message(socket, message)))
    }

    fn closed(&self, socket: Socket, closed: Closed) -> Option<Handling> {
        Some(Box::pin(self.upgrade()?.closed(socket, closed)))
    }
}

/// The object's end of one socket.
pub(super) struct End {
    pub(super) number: u64,
    pub(super) set: Weak<Set>,
    pub(super) handler: Rc<dyn Handles>,
}

impl End {
    /// None once it has ended, or with it the object.
    fn socket(&self) -> Option<Socket> {
        self.set.upgrade()?.open.borrow().get(&self.number).cloned()
    }

    async fn message(&self, message: Message) -> Result<()> {
        let socket = self.socket().ok_or_else(|| failed("no frame follows a close"))?;
        if let Some(handling) = self.handler.message(socket.clone(), message) {
            socket.close_on_error(handling.await);
        }
        Ok(())
    }

    /// The second time it changes nothing.
    async fn closed(&self, closed: Closed) -> Result<()> {
        let Some(set) = self.set.upgrade() else { return Ok(()) };
        let Some(socket) = set.open.borrow_mut().remove(&self.number) else { return Ok(()) };
        drop(socket.0.down.take());
        match self.handler.closed(socket, closed) {
            Some(handling) => handling.await,
            None => Ok(()),
        }
    }
}

/// The way by which what comes on a socket reaches the object.
pub(crate) struct Incoming {
    pub(super) end: Rc<End>,
    pub(super) way: Way,
}

#[derive(PartialEq, Eq)]
pub(super) enum Way {
    /// That of whoever has the client's side.
    Client,
    /// The object's own, by which it learns that the client's is gone.
    Own,
}

impl web_socket::Server for Incoming {
    async fn send_text(self: Rc<Self>, params: web_socket::SendTextParams) -> Result<()> {
        let text = params.get()?.get_text()?.to_str()?.to_owned();
        self.end.message(Message::Text(text)).await
    }

    async fn send_data(self: Rc<Self>, params: web_socket::SendDataParams) -> Result<()> {
        let bytes = params.get()?.get_data()?.to_owned();
        self.end.message(Message::Data(bytes)).await
    }

    async fn close(
        self: Rc<Self>,
        params: web_socket::CloseParams,
        _: web_socket::CloseResults,
    ) -> Result<()> {
        let params = params.get()?;
        let reason = params.get_reason()?.to_str()?.to_owned();
        self.end.closed(Closed { code: params.get_code(), reason }).await
    }
}

/// Dropped without a close, it has lost the client. A drop is no turn, and may come from anywhere,
/// so the object calls itself.
impl Drop for Incoming {
    fn drop(&mut self) {
        if self.way == Way::Own || self.end.socket().is_none() {
            return;
        }
        let end = self.end.clone();
        let tell = async move {
            let Some(set) = end.set.upgrade() else { return };
            let own = (set.capability)(Rc::new(Incoming { end, way: Way::Own }));
            drop(set);
            let mut close = own.close_request();
            close.get().set_code(LOST);
            drop(close.send());
        };
        // After the end of the runtime there is nobody to tell.
        if tokio::runtime::Handle::try_current().is_ok() {
            tokio::task::spawn_local(tell);
        }
    }
}
