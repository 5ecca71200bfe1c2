//! One request as one call of an object, and the response that the object gives.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use futures::channel::oneshot;
use http::{Method, Response};

use super::head;
use super::limits::Taken;
use crate::error::{Result, failed, overloaded, unimplemented};
use crate::http::{Held, Parts, Refused, Stream, Taker, read_response, write_request};
use crate::limits::HTTP_RESPONSE_BYTES_MAX;
use crate::membrane;
use crate::schema::http_capnp::{http_service, http_service::client_request_context};

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

/// A response that may be sent, or the reason why it may not.
type Answer = std::result::Result<Response<Held>, Failure>;

/// The object's response, whole and checked.
pub(super) async fn ask(
    object: &http_service::Client,
    url: &str,
    request: &http::request::Parts,
    body: &[u8],
    taken: &Taken,
) -> Answer {
    let (answering, answered) = Answering::new(request.method.clone(), taken.body());
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
    let ended = sent.promise;
    tokio::select! {
        biased;
        // An object that gave up its answer says why when the call ends.
        Ok(response) = answered => response,
        ended = ended => match ended {
            Ok(_) => Err(Failure::Answer("the request ended without an answer".to_owned())),
            Err(error) => Err(Failure::Call(error)),
        }
    }
}

/// The answer that one request waits for: the object calls this with its response.
struct Answering {
    method: Method,
    head: RefCell<Option<Response<()>>>,
    body: Parts,
    done: Cell<Option<oneshot::Sender<Answer>>>,
}

impl Answering {
    fn new(method: Method, body: Held) -> (Rc<Self>, oneshot::Receiver<Answer>) {
        let (done, answered) = oneshot::channel();
        let answering = Self {
            method,
            head: RefCell::default(),
            body: Parts::new(body, HTTP_RESPONSE_BYTES_MAX),
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
        _: client_request_context::StartWebSocketParams,
        _: client_request_context::StartWebSocketResults,
    ) -> Result<()> {
        Err(unimplemented("this gateway has no WebSockets"))
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
                self.tell(Ok(head.map(|()| body)));
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
