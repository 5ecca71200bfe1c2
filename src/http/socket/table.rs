//! The open WebSockets of one object, whether it is awake or not.
//!
//! The host keeps them beside the object's place, and not in the instance: an object sleeps while
//! its sockets are open, and an instance that panicked takes none with it. A table names no value
//! of the class. An instance looks at it through a [`View`], which goes with the instance.
//!
//! Invariants:
//! - A socket is here from the moment in which it is accepted until its class is told of the end,
//!   or nobody is left to be told.
//! - Every byte that is kept with a socket is weighed, for as long as it is kept.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::rc::{Rc, Weak};

use capnp::capability::FromClientHook;
use capnp::private::capability::ClientHook;
use tokio_util::task::AbortOnDropHandle;

use super::surviving::{Lease, Records, Stored, Surviving, stored};
use super::{Closed, Message, Socket};
use crate::error::Result;
use crate::limits::SOCKET_BYTES;
use crate::schema::http_capnp::http_service::client_request_context;
use crate::schema::http_capnp::web_socket;

/// Told how many bytes a table took before, and takes now.
type Scale = Box<dyn Fn(usize, usize)>;

/// The work of a class on one thing that came on a socket.
pub(super) type Handling = Pin<Box<dyn Future<Output = Result<()>>>>;

/// The functions of a [`SocketHandler`](super::SocketHandler). None of them runs on the value of
/// another class.
pub(super) trait Handles {
    fn opened(&self, object: Rc<dyn Any>, socket: Socket) -> Option<Handling>;
    fn message(&self, object: Rc<dyn Any>, socket: Socket, message: Message) -> Option<Handling>;
    fn closed(&self, object: Rc<dyn Any>, socket: Socket, closed: Closed) -> Option<Handling>;
}

/// See the head of the file.
pub(crate) struct SocketTable {
    /// By number: in the order in which they were accepted.
    open: RefCell<BTreeMap<u64, Rc<Entry>>>,
    accepted: Cell<u64>,
    auto_reply: RefCell<Option<AutoReply>>,
    /// The functions of the class, once it has said that its sockets survive.
    survivors: Cell<Option<&'static dyn Handles>>,
    /// As the present instance sees it, while that has anything of it.
    view: RefCell<Weak<View>>,
    bytes: Cell<usize>,
    scale: Scale,
}

/// A text that is answered without the object.
struct AutoReply {
    request: String,
    reply: String,
}

/// A socket that is to be taken in.
pub(super) struct NewSocket {
    pub(super) tags: Vec<String>,
    pub(super) attachment: Vec<u8>,
    pub(super) handler: &'static dyn Handles,
    pub(super) surviving: Option<Box<Surviving>>,
}

/// One open socket.
pub(crate) struct Entry {
    pub(super) number: u64,
    pub(super) tags: Vec<String>,
    pub(super) attachment: RefCell<Vec<u8>>,
    /// The way to the client, behind no gate; none once the socket has ended.
    down: RefCell<Option<Box<dyn ClientHook>>>,
    /// The time of the last automatic reply; 0: there was none.
    pub(super) auto_replied_ms: Cell<u64>,
    /// The functions of its class.
    pub(super) handler: &'static dyn Handles,
    lease: Option<Rc<dyn Lease>>,
    /// Ends it when its time is over, if it has one.
    timer: RefCell<Option<AbortOnDropHandle<()>>>,
    /// A message of it was lost with an instance: none that came later reaches the class.
    has_lost: Cell<bool>,
    pub(crate) surviving: Option<Box<Surviving>>,
}

/// The means of an instance to use the sockets of its object.
pub(crate) trait Holder: Records {
    /// # Errors
    /// When the instance has ended.
    fn check_alive(&self) -> Result<()>;

    /// The object's value, while it is awake.
    fn object(&self) -> Option<Rc<dyn Any>>;

    /// # Errors
    /// When open sockets take as much as they may.
    fn check_room(&self) -> Result<()>;

