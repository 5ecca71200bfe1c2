//! The way in to a WebSocket of an object, which the gateway holds as a facet. It names the object,
//! so that a message wakes a sleeping one, and keeps the slot, and in that the table of the
//! object's sockets.
//!
//! **Invariant:** an end of which nobody else tells the object is told by the host, once.

use std::cell::OnceCell;
use std::rc::{Rc, Weak};
use std::time::Duration;

use capnp::capability::FromClientHook;

use super::facet::Facet;
use super::slot::Slot;
use super::vat::Vat;
use crate::error::disconnected;
use crate::host::base::right::Right;
use crate::http::{Entry, LOST, SocketTable, keep};
use crate::limits::SURVIVING_AWAY_SECS;
use crate::membrane::{Body, Call};
use crate::schema::http_capnp::web_socket;

/// The code of a close frame for a right that has ended (RFC 6455, section 7.4.1).
const POLICY: u16 = 1008;

/// The way in to one socket of an object.
pub(in crate::host) struct SocketWay {
    vat: Rc<Vat>,
    slot: Rc<Slot>,
    table: Rc<SocketTable>,
    pub(in crate::host) entry: Rc<Entry>,
    of: WayOf,
    /// Of those that a surviving socket had.
    number: u64,
    /// The facet that calls by it keep while they run; none before the first.
    of_calls: OnceCell<Rc<Facet>>,
}

/// The holder of a way in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WayOf {
    /// The holder of the client's side.
    Client,
    /// The host, which tells the object of an end that nobody else tells it of.
    Host,
    /// The calls that came by another one and run: they keep the object, and not the socket.
    Calls,
}

impl SocketWay {
    /// A way in for the client's side.
    pub(in crate::host) fn new(
        vat: Rc<Vat>,
        slot: Rc<Slot>,
        table: Rc<SocketTable>,
        entry: Rc<Entry>,
    ) -> Self {
        let number = entry.surviving.as_ref().map_or(0, |surviving| surviving.way());
        let (of, of_calls) = (WayOf::Client, OnceCell::new());
        Self { vat, slot, table, entry, of, number, of_calls }
    }

    /// The facet for a call by it: a client that goes while its messages are handled is gone.
    pub(in crate::host) fn of_call(&self, facet: Rc<Facet>) -> Rc<Facet> {
        if self.of != WayOf::Client {
            return facet;
        }
        let make = || {
            let way = Self {
                vat: self.vat.clone(),
                slot: self.slot.clone(),
                table: self.table.clone(),
                entry: self.entry.clone(),
                of: WayOf::Calls,
                number: self.number,
                of_calls: OnceCell::new(),
            };
            facet.of_calls(way)
        };
        self.of_calls.get_or_init(make).clone()
    }

    /// Ends the socket when the time of the right is over.
    pub(in crate::host) fn end_with(&self, right: &Right) {
        let (vat, slot) = (Rc::downgrade(&self.vat), Rc::downgrade(&self.slot));
        let (table, entry) = (Rc::downgrade(&self.table), Rc::downgrade(&self.entry));
        let end = move || expire((vat, slot, table), entry);
        self.entry.ends_by(right.at_end(&self.vat.clock, end));
    }

    /// If a surviving socket isn't resumed in time, its client is lost.
    pub(in crate::host) fn await_client(
        vat: Rc<Vat>,
        slot: Rc<Slot>,
        table: Rc<SocketTable>,
        entry: Rc<Entry>,
    ) {
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
    pub(in crate::host) fn tell(
        vat: Rc<Vat>,
        slot: Rc<Slot>,
        table: Rc<SocketTable>,
        entry: Rc<Entry>,
        end: End,
    ) {
        if !table.is_open(&entry) {
            return vat.objects.release(&slot);
        }
        let (of, of_calls) = (WayOf::Host, OnceCell::new());
        let way = Self { vat, slot, table, entry, of, number: 0, of_calls };
        let way: web_socket::Client = FromClientHook::new(Facet::socket(way, Right::default()));
        let mut close = way.close_request();
        close.get().set_code(end.0);
        close.get().set_reason(end.1);
        keep(close.send().promise);
    }
}

/// The code and the reason of an end.
pub(in crate::host) type End = (u16, &'static str);

/// Dropped without a close, the client is lost. A drop is no turn, and may come from anywhere, so
/// the host tells the object later. If the object couldn't be told, nobody will be.
impl Drop for SocketWay {
    fn drop(&mut self) {
        if self.of == WayOf::Calls {
            return self.vat.objects.release(&self.slot);
        }
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
pub(in crate::host) fn with_down(
    entry: Rc<Entry>,
) -> Option<(Rc<Entry>, Option<web_socket::Client>)> {
    let down = entry.take_down();
    (down.is_some() || entry.is_away()).then_some((entry, down))
}

/// Ends sockets whose ways out were taken.
pub(in crate::host) fn end(
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

/// Sends a close frame.
pub(in crate::host) fn close(down: &web_socket::Client, code: u16, reason: &str) {
    let mut close = down.close_request();
    close.get().set_code(code);
    close.get().set_reason(crate::http::cut_reason(reason));
    keep(close.send().promise);
}
