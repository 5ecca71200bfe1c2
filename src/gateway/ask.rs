//! One request as one call of an object, and the response that the object gives, or the WebSocket
//! that it accepts.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use capnp::capability::Promise;
use futures::channel::oneshot;
use futures::future::FutureExt;
use http::{HeaderMap, Method, Response};

use super::head;
use super::limits::Taken;
use super::socket::{Down, Line, Outbox};
use crate::error::{Result, failed, overloaded};
use crate::http::{
    Held, Parts, Refused, Stream, Taker, read_headers, read_response, write_request,
};
use crate::limits::HTTP_RESPONSE_BYTES_MAX;
use crate::membrane;
use crate::schema::http_capnp::{http_service, http_service::client_request_context, web_socket};

/// The reason why there is no response of the object.
pub(super) enum Failure {
    /// The call failed.
    Call(capnp::Error),
    /// The object's answer is none that may be sent.
    Answer(String),
    /// The object's answer has no room.
    NoRoom,
    /// There is no such object.
    Nothing,
}

/// An object's answer that may be sent.
pub(super) enum Outcome {
    Response(Response<Held>),
    Socket(Accepted),
}

/// A socket that an object accepted. Dropped before it is opened, it is lost.
pub(super) struct Accepted {
    pub(super) headers: HeaderMap,
    pub(super) up: web_socket::Client,
    pub(super) outbox: Line,
    /// The rest of the call.
    pub(super) call: Promise<(), capnp::Error>,
}

/// The object's answer, or the reason why there is none.
type Answer = std::result::Result<Outcome, Failure>;

/// One request on its way to an object.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    /// The object's own path, and the query.
    pub(super) url: &'a str,
    pub(super) head: &'a http::request::Parts,
    pub(super) body: &'a [u8],
    /// It is the handshake of a WebSocket.
    pub(super) is_upgrade: bool,
}

/// The object's answer, whole and checked.
pub(super) async fn ask(object: &http_service::Client, asked: Asked<'_>, taken: &Taken) -> Answer {
    let Asked { url, head: request, body, is_upgrade } = asked;
    let outbox = is_upgrade.then(|| Outbox::new(taken));
    let (answering, answered) = Answering::new(request.method.clone(), taken.body(), outbox);
    let mut call = object.request_request();
    let mut params = call.get();
    write_request(request, url, body.len(), params.reborrow().init_request())
        .map_err(Failure::Call)?;
    params.set_context(membrane::serve(answering));
    let sent = call.send();
    if !body.is_empty() {
        let stream = sent.pipeline.get_request_body();
        let mut write = stream.write_request();
        write.get().set_bytes(body);
        drop(write.send());
        drop(stream.end_request().send());
    }
    let mut ended = sent.promise.map(|ended| ended.map(drop));
    tokio::select! {
        biased;
        // An object that gave up its answer says why when the call ends.
        Ok(answer) = answered => answer.map(|answer| match answer {
            Outcome::Socket(socket) => {
                let call = Promise::from_future(ended);
                Outcome::Socket(Accepted { call, ..socket })
            }
            response @ Outcome::Response(_) => response,
        }),
        ended = &mut ended => match ended {
            Ok(()) => Err(Failure::Answer("the request ended without an answer".to_owned())),
            Err(error) => Err(Failure::Call(error)),
        }
    }
}

/// The answer that one request waits for: the object calls this with its response.
struct Answering {
    method: Method,
    head: RefCell<Option<Response<()>>>,
    body: Parts,
    /// For the frames of the socket that is asked for, if one is.
    outbox: RefCell<Option<Rc<Outbox>>>,
    done: Cell<Option<oneshot::Sender<Answer>>>,
}

impl Answering {
    fn new(
        method: Method,
        body: Held,
        outbox: Option<Rc<Outbox>>,
    ) -> (Rc<Self>, oneshot::Receiver<Answer>) {
        let (done, answered) = oneshot::channel();
        let answering = Self {
            method,
            head: RefCell::default(),
            body: Parts::new(body, HTTP_RESPONSE_BYTES_MAX),
            outbox: RefCell::new(outbox),
            done: Cell::new(Some(done)),
        };
        (Rc::new(answering), answered)
    }

    /// The client gets nothing of such a response, and the class the same words as the log.
    fn wrong(&self, reason: String) -> capnp::Error {
        self.tell(Err(Failure::Answer(reason.clone())));
        failed(reason)
    }

    fn tell(&self, outcome: Answer) {
        if let Some(done) = self.done.take() {
            // Whoever asked may have left.
            let _ = done.send(outcome);
        }
    }
}

impl client_request_context::Server for Answering {
    async fn start_response(
        self: Rc<Self>,
        params: client_request_context::StartResponseParams,
        mut results: client_request_context::StartResponseResults,
    ) -> Result<()> {
        use crate::schema::http_capnp::http_response::body_size::{Fixed, Unknown};
        if self.head.borrow().is_some() {
            return Err(self.wrong("it answered twice".to_owned()));
        }
        self.outbox.take();
        let response = params.get()?.get_response()?;
        let head = read_response(response).map_err(|error| self.wrong(error.extra))?;
        self.head.replace(Some(head));
        self.body.expected.set(match response.get_body_size().which()? {
            Fixed(size) => Some(usize::try_from(size).unwrap_or(usize::MAX)),
            Unknown(()) => None,
        });
        if self.body.expected.get() == Some(0) {
            return self.end();
        }
        results.get().set_body(membrane::serve(Rc::new(Stream(self.clone()))));
        Ok(())
    }

    async fn start_web_socket(
        self: Rc<Self>,
        params: client_request_context::StartWebSocketParams,
        mut results: client_request_context::StartWebSocketResults,
    ) -> Result<()> {
        let Some(outbox) = self.outbox.take() else {
            let reason = "it accepts a WebSocket, and the request asks for none, or was answered";
            return Err(self.wrong(reason.to_owned()));
        };
        let params = params.get()?;
        let headers = read_headers(params.get_headers()?).map_err(|e| self.wrong(e.extra))?;
        let up = params.get_up_socket()?;
        results.get().set_down_socket(membrane::serve(Rc::new(Down(outbox.clone()))));
        let call = Promise::ok(());
        self.tell(Ok(Outcome::Socket(Accepted { headers, up, outbox: Line(outbox), call })));
        Ok(())
    }
}

impl Taker for Answering {
    fn parts(&self) -> &Parts {
        &self.body
    }

    fn take(&self, body: Held) -> Result<()> {
        let Some(head) = self.head.take() else { return Ok(()) };
        match head::checked(&self.method, head, body.bytes().len()) {
            Ok(head) => {
                self.tell(Ok(Outcome::Response(head.map(|()| body))));
                Ok(())
            }
            Err(reason) => Err(self.wrong(reason)),
        }
    }

    fn refuse(&self, refused: Refused) -> capnp::Error {
        self.wrong(match refused {
            Refused::TooLong => "the body is longer than the response announced".to_owned(),
            Refused::TooShort => "the body is shorter than the response announced".to_owned(),
            Refused::TooLarge => {
                format!("the body of a response has at most {HTTP_RESPONSE_BYTES_MAX} bytes")
            }
            Refused::NoRoom => {
                self.tell(Err(Failure::NoRoom));
                return overloaded("there is no room for another response: try again later");
            }
        })
    }
}
