//! A text that several people write at once, for the clients of the ecosystem: `yjs` and
//! `y-websocket`.
//!
//! A change is applied in memory at once, and told to everybody in batches: a batch is written
//! first, as one change, and leaves when that is durable. So a server that is killed loses only
//! what it told nobody, which those who wrote it still have, and send when they are connected
//! again.
//!
//! Invariants:
//! - Every message that tells of the document is sent in a turn that has saved it: see
//!   `Editor::tell`.
//! - A memory that is ahead of the storage and can't be saved ends with the object.

mod document;
mod page;
mod plain;
mod presence;
mod rate;
mod refused;
mod wire;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use capstead::http::{self, Answer, Body, Closed, Message, Request, StatusCode};
use capstead::http::{Socket, SocketHandler, Sockets, http_service};
use capstead::{Context, HttpLimits, Object, Result, Server};
use yrs::sync::{Message as Yjs, SyncMessage};

use self::document::Document;
use self::presence::Presence;
use self::rate::Allowance;
use self::refused::{Outcome, Refused};
use crate::editor_capnp::editor;

/// The largest message: the changes of somebody who wrote a whole document without a connection.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Sockets of one document.
const SOCKETS_MAX: usize = 500;

/// The time between two batches: what one object sends is about 1,000 messages a second, for any
/// number of listeners.
const PAUSE: Duration = Duration::from_millis(20);
/// See [`PAUSE`].
const PAUSE_FOR_EACH: Duration = Duration::from_millis(1);

/// Adds documents to a server: `/editor` asks for a name, and `/editor/NAME` is the page of one.
pub fn add_to(server: Server) -> Server {
    #[allow(clippy::field_reassign_with_default, reason = "elsewhere there is no other way")]
    let limits = {
        let mut limits = HttpLimits::default();
        limits.socket_message_bytes = MESSAGE_BYTES_MAX;
        limits
    };
    // Any document can ask for the name of another.
    server.class::<Editor>().http_limits(limits).route::<Editor>("/editor", "front", "/front")
}

/// A durable document.
pub struct Editor {
    ctx: Context,
    sockets: Sockets,
    document: RefCell<Document>,
    presence: RefCell<Presence>,
    /// Of the sockets that were not refused.
    allowances: RefCell<HashMap<Socket, Allowance>>,
    /// True while a handler tells what has changed, and goes on with what changes meanwhile.
    telling: Cell<bool>,
}

impl Object for Editor {
    const CLASS: &'static str = "Editor";
    type Client = editor::Client;

    async fn wake(ctx: Context) -> Result<Self> {
        let (document, sockets) = (Document::load(ctx.storage())?.into(), ctx.sockets());
        let (presence, allowances, telling) = Default::default();
        let editor = Self { ctx, sockets, document, presence, allowances, telling };
        // An instance that ended may have lost changes that it had told nobody: those who wrote
        // them hear what is known, and send the rest. Cursors come again by themselves.
        for socket in editor.sockets.all() {
            editor.welcome(&socket);
        }
        Ok(editor)
    }
}

impl fmt::Debug for Editor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Editor").field("sockets", &self.sockets.len()).finish_non_exhaustive()
    }
}

impl Editor {
    fn http(self: &Rc<Self>, request: &Request<Body>) -> Answer {
        match (request.method().as_str(), request.uri().path()) {
            ("GET", "/") if http::is_upgrade(request) => {
                if self.sockets.len() >= SOCKETS_MAX {
                    let reason = "too many have this document open: try again later";
                    return Err(http::refuse(StatusCode::SERVICE_UNAVAILABLE, reason));
                }
                self.sockets.accept(self, request)?.answer()
            }
            ("GET", "/") => page::HTML.answer(request),
            ("GET", "/editor.js") => page::SCRIPT.answer(request),
            ("GET", "/front") => page::FRONT.answer(request),
            ("GET", "/text") => Ok(http::text(StatusCode::OK, self.text()?)),
            (_, "/" | "/editor.js" | "/front" | "/text") => {
                Err(http::refuse(StatusCode::METHOD_NOT_ALLOWED, "use GET").allow("GET, HEAD"))
            }
            _ => Err(http::refuse(StatusCode::NOT_FOUND, "a document has no such path")),
        }
    }

    /// Tells a client what of the document is known here.
    fn welcome(&self, socket: &Socket) {
        self.allowances.borrow_mut().insert(socket.clone(), Allowance::new());
        let known = self.document.borrow().state_vector();
        drop(socket.send_data(&wire::sync(SyncMessage::SyncStep1(known))));
    }

    fn text(&self) -> Result<String> {
        self.tell()?;
        Ok(self.document.borrow().text())
    }

