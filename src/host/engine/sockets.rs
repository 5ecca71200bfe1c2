//! The WebSockets of objects, which live beside the object's slot: sleep, abort and panics end
//! instances, and no socket.
//!
//! Invariants:
//! - A sleeping object's sockets hold nothing of any instance.
//! - A message begins at most once. One that had not begun when an instance ended goes to the next
//!   one, in its place; if one was lost with an instance, none that came after it on that socket
//!   begins.
//! - A revoked grant ends the sockets that were opened by it, and so does the end of a reference's
//!   time, whether the object sleeps or not.

use std::any::Any;
use std::ops::Bound;
use std::rc::Rc;

use capnp::any_pointer;
use capnp::capability::{FromClientHook, Params, Promise, Results};
use capnp::private::capability::ClientHook;
use capnp::traits::HasTypeId;
use capstead_client::sturdyref::Method;

use super::gated::Gated;
use crate::error::{Result, failed, no_such_method};
use crate::host::base::right::Right;
use crate::host::state::facet::Facet;
use crate::host::state::instance::Instance;
use crate::host::state::slot::Slot;
use crate::host::state::slot::end_error;
use crate::host::state::socket_way::{self, SocketWay, close, with_down};
use crate::host::state::vat::Vat;
use crate::http::{Entry, HasSockets, Holder, LOST, Lease, Records, SocketTable, View};
use crate::membrane;
use crate::schema::http_capnp::http_service::client_request_context;
use crate::schema::http_capnp::web_socket;
use crate::schema::surviving_capnp::socket_resumption;
use crate::storage::{PageSize, Range, Space};

/// The code of a close frame for a failure (RFC 6455, section 7.4.1).
const FAILED: u16 = 1011;

/// The method of the interface `SocketResumption`.
const RESUME: u16 = 0;

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

impl Records for HolderOf {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.0.read(Space::Sockets, key)
    }

    fn set(&self, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        if self.0.vat.turns.store().is_in_transaction() {
            return Err(failed(
                "what a surviving socket stores can't be undone: use it outside the transaction",
            ));
        }
        self.0.write_record(Space::Sockets, key, value)
    }

    fn each(&self, prefix: &[u8], visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
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

/// Begins a call on the socket, in a turn of the instance whose value is `object`.
pub(super) fn call(
    way: &SocketWay,
    instance: &Rc<Instance>,
    object: Option<Rc<dyn Any>>,
    method: Method,
    params: &Params<any_pointer::Owned>,
) -> Promise<(), capnp::Error> {
    let Some(object) = object else { return Promise::err(instance.why_ended()) };
    let view = view_in(instance, way.slot());
    crate::http::dispatch(&view, &way.entry, object, method, params)
}

/// The sockets that were opened by grants which are cut now end. Nothing more goes out on them;
/// both sides are told when it is durable.
pub(super) fn cut(vat: &Rc<Vat>, slot: &Rc<Slot>) {
    let Some(table) = slot.sockets() else { return };
    let cut: Vec<_> = table.cut().into_iter().filter_map(with_down).collect();
    if cut.is_empty() {
        return;
    }
    socket_way::end(
        vat,
        slot,
        table,
        cut,
        "the grant by which the socket was opened was taken back",
    );
}

/// A turn of the instance was discarded, and took back the attachments that it stored, of which
/// they are no part: those of surviving sockets are stored anew.
pub(super) fn keep_attachments(instance: &Instance) {
    let (vat, id) = (&instance.vat, instance.spec.id);
    let slot = vat.objects.find(id);
    let Some(table) = slot.as_ref().and_then(|slot| slot.sockets()) else { return };
    let stored = |key: &[u8]| vat.turns.store().get(id, Space::Sockets, key).ok().flatten();
    let unstored = table.unstored(stored);
    if unstored.is_empty() {
        return;
    }
    let kept = vat.turns.of_server(instance.account.clone(), || {
        unstored.iter().try_for_each(|(key, attachment)| {
            vat.turns.store_mut().put_record(id, Space::Sockets, key, attachment).map(drop)
        })
    });
    if let Err(error) = kept {
        let class = instance.spec.class.name;
        tracing::warn!(class, %error, "attachments of sockets are in memory alone");
    }
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
