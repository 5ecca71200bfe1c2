//! One request as one call of an object, and the response that the object gives, or the WebSocket
//! that it accepts.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::rc::Rc;
use std::time::Duration;

use capnp::capability::{FromClientHook, Promise};
use futures::future::{FutureExt, join};
use http::{HeaderMap, Method, Response};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::head;
use super::limits::Taken;
use super::socket::{Down, Line, Outbox, Surviving, Up};
use super::upload::{Upload, UploadEnd, UploadPump};
use crate::error::{Reason, Result, failed};
use crate::http::{
    Cut, Flow, Held, Progress, Reader, Refusal, keep, read_headers, read_response, write_request,
};
use crate::limits::{HTTP_PART_BYTES, HTTP_RESPONSE_BYTES_MAX, HTTP_WHOLE_MILLIS};
use crate::membrane;
use crate::schema::http_capnp::http_service::{self, client_request_context};
use crate::schema::http_capnp::{http_response, watched_stream, whole_context};
use crate::schema::surviving_capnp::surviving_context;

/// The reason why there is no response of the object.
pub(super) enum AskError {
    /// The call failed.
    Call(capnp::Error),
    /// The object's answer may not be sent.
    Answer(String),
    /// There is no room for the object's answer.
    NoRoom,
    /// There is no such object.
    Nothing,
    /// The client sent another number of bytes than it announced.
    Client(Refusal),
    /// The object was silent for too long.
    Late,
}

/// An object's answer that may be sent.
pub(super) enum ObjectAnswer {
    Response(Response<Held>),
    /// It goes on, and so does its call.
    Begun(Response<Reader>, Promise<(), capnp::Error>),
    Socket(Accepted),
}

/// A socket that an object accepted. Dropped before it is opened, it is lost.
pub(super) struct Accepted {
    pub(super) headers: HeaderMap,
    pub(super) up: Up,
    pub(super) outbox: Line,
    /// The rest of the call.
    pub(super) call: Promise<(), capnp::Error>,
}

/// The object's answer, or the reason why there is none.
type AnswerResult = std::result::Result<ObjectAnswer, AskError>;

/// The same, with the request's body if that goes on.
pub(super) type AnswerWithUpload =
    std::result::Result<(ObjectAnswer, Option<UploadPump>), AskError>;

/// One request on its way to an object.
#[derive(Clone, Copy)]
pub(super) struct ObjectRequest<'a> {
    /// The object's own path, and the query.
    pub(super) url: &'a str,
    pub(super) head: &'a http::request::Parts,
    /// It is the handshake of a WebSocket.
    pub(super) is_upgrade: bool,
}

/// The object's answer, checked: whole, or the beginning of one that goes on.
pub(super) async fn ask(
    object: &http_service::Client,
    asked: ObjectRequest<'_>,
    upload: Upload<&Held>,
    taken: &Taken,
) -> AnswerWithUpload {
    let ObjectRequest { url, head: request, is_upgrade } = asked;
    let outbox = is_upgrade.then(|| Outbox::new(taken));
    let answering = Answering::new(request.method.clone(), taken.body(), outbox);
    let mut call = object.request_request();
    let mut params = call.get();
    write_request(request, url, upload.size(), params.reborrow().init_request())
        .map_err(AskError::Call)?;
    let context: surviving_context::Client = membrane::serve(answering.clone());
    params.set_context(FromClientHook::new(context.into_client_hook()));
    params.set_takes_whole(true);
    let sent = call.send();
    let mut ended = sent.promise.map(|ended| ended.map(drop));
    let mut pump = None;
    match upload {
        Upload::Whole(body) if body.bytes().is_empty() => {}
        Upload::Whole(body) => {
            let stream = sent.pipeline.get_request_body();
            let mut write = stream.write_request();
            write.get().set_bytes(body.bytes());
            keep(join(write.send(), stream.end_request().send().promise));
        }
        Upload::Streamed(streamed) => {
            pump = Some(streamed.pump(sent.pipeline.get_request_body()));
        }
    }
    let progress = pump.as_ref().map(UploadPump::progress);
    // Only the object may hold the way to the answer, and only the pump that to the body.
    drop(sent.pipeline);
    let mut late = std::pin::pin!(late(Instant::now(), progress, taken.limits.transfer));
    let mut answered = std::pin::pin!(answering.answered());
    let mut has_ended = false;
    loop {
        tokio::select! {
            biased;
            answer = &mut answered => {
                let mut answer = answer?;
                if !has_ended {
                    let ended = going_on(ended)?;
                    match &mut answer {
                        ObjectAnswer::Socket(socket) => socket.call = ended,
                        ObjectAnswer::Begun(_, call) => *call = ended,
                        ObjectAnswer::Response(_) => pump = pump.map(|pump| pump.until_failed(ended)),
                    }
                }
                return Ok((answer, pump));
            }
            // An object that gave up its answer says why when the call ends.
            end = &mut ended, if !has_ended => match end {
                Ok(()) => has_ended = true,
                Err(error) => return Err(AskError::Call(error)),
            },
            () = given_up(&answering), if has_ended => {
                let reason = "the request ended without an answer";
                return Err(AskError::Answer(reason.to_owned()));
            }
            end = UploadPump::end(&mut pump) => if let UploadEnd::Client(refusal) = end {
                return Err(AskError::Client(refusal));
            },
            () = &mut late => return Err(AskError::Late),
        }
    }
}

