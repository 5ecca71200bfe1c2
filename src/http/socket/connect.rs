//! WebSockets that an object opens itself, to another object or to the outside.
//!
//! Once it is open, such a socket is like one that was accepted: what comes on it is a call of the
//! object.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::rc::{Rc, Weak};

use capnp::capability::FromClientHook;
use futures::future::{FusedFuture, FutureExt};
use http::header::UPGRADE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use tokio::sync::oneshot;

use super::table::{Handles, NewSocket, View};
use super::{Socket, check_attachment, check_tags};
use crate::error::{Result, failed};
use crate::http::head::{read_headers, read_response, write_request};
use crate::http::send::no_socket;
use crate::http::stream::keep;
use crate::schema::http_capnp::http_service;
use crate::schema::http_capnp::http_service::client_request_context;

/// A socket that is opened by [`Connect::open`].
pub struct Connect {
    pub(super) opening: Opening,
    pub(super) to: http_service::Client,
    pub(super) request: Request<()>,
}

/// The socket as it will be.
pub(super) struct Opening {
    pub(super) view: Rc<View>,
    pub(super) object: Weak<dyn Any>,
    pub(super) handler: &'static dyn Handles,
    pub(super) tags: Vec<String>,
    pub(super) attachment: Vec<u8>,
}

impl Connect {
    /// Marks the socket, as [`Accept::tag`](super::Accept::tag) does.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.opening.tags.push(tag.into());
        self
    }

    /// Keeps up to 16 KiB with the socket; see [`Socket::attachment`].
    #[must_use]
    pub fn attachment(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.opening.attachment = bytes.into();
        self
    }

    /// Opens the socket: the response has the headers with which the other side accepted it.
    /// [`SocketHandler::opened`](super::SocketHandler::opened) isn't called.
    ///
    /// # Errors
    /// When the other side doesn't accept it, or the call fails; when there is no room for it, the
    /// attachment or the tags are too large, or the handler isn't the object.
    pub async fn open(self) -> Result<Response<Socket>> {
        let Self { opening, to, request } = self;
        check_attachment(&opening.attachment)?;
        check_tags(&opening.tags)?;
        if !opening.object.upgrade().is_some_and(|object| opening.view.is_of(&object)) {
            return Err(failed("the handler of a socket is the object that opens it"));
        }
        opening.view.holder.check_room()?;
        let (mut head, ()) = request.into_parts();
        head.method = Method::GET;
        head.headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        let mut call = to.request_request();
        write_request(&head, &head.uri.to_string(), Some(0), call.get().init_request())?;
        let (tell, mut told) = oneshot::channel();
        let waiting = Waiting(Cell::new(Some((opening, tell))));
        call.get().set_context(capnp_rpc::new_client(waiting));
        let sent = call.send();
        // By this the other side knows that the socket is wanted.
        let way = sent.pipeline.get_request_body();
        let mut ended = sent.promise.map(|ended| ended.map(drop)).boxed_local().fuse();
        let answer = tokio::select! {
            biased;
            answer = &mut told => answer,
            end = &mut ended => {
                end?;
                told.await
            }
        };
        let Ok(response) = answer else {
            // The call says why nobody can answer any more.
            if !ended.is_terminated() {
                ended.await?;
            }
            return Err(failed("the request ended, and opened no WebSocket"));
        };
        let response = response?;
        keep(async move {
            if !ended.is_terminated() {
                drop(ended.await);
            }
            drop(way);
        });
        Ok(response)
    }
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect").field("request", &self.request).finish_non_exhaustive()
    }
}

type Told = Result<Response<Socket>>;

/// The answer that a handshake waits for.
struct Waiting(Cell<Option<(Opening, oneshot::Sender<Told>)>>);

impl Waiting {
    fn take(&self) -> Result<(Opening, oneshot::Sender<Told>)> {
        self.0.take().ok_or_else(|| failed("the request was answered already"))
    }
}

impl client_request_context::Server for Waiting {
    async fn start_response(
        self: Rc<Self>,
        params: client_request_context::StartResponseParams,
        _: client_request_context::StartResponseResults,
    ) -> Result<()> {
        let (_, tell) = self.take()?;
        let head = read_response(params.get()?.get_response()?);
        let error = head.map_or_else(|error| error, |head| no_socket(head.status()));
        // Nobody has to be there to hear it.
        let _ = tell.send(Err(error.clone()));
        Err(error)
    }

    async fn start_web_socket(
        self: Rc<Self>,
        params: client_request_context::StartWebSocketParams,
        mut results: client_request_context::StartWebSocketResults,
    ) -> Result<()> {
        let (opening, tell) = self.take()?;
        let Opening { view, handler, tags, attachment, .. } = opening;
        let params = params.get()?;
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = read_headers(params.get_headers()?)?;
        let up = params.get_up_socket()?;
        let new = NewSocket { tags, attachment, handler, surviving: None };
        let entry = view.table.accept(new, None);
        entry.set_down(view.holder.ungated(up.as_client_hook()));
        results.get().set_down_socket(view.holder.way_in(&view.table, &entry, None));
        let socket = view.socket(entry.clone());
        if tell.send(Ok(response.map(|()| socket))).is_err() {
            view.table.remove(&entry);
            return Err(failed("nobody wants the WebSocket any more"));
        }
        Ok(())
    }
}
