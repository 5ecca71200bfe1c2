//! A WebSocket to a server outside, whose frames are moved both ways until it ends.
//!
//! Invariants:
//! - The object is told of the end once: by a close, or by losing the way to it where there was
//!   none.
//! - A message that the object sends is answered when it was written, so an object that waits for
//!   that sends no faster than the server reads.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use capnp::any_pointer;
use capnp::capability::{Promise, Request};
use capnp::traits::{HasTypeId, Owned};
use futures::future::{FutureExt, TryFutureExt};
use futures::stream::{FuturesUnordered, SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use http::HeaderMap;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Message};

use super::watch::ProgressWatch;
use crate::error::{Result, disconnected, failed, said};
use crate::http::{cut_reason, write_headers};
use crate::limits::{
    OUTBOUND_MESSAGE_BYTES_MAX, OUTBOUND_UNWRITTEN_BYTES_MAX, SOCKET_CLOSE_SECS,
    SOCKET_UNHANDLED_BYTES_MAX, SOCKET_UNHANDLED_MAX,
};
use crate::schema::http_capnp::http_service::client_request_context;
use crate::schema::http_capnp::web_socket;

/// Codes of close frames (RFC 6455, section 7.4.1).
const NONE: u16 = 1005;
/// See [`NONE`].
const FAILED: u16 = 1011;

/// The methods of the interface `WebSocket` that send.
const SEND_TEXT: u16 = 0;
/// See [`SEND_TEXT`].
const SEND_DATA: u16 = 1;

/// The time in which the other side does its part of an end.
const CLOSE_TIME: Duration = Duration::from_secs(SOCKET_CLOSE_SECS);

/// As at the gateway: a large message has its own memory while it is here.
const BUFFER_BYTES: usize = 4 << 10;

/// Messages of the object that wait for the connection. Further ones wait in their calls.
const WAITING_MAX: usize = 16;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Moves frames until the socket has ended.
pub(super) async fn run(
    upgraded: Upgraded,
    headers: &HeaderMap,
    context: client_request_context::Client,
    watch: &ProgressWatch,
) -> Result<()> {
    let (queue, waiting) = mpsc::channel(WAITING_MAX);
    let mut start = context.start_web_socket_request();
    write_headers(headers, start.get().init_headers(headers.len() as u32))?;
    start.get().set_up_socket(capnp_rpc::new_client(Up { queue, has_closed: Cell::new(false) }));
    let down = start.send().promise.await?.get()?.get_down_socket()?;
    // Only the socket is left of the request, so that the object may sleep.
    drop(context);
    let config = WebSocketConfig::default()
        .max_write_buffer_size(OUTBOUND_UNWRITTEN_BYTES_MAX)
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_message_size(Some(OUTBOUND_MESSAGE_BYTES_MAX))
        .max_frame_size(Some(OUTBOUND_MESSAGE_BYTES_MAX));
    let socket = Socket::from_raw_socket(TokioIo::new(upgraded), Role::Client, Some(config)).await;
    let (sink, stream) = socket.split();
    Moving { down, sink, stream, waiting, watch }.run().await;
    Ok(())
}

/// Why reading came to an end.
enum Read {
    /// The server's close frame, with the code and the reason.
    Close(u16, String),
    /// The object takes no more.
    Failed(capnp::Error),
    Lost,
}

/// Why writing came to an end.
#[derive(PartialEq, Eq)]
enum Written {
    /// The object's close frame went out.
    Close,
    Lost,
}

/// A socket whose frames move.
struct Moving<'a> {
    down: web_socket::Client,
    sink: SplitSink<Socket, Message>,
    stream: SplitStream<Socket>,
    waiting: mpsc::Receiver<Sent>,
    watch: &'a ProgressWatch,
}

impl Moving<'_> {
    async fn run(self) {
        let Self { down, mut sink, mut stream, mut waiting, watch } = self;
        let ping = Notify::new();
        let read = {
            let mut reading = std::pin::pin!(read(&down, &mut stream, watch));
            let mut writing = std::pin::pin!(write(&mut waiting, &mut sink, (&ping, watch)));
            tokio::select! {
                read = &mut reading => read,
                written = &mut writing => match written {
                    Written::Lost => return,
                    Written::Close => {
                        timeout(CLOSE_TIME, reading).await.unwrap_or(Read::Lost)
                    }
                },
                () = watch.still(|| ping.notify_one()) => return,
            }
        };
        match read {
            Read::Lost => {}
            Read::Close(code, reason) => {
                let mut close = down.close_request();
                close.get().set_code(code);
                close.get().set_reason(&reason);
                // The answer to the server's close frame goes out meanwhile; it may be gone by now.
                let ending = timeout(CLOSE_TIME, sink.close());
                let _ = futures::future::join(ending, close.send().promise).await;
            }
            Read::Failed(error) => {
                let reason = cut_reason(said(&error)).to_owned();
                let frame = CloseFrame { code: FAILED.into(), reason: reason.into() };
                // A server that doesn't take it by then is cut.
                let _ = timeout(CLOSE_TIME, sink.send(Message::Close(Some(frame)))).await;
            }
        }
    }
}

