//! The open WebSockets of an object, and how it accepts one more.

use std::any::Any;
use std::cell::OnceCell;
use std::fmt;
use std::rc::{Rc, Weak};

use capnp::capability::{FromClientHook, Promise};
use capnp::private::capability::ClientHook;
use futures::future::{FutureExt, LocalBoxFuture};
use http::header::UPGRADE;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};

use super::connect::{Connect, Opening};
use super::dispatch::handler_of;
use super::surviving::Surviving;
use super::table::{Entry, Handles, HasSockets, NewSocket, View};
use super::{Message, Socket, SocketHandler, check_attachment, check_tags};
use crate::error::{Result, failed, revoked};
use crate::http::Answer;
use crate::http::body::{Body, Upgrade};
use crate::http::head::write_headers;
use crate::http::refusal::{Refusal, refuse};
use crate::limits::SOCKET_AUTO_REPLY_BYTES_MAX;
use crate::schema::http_capnp::http_service;
use crate::schema::http_capnp::http_service::client_request_context;
use crate::schema::surviving_capnp::surviving_context;

/// The open WebSockets of an object, which it gets from
/// [`Context::sockets`](crate::Context::sockets) when it wakes: with those that were open while it
/// slept.
///
/// ```
/// use std::rc::Rc;
///
/// use capstead::http::{Answer, Body, Message, Request, Socket, SocketHandler, Sockets};
/// use capstead::{Result, Stored};
///
/// /// A room: everybody who is connected hears all that is said.
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
pub struct Sockets {
    of: Rc<dyn HasSockets>,
    /// None before it is needed: most objects never have a socket.
    view: OnceCell<Rc<View>>,
}

impl Sockets {
    /// The sockets of the object of this instance.
    pub(crate) fn new(of: Rc<dyn HasSockets>) -> Self {
        Self { of, view: OnceCell::new() }
    }

    fn view(&self) -> &Rc<View> {
        self.view.get_or_init(|| self.of.clone().view())
    }

