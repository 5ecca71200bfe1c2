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
//! - A revoked grant ends the sockets that were opened by it, and so does the end of a reference's
//!   time, whether the object sleeps or not.

use std::any::Any;
use std::collections::VecDeque;
use std::ops::Bound;
use std::rc::{Rc, Weak};
use std::time::Duration;

use capnp::any_pointer;
use capnp::capability::{FromClientHook, Params, Promise, Results};
use capnp::private::capability::ClientHook;
use capnp::traits::HasTypeId;
use capstead_client::sturdyref::Method;

use super::expiry;
use super::facet::Facet;
use super::gated::Gated;
use super::instance::{Instance, end_error};
use super::right::Right;
use super::slot::{QueuedCall, Slot};
use super::vat::Vat;
use crate::error::{Result, disconnected, failed, no_such_method};
use crate::http::{Entry, HasSockets, Holder, LOST, Lease, SocketTable, View, keep};
use crate::limits::SURVIVING_AWAY_SECS;
use crate::membrane::{self, Body, Call};
use crate::schema::http_capnp::http_service::client_request_context;
use crate::schema::http_capnp::web_socket;
use crate::schema::surviving_capnp::socket_resumption;
use crate::storage::{PageSize, Range, Space};

/// Codes of close frames (RFC 6455, section 7.4.1).
const POLICY: u16 = 1008;
/// See [`POLICY`].
const FAILED: u16 = 1011;

/// The method of the interface `SocketResumption`.
const RESUME: u16 = 0;

/// The way in to one socket of an object.
pub(in crate::host) struct SocketWay {
    vat: Rc<Vat>,
    slot: Rc<Slot>,
    table: Rc<SocketTable>,
    entry: Rc<Entry>,
    of: WayOf,
    /// Of those that a surviving socket had.
    number: u64,
}

/// The holder of a way in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WayOf {
    /// The holder of the client's side.
    Client,
    /// The host, which tells the object of an end that nobody else tells it of.
    Host,
}

impl HasSockets for Instance {
    fn open(&self) -> usize {
        let slot = self.vat.objects.find(self.spec.id);
        slot.and_then(|slot| slot.sockets().map(|table| table.len())).unwrap_or(0)
    }

    fn view(self: Rc<Self>) -> Rc<View> {
        let slot = self.vat.objects.slot(&self.spec);
        view_in(&self, &slot)
    }
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
        lease(&opens_by(Some(context)))
    }

    fn way_in(
        &self,
        table: &Rc<SocketTable>,
        entry: &Rc<Entry>,
        context: Option<&client_request_context::Client>,
    ) -> web_socket::Client {
        let right = opens_by(context);
        let (vat, slot) = (self.0.vat.clone(), self.0.vat.objects.slot(&self.0.spec));
        let way = SocketWay::new(vat, slot, table.clone(), entry.clone());
        way.end_with(&right);
        FromClientHook::new(Facet::socket(way, right))
    }

    fn ungated(&self, cap: &dyn ClientHook) -> Box<dyn ClientHook> {
        membrane::find::<Gated>(cap).map_or_else(|| cap.add_ref(), |gated| gated.raw.add_ref())
    }

    fn gated(&self, raw: &dyn ClientHook) -> Box<dyn ClientHook> {
        Gated::wrap_plain(&self.0, raw.add_ref())
    }

    fn record(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.0.read(Space::Sockets, key)
    }

    fn set_record(&self, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        if self.0.vat.turns.store().is_in_transaction() {
            return Err(failed(
                "what a surviving socket stores can't be undone: use it outside the transaction",
            ));
        }
        self.0.write_record(Space::Sockets, key, value)
    }

    fn records(&self, prefix: &[u8], visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        const SOME: PageSize = PageSize { entries: 256, bytes: 1 << 20 };
        let mut range = Range::all().within(prefix);
        loop {
            let page = {
                let store = self.0.vat.turns.store();
                store.records(self.0.spec.id, Space::Sockets, &range, SOME)?
            };
            let mut last = None;
            for (key, record) in (0..).map_while(|at| page.get(at)) {
                visit(key, record);
                last = Some(key.to_vec());
            }
            let Some(last) = last else { return Ok(()) };
            range.start = Bound::Excluded(last);
        }
    }

    fn goes_away(&self, table: &Rc<SocketTable>, entry: &Rc<Entry>) {
        let slot = self.0.vat.objects.slot(&self.0.spec);
        SocketWay::await_client(self.0.vat.clone(), slot, table.clone(), entry.clone());
    }

    fn lose(&self, table: &Rc<SocketTable>, entry: &Rc<Entry>) {
        let (vat, slot) = (self.0.vat.clone(), self.0.vat.objects.slot(&self.0.spec));
        let (table, entry) = (table.clone(), entry.clone());
        // A turn is under way.
        tokio::task::spawn_local(async move {
            SocketWay::tell(vat, slot, table, entry, (LOST, ""));
        });
    }

    fn now_ms(&self) -> u64 {
        self.0.vat.clock.now_ms()
    }
}

