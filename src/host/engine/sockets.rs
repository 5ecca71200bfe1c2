//! The WebSockets of objects, which live beside the object's slot: sleep, abort and panics end
//! instances, and no socket.
//!
//! The gateway holds the way in to a socket. It is a facet that names the object, so that a message
//! wakes a sleeping one, and it keeps the slot, and in that the table of the object's sockets.
//!
//! Invariants:
//! - A sleeping object's sockets hold nothing of any instance.
//! - A message begins at most once. One that had not begun when an instance ended goes to the next
//!   one, in its place; if one was lost with an instance, none that came after it on that socket
//!   begins.
//! - A revoked grant ends the sockets that were opened by it, whether the object sleeps or not.

use std::any::Any;
use std::collections::VecDeque;
use std::rc::Rc;

use capnp::any_pointer;
use capnp::capability::{FromClientHook, Params, Promise};
use capnp::private::capability::ClientHook;
use capstead_client::sturdyref::Method;

use super::facet::Facet;
use super::gated::Gated;
use super::instance::{Instance, end_error};
use super::right::{LiveGrant, Right};
use super::slot::{QueuedCall, Slot};
use super::vat::Vat;
use crate::error::{Result, disconnected};
use crate::http::{Entry, Holder, LOST, Lease, SocketTable, View, keep};
use crate::membrane::{self, Body, Call};
use crate::schema::http_capnp::http_service::client_request_context;
use crate::schema::http_capnp::web_socket;

/// Codes of close frames (RFC 6455, section 7.4.1).
const POLICY: u16 = 1008;
/// See [`POLICY`].
const FAILED: u16 = 1011;

/// The way in to one socket of an object.
pub(in crate::host) struct SocketWay {
    vat: Rc<Vat>,
    slot: Rc<Slot>,
    table: Rc<SocketTable>,
    entry: Rc<Entry>,
    of: WayOf,
}

/// Whoever has a way in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WayOf {
    /// Whoever has the client's side.
    Client,
    /// The host, which tells the object of an end that nobody else tells it of.
    Host,
}

/// The sockets of an instance's object, as it sees them.
pub(in crate::host) fn view(instance: &Rc<Instance>) -> Rc<View> {
    let slot = instance.vat.objects.slot(&instance.spec);
    view_in(instance, &slot)
}

fn view_in(instance: &Rc<Instance>, slot: &Slot) -> Rc<View> {
    let vat = Rc::downgrade(&instance.vat);
    let table = slot.sockets_or_new(|| {
        SocketTable::new(move |before, now| {
            if let Some(vat) = vat.upgrade() {
                vat.objects.awake().resize_sockets(before, now);
            }
        })
    });
    let holder = || Box::new(HolderOf(instance.clone())) as Box<dyn Holder>;
    table.view(Rc::as_ptr(instance).addr(), holder)
}

struct HolderOf(Rc<Instance>);

impl Holder for HolderOf {
    fn check_alive(&self) -> Result<()> {
        self.0.check_alive()
    }

    fn object(&self) -> Option<Rc<dyn Any>> {
        let (instance, server) = self.0.vat.objects.find(self.0.spec.id)?.awake()?;
        if Rc::ptr_eq(&instance, &self.0) { server.object() } else { None }
    }

    fn check_room(&self) -> Result<()> {
        self.0.vat.objects.awake().check_room_for_socket()
    }

    fn lease(&self, context: &client_request_context::Client) -> Option<Rc<dyn Lease>> {
        let gated = membrane::find::<Gated>(context.as_client_hook())?;
        gated.came_by.clone().map(|grant| grant as Rc<dyn Lease>)
    }

    fn way_in(
        &self,
        table: &Rc<SocketTable>,
        entry: &Rc<Entry>,
        context: Option<&client_request_context::Client>,
    ) -> web_socket::Client {
        let came_by = context.and_then(|context| membrane::find::<Gated>(context.as_client_hook()));
        let right = Right::by(came_by.and_then(|gated| gated.came_by.clone()));
        let (vat, slot) = (self.0.vat.clone(), self.0.vat.objects.slot(&self.0.spec));
        let (table, entry, of) = (table.clone(), entry.clone(), WayOf::Client);
        FromClientHook::new(Facet::socket(SocketWay { vat, slot, table, entry, of }, right))
    }

    fn ungated(&self, cap: &dyn ClientHook) -> Box<dyn ClientHook> {
        membrane::find::<Gated>(cap).map_or_else(|| cap.add_ref(), |gated| gated.raw.add_ref())
    }

    fn gated(&self, raw: &dyn ClientHook) -> Box<dyn ClientHook> {
        Gated::wrap_plain(&self.0, raw.add_ref())
    }
}

impl Lease for LiveGrant {
    fn is_cut(&self) -> bool {
        Self::is_cut(self)
    }
}

impl SocketWay {
    pub(in crate::host) fn vat(&self) -> &Rc<Vat> {
        &self.vat
    }

    pub(in crate::host) fn slot(&self) -> &Rc<Slot> {
        &self.slot
    }

    /// Begins a call on the socket, in a turn of the instance whose value is `object`.
    pub(in crate::host) fn call(
        &self,
        instance: &Rc<Instance>,
        object: Option<Rc<dyn Any>>,
        method: Method,
        params: &Params<any_pointer::Owned>,
    ) -> Promise<(), capnp::Error> {
        let Some(object) = object else { return Promise::err(instance.why_ended()) };
        let view = view_in(instance, &self.slot);
        crate::http::dispatch(&view, &self.entry, object, method, params)
    }

