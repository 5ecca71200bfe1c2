//! A chat: rooms by name and private ones, with the protocol of Cloudflare's `workers-chat-demo`.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;

use capstead::http::{self, Answer, Body, Closed, Message, Request, StatusCode};
use capstead::http::{Socket, SocketHandler, Sockets, StaticFile, http_service};
use capstead::{Context, List, Namespace, Object, Result, Server};
use serde_json::{Value, json};

use crate::chat_capnp::{chat_limiter, chat_room};

const NAME_MAX: usize = 32;
const MESSAGE_MAX: usize = 256;
/// Of a text as it comes: each letter of the longest message may be written as twice `\u0041`.
const TEXT_BYTES_MAX: usize = 12 * MESSAGE_MAX + 64;
/// Messages that a newcomer sees.
const BACKLOG: usize = 100;
/// Messages that are kept: with so many, all but the last [`BACKLOG`] are deleted.
const KEPT_MAX: usize = 2 * BACKLOG;
/// The most messages that are deleted at once.
const DELETED_MAX: usize = 1_000;
/// The time that each message of an address costs, and that it may run ahead.
const COST_MS: u64 = 1_000;
const AHEAD_MS: u64 = 20_000;

static PAGE: StaticFile =
    StaticFile::new("text/html; charset=utf-8", include_bytes!("../page/chat.html")).policy(
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
         connect-src 'self'; img-src data:; base-uri 'none'; frame-ancestors 'none'",
    );

/// Adds the chat to a server: its page at `/chat`, and the protocol at `/api/room`.
pub fn add_to(server: Server) -> Server {
    server
        .class::<ChatRoom>()
        .class::<ChatLimiter>()
        .bind::<ChatRoom, ChatRoom>("rooms")
        .bind::<ChatRoom, ChatLimiter>("limiters")
        .only_by_routes::<ChatRoom>()
        .only_by_routes::<ChatLimiter>()
        .route::<ChatRoom>("/chat", "front", "/page")
        .route::<ChatRoom>("/api/room", "front", "/make")
        .route::<ChatRoom>("/api/room/{id:secret}/websocket", "private/{id}", "/websocket")
        .route::<ChatRoom>("/api/room/{name:32}/websocket", "public/{name}", "/websocket")
}

/// A room. Public ones are there for everybody who knows the name; a private one was made, and has
/// the hash of a secret in its name. The room `front` has the page, and makes the private ones.
#[derive(Debug)]
pub struct ChatRoom {
    ctx: Context,
    rooms: Namespace<ChatRoom>,
    limiters: Namespace<ChatLimiter>,
    sockets: Sockets,
    /// The messages of each socket that are being counted.
    counting: RefCell<HashMap<Socket, VecDeque<Message>>>,
    /// The time of the last message.
    last_ms: Cell<u64>,
    /// The number of stored messages, of which [`KEPT_MAX`] are counted.
    kept: Cell<usize>,
}

impl Object for ChatRoom {
    const CLASS: &'static str = "ChatRoom";
    type Client = chat_room::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        let (mut last_ms, mut kept) = (0, 0);
        ctx.storage().list(newest(KEPT_MAX))?.visit(|key, _| {
            if kept == 0 {
                last_ms = key.last_chunk().map_or(0, |time| u64::from_be_bytes(*time));
            }
            kept += 1;
            Ok(())
        })?;
        Ok(ChatRoom {
            rooms: ctx.namespace("rooms")?,
            limiters: ctx.namespace("limiters")?,
            sockets: ctx.sockets(),
            counting: RefCell::default(),
            last_ms: Cell::new(last_ms),
            kept: Cell::new(kept),
            ctx,
        })
    }
}

impl ChatRoom {
    async fn http(self: &Rc<Self>, request: Request<Body>) -> Answer {
        let address = http::peer(&request).map_or("unknown".into(), one_client);
        match (request.method().as_str(), request.uri().path()) {
            ("GET", "/page") => PAGE.answer(&request),
            ("POST", "/make") => self.make_private(&address).await,
            (_, "/make") => {
                Err(http::refuse(StatusCode::METHOD_NOT_ALLOWED, "use POST").allow("POST"))
            }
            (_, "/websocket") if self.is_there()? => {
                self.sockets.accept(self, &request)?.tag(address).answer()
            }
            _ => Err(http::refuse(StatusCode::NOT_FOUND, "there is no such room")),
        }
    }