    fn take(&self, socket: &Socket, frame: &[u8]) -> Outcome<()> {
        // None of one that was refused, and hasn't heard of it.
        let may = match self.allowances.borrow_mut().get_mut(socket) {
            Some(allowance) => allowance.take_message(frame.len()),
            None => return Ok(()),
        };
        if !may {
            return Err(Refused::TooFast);
        }
        match wire::decode(frame)? {
            Yjs::Sync(SyncMessage::SyncStep1(known)) => {
                self.tell()?;
                let changes = self.document.borrow().changes_since(&known);
                let mut allowances = self.allowances.borrow_mut();
                let mut allowance = allowances.get_mut(socket);
                if !allowance.as_mut().is_some_and(|all| all.take_bytes(changes.len())) {
                    return Err(Refused::TooFast);
                }
                drop(socket.send_data(&wire::sync(SyncMessage::SyncStep2(changes))));
                Ok(())
            }
            Yjs::Sync(SyncMessage::SyncStep2(change) | SyncMessage::Update(change)) => {
                self.apply(change)
            }
            Yjs::Awareness(update) => self.presence.borrow_mut().apply(socket, update),
            Yjs::AwarenessQuery => {
                self.tell_presence(socket);
                Ok(())
            }
            Yjs::Auth(_) | Yjs::Custom(..) => Err(Refused::NotYjs),
        }
    }

    fn apply(&self, change: Vec<u8>) -> Outcome<()> {
        let mut document = self.document.borrow_mut();
        if document.should_shrink(change.len()) {
            drop(document);
            self.tell()?;
            self.compact()?;
            document = self.document.borrow_mut();
        }
        document.apply(change)
    }

    /// Saves what has changed, and tells it to all who are there, also to those who changed it: by
    /// that they know that it is durable.
    fn tell(&self) -> Result<()> {
        let saved = self.document.borrow_mut().save();
        match saved {
            Ok(None) => {}
            Ok(Some(change)) => self.broadcast(wire::sync(SyncMessage::Update(change))),
            Err(error) => {
                return Err(self.ctx.abort(format!("can't be saved: {}", error.extra)));
            }
        }
        if let Some(update) = self.presence.borrow_mut().take_changes() {
            self.broadcast(wire::awareness(update));
        }
        Ok(())
    }

    fn broadcast(&self, message: Vec<u8>) {
        self.sockets.broadcast(&Message::Data(message));
    }

    fn tell_presence(&self, socket: &Socket) {
        if let Some(all) = self.presence.borrow().all() {
            drop(socket.send_data(&wire::awareness(all)));
        }
    }

    /// Tells what changes until nothing does. The first change leaves at once, and later ones in
    /// batches.
    async fn tell_all(&self) -> Result<()> {
        if self.telling.replace(true) {
            return Ok(());
        }
        let _told = Telling(&self.telling);
        while !(self.document.borrow().is_saved() && self.presence.borrow().is_told()) {
            self.tell()?;
            tokio::time::sleep(PAUSE + PAUSE_FOR_EACH * self.sockets.len() as u32).await;
            // In a turn of its own, so that what was told doesn't wait for it.
            if self.document.borrow().has_long_tail() {
                self.tell()?;
                self.compact()?;
            }
        }
        Ok(())
    }

    fn compact(&self) -> Result<()> {
        let compacted = self.document.borrow_mut().compact();
        compacted.map_err(|error| self.ctx.abort(format!("can't be saved: {}", error.extra)))
    }
}

/// Nobody tells any more once it is dropped.
struct Telling<'a>(&'a Cell<bool>);

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl SocketHandler for Editor {
    async fn opened(self: Rc<Self>, socket: Socket) -> Result<()> {
        self.tell()?;
        self.welcome(&socket);
        self.tell_presence(&socket);
        Ok(())
    }

    async fn message(self: Rc<Self>, socket: Socket, message: Message) -> Result<()> {
        let taken = match message {
            Message::Data(frame) => self.take(&socket, &frame),
            Message::Text(_) => Err(Refused::NotYjs),
        };
        if let Err(refused) = taken {
            self.allowances.borrow_mut().remove(&socket);
            refused.close(&socket)?;
        }
        self.tell_all().await
    }

    async fn closed(self: Rc<Self>, socket: Socket, _: Closed) -> Result<()> {
        self.allowances.borrow_mut().remove(&socket);
        self.presence.borrow_mut().leave(&socket);
        self.tell_all().await
    }
}

impl editor::Server for Editor {
    async fn text(
        self: Rc<Self>,
        _: editor::TextParams,
        mut results: editor::TextResults,
    ) -> Result<()> {
        results.get().set_text(Editor::text(&self)?);
        Ok(())
    }
}

impl http_service::Server for Editor {
    async fn request(
        self: Rc<Self>,
        params: http_service::RequestParams,
        results: http_service::RequestResults,
    ) -> Result<()> {
        http::serve(params, results, async |request| self.http(&request)).await
    }
}