    /// The right by which the request came that has this context.
    fn lease(&self, context: &client_request_context::Client) -> Option<Rc<dyn Lease>>;

    /// A way in for what comes on the socket that was asked for with this context, or that the
    /// object asked for itself. It names the object, and no instance.
    fn way_in(
        &self,
        table: &Rc<SocketTable>,
        socket: &Rc<Entry>,
        context: Option<&client_request_context::Client>,
    ) -> web_socket::Client;

    /// A capability of this instance without the gate around it.
    fn ungated(&self, cap: &dyn ClientHook) -> Box<dyn ClientHook>;

    /// A capability behind the gate of this instance.
    fn gated(&self, raw: &dyn ClientHook) -> Box<dyn ClientHook>;

    /// A surviving socket has no way to its client: if it isn't resumed in time, it is lost.
    fn goes_away(&self, table: &Rc<SocketTable>, entry: &Rc<Entry>);

    /// The client of a socket is lost, and the object is told so.
    fn lose(&self, table: &Rc<SocketTable>, entry: &Rc<Entry>);

    fn now_ms(&self) -> u64;
}

/// An instance, as the way to the sockets of its object. Nothing is made for them before a view is
/// asked for.
pub(crate) trait HasSockets {
    /// The number of open ones.
    fn open(&self) -> usize;

    fn view(self: Rc<Self>) -> Rc<View>;
}

/// The sockets as one instance sees them.
pub(crate) struct View {
    pub(super) table: Rc<SocketTable>,
    pub(super) holder: Box<dyn Holder>,
    /// Tells instances apart.
    instance: usize,
    /// The ways to clients that it has used, behind its gate.
    downs: RefCell<HashMap<u64, web_socket::Client>>,
}

impl SocketTable {
    pub(crate) fn new(scale: impl Fn(usize, usize) + 'static) -> Rc<Self> {
        let (open, accepted, auto_reply, survivors, bytes) = Default::default();
        let (view, scale) = (RefCell::new(Weak::new()), Box::new(scale));
        Rc::new(Self { open, accepted, auto_reply, survivors, view, bytes, scale })
    }

    /// The view of an instance, which `holder` speaks for and `instance` tells from others.
    pub(crate) fn view(
        self: &Rc<Self>,
        instance: usize,
        holder: impl FnOnce() -> Box<dyn Holder>,
    ) -> Rc<View> {
        let present = self.view.borrow().upgrade();
        if let Some(view) = present.filter(|view| view.instance == instance) {
            return view;
        }
        let (table, downs) = (self.clone(), RefCell::default());
        let view = Rc::new(View { table, holder: holder(), instance, downs });
        self.view.replace(Rc::downgrade(&view));
        view
    }

    /// Takes in a socket, with a lease if its right may end.
    pub(super) fn accept(&self, new: NewSocket, lease: Option<Rc<dyn Lease>>) -> Rc<Entry> {
        self.insert(self.accepted.get(), new, lease)
    }

    fn insert(&self, number: u64, new: NewSocket, lease: Option<Rc<dyn Lease>>) -> Rc<Entry> {
        let NewSocket { tags, attachment, handler, surviving } = new;
        let attachment = RefCell::new(attachment);
        let (down, auto_replied_ms, timer, has_lost) = Default::default();
        let entry = Rc::new(Entry {
            number,
            tags,
            attachment,
            down,
            auto_replied_ms,
            handler,
            lease,
            timer,
            has_lost,
            surviving,
        });
        self.accepted.set(self.accepted.get().max(number + 1));
        self.weigh(0, entry.bytes());
        self.open.borrow_mut().insert(number, entry.clone());
        entry
    }