/// The call as it goes on after its answer. If its reference is no longer good, that counts: it
/// comes just before what the class makes of it.
fn going_on(
    mut call: impl Future<Output = Result<()>> + Unpin + 'static,
) -> std::result::Result<Promise<(), capnp::Error>, AskError> {
    let is_over = |error| matches!(Reason::of(error), Some(Reason::Expired | Reason::Revoked));
    match (&mut call).now_or_never() {
        Some(Err(error)) if is_over(&error) => Err(AskError::Call(error)),
        Some(Err(error)) => Ok(Promise::err(error)),
        Some(Ok(())) => Ok(Promise::ok(())),
        None => Ok(Promise::from_future(call)),
    }
}

/// Returns when the answer, or the rest of it, can't come any more. The calls of an exclusive
/// object may come after the end of the request, while they learn how to carry their chain; those
/// of others don't.
async fn given_up(answering: &Rc<Answering>) {
    const LOOK_AGAIN: Duration = Duration::from_millis(1);
    loop {
        match answering.stage.get() {
            Stage::Waiting if Rc::strong_count(answering) == 1 => return,
            Stage::Cut => return,
            Stage::Waiting | Stage::Begun => sleep(LOOK_AGAIN).await,
        }
    }
}

/// Returns when the object did nothing for that time: it took no part of the request's body, and
/// the gateway didn't wait for the client.
async fn late(begun: Instant, progress: Option<Rc<Cell<Option<Instant>>>>, limit: Duration) {
    loop {
        let since = progress.as_ref().map_or(Some(begun), |progress| progress.get());
        let due = since.unwrap_or_else(Instant::now) + limit;
        if due <= Instant::now() {
            return;
        }
        sleep_until(due).await;
    }
}

/// The size of a response's body, as far as that is announced.
fn announced(response: http_response::Reader<'_>) -> Result<Option<u64>> {
    use http_response::body_size::{Fixed, Unknown};
    Ok(match response.get_body_size().which()? {
        Fixed(size) => Some(size),
        Unknown(()) => None,
    })
}

/// The part of an answer that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Begun,
    /// It began, and has no end.
    Cut,
}

/// The answer that one request waits for: the object calls this with its response.
struct Answering {
    method: Method,
    /// The place for the body; none once a response began.
    body: Cell<Option<Held>>,
    /// The outbox of the socket that the request asks for, if it asks for one.
    outbox: RefCell<Option<Rc<Outbox>>>,
    answer: Cell<Option<AnswerResult>>,
    is_answered: Notify,
    stage: Cell<Stage>,
}

impl Answering {
    fn new(method: Method, body: Held, outbox: Option<Rc<Outbox>>) -> Rc<Self> {
        Rc::new(Self {
            method,
            body: Cell::new(Some(body)),
            outbox: RefCell::new(outbox),
            answer: Cell::default(),
            is_answered: Notify::new(),
            stage: Cell::new(Stage::Waiting),
        })
    }

    /// The client gets nothing of such a response; the class gets the words of the log.
    fn wrong(&self, reason: String) -> capnp::Error {
        self.tell(Err(AskError::Answer(reason.clone())));
        failed(reason)
    }

    /// The place for the body of the response, which is begun once.
    fn begin_response(&self) -> Result<Held> {
        self.outbox.take();
        self.body.take().ok_or_else(|| self.wrong("it answered twice".to_owned()))
    }

    /// The outbox of the socket that the class accepts, in place of any other answer.
    fn begin_socket(&self) -> Result<Rc<Outbox>> {
        let outbox = self.outbox.take().ok_or_else(|| {
            let reason = "it accepts a WebSocket, and the request asks for none, or was answered";
            self.wrong(reason.to_owned())
        })?;
        self.body.take();
        Ok(outbox)
    }

    /// An answer that turns out to be wrong before anybody has it is replaced.
    fn tell(&self, answer: AnswerResult) {
        self.answer.set(Some(answer));
        self.is_answered.notify_one();
    }

