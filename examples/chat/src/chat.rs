//! A chat: rooms by name and private ones, with the protocol of Cloudflare's `workers-chat-demo`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use capstead::http::{self, Answer, Body, Closed, Message, Request, StatusCode};
use capstead::http::{Socket, SocketHandler, Sockets, StaticFile, http_service};
use capstead::{Context, List, Namespace, Object, Result, Server};
use serde_json::{Value, json};

use crate::chat_capnp::{chat_limiter, chat_room};

const NAME_MAX: usize = 32;
const MESSAGE_MAX: usize = 256;
/// Messages that a newcomer sees.
const BACKLOG: usize = 100;
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
    visitors: RefCell<HashMap<Socket, Rc<Visitor>>>,
    /// The time of the last message.
    last_ms: Cell<u64>,
}

/// Somebody in the room.
#[derive(Debug, Default)]
struct Visitor {
    /// Empty until they have said it.
    name: RefCell<String>,
    silent_until_ms: Cell<u64>,
}

impl Object for ChatRoom {
    const CLASS: &'static str = "ChatRoom";
    type Client = chat_room::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        let mut last_ms = 0;
        let newest = ctx.storage().list(List::all().prefix("message/").reverse().limit(1))?;
        for entry in newest {
            let (key, _) = entry?;
            last_ms = key.last_chunk().map_or(0, |time| u64::from_be_bytes(*time));
        }
        Ok(ChatRoom {
            rooms: ctx.namespace("rooms")?,
            limiters: ctx.namespace("limiters")?,
            sockets: ctx.sockets(),
            visitors: RefCell::default(),
            last_ms: Cell::new(last_ms),
            ctx,
        })
    }
}

impl ChatRoom {
    async fn http(self: &Rc<Self>, request: Request<Body>) -> Answer {
        let address = http::peer(&request).map_or("unknown".into(), |address| address.to_string());
        match (request.method().as_str(), request.uri().path()) {
            ("GET", "/page") => PAGE.answer(&request),
            ("POST", "/make") => self.make_private(&address).await,
            (_, "/make") => Err(http::refuse(StatusCode::METHOD_NOT_ALLOWED, "use POST")),
            (_, "/websocket") if self.is_there()? => {
                self.sockets.accept(self, &request)?.attachment(address).answer()
            }
            _ => Err(http::refuse(StatusCode::NOT_FOUND, "there is no such room")),
        }
    }

    fn is_there(&self) -> Result<bool> {
        let is_private = self.ctx.name().is_none_or(|name| !name.starts_with("public/"));
        Ok(!is_private || self.ctx.storage().contains("made")?)
    }

    /// Whoever has the id may enter. It is a secret, of which only the hash is kept.
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
        let newest = List::all().prefix("message/").reverse().limit(BACKLOG);
        let mut texts = Vec::new();
        for entry in self.ctx.storage().list(newest)? {
            texts.push(String::from_utf8_lossy(&entry?.1).into_owned());
        }
        texts.reverse();
        Ok(texts)
    }

    /// Sends to everybody who has a name.
    fn broadcast(&self, text: &str) {
        for socket in self.sockets.all() {
            if self.name(&socket).is_some() {
                drop(socket.send_text(text));
            }
        }
    }

    fn visitor(&self, socket: &Socket) -> Rc<Visitor> {
        self.visitors.borrow_mut().entry(socket.clone()).or_default().clone()
    }

    fn name(&self, socket: &Socket) -> Option<String> {
        let name = self.visitors.borrow().get(socket)?.name.borrow().clone();
        (!name.is_empty()).then_some(name)
    }

    fn enter(&self, socket: &Socket, visitor: &Visitor, said: &Value) -> Result<()> {
        let name = said["name"].as_str().filter(|name| !name.is_empty()).unwrap_or("anonymous");
        if length(name) > NAME_MAX {
            send(socket, &json!({ "error": "Name too long." }));
            socket.close(1009, "Name too long.");
            return Ok(());
        }
        for other in self.sockets.all() {
            if let Some(name) = self.name(&other) {
                send(socket, &json!({ "joined": name }));
            }
        }
        for text in self.backlog()? {
            drop(socket.send_text(&text));
        }
        visitor.name.replace(name.to_owned());
        self.broadcast(&json!({ "joined": name }).to_string());
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
        Ok(())
    }

    fn heard(&self, socket: &Socket, visitor: &Visitor, message: Message) -> Result<()> {
        let error = |text: &str| send(socket, &json!({ "error": text }));
        let Message::Text(text) = message else {
            error("Say it as text.");
            return Ok(());
        };
        let Ok(said) = serde_json::from_str::<Value>(&text) else {
            error("That was no JSON.");
            return Ok(());
        };
        let Some(name) = self.name(socket) else { return self.enter(socket, visitor, &said) };
        match said["message"].as_str() {
            Some(message) if length(message) <= MESSAGE_MAX => self.tell(&name, message)?,
            Some(_) => error("Message too long."),
            None => error("There is no message in it."),
        }
        Ok(())
    }
}

const TOO_FAST: &str = "Your IP is being rate-limited, please try again later.";

impl SocketHandler for ChatRoom {
    async fn message(self: Rc<Self>, socket: Socket, message: Message) -> Result<()> {
        let (visitor, now) = (self.visitor(&socket), self.ctx.now_ms());
        if now < visitor.silent_until_ms.get() {
            send(&socket, &json!({ "error": TOO_FAST }));
            return Ok(());
        }
        // The message doesn't wait for the limiter, but the next one may.
        let limiter = self.limiters.get(&String::from_utf8_lossy(&socket.attachment()))?;
        let asked = limiter.spend_request().send().promise;
        self.heard(&socket, &visitor, message)?;
        // Whoever can't be counted may talk.
        if let Ok(answer) = asked.await {
            visitor.silent_until_ms.set(now + answer.get()?.get_wait_ms());
        }
        Ok(())
    }

    async fn closed(self: Rc<Self>, socket: Socket, _: Closed) -> Result<()> {
        let name = self.name(&socket);
        self.visitors.borrow_mut().remove(&socket);
        if let Some(name) = name {
            self.broadcast(&json!({ "quit": name }).to_string());
        }
        Ok(())
    }
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

/// The pace of one address. It is in memory only: whoever slept is forgiven.
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
        self.paid_until_ms.set(paid);
        results.get().set_wait_ms((paid - now).saturating_sub(AHEAD_MS));
        Ok(())
    }
}