    /// The sockets that are accepted from now on survive, where the other side can do that. Those
    /// that are stored and not here are of an earlier process: they wait to be resumed.
    pub(super) fn survive(
        self: &Rc<Self>,
        holder: &dyn Holder,
        handler: &'static dyn Handles,
    ) -> Result<()> {
        if self.survivors.get().is_some() {
            return Ok(());
        }
        for found in stored(holder)? {
            let Stored { surviving, number, tags, attachment, is_cut_short } = found;
            if self.surviving(surviving.id()).is_some() {
                continue;
            }
            let new = NewSocket { tags, attachment, handler, surviving: Some(Box::new(surviving)) };
            // Lease and timer come with the client that resumes it.
            let entry = self.insert(number, new, None);
            if is_cut_short {
                entry.lost_message();
            }
            holder.goes_away(self, &entry);
        }
        self.survivors.set(Some(handler));
        Ok(())
    }

    pub(super) fn are_surviving(&self) -> bool {
        self.survivors.get().is_some()
    }

    /// The surviving socket of that id.
    pub(super) fn surviving(&self, id: &[u8]) -> Option<Rc<Entry>> {
        let open = self.open.borrow();
        let is_it = |entry: &&Rc<Entry>| {
            entry.surviving.as_ref().is_some_and(|surviving| surviving.id() == id)
        };
        open.values().find(is_it).cloned()
    }

    /// The way to the client of a surviving socket broke.
    pub(crate) fn goes_away(&self, entry: &Entry) {
        let Some(surviving) = &entry.surviving else { return };
        surviving.goes_away();
        drop(entry.down.take());
        let view = self.view.borrow().upgrade();
        if let Some(view) = view {
            view.forget_down(entry);
        }
    }

    pub(super) fn all(&self) -> Vec<Rc<Entry>> {
        self.open.borrow().values().cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.open.borrow().len()
    }

    pub(crate) fn is_open(&self, entry: &Entry) -> bool {
        self.open.borrow().contains_key(&entry.number)
    }

    /// Takes the socket out. False if it isn't here any more.
    pub(crate) fn remove(&self, entry: &Entry) -> bool {
        let removed = self.open.borrow_mut().remove(&entry.number);
        if removed.is_some() {
            self.weigh(entry.bytes(), 0);
        }
        // The drop of a capability may call back.
        drop((entry.timer.take(), entry.down.take()));
        removed.is_some()
    }

    /// Takes all sockets out, without a word to their class.
    pub(crate) fn take_all(&self) -> Vec<Rc<Entry>> {
        let all: Vec<_> = self.open.take().into_values().collect();
        self.weigh(all.iter().map(|entry| entry.bytes()).sum(), 0);
        all
    }

    /// Those that were opened by a grant that was taken back since.
    pub(crate) fn cut(&self) -> Vec<Rc<Entry>> {
        let open = self.open.borrow();
        let is_cut = |entry: &&Rc<Entry>| {
            entry.lease.as_ref().is_some_and(|lease| lease.is_cut())
                || entry.surviving.as_ref().is_some_and(|surviving| surviving.is_cut())
        };
        open.values().filter(is_cut).cloned().collect()
    }

    pub(super) fn attach(&self, entry: &Entry, bytes: Vec<u8>) {
        let before = entry.bytes();
        entry.attachment.replace(bytes);
        if self.is_open(entry) {
            self.weigh(before, entry.bytes());
        }
    }

    /// The attachments of surviving sockets that aren't stored as they are, each with the key of
    /// its record. A socket of which nothing is stored has none.
    pub(crate) fn unstored(
        &self,
        stored: impl Fn(&[u8]) -> Option<Vec<u8>>,
    ) -> Vec<(Vec<u8>, Vec<u8>)> {
        let unstored = |entry: &Rc<Entry>| {
            let key = entry.surviving.as_ref()?.attachment_key();
            let attachment = entry.attachment.borrow();
            (stored(&key)? != *attachment).then(|| (key, attachment.clone()))
        };
        self.open.borrow().values().filter_map(unstored).collect()
    }

