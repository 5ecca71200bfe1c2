//! The body that a class receives or returns: whole, or as a way to write it.

use std::fmt;

use futures::future::LocalBoxFuture;
use http::HeaderMap;

use super::outgoing::{Outgoing, Write};
use crate::error::Result;
use crate::schema::http_capnp::http_service::client_request_context;

/// The whole body of a request or response, or how that of a response is [written in
/// parts](Self::stream).
#[derive(Default)]
pub struct Body(Content);

pub(super) enum Content {
    Whole(Vec<u8>),
    Stream(Write),
    /// In place of a body: the socket that a response accepts.
    Socket(Box<dyn Upgrade>),
}

/// The other protocol to which a response switches.
pub(super) trait Upgrade: fmt::Debug {
    /// Begins it, with these headers in the response, and returns when the client's side has it.
    ///
    /// # Errors
    /// When it can't begin, or the client has gone.
    fn start<'a>(
        &'a self,
        context: &'a client_request_context::Client,
        headers: &'a HeaderMap,
    ) -> LocalBoxFuture<'a, Result<()>>;
}

impl Default for Content {
    fn default() -> Self {
        Self::Whole(Vec::new())
    }
}

impl Body {
    /// The body of a response that is written in parts, each as soon as it is there. Nothing runs
    /// for a HEAD.
    ///
    /// It is run when the head of the response has left, and the response is whole when it returns.
    /// An error cuts the response off, so that its client doesn't take it for complete. If the
    /// response has a `Content-Length`, it must write as many bytes.
    ///
    /// ```
    /// use capstead::http::{Answer, Body, HeaderValue, Response};
    /// use futures::channel::mpsc;
    /// use futures::stream::StreamExt;
    ///
    /// /// Server-sent events: each as soon as another call of the object gives it.
    /// fn follow(mut events: mpsc::Receiver<String>) -> Answer {
    ///     let mut response = Response::new(Body::stream(async move |to| {
    ///         let mut gone = std::pin::pin!(to.gone());
    ///         loop {
    ///             tokio::select! {
    ///                 event = events.next() => match event {
    ///                     Some(event) => to.send(format!("data: {event}\n\n")).await?,
    ///                     None => return Ok(()),
    ///                 },
    ///                 () = &mut gone => return Ok(()), // the client left
    ///             }
    ///         }
    ///     }));
    ///     let kind = HeaderValue::from_static("text/event-stream");
    ///     response.headers_mut().insert("content-type", kind);
    ///     Ok(response)
    /// }
    /// ```
    pub fn stream(write: impl AsyncFnOnce(&mut Outgoing) -> Result<()> + 'static) -> Self {
        Self(Content::Stream(Box::new(|to| Box::pin(async move { write(to).await }))))
    }

    /// The body's bytes; none if it is written in parts.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Content::Whole(bytes) => bytes,
            _ => &[],
        }
    }

    /// The body's bytes, without a copy; none if it is written in parts.
    pub fn into_bytes(self) -> Vec<u8> {
        match self.0 {
            Content::Whole(bytes) => bytes,
            _ => Vec::new(),
        }
    }

    pub(super) fn of_socket(socket: impl Upgrade + 'static) -> Self {
        Self(Content::Socket(Box::new(socket)))
    }

    pub(super) fn take(&mut self) -> Content {
        std::mem::take(&mut self.0)
    }
}

impl<T: Into<Vec<u8>>> From<T> for Body {
    fn from(bytes: T) -> Self {
        Self(Content::Whole(bytes.into()))
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Content::Whole(bytes) => f.debug_tuple("Body").field(bytes).finish(),
            Content::Stream(_) => f.write_str("Body::stream(…)"),
            Content::Socket(socket) => f.debug_tuple("Body").field(socket).finish(),
        }
    }
}