    async fn answered(&self) -> AnswerResult {
        let answer = loop {
            match self.answer.take() {
                Some(answer) => break answer?,
                None => self.is_answered.notified().await,
            }
        };
        let ObjectAnswer::Begun(response, call) = answer else { return Ok(answer) };
        let (head, reader) = response.into_parts();
        // A large body goes on as soon as there is any of it.
        let is_large = reader.size().is_some_and(|size| size > HTTP_PART_BYTES as u64);
        let least = if is_large { 0 } else { HTTP_PART_BYTES };
        let more = reader.holds_more_than(least);
        // The state afterwards decides, and not the outcome.
        let _ = timeout(Duration::from_millis(HTTP_WHOLE_MILLIS), more).await;
        match reader.progress() {
            Progress::Open => Ok(ObjectAnswer::Begun(Response::from_parts(head, reader), call)),
            Progress::Whole => {
                Ok(ObjectAnswer::Response(Response::from_parts(head, reader.take())))
            }
            // The end of the call says why.
            Progress::Cut(Cut::Left | Cut::Unread) => {
                self.stage.set(Stage::Cut);
                pending().await
            }
            Progress::Cut(Cut::NoRoom) => Err(AskError::NoRoom),
            Progress::Cut(Cut::TooLarge) => Err(AskError::Answer(format!(
                "of a response at most {HTTP_RESPONSE_BYTES_MAX} bytes may be written at once"
            ))),
            Progress::Cut(cut) => Err(AskError::Answer(cut.error("response").extra)),
        }
    }
}

impl client_request_context::Server for Answering {
    async fn start_response(
        self: Rc<Self>,
        params: client_request_context::StartResponseParams,
        mut results: client_request_context::StartResponseResults,
    ) -> Result<()> {
        let held = self.begin_response()?;
        let response = params.get()?.get_response()?;
        let announced = announced(response)?;
        let head = read_response(response).map_err(|error| self.wrong(error.extra))?;
        let (head, size) =
            head::checked(&self.method, head, announced).map_err(|reason| self.wrong(reason))?;
        if announced == Some(0) {
            self.tell(Ok(ObjectAnswer::Response(head.map(|()| held))));
            return Ok(());
        }
        let (writer, reader) = Flow::open("response", held, size, HTTP_RESPONSE_BYTES_MAX);
        let stream: watched_stream::Client = membrane::serve(Rc::new(writer));
        results.get().set_body(FromClientHook::new(stream.into_client_hook()));
        self.stage.set(Stage::Begun);
        self.tell(Ok(ObjectAnswer::Begun(head.map(|()| reader), Promise::ok(()))));
        Ok(())
    }

    async fn start_web_socket(
        self: Rc<Self>,
        params: client_request_context::StartWebSocketParams,
        mut results: client_request_context::StartWebSocketResults,
    ) -> Result<()> {
        let outbox = self.begin_socket()?;
        let params = params.get()?;
        let headers = read_headers(params.get_headers()?).map_err(|e| self.wrong(e.extra))?;
        let up = Up::Plain(params.get_up_socket()?);
        results.get().set_down_socket(membrane::serve(Rc::new(Down(outbox.clone()))));
        let call = Promise::ok(());
        self.tell(Ok(ObjectAnswer::Socket(Accepted { headers, up, outbox: Line(outbox), call })));
        Ok(())
    }
}

impl whole_context::Server for Answering {
    async fn respond(
        self: Rc<Self>,
        params: whole_context::RespondParams,
        _: whole_context::RespondResults,
    ) -> Result<()> {
        let mut held = self.begin_response()?;
        let params = params.get()?;
        let (response, body) = (params.get_response()?, params.get_body()?);
        if body.len() > HTTP_PART_BYTES {
            return Err(self.wrong(format!("at most {HTTP_PART_BYTES} bytes may be given at once")));
        }
        let size = body.len() as u64;
        if announced(response)?.is_some_and(|announced| announced != size) {
            return Err(self.wrong(format!("its body has {size} bytes, and not as announced")));
        }
        let head = read_response(response).map_err(|error| self.wrong(error.extra))?;
        let (head, _) =
            head::checked(&self.method, head, Some(size)).map_err(|reason| self.wrong(reason))?;
        let answer = if held.extend(body) {
            Ok(ObjectAnswer::Response(head.map(|()| held)))
        } else {
            Err(AskError::NoRoom)
        };
        self.tell(answer);
        Ok(())
    }
}

impl surviving_context::Server for Answering {
    async fn can_survive(
        self: Rc<Self>,
        _: surviving_context::CanSurviveParams,
        _: surviving_context::CanSurviveResults,
    ) -> Result<()> {
        if self.outbox.borrow().is_none() {
            return Err(failed("the request asks for no WebSocket, or was answered"));
        }
        Ok(())
    }

    async fn start_surviving(
        self: Rc<Self>,
        params: surviving_context::StartSurvivingParams,
        mut results: surviving_context::StartSurvivingResults,
    ) -> Result<()> {
        let outbox = self.begin_socket()?;
        let params = params.get()?;
        let headers = read_headers(params.get_headers()?).map_err(|e| self.wrong(e.extra))?;
        let (id, up) = (params.get_id()?, params.get_up()?);
        let (surviving, down) = Surviving::new(id, up, outbox.clone());
        results.get().set_down(down);
        let (up, call) = (Up::Surviving(surviving), Promise::ok(()));
        self.tell(Ok(ObjectAnswer::Socket(Accepted { headers, up, outbox: Line(outbox), call })));
        Ok(())
    }
}
