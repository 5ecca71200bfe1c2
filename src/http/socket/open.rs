//! The open WebSockets of an object, and how it accepts one more.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use http::header::UPGRADE;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};

use super::incoming::{End, Handles, Incoming, Way};
use super::{Inner, Message, Socket, SocketHandler, check_attachment};
use crate::error::Result;
use crate::http::refusal::{Refusal, refuse};
use crate::http::{Answer, Body, write_headers};
use crate::schema::http_capnp::http_service::client_request_context;
use crate::schema::http_capnp::web_socket;

/// The open WebSockets of an object, which it gets from
/// [`Context::sockets`](crate::Context::sockets) when it wakes.
///
/// ```
/// use std::rc::Rc;
///
/// use capstead::http::{Answer, Body, Message, Request, Socket, SocketHandler, Sockets};
/// use capstead::{Result, Stored};
///
/// /// Whoever is connected hears all that is said.
/// struct Room {
///     sockets: Sockets, // ctx.sockets(), in `wake`
///     said: Stored<i64>,
/// }
///
/// impl Room {
///     /// Called from `http::serve`.
///     fn http(self: &Rc<Self>, request: &Request<Body>) -> Answer {
///         self.sockets.accept(self, request)?.tag("listeners").answer()
///     }
/// }
///
/// impl SocketHandler for Room {
///     async fn message(self: Rc<Self>, _: Socket, message: Message) -> Result<()> {
///         self.said.set(self.said.get() + 1)?;
///         self.sockets.broadcast(&message); // leaves when the number is durable
///         Ok(())
///     }
/// }
/// ```
#[derive(Clone)]
pub struct Sockets(Rc<Set>);

pub(super) struct Set {
    /// Those that are open, by number: in the order in which they were accepted.
    pub(super) open: RefCell<BTreeMap<u64, Socket>>,
    accepted: Cell<u64>,
    /// Makes a capability of the object's own.
    pub(super) capability: Box<dyn Fn(Rc<Incoming>) -> web_socket::Client>,
}

impl Sockets {
    pub(crate) fn new(capability: impl Fn(Rc<Incoming>) -> web_socket::Client + 'static) -> Self {
        let (open, accepted) = (RefCell::default(), Cell::default());
        Self(Rc::new(Set { open, accepted, capability: Box::new(capability) }))
    }

    /// Accepts the socket that a request asks for; `handler` is told what comes on it, as long as
    /// it lives: it is the object itself. The socket is open when the answer that this makes was
    /// given.
    ///
    /// # Errors
    /// 426 when the request asks for none.
    pub fn accept<C: SocketHandler>(
        &self,
        handler: &Rc<C>,
        request: &Request<Body>,
    ) -> std::result::Result<Accept, Refusal> {
        if !is_upgrade(request) {
            let reason = "this is for WebSockets: ask with `Upgrade: websocket`";
            return Err(refuse(StatusCode::UPGRADE_REQUIRED, reason));
        }
        let handler = Rc::new(Rc::downgrade(handler));
        let (tags, attachment, protocol) = Default::default();
        Ok(Accept { set: self.0.clone(), handler, tags, attachment, protocol })
    }

    /// All that are open, in the order in which they were accepted.
    pub fn all(&self) -> Vec<Socket> {
        self.0.open.borrow().values().cloned().collect()
    }

    /// Those that are open and have this tag.
    pub fn tagged(&self, tag: &str) -> Vec<Socket> {
        let open = self.0.open.borrow();
        open.values().filter(|socket| socket.has_tag(tag)).cloned().collect()
    }

    /// The number of those that are open.
    pub fn len(&self) -> usize {
        self.0.open.borrow().len()
    }

    /// Tells whether none is open.
    pub fn is_empty(&self) -> bool {
        self.0.open.borrow().is_empty()
    }

    /// Sends a message on all that are open. None waits for another.
    pub fn broadcast(&self, message: &Message) {
        for socket in self.0.open.borrow().values() {
            drop(socket.send(message));
        }
    }
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sockets").field("open", &self.len()).finish_non_exhaustive()
    }
}

/// Tells whether a request asks for a WebSocket.
pub fn is_upgrade<B>(request: &Request<B>) -> bool {
    let asked = request.headers().get(UPGRADE);
    request.method() == Method::GET
        && asked.is_some_and(|asked| asked.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// A socket that is accepted when [`Accept::answer`] was returned.
pub struct Accept {
    set: Rc<Set>,
    handler: Rc<dyn Handles>,
    tags: Vec<String>,
    attachment: Vec<u8>,
    protocol: Option<HeaderValue>,
}

impl Accept {
    /// Marks the socket, to be found by [`Sockets::tagged`].
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// Keeps up to 16 KiB with the socket; see [`Socket::attachment`].
    #[must_use]
    pub fn attachment(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.attachment = bytes.into();
        self
    }

    /// Takes one of the protocols that the client offered in `Sec-WebSocket-Protocol`.
    #[must_use]
    pub fn protocol(mut self, name: HeaderValue) -> Self {
        self.protocol = Some(name);
        self
    }

    /// The response that accepts it. Headers that are added to it are added to the handshake.
    ///
    /// # Errors
    /// When the attachment is too large.
    pub fn answer(mut self) -> Answer {
        check_attachment(&self.attachment)?;
        let protocol = self.protocol.take();
        let mut response = Response::new(Body::of_socket(self));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        if let Some(protocol) = protocol {
            response.headers_mut().insert(http::header::SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        Ok(response)
    }

    /// Opens the socket, and returns when the client's side has it.
    ///
    /// # Errors
    /// When that refused it, or has gone.
    pub(in crate::http) async fn start(
        &self,
        context: &client_request_context::Client,
        headers: &HeaderMap,
    ) -> Result<()> {
        let set = &self.set;
        let number = set.accepted.get();
        set.accepted.set(number + 1);
        let socket = Socket(Rc::new(Inner {
            number,
            tags: self.tags.clone(),
            attachment: RefCell::new(self.attachment.clone()),
            down: RefCell::default(),
            set: Rc::downgrade(set),
        }));
        let end = Rc::new(End { number, set: Rc::downgrade(set), handler: self.handler.clone() });
        let up = (set.capability)(Rc::new(Incoming { end, way: Way::Client }));
        let mut start = context.start_web_socket_request();
        write_headers(headers, start.get().init_headers(headers.len() as u32))?;
        start.get().set_up_socket(up);
        // If the client has gone, the way in may be dropped at once, and the socket must be there
        // to end.
        set.open.borrow_mut().insert(number, socket.clone());
        let started = start.send();
        socket.0.down.replace(Some(started.pipeline.get_down_socket()));
        if let Some(opened) = self.handler.opened(socket.clone()) {
            socket.close_on_error(opened.await);
        }
        // If it was refused, the way in is dropped, and the handler told so.
        started.promise.await.map(drop)
    }
}

impl fmt::Debug for Accept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accept").field("tags", &self.tags).finish_non_exhaustive()
    }
}