    pub(super) fn reply_by_itself(&self, pair: Option<(&str, &str)>) {
        let owned = |(request, reply): (&str, &str)| AutoReply {
            request: request.to_owned(),
            reply: reply.to_owned(),
        };
        let new = pair.map(owned);
        let bytes = |pair: &Option<AutoReply>| {
            pair.as_ref().map_or(0, |pair| pair.request.len() + pair.reply.len())
        };
        let now = bytes(&new);
        let before = bytes(&self.auto_reply.replace(new));
        self.weigh(before, now);
    }

    /// The reply that needs no object, if there is one and what came is the request for it.
    pub(crate) fn automatic(&self, came: impl FnOnce(&str) -> bool) -> Option<String> {
        let auto_reply = self.auto_reply.borrow();
        let pair = auto_reply.as_ref()?;
        came(&pair.request).then(|| pair.reply.clone())
    }

    fn weigh(&self, before: usize, now: usize) {
        if before != now {
            self.bytes.set(self.bytes.get() - before + now);
            (self.scale)(before, now);
        }
    }
}

impl Drop for SocketTable {
    fn drop(&mut self) {
        (self.scale)(self.bytes.get(), 0);
    }
}

impl Entry {
    /// All that it takes, so far as it depends on the class.
    fn bytes(&self) -> usize {
        weight(&self.tags, &self.attachment.borrow())
    }

    pub(super) fn set_down(&self, raw: Box<dyn ClientHook>) {
        drop(self.down.replace(Some(raw)));
    }

    /// Ends by this task when its time is over.
    pub(crate) fn ends_by(&self, timer: Option<AbortOnDropHandle<()>>) {
        self.timer.replace(timer);
    }

    /// The way to the client, behind no gate.
    pub(crate) fn down(&self) -> Option<web_socket::Client> {
        Some(FromClientHook::new(self.down.borrow().as_ref()?.add_ref()))
    }

    /// The same, for the last time.
    pub(crate) fn take_down(&self) -> Option<web_socket::Client> {
        self.down.take().map(FromClientHook::new)
    }

    /// It survives, and its client's gateway is not there.
    pub(crate) fn is_away(&self) -> bool {
        self.surviving.as_ref().is_some_and(|surviving| surviving.is_away())
    }

    /// A message was lost on its way to the class.
    pub(crate) fn lost_message(&self) {
        self.has_lost.set(true);
    }

    pub(super) fn has_lost(&self) -> bool {
        self.has_lost.get()
    }

    /// A message of it was answered at this time, and the object knows nothing of it.
    pub(crate) fn replied_by_itself(&self, now_ms: u64) {
        self.auto_replied_ms.set(now_ms);
    }
}

/// The bytes of a socket with these.
fn weight(tags: &[String], attachment: &[u8]) -> usize {
    SOCKET_BYTES + attachment.len() + tags.iter().map(String::len).sum::<usize>()
}

impl View {
    /// Tells whether this is the object whose sockets these are.
    pub(super) fn is_of(&self, handler: &Rc<dyn Any>) -> bool {
        let object = self.holder.object();
        object.is_some_and(|object| std::ptr::addr_eq(Rc::as_ptr(&object), Rc::as_ptr(handler)))
    }

    pub(super) fn socket(self: &Rc<Self>, entry: Rc<Entry>) -> Socket {
        Socket { entry, view: self.clone() }
    }

    /// Looks at the way to the client behind this instance's gate; none once the socket has ended.
    pub(super) fn with_down<T>(
        &self,
        entry: &Entry,
        look: impl FnOnce(&web_socket::Client) -> T,
    ) -> Option<T> {
        let raw = entry.down.borrow();
        let raw = raw.as_ref()?;
        let mut downs = self.downs.borrow_mut();
        let gated = || FromClientHook::new(self.holder.gated(&**raw));
        Some(look(downs.entry(entry.number).or_insert_with(gated)))
    }

    /// Lets go of the way to a client, which has another one or none by now.
    pub(super) fn forget_down(&self, entry: &Entry) {
        let down = self.downs.borrow_mut().remove(&entry.number);
        drop(down);
    }
}