    /// Answers a call for which the object isn't needed; gives all others back.
    pub(in crate::host) fn take(&self, call: Call) -> Option<Call> {
        if !self.table.is_open(&self.entry) {
            // The end was told, and whoever tells of it late says nothing new.
            let over = || Err(disconnected("the socket is closed"));
            let is_end = crate::http::is_close(call.method);
            call.reply.send(if is_end { Ok(Body::new()) } else { over() });
            return None;
        }
        let came = |text: &str| {
            let params = call.params.get();
            params.is_ok_and(|params| crate::http::is_text(call.method, params, text))
        };
        let Some(reply) = self.table.automatic(came) else { return Some(call) };
        self.entry.replied_by_itself(self.vat.clock.now_ms());
        if let Some(down) = self.entry.down() {
            // The caller may be code that lends out what the reply goes through; it has returned by
            // then.
            tokio::task::spawn_local(async move {
                let mut send = down.send_text_request();
                send.get().set_text(&reply);
                let _ = send.send().await;
            });
        }
        call.reply.send(Ok(Body::new()));
        None
    }

    /// A message was lost with the instance that worked on it.
    pub(in crate::host) fn lost_message(&self) {
        self.entry.lost_message();
    }

    /// Tells the object of the end, if nobody did before.
    fn tell(vat: Rc<Vat>, slot: Rc<Slot>, table: Rc<SocketTable>, entry: Rc<Entry>, end: End) {
        if !table.is_open(&entry) {
            return vat.objects.release(&slot);
        }
        let way = Self { vat, slot, table, entry, of: WayOf::Host };
        let way: web_socket::Client = FromClientHook::new(Facet::socket(way, Right::default()));
        let mut close = way.close_request();
        close.get().set_code(end.0);
        close.get().set_reason(end.1);
        keep(close.send().promise);
    }
}

/// The code and the reason of an end.
type End = (u16, &'static str);

/// Dropped without a close, the client is lost. A drop is no turn, and may come from anywhere, so
/// the host tells the object later. If the object couldn't be told, nobody will be.
impl Drop for SocketWay {
    fn drop(&mut self) {
        let is_open = self.table.is_open(&self.entry);
        // After the end of the runtime there is nobody to tell.
        if is_open && self.of == WayOf::Client && tokio::runtime::Handle::try_current().is_ok() {
            let (vat, slot) = (self.vat.clone(), self.slot.clone());
            let (table, entry) = (self.table.clone(), self.entry.clone());
            tokio::task::spawn_local(
                async move { Self::tell(vat, slot, table, entry, (LOST, "")) },
            );
            return;
        }
        if is_open {
            self.table.remove(&self.entry);
        }
        self.vat.objects.release(&self.slot);
    }
}

/// The calls on sockets among those that had not begun when their instance ended: the next instance
/// may have them. The others are told why.
pub(super) fn split(
    calls: impl IntoIterator<Item = QueuedCall>,
    why: impl Fn() -> capnp::Error,
) -> VecDeque<QueuedCall> {
    let mut kept = VecDeque::new();
    for queued in calls {
        if queued.facet.is_of_socket() {
            kept.push_back(queued);
        } else {
            super::exclusive::refuse(queued, crate::error::not_begun(why()));
        }
    }
    kept
}

/// The sockets that were opened by grants which are cut now end. Nothing more goes out on them;
/// both sides are told when it is durable.
pub(super) fn cut(vat: &Rc<Vat>, slot: &Rc<Slot>) {
    const WHY: &str = "the grant by which the socket was opened was taken back";
    let Some(table) = slot.sockets() else { return };
    let with_down = |entry: Rc<Entry>| entry.take_down().map(|down| (entry, down));
    let cut: Vec<_> = table.cut().into_iter().filter_map(with_down).collect();
    if cut.is_empty() {
        return;
    }
    let (vat, slot, table) = (vat.clone(), slot.clone(), table.clone());
    // Ends when all that was written by now is durable, or the storage has failed.
    tokio::task::spawn_local(async move {
        vat.turns.outside_turns().await;
        if vat.turns.flush().await.is_err() {
            return;
        }
        for (entry, down) in cut {
            close(&down, POLICY, WHY);
            let (vat, slot, table) = (vat.clone(), slot.clone(), table.clone());
            SocketWay::tell(vat, slot, table, entry, (POLICY, WHY));
        }
        vat.objects.release(&slot);
    });
}

/// The sockets of an object end with what it was; its class is not told.
pub(super) fn replaced(slot: &Slot) {
    let Some(table) = slot.sockets() else { return };
    let all = table.take_all();
    if all.is_empty() {
        return;
    }
    let why = end_error(slot.spec.class.name, "was replaced").extra;
    // Calls that go out now could come to code that is in the middle of something.
    tokio::task::spawn_local(async move {
        for down in all.iter().filter_map(|entry| entry.take_down()) {
            close(&down, FAILED, &why);
        }
    });
}

/// The ways to all clients go with the vat.
pub(super) fn shut_down(slot: &Slot) {
    if let Some(table) = slot.sockets() {
        table.take_all().iter().for_each(|entry| drop(entry.take_down()));
    }
}

fn close(down: &web_socket::Client, code: u16, reason: &str) {
    let mut close = down.close_request();
    close.get().set_code(code);
    close.get().set_reason(crate::http::cut_reason(reason));
    keep(close.send().promise);
}