/// The means to see that the right to a socket has ended; none if it never does.
fn lease(right: &Right) -> Option<Rc<dyn Lease>> {
    (right.grant.is_some() || right.until_ms().is_some()).then(|| Rc::new(right.clone()) as _)
}

/// The right to a socket that was asked for with this context.
fn opens_by(context: Option<&client_request_context::Client>) -> Right {
    let came_by = context.and_then(|context| membrane::find::<Gated>(context.as_client_hook()));
    came_by.map(|gated| gated.came_by.of_what_it_opens()).unwrap_or_default()
}

impl Lease for Right {
    fn is_cut(&self) -> bool {
        Self::is_cut(self)
    }
}

/// Tells whether a call takes a socket up again: it is answered for the class.
pub(in crate::host) fn is_resuming(method: Method) -> bool {
    method.interface == socket_resumption::Client::TYPE_ID
}

/// Takes a surviving socket up again, in a turn of the object.
pub(in crate::host) fn resume(
    instance: &Rc<Instance>,
    facet: &Facet,
    method: Method,
    params: &Params<any_pointer::Owned>,
    results: Results<any_pointer::Owned>,
) -> Promise<(), capnp::Error> {
    let resumed = if facet.is_object() && method.ordinal == RESUME {
        try_to_resume(instance, facet, params, results)
    } else {
        Err(no_such_method(method))
    };
    resumed.map_or_else(Promise::err, Promise::ok)
}

fn try_to_resume(
    instance: &Rc<Instance>,
    facet: &Facet,
    params: &Params<any_pointer::Owned>,
    mut results: Results<any_pointer::Owned>,
) -> Result<()> {
    let params: socket_resumption::resume_params::Reader<'_> = params.get()?.get_as()?;
    let down = FromClientHook::new(params.get_down()?.into_client_hook());
    let (vat, slot) = (instance.vat.clone(), instance.vat.objects.slot(&instance.spec));
    let view = view_in(instance, &slot);
    let right = facet.right.of_what_it_opens();
    let (id, received) = (params.get_id()?, params.get_received());
    let (entry, begun) = crate::http::resume(&view, id, received, &down, lease(&right))?;
    let table = slot.sockets().ok_or_else(|| failed("the socket has ended"))?.clone();
    let way = SocketWay::new(vat, slot, table, entry);
    way.end_with(&right);
    let mut results: socket_resumption::resume_results::Builder<'_> = results.get().init_as();
    results.set_up(FromClientHook::new(Facet::socket(way, right)));
    results.set_received(begun);
    Ok(())
}

impl SocketWay {
    /// A way in for the client's side.
    fn new(vat: Rc<Vat>, slot: Rc<Slot>, table: Rc<SocketTable>, entry: Rc<Entry>) -> Self {
        let number = entry.surviving.as_ref().map_or(0, |surviving| surviving.way());
        Self { vat, slot, table, entry, of: WayOf::Client, number }
    }