    /// Accepts the socket that a request asks for; `handler` is the object itself, and the object
    /// is told what comes on it, whether it sleeps meanwhile or not. The socket is open when the
    /// answer that this makes was given.
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
        let object = Rc::downgrade(handler);
        let (view, handler) = (self.view().clone(), handler_of::<C>());
        let (tags, attachment, protocol) = Default::default();
        Ok(Accept { view, object, handler, tags, attachment, protocol })
    }

    /// The same, and from now on the object's sockets survive the end of its host's process, where
    /// the gateway lives on: said in `wake`, where `C` is the object. The object finds them when it
    /// wakes again, with tags and attachments, and no message is lost or comes twice. A socket that
    /// isn't resumed within a minute is lost to both sides.
    ///
    /// It costs writes: each message that comes, and each frame until the gateway has it, is stored
    /// with the turn that handles or sends it, so sending fails outside of turns and in
    /// transactions, and an object exists from its first such socket on. An
    /// [automatic reply](Self::auto_reply) wakes the object, and a message whose handler still
    /// waited when the host went ends its socket. Peers other than Capstead's own gateways get
    /// sockets that don't survive.
    ///
    /// # Errors
    /// When the storage can't be read, or the instance ended.
    pub fn surviving<C: SocketHandler>(self) -> Result<Self> {
        let view = self.view();
        view.holder.check_alive()?;
        view.table.survive(&*view.holder, handler_of::<C>())?;
        Ok(self)
    }

    /// Opens a socket to an object that accepts them, or by [`Outbound`](crate::Outbound) to the
    /// outside. `handler` is the object itself, and is told what comes on it, as on one that it
    /// accepted. The socket ends with the call that opened it.
    ///
    /// ```
    /// # use std::rc::Rc;
    /// use capstead::http::{Request, SocketHandler, Sockets, http_service};
    /// use capstead::{Result, failed};
    ///
    /// /// Follows the prices that a service outside sends.
    /// async fn follow<C: SocketHandler>(
    ///     object: &Rc<C>,
    ///     sockets: &Sockets,
    ///     service: &http_service::Client,
    /// ) -> Result<()> {
    ///     let request = Request::get("/prices").body(()).map_err(|e| failed(e.to_string()))?;
    ///     let socket = sockets.connect(object, service, request).tag("prices").open().await?;
    ///     drop(socket.into_body().send_text("subscribe"));
    ///     Ok(())
    /// }
    /// ```
    pub fn connect<C: SocketHandler>(
        &self,
        handler: &Rc<C>,
        to: &http_service::Client,
        request: Request<()>,
    ) -> Connect {
        let object = Rc::downgrade(handler);
        let (view, handler) = (self.view().clone(), handler_of::<C>());
        let (tags, attachment) = Default::default();
        let opening = Opening { view, object, handler, tags, attachment };
        Connect { opening, to: to.clone(), request }
    }

    /// All that are open, in the order in which they were accepted.
    pub fn all(&self) -> Vec<Socket> {
        if self.is_empty() {
            return Vec::new();
        }
        let view = self.view();
        view.table.all().into_iter().map(|entry| view.socket(entry)).collect()
    }

    /// Those that are open and have this tag.
    pub fn tagged(&self, tag: &str) -> Vec<Socket> {
        let mut tagged = self.all();
        tagged.retain(|socket| socket.has_tag(tag));
        tagged
    }

    /// The number of those that are open.
    pub fn len(&self) -> usize {
        self.view.get().map_or_else(|| self.of.open(), |view| view.table.len())
    }

    /// Tells whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sends a message on all that are open. None waits for another.
    pub fn broadcast(&self, message: &Message) {
        for socket in self.all() {
            drop(socket.send(message));
        }
    }

    /// From now on the host answers each text that is equal to `request` with `reply`, on every
    /// socket of the object: the object isn't woken by it, and never sees it. Said in `wake`, it
    /// holds for as long as the object has sockets. The time of the last reply is
    /// [`Socket::auto_replied_ms`].
    ///
    /// # Errors
    /// When one of them has more than 2 KiB, or the instance ended.
    pub fn auto_reply(&self, request: &str, reply: &str) -> Result<()> {
        let most = SOCKET_AUTO_REPLY_BYTES_MAX;
        if request.len() > most || reply.len() > most {
            return Err(failed(format!(
                "each text of an automatic reply has at most {most} bytes"
            )));
        }
        self.view().holder.check_alive()?;
        self.view().table.reply_by_itself(Some((request, reply)));
        Ok(())
    }

    /// Every text comes to the object again.
    ///
    /// # Errors
    /// When the instance ended.
    pub fn no_auto_reply(&self) -> Result<()> {
        self.view().holder.check_alive()?;
        self.view().table.reply_by_itself(None);
        Ok(())
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
    view: Rc<View>,
    object: Weak<dyn Any>,
    handler: &'static dyn Handles,
    tags: Vec<String>,
    attachment: Vec<u8>,
    protocol: Option<HeaderValue>,
}