    fn is_there(&self) -> Result<bool> {
        let is_private = self.ctx.name().is_none_or(|name| !name.starts_with("public/"));
        Ok(!is_private || self.ctx.storage().contains("made")?)
    }

    /// Everybody who has the id may enter. It is a secret, of which only the hash is kept.
    async fn make_private(&self, address: &str) -> Answer {
        let limiter = self.limiters.get(address)?;
        if limiter.spend_request().send().promise.await?.get()?.get_wait_ms() > 0 {
            return Err(http::refuse(StatusCode::TOO_MANY_REQUESTS, TOO_FAST));
        }
        let id = http::new_secret()?;
        let room = self.rooms.get(&format!("private/{}", http::secret_hash(&id)))?;
        room.make_request().send().promise.await?;
        Ok(http::text(StatusCode::OK, id))
    }

    /// The messages that newcomers see, in order.
    fn backlog(&self) -> Result<Vec<String>> {
        let mut texts = Vec::new();
        for entry in self.ctx.storage().list(newest(BACKLOG))? {
            texts.push(String::from_utf8_lossy(&entry?.1).into_owned());
        }
        texts.reverse();
        Ok(texts)
    }

    /// Sends to everybody who has a name.
    fn broadcast(&self, text: &str) {
        for socket in self.sockets.all() {
            if name(&socket).is_some() {
                drop(socket.send_text(text));
            }
        }
    }

    fn enter(&self, socket: &Socket, said: &Value) -> Result<()> {
        let said = &said["name"];
        let is_none = *said == json!(false) || said.as_f64() == Some(0.0);
        let own = worded(said).filter(|name| !name.is_empty() && !is_none);
        let own = own.as_deref().unwrap_or("anonymous");
        if length(own) > NAME_MAX {
            send(socket, &json!({ "error": "Name too long." }));
            socket.close(1009, "Name too long.");
            return Ok(());
        }
        for other in self.sockets.all() {
            if let Some(name) = name(&other) {
                send(socket, &json!({ "joined": name }));
            }
        }
        for text in self.backlog()? {
            drop(socket.send_text(&text));
        }
        socket.attach(own)?;
        self.broadcast(&json!({ "joined": own }).to_string());
        send(socket, &json!({ "ready": true }));
        Ok(())
    }

    /// The message is told at once and kept a moment later: a crash may lose what was just said,
    /// and nobody waits for the disk.
    fn tell(&self, name: &str, message: &str) -> Result<()> {
        let time = self.ctx.now_ms().max(self.last_ms.get() + 1);
        self.last_ms.set(time);
        let text = json!({ "name": name, "message": message, "timestamp": time }).to_string();
        let key = [b"message/".as_slice(), &time.to_be_bytes()].concat();
        self.ctx.storage().put_unconfirmed(key, &text)?;
        self.broadcast(&text);
        self.kept.set(self.kept.get() + 1);
        if self.kept.get() >= KEPT_MAX { self.trim() } else { Ok(()) }
    }

    /// Deletes messages that no newcomer will see. The next message waits for the disk, for once.
    fn trim(&self) -> Result<()> {
        let storage = self.ctx.storage();
        let mut oldest = Vec::new();
        storage.list(newest(BACKLOG))?.visit(|key, _| {
            oldest = key.to_vec();
            Ok(())
        })?;
        let mut deleted = 0;
        for entry in storage.list(List::all().start("message/").end(oldest).limit(DELETED_MAX))? {
            storage.delete(entry?.0)?;
            deleted += 1;
        }
        // There may be more, which go with the next message.
        self.kept.set(if deleted < DELETED_MAX { BACKLOG } else { KEPT_MAX });
        Ok(())
    }

    fn heard(&self, socket: &Socket, message: Message) -> Result<()> {
        let error = |text: &str| send(socket, &json!({ "error": text }));
        let Message::Text(text) = message else {
            error("Say it as text.");
            return Ok(());
        };
        if text.len() > TEXT_BYTES_MAX {
            error("Message too long.");
            return Ok(());
        }
        let Ok(said) = serde_json::from_str::<Value>(&text) else {
            error("That was no JSON.");
            return Ok(());
        };
        let Some(name) = name(socket) else { return self.enter(socket, &said) };
        match worded(&said["message"]) {
            Some(message) if length(&message) <= MESSAGE_MAX => self.tell(&name, &message)?,
            Some(_) => error("Message too long."),
            None => error("There is no message in it."),
        }
        Ok(())
    }
}