    /// Ends the socket when the time of the right is over.
    fn end_with(&self, right: &Right) {
        let (vat, slot) = (Rc::downgrade(&self.vat), Rc::downgrade(&self.slot));
        let (table, entry) = (Rc::downgrade(&self.table), Rc::downgrade(&self.entry));
        let end = move || expire((vat, slot, table), entry);
        self.entry.ends_by(expiry::at_end(&self.vat, right, end));
    }

    /// If a surviving socket isn't resumed in time, its client is lost.
    fn await_client(vat: Rc<Vat>, slot: Rc<Slot>, table: Rc<SocketTable>, entry: Rc<Entry>) {
        let way = |entry: &Entry| entry.surviving.as_ref().map(|surviving| surviving.way());
        let broken = way(&entry);
        // Ends after that time, and holds the object's place until then.
        tokio::task::spawn_local(async move {
            tokio::time::sleep(Duration::from_secs(SURVIVING_AWAY_SECS)).await;
            if way(&entry) == broken {
                Self::tell(vat, slot, table, entry, (LOST, ""));
            } else {
                vat.objects.release(&slot);
            }
        });
    }

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
            // The end was told; a late word of it says nothing new.
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
        let way = Self { vat, slot, table, entry, of: WayOf::Host, number: 0 };
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
        if is_open && self.of == WayOf::Client && self.entry.surviving.is_some() {
            let way = self.entry.surviving.as_ref().map(|surviving| surviving.way());
            // An earlier one is of no use to anybody.
            if way == Some(self.number) && tokio::runtime::Handle::try_current().is_ok() {
                self.table.goes_away(&self.entry);
                let (vat, slot) = (self.vat.clone(), self.slot.clone());
                Self::await_client(vat, slot, self.table.clone(), self.entry.clone());
            }
            return self.vat.objects.release(&self.slot);
        }
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
    let Some(table) = slot.sockets() else { return };
    let cut: Vec<_> = table.cut().into_iter().filter_map(with_down).collect();
    if cut.is_empty() {
        return;
    }
    end(vat, slot, table, cut, "the grant by which the socket was opened was taken back");
}

/// The time of the reference is over by which a socket was opened.
fn expire((vat, slot, table): (Weak<Vat>, Weak<Slot>, Weak<SocketTable>), entry: Weak<Entry>) {
    let upgraded = || Some((vat.upgrade()?, slot.upgrade()?, table.upgrade()?, entry.upgrade()?));
    let Some((vat, slot, table, entry)) = upgraded() else { return };
    if let Some(ended) = with_down(entry) {
        let why = "the time of the reference by which the socket was opened is over";
        end(&vat, &slot, &table, vec![ended], why);
    }
}

/// A socket with its way out, which is taken; none if the socket has ended already.
fn with_down(entry: Rc<Entry>) -> Option<(Rc<Entry>, Option<web_socket::Client>)> {
    let down = entry.take_down();
    (down.is_some() || entry.is_away()).then_some((entry, down))
}

/// Ends sockets whose ways out were taken.
fn end(
    vat: &Rc<Vat>,
    slot: &Rc<Slot>,
    table: &Rc<SocketTable>,
    ended: Vec<(Rc<Entry>, Option<web_socket::Client>)>,
    why: &'static str,
) {
    let (vat, slot, table) = (vat.clone(), slot.clone(), table.clone());
    // Ends when all that was written by now is durable, or the storage has failed.
    tokio::task::spawn_local(async move {
        vat.turns.outside_turns().await;
        if vat.turns.flush().await.is_err() {
            return;
        }
        for (entry, down) in ended {
            if let Some(down) = down {
                close(&down, POLICY, why);
            }
            let (vat, slot, table) = (vat.clone(), slot.clone(), table.clone());
            SocketWay::tell(vat, slot, table, entry, (POLICY, why));
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