impl Accept {
    /// Marks the socket, to be found by [`Sockets::tagged`]: with up to 10 tags of 256 bytes.
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
    /// When the attachment is too large, or the tags are too many or too long.
    pub fn answer(mut self) -> Answer {
        check_attachment(&self.attachment)?;
        check_tags(&self.tags)?;
        let protocol = self.protocol.take();
        let mut response = Response::new(Body::of_socket(self));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        if let Some(protocol) = protocol {
            response.headers_mut().insert(http::header::SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        Ok(response)
    }

    /// As for [`Upgrade::start`]; it also fails when there is no room for the socket, or the
    /// handler isn't the object.
    async fn open(
        &self,
        context: &client_request_context::Client,
        headers: &HeaderMap,
    ) -> Result<()> {
        let Self { view, object, handler, tags, attachment, .. } = self;
        let object = object.upgrade().filter(|object| view.is_of(object));
        let object = object
            .ok_or_else(|| failed("the handler of a socket is the object that accepts it"))?;
        // Asked before anything else, as others run while the answer is awaited.
        let surviving = if view.table.are_surviving() && can_survive(context).await? {
            let mut id = [0; 16];
            getrandom::fill(&mut id).map_err(|error| failed(format!("no randomness: {error}")))?;
            Some(Box::new(Surviving::new(id)))
        } else {
            None
        };
        view.holder.check_room()?;
        let lease = view.holder.lease(context);
        if lease.as_ref().is_some_and(|lease| lease.is_cut()) {
            return Err(revoked("the grant by which the socket would be opened was taken back"));
        }
        // If the client has gone, the way in may be dropped at once, and the socket must be there
        // to end.
        let (tags, attachment, handler) = (tags.clone(), attachment.clone(), *handler);
        let new = NewSocket { tags, attachment, handler, surviving };
        let entry = view.table.accept(new, lease);
        let opened = begin(view, &entry, context, headers);
        let (down, started) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                view.table.remove(&entry);
                return Err(error);
            }
        };
        entry.set_down(view.holder.ungated(&*down));
        drop(down);
        let socket = view.socket(entry.clone());
        if let Some(opened) = handler.opened(object, socket.clone()) {
            socket.close_on_error(opened.await);
        }
        // If it was refused, the way in is dropped, and the handler told so.
        let down = started.await?;
        // From here on it needs nothing of this answer, whose memory goes.
        // A cut took the way out, and none comes back; a break did, and there is another one.
        let is_first = entry.surviving.as_ref().is_none_or(|surviving| surviving.way() == 1);
        if view.table.is_open(&entry) && entry.down().is_some() && is_first {
            entry.set_down(view.holder.ungated(&*down));
            view.forget_down(&entry);
        }
        Ok(())
    }
}

impl Upgrade for Accept {
    fn start<'a>(
        &'a self,
        context: &'a client_request_context::Client,
        headers: &'a HeaderMap,
    ) -> LocalBoxFuture<'a, Result<()>> {
        self.open(context, headers).boxed_local()
    }
}

/// Asks whether the other side can keep a socket that survives.
async fn can_survive(context: &client_request_context::Client) -> Result<bool> {
    let context: surviving_context::Client =
        FromClientHook::new(context.as_client_hook().add_ref());
    match context.can_survive_request().send().promise.await {
        Ok(_) => Ok(true),
        Err(error) if error.kind == capnp::ErrorKind::Unimplemented => Ok(false),
        Err(error) => Err(error),
    }
}

/// The way out, at first as it is pipelined, and then as it is.
type Opened = (Box<dyn ClientHook>, Promise<Box<dyn ClientHook>, capnp::Error>);

/// Makes the call that opens a socket; one that survives is stored in this turn.
fn begin(
    view: &View,
    entry: &Rc<Entry>,
    context: &client_request_context::Client,
    headers: &HeaderMap,
) -> Result<Opened> {
    let up = view.holder.way_in(&view.table, entry, Some(context));
    let count = headers.len() as u32;
    let Some(surviving) = &entry.surviving else {
        let mut start = context.start_web_socket_request();
        write_headers(headers, start.get().init_headers(count))?;
        start.get().set_up_socket(up);
        let started = start.send();
        let down = started.pipeline.get_down_socket().into_client_hook();
        let settled = started
            .promise
            .map(|started| Ok(started?.get()?.get_down_socket()?.into_client_hook()));
        return Ok((down, Promise::from_future(settled)));
    };
    surviving.store(&*view.holder, entry.number, &entry.tags, &entry.attachment.borrow())?;
    let context: surviving_context::Client =
        FromClientHook::new(context.as_client_hook().add_ref());
    let mut start = context.start_surviving_request();
    write_headers(headers, start.get().init_headers(count))?;
    start.get().set_id(surviving.id());
    start.get().set_up(FromClientHook::new(up.into_client_hook()));
    let started = start.send();
    let down = started.pipeline.get_down().into_client_hook();
    let settled = started.promise.map(|started| Ok(started?.get()?.get_down()?.into_client_hook()));
    Ok((down, Promise::from_future(settled)))
}

impl fmt::Debug for Accept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accept").field("tags", &self.tags).finish_non_exhaustive()
    }
}