/// The name under which a client is counted. A network of 64 bits of IPv6 is one: anybody may have
/// all of its addresses.
fn one_client(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).to_string()
        }
    }
}

/// A text, or what JavaScript makes of a number or a boolean: clients may send those too.
fn worded(said: &Value) -> Option<Cow<'_, str>> {
    match said {
        Value::String(text) => Some(text.into()),
        Value::Bool(is_so) => Some(is_so.to_string().into()),
        Value::Number(number) => {
            // JavaScript's numbers are all of this kind, and have no zero below zero.
            let number = number.as_f64()? + 0.0;
            let is_short = number == 0.0 || (1e-6..1e21).contains(&number.abs());
            let long = || format!("{number:e}").replace('e', "e+").replace("e+-", "e-");
            Some(if is_short { number.to_string() } else { long() }.into())
        }
        _ => None,
    }
}

/// The last messages, the newest first.
fn newest(messages: usize) -> List {
    List::all().prefix("message/").reverse().limit(messages)
}

const TOO_FAST: &str = "Your IP is being rate-limited, please try again later.";

impl SocketHandler for ChatRoom {
    async fn message(self: Rc<Self>, socket: Socket, message: Message) -> Result<()> {
        let limiter = self.limiters.get(socket.tags().first().map_or("unknown", String::as_str))?;
        let asked = limiter.spend_request().send().promise;
        self.counting.borrow_mut().entry(socket.clone()).or_default().push_back(message);
        // A client that can't be counted may talk.
        let wait_ms = match asked.await {
            Ok(answer) => answer.get()?.get_wait_ms(),
            Err(_) => 0,
        };
        // Answers to several may come in any order; the messages keep theirs.
        let next = self.counting.borrow_mut().get_mut(&socket).and_then(VecDeque::pop_front);
        match next {
            Some(_) if wait_ms > 0 => send(&socket, &json!({ "error": TOO_FAST })),
            Some(message) => self.heard(&socket, message)?,
            // It is closed.
            None => {}
        }
        Ok(())
    }

    async fn closed(self: Rc<Self>, socket: Socket, _: Closed) -> Result<()> {
        self.counting.borrow_mut().remove(&socket);
        if let Some(name) = name(&socket) {
            self.broadcast(&json!({ "quit": name }).to_string());
        }
        Ok(())
    }
}

/// The visitor's name, once they have said it. It is kept with the socket, so that the room may
/// sleep; their address is the socket's tag.
fn name(socket: &Socket) -> Option<String> {
    String::from_utf8(socket.attachment()).ok().filter(|name| !name.is_empty())
}

fn send(socket: &Socket, value: &Value) {
    drop(socket.send_text(&value.to_string()));
}

/// As JavaScript counts it.
fn length(text: &str) -> usize {
    text.encode_utf16().count()
}

impl chat_room::Server for ChatRoom {
    async fn make(
        self: Rc<Self>,
        _: chat_room::MakeParams,
        _: chat_room::MakeResults,
    ) -> Result<()> {
        self.ctx.storage().put("made", "")
    }
}

impl http_service::Server for ChatRoom {
    async fn request(
        self: Rc<Self>,
        params: http_service::RequestParams,
        results: http_service::RequestResults,
    ) -> Result<()> {
        http::serve(params, results, async |request| self.http(request).await).await
    }
}

/// The pace of one address. It is in memory only: an address that slept is forgiven.
#[derive(Debug)]
pub struct ChatLimiter {
    ctx: Context,
    /// The time for which the messages so far have paid.
    paid_until_ms: Cell<u64>,
}

impl Object for ChatLimiter {
    const CLASS: &'static str = "ChatLimiter";
    type Client = chat_limiter::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        Ok(ChatLimiter { ctx, paid_until_ms: Cell::default() })
    }
}

impl chat_limiter::Server for ChatLimiter {
    async fn spend(
        self: Rc<Self>,
        _: chat_limiter::SpendParams,
        mut results: chat_limiter::SpendResults,
    ) -> Result<()> {
        let now = self.ctx.now_ms();
        let paid = self.paid_until_ms.get().max(now) + COST_MS;
        let wait = (paid - now).saturating_sub(AHEAD_MS);
        if wait == 0 {
            self.paid_until_ms.set(paid);
        }
        results.get().set_wait_ms(wait);
        Ok(())
    }
}