/// Hands what comes to the object, in order, and no more than that has time for.
async fn read(
    down: &web_socket::Client,
    stream: &mut SplitStream<Socket>,
    watch: &ProgressWatch,
) -> Read {
    let (mut handled, mut bytes) = (FuturesUnordered::new(), 0);
    loop {
        let is_full = handled.len() >= SOCKET_UNHANDLED_MAX || bytes > SOCKET_UNHANDLED_BYTES_MAX;
        watch.waits.set(is_full);
        let message = tokio::select! {
            Some((length, outcome)) = handled.next() => {
                if let Err(error) = outcome {
                    return Read::Failed(error);
                }
                bytes -= length;
                continue;
            }
            message = stream.next(), if !is_full => message,
        };
        watch.moved();
        let (length, sent) = match message {
            Some(Ok(Message::Text(text))) => {
                let mut send = call::<web_socket::send_text_params::Owned>(down, SEND_TEXT);
                send.get().set_text(text.as_str());
                (text.len(), outcome(send))
            }
            Some(Ok(Message::Binary(data))) => {
                let mut send = call::<web_socket::send_data_params::Owned>(down, SEND_DATA);
                send.get().set_data(&data);
                (data.len(), outcome(send))
            }
            // The library answers pings, and nobody asks for single frames.
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
            Some(Ok(Message::Close(frame))) => {
                let said = frame.map(|frame| (frame.code.into(), frame.reason.to_string()));
                let (code, reason) = said.unwrap_or((NONE, String::new()));
                // All that came before is handled first.
                while let Some((_, Ok(()))) = handled.next().await {}
                return Read::Close(code, reason);
            }
            Some(Err(_)) | None => return Read::Lost,
        };
        bytes += length;
        handled.push(sent.map(move |outcome| (length, outcome)));
    }
}

/// A call whose outcome is its own: that of a streaming call is told with a later one, if the
/// object is on another host.
fn call<Params: Owned>(
    down: &web_socket::Client,
    method: u16,
) -> Request<Params, any_pointer::Owned> {
    down.client.new_call(web_socket::Client::TYPE_ID, method, None)
}

fn outcome<Params: Owned>(send: Request<Params, any_pointer::Owned>) -> Promise<(), capnp::Error> {
    Promise::from_future(send.send().promise.map_ok(drop))
}

/// Writes what the object sends, to the close frame, and pings.
async fn write(
    waiting: &mut mpsc::Receiver<Sent>,
    sink: &mut SplitSink<Socket, Message>,
    (ping, watch): (&Notify, &ProgressWatch),
) -> Written {
    loop {
        let sent = tokio::select! {
            sent = waiting.recv() => sent,
            () = ping.notified() => {
                match timeout(watch.limit(), sink.send(Message::Ping(Bytes::new()))).await {
                    Ok(Ok(())) => continue,
                    _ => return Written::Lost,
                }
            }
        };
        // Without a close frame, the object has lost the socket.
        let Some(Sent { message, written }) = sent else { return Written::Lost };
        let is_last = matches!(message, Message::Close(_));
        match timeout(watch.limit(), sink.send(message)).await {
            Ok(Ok(())) => {}
            // Reading says why.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return Written::Lost,
        }
        // Nobody has to wait for it.
        let _ = written.send(());
        if is_last {
            return Written::Close;
        }
    }
}

/// A message of the object, and how it learns that it was written.
struct Sent {
    message: Message,
    written: oneshot::Sender<()>,
}

/// The object's way to the server.
struct Up {
    queue: mpsc::Sender<Sent>,
    has_closed: Cell<bool>,
}

impl Up {
    async fn put(&self, message: Message) -> Result<()> {
        if self.has_closed.get() {
            return Err(failed("no frame follows a close"));
        }
        self.has_closed.set(matches!(message, Message::Close(_)));
        let over = || disconnected("the socket is closed");
        let (written, is_written) = oneshot::channel();
        self.queue.send(Sent { message, written }).await.map_err(|_| over())?;
        is_written.await.map_err(|_| over())
    }
}

impl web_socket::Server for Up {
    async fn send_text(self: Rc<Self>, params: web_socket::SendTextParams) -> Result<()> {
        let message = Message::text(params.get()?.get_text()?.to_str()?);
        drop(params);
        self.put(message).await
    }

    async fn send_data(self: Rc<Self>, params: web_socket::SendDataParams) -> Result<()> {
        let message = Message::binary(params.get()?.get_data()?.to_vec());
        drop(params);
        self.put(message).await
    }

    async fn close(
        self: Rc<Self>,
        params: web_socket::CloseParams,
        _: web_socket::CloseResults,
    ) -> Result<()> {
        let said = params.get()?;
        let (code, reason) = (said.get_code(), said.get_reason()?.to_str()?);
        let frame = match code {
            NONE => None,
            1000..=1003 | 1007..=1014 | 3000..=4999 => {
                Some(CloseFrame { code: code.into(), reason: cut_reason(reason).to_owned().into() })
            }
            _ => return Err(failed(format!("{code} is no code of a close frame"))),
        };
        self.put(Message::Close(frame)).await
    }
}
